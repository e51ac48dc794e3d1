//! Parts of snapshots for tests, of this crate and of those that use it: each changes what its case is
//! about.

use std::time::Duration;

use super::{
    Bytes, CgroupId, Connection, Cookie, Endpoint, EndpointKey, KernelTime, Netns, ServiceAt,
    ServiceName, Snapshot, TcpState,
};

/// Of a node at this moment, with these connections.
pub fn snapshot(taken: u64, connections: Vec<Connection>) -> Snapshot {
    Snapshot {
        taken: KernelTime(taken),
        connections,
        ..Snapshot::default()
    }
}

/// What accepts connections on this port of a network namespace, which is not the host's.
pub fn endpoint(netns: u32, port: u16) -> EndpointKey {
    EndpointKey {
        netns: Netns(netns),
        cgroup: None,
        port,
    }
}

/// An endpoint that listens, and knows of no connection.
pub fn listening() -> Endpoint {
    Endpoint {
        listeners: 1,
        ..Endpoint::default()
    }
}

/// A Service of the namespace `shop`.
pub fn service(name: &str) -> ServiceName {
    ServiceName {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    }
}

/// A Service that leads to a ready endpoint.
pub fn service_at(name: &str) -> ServiceAt {
    ServiceAt {
        name: name.to_owned(),
        ready: true,
        ..ServiceAt::default()
    }
}

/// An accepted connection at rest that no guard skips.
pub fn connection(cookie: u64) -> Connection {
    Connection {
        cookie: Cookie(cookie),
        endpoint: endpoint(1, 8080),
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
