//! From the kernel's records to a [`Snapshot`]. What comes from the kernel is checked here, once.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use rebalancer_common::{self as common, Fault, IpProto, Listed, flags, kind};

use crate::{
    bpf::{self, CgroupPaths, Lister, Pass, read_endpoints, read_faults},
    snapshot::{
        Bytes, CgroupId, Connection, Cookie, Endpoint, EndpointKey, KernelTime, Netns, Sends,
        Snapshot, TcpState, Who,
    },
};

/// A snapshot and how it was come by.
#[derive(Debug)]
pub struct Observation {
    /// The node's connections and endpoints.
    pub snapshot: Snapshot,
    /// What went wrong in the kernel half since tracking began.
    pub faults: BTreeMap<Fault, u64>,
    /// Sockets recycled while they were listed, and skipped.
    pub recycled: u64,
    /// The longest time that one shard held the CPU.
    pub longest: Duration,
    /// Records that made no sense, and were skipped.
    pub invalid: u64,
    /// Port and cgroup of every listener.
    pub listeners: Vec<(u16, CgroupId)>,
}

/// Reads everything that the kernel half has recorded.
pub fn observe(lister: &mut Lister) -> Result<Observation, bpf::Error> {
    let sums = read_endpoints(lister.pins())?;
    let faults = read_faults(lister.pins())?;
    let pass = lister.read()?;
    let host = lister.kernel().host_netns();
    Ok(join(&pass, &sums, faults, host, &|jiffies| {
        lister.jiffies(jiffies)
    }))
}

/// Puts the paths of their cgroups to the connections.
pub fn locate(snapshot: &mut Snapshot, paths: &CgroupPaths) {
    for connection in &mut snapshot.connections {
        connection.cgroup_path = paths.get(&connection.cgroup).cloned();
    }
}

/// Joins one pass with the endpoints' sums.
pub(crate) fn join(
    pass: &Pass,
    sums: &BTreeMap<common::EndpointKey, common::EndpointSums>,
    faults: BTreeMap<Fault, u64>,
    host: Netns,
    jiffies: &dyn Fn(u32) -> Duration,
) -> Observation {
    let mut endpoints: BTreeMap<EndpointKey, Endpoint> = sums
        .iter()
        .map(|(key, sums)| (endpoint_key(key), endpoint(sums)))
        .collect();
    let mut connections = Vec::with_capacity(pass.listed.len());
    let mut invalid = 0;
    let listeners = pass
        .listed
        .iter()
        .map(|listed| &listed.connection)
        .filter(|record| record.kind == kind::LISTENER)
        .map(|record| (record.local_port, CgroupId(record.cgroup)))
        .collect();
    for listed in &pass.listed {
        if listed.connection.kind == kind::LISTENER || is_closed(listed) {
            continue;
        }
        let Some(connection) = connection(listed, host, jiffies) else {
            invalid += 1;
            continue;
        };
        // The sums hold the bytes of closed connections; those that live are added here. A pass
        // is exact, so what it found is what is open.
        let endpoint = endpoints.entry(connection.endpoint).or_default();
        endpoint.open += 1;
        endpoint.bytes_in.0 = endpoint.bytes_in.0.saturating_add(connection.bytes_in.0);
        endpoint.bytes_out.0 = endpoint.bytes_out.0.saturating_add(connection.bytes_out.0);
        connections.push(connection);
    }
    let snapshot = Snapshot {
        taken: KernelTime(pass.now_ns),
        connections,
        endpoints,
        ..Snapshot::default()
    };
    Observation {
        snapshot,
        faults,
        recycled: pass.recycled,
        longest: pass.longest,
        invalid,
        listeners,
    }
}

/// A socket that is closed but still held by its process, or counted as closed already.
fn is_closed(listed: &Listed) -> bool {
    const TCP_CLOSE: u8 = 7;
    listed.live.state == TCP_CLOSE || listed.connection.flags & flags::CLOSED != 0
}

/// A listed record as a connection; `None` if it makes no sense.
pub(crate) fn connection(
    listed: &Listed,
    host: Netns,
    jiffies: &dyn Fn(u32) -> Duration,
) -> Option<Connection> {
    let (record, live) = (&listed.connection, &listed.live);
    if record.kind != kind::CONNECTION
        || record.protocol != IpProto::Tcp as u8
        || record.cookie == 0
        || record.local_port == 0
        || record.remote_port == 0
    {
        return None;
    }
    let netns = Netns(record.netns);
    let cgroup = CgroupId(record.cgroup);
    Some(Connection {
        cookie: Cookie(record.cookie),
        endpoint: EndpointKey {
            netns,
            cgroup: (netns == host).then_some(cgroup),
            port: record.local_port,
        },
        cgroup,
        cgroup_path: None,
        local: address(record.local_addr, record.local_port, record.device),
        remote: address(record.remote_addr, record.remote_port, record.device),
        device: record.device,
        opened: KernelTime(record.start_ns),
        adopted: record.flags & flags::ADOPTED != 0,
        state: TcpState::from_kernel(live.state),
        owned: live.owned == 1,
        mptcp: live.mptcp != 0,
        bytes_in: Bytes(live.bytes_received),
        bytes_out: Bytes(live.bytes_acked),
        receive_queue: live.rcv_nxt.wrapping_sub(live.copied_seq),
        send_queue: live.write_seq.wrapping_sub(live.snd_una),
        server_spoke_last: live.bytes_sent > 0 && live.snd_wl1 == live.rcv_nxt,
        since_sent: jiffies(live.since_sent),
        since_received: jiffies(live.since_received),
        segments_in: live.data_segs_in,
        segments_out: live.data_segs_out,
        retransmits: live.total_retrans,
        rtt: Duration::from_micros(u64::from(live.srtt_us8 >> 3)),
        sends: (record.flags & flags::COUNTED != 0).then_some(Sends {
            messages: record.messages,
            bytes: Bytes(record.message_bytes),
        }),
    })
}

/// IPv4-mapped addresses are shown as what they are, IPv4. A link-local one needs its interface.
fn address(octets: [u8; 16], port: u16, device: u32) -> SocketAddr {
    match Ipv6Addr::from(octets).to_canonical() {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => {
            SocketAddr::V6(std::net::SocketAddrV6::new(ip, port, 0, device))
        }
        ip => SocketAddr::new(ip, port),
    }
}

fn endpoint_key(key: &common::EndpointKey) -> EndpointKey {
    EndpointKey {
        netns: Netns(key.netns),
        cgroup: (key.cgroup != 0).then_some(CgroupId(key.cgroup)),
        port: key.port,
    }
}

fn endpoint(sums: &common::EndpointSums) -> Endpoint {
    Endpoint {
        who: Who::default(), // names come from elsewhere
        listeners: sums.listeners,
        accepted: sums.accepted,
        open: 0,
        closed: sums.closed,
        closed_by_reset: sums.closed_by_reset,
        closed_by_abort: sums.closed_by_abort,
        closed_by_timeout: sums.closed_by_timeout,
        bytes_in: Bytes(sums.bytes_in),
        bytes_out: Bytes(sums.bytes_out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Netns = Netns(1);

    fn listed() -> Listed {
        let mut listed = Listed::default();
        let record = &mut listed.connection;
        record.cookie = 7;
        record.netns = 2;
        record.local_port = 80;
        record.remote_port = 4000;
        record.local_addr = std::net::Ipv4Addr::new(10, 0, 0, 1)
            .to_ipv6_mapped()
            .octets();
        record.remote_addr = std::net::Ipv4Addr::new(10, 0, 0, 2)
            .to_ipv6_mapped()
            .octets();
        record.protocol = IpProto::Tcp as u8;
        listed.live.state = 1;
        listed.live.owned = 1;
        listed.live.bytes_received = 10;
        listed.live.bytes_acked = 20;
        listed
    }

    fn join_all(listed: Vec<Listed>) -> Observation {
        let key = common::EndpointKey {
            netns: 2,
            port: 80,
            ..Default::default()
        };
        let sums = common::EndpointSums {
            accepted: 5,
            closed: 3,
            bytes_in: 100,
            bytes_out: 200,
            ..Default::default()
        };
        let pass = Pass {
            listed,
            now_ns: 9,
            ..Default::default()
        };
        join(
            &pass,
            &BTreeMap::from([(key, sums)]),
            BTreeMap::new(),
            HOST,
            &|j| Duration::from_millis(4 * u64::from(j)),
        )
    }

    #[test]
    fn closed_and_live_bytes_are_summed_once() {
        let mut closed = listed();
        closed.connection.cookie = 8;
        closed.connection.flags = flags::CLOSED;
        let mut held = listed();
        held.connection.cookie = 9;
        held.live.state = 7;
        let got = join_all(vec![listed(), closed, held]);
        assert_eq!(got.snapshot.connections.len(), 1);
        let endpoint = got.snapshot.endpoints.values().next().unwrap();
        assert_eq!(
            (endpoint.accepted, endpoint.open, endpoint.closed),
            (5, 1, 3)
        );
        assert_eq!(
            (endpoint.bytes_in, endpoint.bytes_out),
            (Bytes(110), Bytes(220))
        );
    }

    #[test]
    fn records_that_make_no_sense_are_skipped_and_counted() {
        let mut other = listed();
        other.connection.protocol = IpProto::Udp as u8;
        let mut nameless = listed();
        nameless.connection.cookie = 0;
        let got = join_all(vec![other, nameless]);
        assert_eq!((got.invalid, got.snapshot.connections.len()), (2, 0));
    }

    #[test]
    fn mapped_addresses_are_ipv4_and_sequence_numbers_wrap() {
        let mut wrapped = listed();
        wrapped.live.write_seq = 5;
        wrapped.live.snd_una = u32::MAX - 4;
        wrapped.live.snd_wl1 = 3;
        wrapped.live.rcv_nxt = 3;
        let silent = connection(&wrapped, HOST, &|_| Duration::ZERO).unwrap();
        assert!(
            !silent.server_spoke_last,
            "a server that sent nothing has not spoken"
        );
        wrapped.live.bytes_sent = 1;
        let got = connection(&wrapped, HOST, &|_| Duration::ZERO).unwrap();
        assert!(got.server_spoke_last);
        assert_eq!(got.send_queue, 10);
        assert_eq!(got.remote.to_string(), "10.0.0.2:4000");
        assert_eq!(got.endpoint.cgroup, None);
        wrapped.connection.netns = HOST.0;
        let hosts = connection(&wrapped, HOST, &|_| Duration::ZERO).unwrap();
        assert_eq!(hosts.endpoint.cgroup, Some(CgroupId(0)));
    }
}
