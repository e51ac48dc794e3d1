//! Which sockets have a record, and what is counted of them, where something stands against it.

use std::{
    cmp::Ordering,
    fs::File,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rebalancer_common::{ENDPOINTS_PER_PLACE, Fault};
use rebalancer_user::{
    bpf::{Adopt, EmptyEndpoints, Tracker, Tracking, read_endpoints, read_faults},
    host::{CgroupPaths, netns::enter},
    observe::{Observation, Observer},
    snapshot::{CgroupId, Endpoint, EndpointKey, Netns},
};
use rustix::{
    net::{AddressFamily, SocketType, sockopt},
    thread::{UnshareFlags, unshare_unsafe},
};
use xtask::lab::{Host, Lab, Pod};

use crate::{
    neighbours::Neighbour,
    server::{Kind, Server, served_and_moved},
    support::{
        Agent, PATIENCE, QUIET, Tracked, accepted, alone, cgroup, connect, connect_many, connected,
        cookie, echoed, echoes, eventually, is_reset, lab, listen, track_only_with,
    },
};

/// As the agent's own passes do.
const ADOPT: Adopt = Adopt::Below {
    cgroup: CgroupId(0),
    room: u64::MAX,
};

fn key(netns: u32, port: u16) -> EndpointKey {
    EndpointKey {
        netns: Netns(netns),
        cgroup: None,
        port,
    }
}

fn endpoint(seen: &Observation, pod: &Pod, port: u16) -> Endpoint {
    seen.snapshot.endpoints[&key(pod.host.netns_inode() as u32, port)].clone()
}

/// Listeners, open and closed connections.
fn counts(seen: &Observation, pod: &Pod, port: u16) -> (u64, u64, u64) {
    let endpoint = endpoint(seen, pod, port);
    (endpoint.listeners, endpoint.open, endpoint.closed)
}

fn is_listed(seen: &Observation, stream: &TcpStream) -> bool {
    let id = cookie(stream);
    seen.snapshot.connections.iter().any(|c| c.cookie.0 == id)
}

/// Connections that are older than tracking, and their listener.
#[test]
fn an_adopted_connection_whose_close_is_not_seen_leaves_no_record() {
    let lab = lab(1);
    let pod = lab.pod(0);
    let listener = listen(pod, 7400);
    let mut all: Vec<_> = (0..5).map(|_| accepted(&lab, &listener)).collect();
    let mut tracked = Tracked::on_machine();
    tracked.walker.adopt(CgroupId(0), u64::MAX).unwrap();
    let counted = |tracked: &mut Tracked| counts(&tracked.observe(ADOPT), pod, 7400);
    assert_eq!(counted(&mut tracked), (1, 5, 0));
    all.truncate(2);
    assert_eq!(counted(&mut tracked), (1, 2, 3));
    drop(listener);
    assert_eq!(counted(&mut tracked), (0, 2, 3));
    drop(all);
    let seen = tracked.observe(ADOPT);
    assert_eq!(counts(&seen, pod, 7400), (0, 0, 5));
    let mut empty = EmptyEndpoints::default();
    assert_eq!(tracked.forget(&mut empty, &seen), 0);
    assert!(tracked.forget(&mut empty, &seen) >= 1);
    assert!(!tracked.knows(pod, 7400));
}

/// A program behind ours clears the callback of what is accepted meanwhile.
#[test]
fn a_connection_whose_callback_was_cleared_leaves_no_record() {
    let lab = lab(1);
    let pod = lab.pod(0);
    let mut tracked = Tracked::in_lab(&lab);
    let (address, _server) = Server::in_pod(pod, 7401, Kind::Plain);
    let _neighbour = Neighbour::attach(cgroup(&lab));
    let clients = clients(&lab, address, 5);
    let before = tracked.observe(ADOPT);
    assert_eq!(counts(&before, pod, 7401), (1, 5, 0));
    drop(clients);
    let now = || counts(&tracked.observe(ADOPT), pod, 7401);
    eventually("all are closed", now, |now| *now == (1, 0, 5));
    let seen = tracked.observe(ADOPT);
    assert_eq!(seen.unseen, before.unseen);
    // The kernel counts a FIN as a byte.
    let bytes = endpoint(&seen, pod, 7401).bytes_in.0;
    assert!((5..=10).contains(&bytes), "{bytes}");
}

/// Tracking of the lab alone with this cap, for an endpoint and for the node, and its observer.
fn capped(lab: &Lab, cap: u32) -> (Tracker, Observer, Adopt) {
    let tracking = Tracking {
        max_per_endpoint: cap,
        max_per_node: cap,
        ..Tracking::default()
    };
    let Tracked { tracker, walker } = Tracked::start(Some(cgroup(lab)), tracking);
    // Connections elsewhere on the machine do not count towards the cap.
    let adopt = Adopt::Below {
        cgroup: tracker.within().unwrap(),
        room: u64::MAX,
    };
    (tracker, Observer::new(walker), adopt)
}

/// Clients that have had an answer.
fn clients(lab: &Lab, address: SocketAddr, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| echoed(lab, address)).collect()
}

fn wait_until_left(pod: &Pod, count: usize) {
    let left = || connected(&pod.host);
    eventually("the other connections are closed", left, |left| {
        left.iter().filter(|&&byte| byte == b'\n').count() == count
    });
}

/// The walk never sees a connection that opens and closes between two passes.
#[test]
fn connections_without_a_callback_do_not_use_capacity_permanently() {
    const CAP: u32 = 10;
    let lab = lab(1);
    let pod = lab.pod(0);
    let (tracker, mut observer, adopt) = capped(&lab, CAP);
    let mut observe = || observer.observe(adopt, &CgroupPaths::new()).unwrap();
    let (address, _server) = Server::in_pod(pod, 7403, Kind::Plain);
    let neighbour = Neighbour::attach(cgroup(&lab));
    let come = |count| clients(&lab, address, count);
    observe();
    for gone in 1..=3 {
        drop(come(7));
        wait_until_left(pod, 0);
        let seen = observe();
        assert_eq!(counts(&seen, pod, 7403), (1, 0, 7 * gone));
        assert_eq!(seen.unseen, 0);
        assert_eq!(endpoint(&seen, pod, 7403).accepted, 7 * gone);
    }
    let some = come(9);
    assert_eq!(counts(&observe(), pod, 7403), (1, 9, 21));
    let more = come(9);
    assert_eq!(counts(&observe(), pod, 7403).1, u64::from(CAP), "a cap");
    drop((some, more, neighbour));
    wait_until_left(pod, 0);
    // The callbacks are left alone again.
    observe();
    let some = come(9);
    let seen = observe();
    assert_eq!(counts(&seen, pod, 7403).1, 9);
    let sums = read_endpoints(tracker.pins()).unwrap();
    let open: u64 = sums.values().map(|sums| sums.open).sum();
    assert_eq!((open, seen.unseen), (9, 0), "their closes will be seen");
    drop(some);
}

/// A program attached after ours may clear the callback later than at the accept. The connection then
/// counts as one whose close will be seen, and closes before a pass notices.
#[test]
fn connections_that_lose_their_callback_later_do_not_use_capacity_permanently() {
    const STATE: u32 = 10;
    const CAP: u32 = 30;
    let lab = lab(1);
    let pod = lab.pod(0);
    let (tracker, mut observer, adopt) = capped(&lab, CAP);
    let mut observe = || {
        observer.look_everywhere();
        observer.observe(adopt, &CgroupPaths::new()).unwrap()
    };
    let (address, _server) = Server::in_pod(pod, 7405, Kind::Plain);
    let neighbour = Neighbour::clearing_at(cgroup(&lab), STATE);
    let come = |count| clients(&lab, address, count);
    let open = || -> i64 {
        let sums = read_endpoints(tracker.pins()).unwrap();
        sums.values().map(|sums| sums.open.cast_signed()).sum()
    };
    let mut stays = come(1);
    observe();
    for gone in 1..=3 {
        drop(come(20));
        wait_until_left(pod, 1);
        assert_eq!(open(), 20, "their closes were not seen");
        // At the first pass they may still be in transit; the next two miss them; the fourth accounts
        // for them.
        for _ in 0..4 {
            observe();
        }
        assert_eq!(open(), 0);
        let seen = observe();
        assert_eq!(counts(&seen, pod, 7405), (1, 1, 20 * gone));
        assert_eq!(seen.unseen, 0);
    }
    stays.iter_mut().for_each(echoes);
    drop(neighbour);
    let _some = come(CAP as usize - 1);
    let open = counts(&observe(), pod, 7405).1;
    assert_eq!(open, u64::from(CAP), "all have room");
}

#[test]
fn a_connection_that_is_not_accepted_yet_is_kept_if_its_callback_is_cleared() {
    let lab = lab(1);
    let pod = lab.pod(0);
    let mut tracked = Tracked::in_lab(&lab);
    let listener = listen(pod, 7404);
    let _neighbour = Neighbour::attach(cgroup(&lab));
    let client = connect(&lab, listener.local_addr().unwrap());
    for _ in 0..2 {
        assert_eq!(counts(&tracked.observe(ADOPT), pod, 7404).1, 0);
    }
    let (server, _) = listener.accept().unwrap();
    let seen = tracked.observe(ADOPT);
    assert_eq!(counts(&seen, pod, 7404), (1, 1, 0));
    assert!(is_listed(&seen, &server));
    drop((client, server));
    assert_eq!(counts(&tracked.observe(ADOPT), pod, 7404), (1, 0, 1));
}

/// A network namespace with its loopback interface up, and what `inside` has made in it.
fn in_new_namespace<T: Send>(inside: impl FnOnce() -> T + Send) -> (File, T) {
    let make = || {
        // SAFETY: it changes this thread alone, which ends here.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.unwrap().success());
        (File::open("/proc/thread-self/ns/net").unwrap(), inside())
    };
    thread::scope(|scope| scope.spawn(make).join().unwrap())
}

/// `SO_NETNS_COOKIE`.
fn netns_cookie(socket: &TcpListener) -> u64 {
    const SO_NETNS_COOKIE: i32 = 71; // linux/asm-generic/socket.h
    let (mut cookie, mut length) = (0_u64, size_of::<u64>() as libc::socklen_t);
    let (socket, answer) = (socket.as_raw_fd(), (&raw mut cookie).cast());
    let (level, option) = (libc::SOL_SOCKET, SO_NETNS_COOKIE);
    // SAFETY: room for the answer, and its length.
    let result = unsafe { libc::getsockopt(socket, level, option, answer, &raw mut length) };
    assert_eq!(result, 0);
    cookie
}

/// A pod ends, and the next one's namespace has the number of its.
#[test]
fn a_namespace_with_a_reused_inode_does_not_inherit_records() {
    alone();
    let tracking = Tracking {
        loopback: true,
        ..Tracking::default()
    };
    let mut tracked = Tracked::start(None, tracking);
    let serve = |connections: usize| {
        move || {
            let listener = TcpListener::bind("127.0.0.1:7405").unwrap();
            let address = listener.local_addr().unwrap();
            let connect = |_| (TcpStream::connect(address), listener.accept().unwrap());
            let all: Vec<_> = (0..connections).map(connect).collect();
            (listener, all)
        }
    };
    let inode = |namespace: &File| namespace.metadata().unwrap().ino() as u32;
    let counts = |seen: &Observation, netns| {
        let known = &seen.snapshot.endpoints[&key(netns, 7405)];
        let other = seen.snapshot.endpoints.contains_key(&key(netns, 7406));
        (known.accepted, known.open, known.closed, other)
    };
    let (first, (listener, all)) = in_new_namespace(serve(3));
    let number = inode(&first);
    let other = || drop(TcpListener::bind("127.0.0.1:7406").unwrap());
    // Another port that nobody listens on any more.
    enter(&first, other).unwrap();
    let seen = tracked.observe(ADOPT);
    assert_eq!(counts(&seen, number), (3, 3, 0, true));
    let cookie = seen.snapshot.namespaces[&Netns(number)].0;
    assert_eq!(cookie, netns_cookie(&listener));
    drop((first, listener, all));

    // The kernel gives the lowest number that is free, some time after the namespace has ended.
    let (mut lower, mut tries) = (Vec::new(), 0);
    let deadline = Instant::now() + PATIENCE;
    let (_namespace, _sockets) = loop {
        assert!(Instant::now() < deadline, "never number {number} again");
        tries += 1;
        let (namespace, ()) = in_new_namespace(|| ());
        match inode(&namespace).cmp(&number) {
            Ordering::Less => lower.push(namespace),
            Ordering::Equal => {
                let sockets = enter(&namespace, serve(1)).unwrap();
                break (namespace, sockets);
            }
            Ordering::Greater => thread::sleep(Duration::from_millis(10)),
        }
    };
    println!("\n  after {tries} namespaces");
    assert_eq!(counts(&tracked.observe(ADOPT), number), (1, 1, 0, false));
}

#[test]
fn an_endpoint_used_again_after_the_pass_is_not_removed() {
    let lab = lab(1);
    let pod = lab.pod(0);
    let mut tracked = Tracked::on_machine();
    drop(listen(pod, 7430));
    let seen = tracked.observe(ADOPT);
    let mut empty = EmptyEndpoints::default();
    tracked.forget(&mut empty, &seen);
    let again = tracked.observe(ADOPT);
    let listener = listen(pod, 7430);
    tracked.forget(&mut empty, &again);
    assert!(tracked.knows(pod, 7430));
    let (client, server) = accepted(&lab, &listener);
    let seen = tracked.observe(ADOPT);
    assert_eq!(counts(&seen, pod, 7430), (1, 1, 0));
    drop((client, server, listener));
    for _ in 0..2 {
        assert!(tracked.knows(pod, 7430));
        let seen = tracked.observe(ADOPT);
        tracked.forget(&mut empty, &seen);
    }
    assert!(!tracked.knows(pod, 7430));
}

/// How many connections a node may have in the tests of that limit.
const NODE_CAP: usize = 10;

/// An agent with that limit, in a lab of two pods.
fn agent_with_cap(lab: &Lab) -> Agent {
    let cap = format!("interval: 500ms\ntrack: {{maxPerNode: {NODE_CAP}}}");
    Agent::in_lab(lab, &track_only_with(&cap))
}

/// So many connections, to both pods in turn.
fn to_both(lab: &Lab, count: usize) -> Vec<TcpStream> {
    let connect = |n| connect(lab, lab.pod(n % 2).address());
    (0..count).map(connect).collect()
}

/// Waits until so many connections are recorded, and so many of them adopted.
#[track_caller]
fn wait_for_recorded(agent: &Agent, all: usize, adopted: usize) {
    let recorded = || {
        let all = agent.dump(&[]);
        let adopted = all.iter().filter(|c| c["adopted"] == true).count();
        (all.len(), adopted)
    };
    eventually("recorded", recorded, |seen| *seen == (all, adopted));
}

/// Also for those that were left out first.
#[test]
fn the_node_limit_covers_all_endpoints_and_closed_connections_free_capacity() {
    let lab = lab(2);
    let mut agent = agent_with_cap(&lab);
    let mut streams = to_both(&lab, 16);
    wait_for_recorded(&agent, NODE_CAP, 0);
    let fault = Fault::OverNodeCap;
    agent.wait_for("the fault", |line| {
        let is_it = line["message"] == "kernel fault" && line["fault"] == fault.text();
        is_it && line["total"] == 6
    });
    assert_eq!(read_faults(&agent.pins).unwrap()[&fault], 6);
    agent.wait_for_intervals(3);
    assert_eq!(agent.dump(&[]).len(), NODE_CAP, "nor is more adopted");

    // The first ones were recorded.
    streams.drain(..4);
    wait_for_recorded(&agent, NODE_CAP, 4);
    drop(streams.drain(..8));
    wait_for_recorded(&agent, 4, 4);
    // What is new is recorded at once.
    let _new = connect(&lab, lab.pod(0).address());
    wait_for_recorded(&agent, 5, 4);
}

/// An agent that is restarted adopts as many as the cap allows, and records no more beside them.
#[test]
fn adopted_connections_count_against_the_node_limit() {
    let lab = lab(2);
    let mut older = to_both(&lab, NODE_CAP);
    let mut agent = agent_with_cap(&lab);
    agent.wait_for_intervals(1);
    wait_for_recorded(&agent, NODE_CAP, NODE_CAP);
    let _younger = to_both(&lab, 5);
    agent.wait_for_intervals(2);
    wait_for_recorded(&agent, NODE_CAP, NODE_CAP);
    // Nobody sees these closes; the five that had no room take it.
    older.truncate(3);
    wait_for_recorded(&agent, 8, 8);
    agent.wait_for_intervals(2);
    let _young = connect(&lab, lab.pod(0).address());
    wait_for_recorded(&agent, 9, 8);
}

/// A socket on this address, which others may use too.
fn shared(host: &Host, address: SocketAddr) -> rustix::fd::OwnedFd {
    let socket = || {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        sockopt::set_socket_reuseport(&socket, true).unwrap();
        rustix::net::bind(&socket, &address).unwrap();
        socket
    };
    host.enter(socket).unwrap()
}

#[test]
fn outgoing_connections_from_a_listening_port_are_not_adopted() {
    let lab = lab(1);
    let pod = lab.pod(0);
    let address = SocketAddr::from((pod.addr, 7402));
    let listener = shared(&pod.host, address);
    rustix::net::listen(&listener, 16).unwrap();
    let listener = TcpListener::from(listener);
    // On the client's side: it echoes nothing, and says something to some.
    let elsewhere = |port: u16| {
        let client = lab.client();
        let ip = connect(&lab, pod.address()).local_addr().unwrap().ip();
        let listen = || TcpListener::bind((ip, port));
        client.enter(listen).unwrap().unwrap()
    };
    let mut outgoing = Vec::new();
    for (port, talk) in (7403..).zip(["", "in", "out", "in and out"]) {
        let there = elsewhere(port);
        let here = shared(&pod.host, address);
        rustix::net::connect(&here, &there.local_addr().unwrap()).unwrap();
        let (mut here, (mut there, _)) = (TcpStream::from(here), there.accept().unwrap());
        if talk.contains("in") {
            there.write_all(b"hello").unwrap();
            here.read_exact(&mut [0; 5]).unwrap();
        }
        if talk.contains("out") {
            here.write_all(b"hello").unwrap();
            there.read_exact(&mut [0; 5]).unwrap();
        }
        outgoing.push((here, there, talk));
    }
    let mut incoming: Vec<_> = (0..2).map(|_| accepted(&lab, &listener)).collect();
    let (client, server) = &mut incoming[0];
    server.write_all(b"hello").unwrap();
    client.read_exact(&mut [0; 5]).unwrap();

    let mut tracked = Tracked::on_machine();
    tracked.walker.adopt(CgroupId(0), u64::MAX).unwrap();
    let seen = tracked.observe(ADOPT);
    for (here, _, talk) in &outgoing {
        assert!(!is_listed(&seen, here), "{talk:?}");
    }
    for (_, server) in &incoming {
        assert!(is_listed(&seen, server));
    }
    assert_eq!(counts(&seen, pod, 7402), (1, 2, 0));
}

#[test]
fn a_process_that_listens_on_every_port_does_not_hide_others() {
    const PORTS: std::ops::Range<u16> = 10_000..27_000;
    let lab = lab(2);
    let (busy, other) = (lab.pod(0), lab.pod(1));
    let mut tracked = Tracked::on_machine();
    let pins = tracked.tracker.pins().to_owned();
    let of_busy = |pins: &std::path::Path| {
        let netns = busy.host.netns_inode() as u32;
        let all = read_endpoints(pins).unwrap();
        all.keys().filter(|key| key.netns == netns).count() as u64
    };
    let listen_everywhere = || PORTS.for_each(|port| drop(TcpListener::bind((busy.addr, port))));
    busy.host.enter(listen_everywhere).unwrap();
    // Some may race with another CPU.
    let (most, known) = (ENDPOINTS_PER_PLACE + 8, of_busy(&pins));
    assert!((1_000..=most).contains(&known), "{known}");
    assert!(read_faults(&pins).unwrap()[&Fault::EndpointsFull] > 10_000);

    let listener = listen(other, 7410);
    let (_client, server) = accepted(&lab, &listener);
    assert!(is_listed(&tracked.observe(ADOPT), &server), "not blinded");

    // It has only blinded itself, until what is empty is forgotten.
    let listener = listen(busy, 7411);
    let (_client, server) = accepted(&lab, &listener);
    let seen = tracked.observe(ADOPT);
    assert!(!is_listed(&seen, &server));
    let mut empty = EmptyEndpoints::default();
    for _ in 0..2 {
        let seen = tracked.observe(ADOPT);
        tracked.forget(&mut empty, &seen);
    }
    assert!(of_busy(&pins) <= 2, "{}", of_busy(&pins));
    tracked.observe(ADOPT);
    let seen = tracked.observe(ADOPT);
    assert!(is_listed(&seen, &server), "what had no room is adopted");
    assert_eq!(counts(&seen, busy, 7411), (1, 1, 0));
    let (_client, server) = accepted(&lab, &listener);
    assert!(is_listed(&tracked.observe(Adopt::No), &server));
}

/// Its client answers the kernel's probes meanwhile, by acknowledgements without data.
#[test]
fn a_long_poll_is_not_moved_before_its_response() {
    const CLIENTS: usize = 24;
    let (lab, address, _server, mut agent) = served_and_moved(7420, Kind::Probes, QUIET);
    let clients = connect_many(&lab, address, CLIENTS);
    thread::sleep(Duration::from_millis(500));
    let ask = |mut stream: TcpStream| {
        thread::spawn(move || {
            echoes(&mut stream);
            // In the tick of the answer; this one takes three seconds.
            stream.write_all(b"h").unwrap();
            stream.read_exact(&mut [0]).map(|()| stream)
        })
    };
    let threads: Vec<_> = clients.into_iter().map(ask).collect();
    let answered: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    let lost = answered.iter().filter(|answered| answered.is_err()).count();
    println!("\n  {lost} of {CLIENTS} requests in progress lost");
    assert_eq!(lost, 0, "{answered:?}");
    for mut stream in answered.into_iter().flatten() {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(is_reset(&mut stream), "at rest it is moved");
    }
    for _ in 0..CLIENTS {
        agent.moved("reset");
    }
    agent.moves_no_more(CLIENTS, 3); // each once
}
