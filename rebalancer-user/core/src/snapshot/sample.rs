//! One connection for tests, of this crate and of those that use it: each changes what its case is
//! about.

use std::time::Duration;

use super::{Bytes, CgroupId, Connection, Cookie, EndpointKey, KernelTime, Netns, TcpState};

/// An accepted connection at rest that no guard skips.
pub fn connection(cookie: u64) -> Connection {
    Connection {
        cookie: Cookie(cookie),
        endpoint: EndpointKey {
            netns: Netns(1),
            cgroup: None,
            port: 8080,
        },
        cgroup: CgroupId(1),
        cgroup_path: None,
        local: "10.1.0.1:8080".parse().expect("an address"),
        remote: "10.0.0.1:40000".parse().expect("an address"),
        opened: KernelTime(0),
        device: 0,
        adopted: false,
        state: TcpState::Established,
        mptcp: false,
        bytes_in: Bytes(0),
        bytes_out: Bytes(0),
        receive_queue: 0,
        send_queue: 0,
        server_spoke_last: true,
        since_sent: Duration::ZERO,
        since_received: Duration::ZERO,
        segments_in: 0,
        segments_out: 0,
        retransmits: 0,
        rtt: Duration::ZERO,
        sends: None,
    }
}
