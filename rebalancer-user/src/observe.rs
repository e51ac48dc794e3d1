//! From the kernel's records to a [`Snapshot`]. What comes from the kernel is checked here, once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use rebalancer_common::{self as common, Fault, IpProto, Live, flags, kind};

use crate::{
    bpf::{self, Adopt, Pass, Walked, Walker, read_endpoints, read_faults},
    host::CgroupPaths,
    lost_closes::LostCloses,
    snapshot::{
        Bytes, CgroupId, Connection, Cookie, Endpoint, EndpointKey, KernelTime, Netns, NetnsCookie,
        Sends, Snapshot, TcpState, Who,
    },
};

/// A snapshot, and what was seen on the way.
#[derive(Debug)]
pub struct Observation {
    /// The node's connections and endpoints.
    pub snapshot: Snapshot,
    /// Faults of the kernel half since tracking began.
    pub faults: BTreeMap<Fault, u64>,
    /// Descriptors looked at, of sockets and of anything else.
    pub files: u64,
    /// Connections recorded that no descriptor leads to: in an accept queue, in flight between
    /// processes, or held by io_uring alone. They are not in the snapshot.
    pub unseen: u64,
    /// CPU time that the walk took.
    pub cpu: Duration,
    /// Processes that hold recorded sockets.
    holders: BTreeSet<u32>,
    /// Listeners by the kernel half's count.
    listeners_counted: u64,
    /// Connections that got a record in this pass.
    adopted: u64,
    /// Connections that have or had no close that will be seen, by the kernel half's count.
    without_close_counted: u64,
    /// Connections that take room: those whose close will be seen, and others that were found.
    recorded: u64,
    /// What the kernel half counts of them, those among them whose close it does not see.
    counted: i64,
    /// Endpoints that have neither a listener nor a connection.
    pub empty_endpoints: BTreeMap<common::EndpointKey, common::EndpointSums>,
    /// Invalid records, which were skipped.
    pub invalid: u64,
    /// Port and cgroup of every listener.
    pub listeners: Vec<(u16, CgroupId)>,
}

/// Observes repeatedly: mostly only the processes that hold recorded sockets are walked, because on a typical
/// node nearly all descriptors belong to others.
pub struct Observer {
    walker: Walker,
    last: Option<Everywhere>,
    /// What the last pass over all processes has counted.
    counted: Option<[u64; 3]>,
    /// Passes over all processes to come, after passes over some of them did not suffice.
    whole_passes: u32,
    wait: u32,
    lost_closes: LostCloses,
}

/// What the last pass over all processes has found.
struct Everywhere {
    at: Instant,
    holders: BTreeSet<u32>,
    counts: [u64; 3],
}

impl Observation {
    /// Counts of the kernel half that change when a process holds something new.
    fn counts(&self) -> [u64; 3] {
        [
            self.unseen,
            self.listeners_counted,
            self.without_close_counted,
        ]
    }

    /// Whether it has all connections and listeners that the kernel half counts.
    fn has_seen_all(&self) -> bool {
        self.unseen == 0 && self.listeners.len() as u64 >= self.listeners_counted
    }
}

/// All processes are walked over this often at least: a connection that was adopted, and a listener
/// of a process that holds nothing else, can come to another one uncounted.
const EVERYWHERE_EVERY: Duration = Duration::from_secs(60);

/// Most passes over all processes before some of them are tried again.
const MOST_WHOLE_PASSES: u32 = 32;

impl Observer {
    /// Observes by this walker.
    pub fn new(walker: Walker) -> Self {
        Self {
            walker,
            last: None,
            counted: None,
            whole_passes: 0,
            wait: 0,
            lost_closes: LostCloses::default(),
        }
    }

    /// The next pass is over all processes.
    pub fn look_everywhere(&mut self) {
        self.last = None;
    }

    /// Reads everything that the kernel half has recorded. Its counts show whether a socket is
    /// held by a process that was not walked over; then all are.
    pub fn observe(
        &mut self,
        adopt: Adopt,
        paths: &CgroupPaths,
    ) -> Result<Observation, bpf::Error> {
        let observation = self.observe_enough(adopt, paths)?;
        if adopt != Adopt::No {
            let recorded = observation.recorded.cast_signed();
            self.walker.set_correction(recorded - observation.counted);
        }
        Ok(observation)
    }

    fn observe_enough(
        &mut self,
        adopt: Adopt,
        paths: &CgroupPaths,
    ) -> Result<Observation, bpf::Error> {
        let (mut before, mut adopted) = (Duration::ZERO, 0);
        if let Some(observation) = self.observe_some(adopt, paths)? {
            let last = self.last.as_ref();
            if last.is_some_and(|last| last.counts == observation.counts()) {
                self.whole_passes = 0;
                return Ok(observation);
            }
            (before, adopted) = (observation.cpu, observation.adopted);
            self.whole_passes = (2 * self.whole_passes).clamp(1, MOST_WHOLE_PASSES);
            self.wait = self.whole_passes;
        }
        let pass = self.walker.walk(adopt.less(adopted))?;
        let (mut observation, sums) = read(&self.walker, &pass, paths)?;
        if adopt != Adopt::No
            && let Some((endpoint, count)) =
                self.lost_closes
                    .find(&pass, &sums, self.walker.kernel().host_netns())
        {
            self.walker.set_lost(endpoint, count);
        }
        observation.cpu += before;
        let counts = observation.counts();
        let before = self.counted.replace(counts);
        // What began while it was under way may be counted and not seen: then the next must agree.
        self.last = (observation.has_seen_all() || before == Some(counts)).then(|| Everywhere {
            at: Instant::now(),
            holders: std::mem::take(&mut observation.holders),
            counts,
        });
        Ok(observation)
    }

    fn observe_some(
        &mut self,
        adopt: Adopt,
        paths: &CgroupPaths,
    ) -> Result<Option<Observation>, bpf::Error> {
        if self.wait > 0 {
            self.wait -= 1;
            return Ok(None);
        }
        match &self.last {
            Some(last) if last.at.elapsed() < EVERYWHERE_EVERY => {
                let pass = self.walker.walk_over(&last.holders, adopt)?;
                let read = pass
                    .map(|pass| read(&self.walker, &pass, paths))
                    .transpose()?;
                Ok(read.map(|(observation, _)| observation))
            }
            _ => Ok(None),
        }
    }
}

/// Reads everything that the kernel half has recorded, over all processes. `paths` are the cgroups that
/// were read before: sockets of later ones have no path.
pub fn observe(
    walker: &mut Walker,
    adopt: Adopt,
    paths: &CgroupPaths,
) -> Result<Observation, bpf::Error> {
    let pass = walker.walk(adopt)?;
    read(walker, &pass, paths).map(|(observation, _)| observation)
}

/// Reads what belongs to a pass, and the endpoints' sums. After it, as the walk makes endpoints as well.
fn read(
    walker: &Walker,
    pass: &Pass,
    paths: &CgroupPaths,
) -> Result<
    (
        Observation,
        BTreeMap<common::EndpointKey, common::EndpointSums>,
    ),
    bpf::Error,
> {
    let faults = read_faults(walker.pins())?;
    // Before the sums: what is accepted in between is not taken for one whose close was not seen.
    let counted = walker.counted();
    let sums = read_endpoints(walker.pins())?;
    let context = Context {
        host: walker.kernel().host_netns(),
        paths,
        jiffies: &|jiffies| walker.jiffies(jiffies),
    };
    let observation = Observation {
        counted,
        ..join(pass, &sums, faults, &context)
    };
    Ok((observation, sums))
}

/// What the records of a pass refer to.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    /// The host's network namespace.
    pub(crate) host: Netns,
    /// Paths of cgroups.
    pub(crate) paths: &'a CgroupPaths,
    /// The kernel's ticks as time.
    pub(crate) jiffies: &'a dyn Fn(u32) -> Duration,
}

/// Joins one pass with the endpoints' sums.
pub(crate) fn join(
    pass: &Pass,
    sums: &BTreeMap<common::EndpointKey, common::EndpointSums>,
    faults: BTreeMap<Fault, u64>,
    context: &Context<'_>,
) -> Observation {
    let namespaces = namespaces(pass, sums);
    let of = |key: &common::EndpointKey| namespaces.get(&Netns(key.netns)).copied().flatten();
    let is_there = |key: &common::EndpointKey| of(key) == Some(NetnsCookie(key.netns_cookie));
    let there = || sums.iter().filter(|(key, _)| is_there(key));
    let mut endpoints: BTreeMap<EndpointKey, Endpoint> = there()
        .map(|(key, sums)| (endpoint_key(key), endpoint(sums)))
        .collect();
    let mut connections = Vec::with_capacity(pass.sockets.len());
    let mut listeners = Vec::new();
    let (mut invalid, mut with_close, mut without_close) = (0, 0_u64, 0);
    for socket in &pass.sockets {
        let record = &socket.connection;
        if is_closed(socket) {
            continue;
        }
        if record.kind == kind::LISTENER {
            listeners.push((record.local_port, CgroupId(record.cgroup)));
            endpoints
                .entry(key_of(record, context.host))
                .or_default()
                .listeners += 1;
            continue;
        }
        let Some(connection) = connection(socket, context) else {
            invalid += 1;
            continue;
        };
        // The sums hold the bytes of closed connections; those that live are added here.
        let endpoint = endpoints.entry(connection.endpoint).or_default();
        endpoint.open += 1;
        let add = |sum: &mut Bytes, all: Bytes, summed: u64| {
            sum.0 = sum.0.saturating_add(all.0.saturating_sub(summed));
        };
        add(
            &mut endpoint.bytes_in,
            connection.bytes_in,
            record.summed_in,
        );
        add(
            &mut endpoint.bytes_out,
            connection.bytes_out,
            record.summed_out,
        );
        if record.flags & flags::WITHOUT_CLOSE == 0 {
            with_close += 1;
        } else {
            without_close += 1;
            // Of those whose close is not seen, what the walk does not find is closed.
            endpoint.closed = endpoint.closed.saturating_sub(1);
        }
        connections.push(connection);
    }
    let empty_endpoints = sums
        .iter()
        .filter(|(key, sums)| {
            if !is_there(key) && of(key).is_some() {
                return true; // its namespace no longer exists
            }
            let found = endpoints.get(&endpoint_key(key));
            let is_used = |found: &Endpoint| found.listeners + found.open > 0;
            signed(sums.open) == 0 && !found.is_some_and(is_used)
        })
        .map(|(key, sums)| (*key, *sums))
        .collect();
    let open: u64 = there().map(|(_, sums)| signed(sums.open)).sum();
    let snapshot = Snapshot {
        taken: KernelTime(pass.now_ns),
        connections,
        endpoints,
        namespaces: (namespaces.iter())
            .filter_map(|(netns, cookie)| Some((*netns, cookie.filter(|c| c.0 != 0)?)))
            .collect(),
        ..Snapshot::default()
    };
    Observation {
        snapshot,
        faults,
        files: pass.files,
        unseen: open.saturating_sub(with_close),
        cpu: pass.cpu,
        holders: pass
            .sockets
            .iter()
            .flat_map(|socket| socket.holders.iter().map(|holder| holder.pid))
            .collect(),
        adopted: pass.adopted,
        without_close_counted: sums.values().map(|sums| signed(sums.without_close)).sum(),
        recorded: open + without_close,
        counted: 0,
        listeners_counted: sums.values().map(|sums| signed(sums.listeners)).sum(),
        empty_endpoints,
        invalid,
        listeners,
    }
}

/// The cookie of the namespace that each inode is of. Sockets hold theirs; without sockets
/// the sums may be of a namespace that no longer exists, and if they are of several, it is unknown.
fn namespaces(
    pass: &Pass,
    sums: &BTreeMap<common::EndpointKey, common::EndpointSums>,
) -> BTreeMap<Netns, Option<NetnsCookie>> {
    let mut namespaces = BTreeMap::new();
    for key in sums.keys() {
        let cookie = Some(NetnsCookie(key.netns_cookie));
        let known = namespaces.entry(Netns(key.netns)).or_insert(cookie);
        if *known != cookie {
            *known = None;
        }
    }
    for record in pass.sockets.iter().map(|socket| &socket.connection) {
        let cookie = NetnsCookie(record.netns_cookie);
        namespaces.insert(Netns(record.netns), Some(cookie));
    }
    namespaces
}

/// A socket that is closed but still held by its process.
fn is_closed(socket: &Walked) -> bool {
    const TCP_CLOSE: u8 = 7;
    socket.live.state == TCP_CLOSE
}

fn key_of(record: &common::Connection, host: Netns) -> EndpointKey {
    let netns = Netns(record.netns);
    EndpointKey {
        netns,
        cgroup: (netns == host).then_some(CgroupId(record.cgroup)),
        port: record.local_port,
    }
}

/// Whether the server's last data was sent after the client's last data had arrived, or at least
/// before the client had all that was sent by then. Proven by data alone: a pure acknowledgement, such
/// as the answer to a keepalive probe, can only make this false.
///
/// Each of these is enough:
/// - The kernel's ticks differ.
/// - Data of ours was newly acknowledged later than the client's last data arrived, so that data did
///   not acknowledge it. A client acknowledges a last answer separately, often 40 ms later.
/// - With its data the client has echoed an earlier TCP timestamp than that of our last data.
/// - It has sent one segment alone, and ours was sent after that.
/// - The last event of all is its acknowledgement of our data, after its own last data.
pub(crate) fn server_spoke_last(live: &Live, tick: Duration) -> bool {
    let since = |ticks: u32| tick.saturating_mul(ticks);
    let delivered = Duration::from_micros(live.since_delivered_us);
    let by_tick = live.since_sent < live.since_received;
    // A time in ticks is up to one tick too long.
    let by_delivery =
        live.since_sent <= live.since_received && delivered + 2 * tick < since(live.since_received);
    let ahead = live.sent_timestamp.wrapping_sub(live.echoed_timestamp) as i32;
    let by_timestamp =
        live.since_sent == live.since_received && live.echoed_timestamp != 0 && ahead > 0;
    let by_order = live.sole_request_answered == 1
        || live.since_sent == live.since_received && live.answer_acknowledged == 1;
    live.bytes_sent > 0 && (by_tick || by_delivery || by_timestamp || by_order)
}

/// A record as a connection; `None` if it is invalid.
pub(crate) fn connection(socket: &Walked, context: &Context<'_>) -> Option<Connection> {
    let (record, live) = (&socket.connection, &socket.live);
    let jiffies = context.jiffies;
    if record.kind != kind::CONNECTION
        || record.protocol != IpProto::Tcp as u8
        || record.cookie == 0
        || record.local_port == 0
        || record.remote_port == 0
    {
        return None;
    }
    Some(Connection {
        cookie: Cookie(record.cookie),
        endpoint: key_of(record, context.host),
        cgroup: CgroupId(record.cgroup),
        cgroup_path: context.paths.get(&CgroupId(record.cgroup)).cloned(),
        local: address(record.local_addr, record.local_port, record.device),
        remote: address(record.remote_addr, record.remote_port, record.device),
        device: record.device,
        opened: KernelTime(record.start_ns),
        adopted: record.flags & flags::ADOPTED != 0,
        state: TcpState::from_kernel(live.state),
        mptcp: live.mptcp != 0,
        bytes_in: Bytes(live.bytes_received),
        bytes_out: Bytes(live.bytes_acked),
        receive_queue: live.rcv_nxt.wrapping_sub(live.copied_seq),
        send_queue: live.write_seq.wrapping_sub(live.snd_una),
        server_spoke_last: server_spoke_last(live, jiffies(1)),
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

/// A count that may be less than none: an endpoint that was removed as empty and starts again
/// sees the ends of what came just then.
fn signed(count: u64) -> u64 {
    count.cast_signed().max(0).cast_unsigned()
}

fn endpoint(sums: &common::EndpointSums) -> Endpoint {
    Endpoint {
        // These come from elsewhere.
        who: Who::default(),
        drain: None,
        listeners: 0,
        accepted: sums.accepted,
        open: 0,
        closed: sums.closed + signed(sums.without_close),
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
    use crate::snapshot::CgroupPath;

    const HOST: Netns = Netns(1);
    const CONTEXT: Context<'_> = Context {
        host: HOST,
        paths: &CgroupPaths::new(),
        jiffies: &|ticks| Duration::from_millis(4 * ticks as u64),
    };

    fn listed() -> Walked {
        let mut listed = Walked {
            connection: common::Connection::default(),
            live: Live::default(),
            holders: Vec::new(),
        };
        let mapped = |last| std::net::Ipv4Addr::new(10, 0, 0, last).to_ipv6_mapped();
        let record = &mut listed.connection;
        record.cookie = 7;
        record.netns = 2;
        record.local_port = 80;
        record.remote_port = 4000;
        record.local_addr = mapped(1).octets();
        record.remote_addr = mapped(2).octets();
        record.protocol = IpProto::Tcp as u8;
        listed.live.state = 1;
        listed.live.bytes_received = 10;
        listed.live.bytes_acked = 20;
        listed
    }

    fn key(port: u16) -> common::EndpointKey {
        common::EndpointKey {
            netns: 2,
            port,
            ..Default::default()
        }
    }

    fn join_with(
        sockets: Vec<Walked>,
        sums: impl IntoIterator<Item = (common::EndpointKey, common::EndpointSums)>,
    ) -> Observation {
        let pass = Pass {
            sockets,
            now_ns: 9,
            ..Default::default()
        };
        let sums = sums.into_iter().collect();
        join(&pass, &sums, BTreeMap::new(), &CONTEXT)
    }

    fn join_all(sockets: Vec<Walked>) -> Observation {
        let sums = common::EndpointSums {
            accepted: 5,
            closed: 3,
            bytes_in: 100,
            bytes_out: 200,
            ..Default::default()
        };
        join_with(sockets, [(key(80), sums)])
    }

    #[test]
    fn closed_and_live_bytes_are_summed_once() {
        let mut held = listed();
        held.connection.cookie = 9;
        held.live.state = 7;
        let got = join_all(vec![listed(), held]);
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
    fn invalid_records_are_skipped_and_counted() {
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
        let got = connection(&wrapped, &CONTEXT).unwrap();
        assert_eq!(got.send_queue, 10);
        assert_eq!(got.remote.to_string(), "10.0.0.2:4000");
        assert_eq!(got.endpoint.cgroup, None);
        wrapped.connection.netns = HOST.0;
        let hosts = connection(&wrapped, &CONTEXT).unwrap();
        assert_eq!(hosts.endpoint.cgroup, Some(CgroupId(0)));
    }

    #[test]
    fn a_connection_has_the_path_of_its_cgroup_if_that_is_known() {
        let path = CgroupPath::new("/a");
        let paths = path.clone().map(|path| (CgroupId(5), path));
        let paths = &CgroupPaths::from_iter(paths);
        let context = Context { paths, ..CONTEXT };
        let mut socket = listed();
        assert_eq!(connection(&socket, &context).unwrap().cgroup_path, None);
        socket.connection.cgroup = 5;
        assert_eq!(connection(&socket, &context).unwrap().cgroup_path, path);
    }

    #[test]
    fn which_side_sent_last_is_proven_by_data_alone() {
        let tick = Duration::from_millis(4);
        // Both in one tick, all acknowledged with the client's data.
        let tie = Live {
            bytes_sent: 1,
            since_sent: 100,
            since_received: 100,
            since_delivered_us: 400_000,
            sent_timestamp: 1_000,
            echoed_timestamp: 1_000,
            ..Live::default()
        };
        let spoke_last = |live: Live| server_spoke_last(&live, tick);
        assert!(
            !spoke_last(tie),
            "the next request came with the acknowledgement"
        );
        let of_tie = |change: fn(&mut Live)| {
            let mut live = tie;
            change(&mut live);
            live
        };
        let proofs: [fn(&mut Live); 6] = [
            |live| live.since_sent = 99,
            |live| live.since_delivered_us = 391_999,
            |live| live.echoed_timestamp = 999,
            |live| (live.sent_timestamp, live.echoed_timestamp) = (4, u32::MAX - 4),
            |live| live.sole_request_answered = 1,
            |live| live.answer_acknowledged = 1,
        ];
        for mut proof in proofs.map(of_tie) {
            assert!(spoke_last(proof), "{proof:?}");
            proof.bytes_sent = 0;
            assert!(!spoke_last(proof), "it sent nothing at all");
        }
        let unproven: [fn(&mut Live); 6] = [
            |live| live.since_sent = 101,
            |live| (live.since_sent, live.echoed_timestamp) = (101, 999),
            |live| (live.since_sent, live.since_delivered_us) = (101, 0),
            |live| live.since_delivered_us = 392_000,
            // Without timestamps; or later than our last data, as with a keepalive probe.
            |live| live.echoed_timestamp = 0,
            |live| live.echoed_timestamp = 1_001,
        ];
        for live in unproven.map(of_tie) {
            assert!(!spoke_last(live), "{live:?}");
        }
    }

    #[test]
    fn a_connection_without_a_close_callback_is_closed_once_it_is_not_found() {
        let sums = common::EndpointSums {
            accepted: 10,
            open: 3,
            without_close: 4,
            closed: 3,
            ..Default::default()
        };
        let adopted = |cookie| {
            let mut adopted = listed();
            adopted.connection.cookie = cookie;
            adopted.connection.flags = flags::ADOPTED;
            adopted
        };
        let sockets = vec![listed(), adopted(8), adopted(9)];
        let got = join_with(sockets, [(key(80), sums)]);
        let endpoint = got.snapshot.endpoints.values().next().unwrap();
        // Three have a close that was seen, and two of the adopted are no longer found.
        assert_eq!((endpoint.open, endpoint.closed), (3, 5));
        // Two of the open ones are recorded, and no descriptor leads to them.
        assert_eq!(got.unseen, 2);
    }

    #[test]
    fn sums_of_a_previous_namespace_with_the_same_inode_are_dropped() {
        let key = |netns_cookie, port| common::EndpointKey {
            netns_cookie,
            ..key(port)
        };
        let of_seven = common::EndpointSums {
            accepted: 7,
            open: 7,
            ..Default::default()
        };
        let sums = [
            (key(5, 80), of_seven),
            (key(5, 81), of_seven),
            (key(6, 80), common::EndpointSums::default()),
        ];
        let mut there = listed();
        there.connection.netns_cookie = 6;
        let got = join_with(vec![there], sums);
        let endpoints = got.snapshot.endpoints.iter();
        let endpoints: Vec<_> = endpoints
            .map(|(k, e)| (k.port, e.accepted, e.open))
            .collect();
        assert_eq!(endpoints, [(80, 0, 1)]);
        assert_eq!(
            got.snapshot.namespaces,
            BTreeMap::from([(Netns(2), NetnsCookie(6))])
        );
        // Whatever they count: that namespace no longer exists.
        let empty: Vec<_> = got.empty_endpoints.into_keys().collect();
        assert_eq!((empty, got.unseen), (vec![key(5, 80), key(5, 81)], 0));
        // Nothing shows which is the later one.
        let got = join_with(Vec::new(), sums);
        assert_eq!(got.snapshot.endpoints, BTreeMap::new());
        assert_eq!(got.snapshot.namespaces, BTreeMap::new());
        let empty: Vec<_> = got.empty_endpoints.into_keys().collect();
        assert_eq!(empty, [key(6, 80)]);
    }

    #[test]
    fn negative_counts_are_zero() {
        let minus_one = common::EndpointSums {
            listeners: u64::MAX,
            open: u64::MAX,
            without_close: u64::MAX,
            closed: 3,
            ..Default::default()
        };
        let one = common::EndpointSums {
            listeners: 1,
            open: 1,
            ..Default::default()
        };
        let got = join_with(Vec::new(), [(key(80), minus_one), (key(81), one)]);
        assert_eq!((got.unseen, got.listeners_counted), (1, 1));
        let closed = got.snapshot.endpoints.values().map(|e| e.closed);
        assert_eq!(closed.collect::<Vec<_>>(), [3, 0]);
        // It starts again once it is removed.
        let empty: Vec<_> = got.empty_endpoints.into_keys().collect();
        assert_eq!(empty, [key(80)]);
    }
}
