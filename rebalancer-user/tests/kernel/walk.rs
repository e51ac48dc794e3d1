//! The walk: every socket with a record once, with all who hold it, whatever they do meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::net::UnixStream,
    },
    process::Command,
    time::Duration,
};

use rebalancer_user::{
    bpf::{Adopt, Pass, Walked, Walker},
    host::{CgroupPaths, Holder},
    observe::{Observation, Observer},
    snapshot::{Cookie, Endpoint, EndpointKey},
};
use serde::{Deserialize, Serialize};
use xtask::lab::{Lab, Pod};

use crate::{
    program::{self, Program, again},
    server::{Kind, Server, receive_descriptor, send_descriptor},
    support::{
        Tracked, accepted, connect, connect_many, cookie, echoed, eventually, kernel, lab, listen,
        request, walked_in,
    },
};

fn holder(pid: u32, fd: RawFd) -> Holder {
    Holder { pid, fd: fd as u32 }
}

fn own(fd: RawFd) -> Holder {
    holder(std::process::id(), fd)
}

#[test]
fn a_socket_is_listed_once_with_all_its_holders() {
    let lab = lab(1);
    let mut tracked = Tracked::on_machine();
    let listener = listen(lab.pod(0), 7300);
    let (_client, server) = accepted(&lab, &listener);
    let id = cookie(&server);
    assert_eq!(tracked.holders(id), [own(server.as_raw_fd())]);
    assert_eq!(
        tracked.holders(cookie(&listener)),
        [own(listener.as_raw_fd())]
    );

    let twin = server.try_clone().unwrap();
    let inherited = std::os::fd::OwnedFd::from(server.try_clone().unwrap());
    let mut sleep = Command::new("sleep");
    let mut child = sleep.arg("3600").stdin(inherited).spawn().unwrap();
    drop(sleep); // and with it the own descriptor
    let mut all = [
        own(server.as_raw_fd()),
        own(twin.as_raw_fd()),
        holder(child.id(), 0),
    ];
    all.sort_unstable();
    // It has its parent's descriptors for a moment more than it takes to start.
    let mut walker = tracked.reader(64);
    let holders = || {
        let mut holders = walker.find(Cookie(id)).unwrap().unwrap().holders;
        holders.sort_unstable();
        holders
    };
    eventually("three hold it", holders, |holders| *holders == all);
    // As one connection, in the sums too.
    let seen = tracked.observe(Adopt::No);
    let of_it = seen.snapshot.connections.iter();
    assert_eq!(of_it.filter(|c| c.cookie.0 == id).count(), 1);

    // Over some processes only those are found; one that has ended is none.
    let over = |tracked: &mut Tracked, pids: &[u32]| {
        let pids: BTreeSet<u32> = pids.iter().copied().collect();
        let pass = tracked.walker.walk_over(&pids, Adopt::No).unwrap();
        let Some(pass) = pass else { return Vec::new() }; // before Linux 6.1
        let found = pass.sockets.into_iter().find(|s| s.connection.cookie == id);
        found.map_or(Vec::new(), |socket| socket.holders)
    };
    assert_eq!(over(&mut tracked, &[child.id()]), [holder(child.id(), 0)]);
    drop((server, twin));
    assert_eq!(tracked.holders(id), [holder(child.id(), 0)]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(over(&mut tracked, &[child.id()]), []);
    assert_eq!(tracked.holders(id), []);
}

#[test]
fn a_socket_passed_over_a_unix_socket_is_counted_in_flight_and_found_with_its_next_holder() {
    let lab = lab(1);
    let mut tracked = Tracked::on_machine();
    let listener = listen(lab.pod(0), 7301);
    let (client, server) = accepted(&lab, &listener);
    let id = cookie(&server);
    let unseen = |tracked: &mut Tracked| tracked.observe(Adopt::No).unseen;
    let before = unseen(&mut tracked);

    let (sender, receiver) = UnixStream::pair().unwrap();
    send_descriptor(&sender, server);
    assert_eq!(tracked.walked(id), None, "it is in no process's table");
    assert_eq!(unseen(&mut tracked), before + 1);
    let server = receive_descriptor(&receiver).unwrap();
    assert_eq!(tracked.holders(id), [own(server.as_raw_fd())]);
    assert_eq!(unseen(&mut tracked), before);

    let path = lab.folder().join("worker");
    let worker = Server::worker(&lab.pod(0).host, &path, Kind::Plain);
    send_descriptor(&UnixStream::connect(&path).unwrap(), server);
    let find = || tracked.reader(64).find(Cookie(id)).unwrap();
    let found = eventually("the worker has it", find, Option::is_some);
    let [holder] = found.unwrap().holders[..] else {
        panic!("one holder")
    };
    assert_eq!(holder.pid, worker.id());
    assert_eq!(unseen(&mut tracked), before);
    drop(client);
}

/// The order to a program of this file.
#[derive(Serialize, Deserialize)]
struct Accept {
    at: SocketAddr,
    count: usize,
}

impl Accept {
    fn at(pod: &Pod, port: u16, count: usize) -> Self {
        let at = (pod.addr, port).into();
        Self { at, count }
    }

    /// The clients' ends.
    fn connect(&self, lab: &Lab) -> Vec<TcpStream> {
        connect_many(lab, self.at, self.count)
    }

    /// In the program: it is ready, and these are the servers' ends.
    fn accept(&self) -> Vec<TcpStream> {
        program::allow_descriptors(self.count);
        let listener = TcpListener::bind(self.at).unwrap();
        rustix::net::listen(&listener, 4096).unwrap();
        program::ready();
        let streams = listener.incoming().map(Result::unwrap);
        streams.take(self.count).collect()
    }
}

/// Who a program of this file was.
#[derive(Serialize, Deserialize)]
struct Held {
    pid: u32,
    /// Its descriptors, by cookie.
    fds: BTreeMap<u64, RawFd>,
    /// Processes that it started.
    started: usize,
}

impl Held {
    fn by(pid: u32, streams: &[TcpStream], started: usize) -> Self {
        let fds = streams.iter().map(|s| (cookie(s), s.as_raw_fd()));
        Self {
            pid,
            fds: fds.collect(),
            started,
        }
    }
}

/// Waits until so many connections of this pod are listed.
fn wait_for(walker: &mut Walker, pod: &Pod, count: usize) {
    let listed = || walked_in(&walker.walk(Adopt::No).unwrap(), pod).count();
    eventually("all are accepted", listed, |listed| *listed == count);
}

#[test]
fn a_process_that_forks_constantly_is_walked_exactly() {
    const PASSES: usize = 200;
    let lab = lab(1);
    let tracked = Tracked::in_lab(&lab);
    let pod = lab.pod(0);
    let orders = Accept::at(pod, 7302, 200);
    let forks = Program::<Held>::start(&pod.host, "walk::forks_as_a_program", &orders);
    let _clients = orders.connect(&lab);
    let mut walker = tracked.reader(64);
    wait_for(&mut walker, pod, orders.count);
    let passes: Vec<Pass> = (0..PASSES)
        .map(|_| walker.walk(Adopt::No).unwrap())
        .collect();
    let truth = forks.stop();
    let mut of_children = 0;
    for (n, pass) in passes.iter().enumerate() {
        let found: Vec<_> = walked_in(pass, pod).collect();
        assert_eq!(found.len(), orders.count, "pass {n}");
        for socket in found {
            let fd = truth.fds[&socket.connection.cookie] as u32;
            let holders: BTreeSet<_> = socket.holders.iter().copied().collect();
            assert_eq!(
                holders.len(),
                socket.holders.len(),
                "none twice: {socket:?}"
            );
            let parent = Holder { pid: truth.pid, fd };
            assert!(holders.contains(&parent), "pass {n}: {socket:?}");
            // What they hold is a copy of their parent's table.
            assert!(
                holders.iter().all(|h| h.fd == fd && h.pid != 0),
                "{socket:?}"
            );
            of_children += holders.len() - 1;
        }
    }
    println!(
        "\n  {PASSES} passes over a process of {} connections that forked {} times meanwhile; {:.1} \
         copies of each were seen",
        orders.count,
        truth.started,
        of_children as f64 / (PASSES * orders.count) as f64
    );
    assert!(of_children > 0, "its children were walked over too");
}

/// Not a test but the program, if the environment says so.
#[test]
fn forks_as_a_program() {
    let Some(orders) = program::orders::<Accept>() else {
        return;
    };
    let streams = orders.accept();
    // SAFETY: no handler of ours is replaced; children that end are nobody's care.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let end = std::thread::spawn(program::wait_for_the_end);
    let mut started = 0;
    while !end.is_finished() {
        // SAFETY: the copy makes two system calls, and ends.
        unsafe {
            match libc::fork() {
                0 => {
                    libc::usleep(3_000);
                    libc::_exit(0);
                }
                -1 => {} // too many at a time
                _ => started += 1,
            }
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    program::report(&Held::by(std::process::id(), &streams, started));
}

/// Its rows may come once for each thread that is left, or not at all; what comes is right.
#[test]
fn a_process_without_its_thread_group_leader_is_never_reported_wrong() {
    let lab = lab(1);
    let mut tracked = Tracked::in_lab(&lab);
    let pod = lab.pod(0);
    let orders = Accept::at(pod, 7303, 50);
    let outlives =
        Program::<Held>::start(&pod.host, "walk::outlives_its_leader_as_a_program", &orders);
    let _clients = orders.connect(&lab);
    // The first process lets go of them once the leader of the second has ended.
    let first = outlives.id();
    let look = || {
        let unseen = tracked.observe(Adopt::No).unseen as usize;
        let pass = tracked.walker.walk(Adopt::No).unwrap();
        let connections: Vec<Walked> = walked_in(&pass, pod).cloned().collect();
        (unseen, connections)
    };
    let of_first = |socket: &Walked| socket.holders.iter().any(|h| h.pid == first);
    let (_, seen) = eventually("the first has let go of all", look, |(unseen, seen)| {
        unseen + seen.len() == orders.count && !seen.iter().any(of_first)
    });
    let holders = seen.iter().flat_map(|s| &s.holders);
    let second: BTreeSet<u32> = holders.map(|h| h.pid).collect();
    let alone = tracked.walker.walk_over(&second, Adopt::No).unwrap();
    let truth = outlives.stop();
    for socket in &seen {
        let fd = truth.fds[&socket.connection.cookie];
        let right = |h: &Holder| *h == holder(truth.pid, fd);
        assert!(socket.holders.iter().all(right), "{socket:?}");
    }
    println!("\n  {} of {} are listed", seen.len(), orders.count);
    if let Some(alone) = alone {
        assert_eq!(walked_in(&alone, pod).count(), seen.len(), "also by its id");
    }
}

/// Not a test but the program, if the environment says so.
#[test]
fn outlives_its_leader_as_a_program() {
    let Some(orders) = program::orders::<Accept>() else {
        return;
    };
    let streams = orders.accept();
    // SAFETY: the copy starts two threads that do nothing, and ends its first one alone.
    let child = unsafe { libc::fork() };
    if child == 0 {
        for _ in 0..2 {
            std::thread::spawn(|| {
                loop {
                    std::thread::park();
                }
            });
        }
        // SAFETY: ends this thread, and no other.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
    let state = format!("/proc/{child}/stat");
    while !fs::read_to_string(&state).unwrap().contains(") Z ") {
        std::thread::yield_now();
    }
    let held = Held::by(child as u32, &streams, 1);
    drop(streams);
    program::wait_for_the_end();
    // SAFETY: our own child, not waited for yet.
    unsafe { libc::kill(child, libc::SIGKILL) };
    program::report(&held);
}

/// What a walk from within a pid namespace has seen.
#[derive(Serialize, Deserialize)]
struct Inside {
    /// The program's id there.
    pid: u32,
    /// Its own connection, and who holds that.
    own: u64,
    holders: Vec<(u32, u32)>,
    /// The same by a walk over this process alone.
    by_id: Option<Vec<(u32, u32)>>,
    /// Every socket that was walked over.
    all: BTreeSet<u64>,
}

#[test]
fn in_a_pid_namespace_holders_have_the_ids_of_that_namespace() {
    let lab = lab(1);
    let pod = lab.pod(0);
    let mut tracked = Tracked::on_machine();
    let listener = listen(pod, 7304);
    let (_client, outside) = accepted(&lab, &listener);
    let test = again(&pod.host, "walk::walks_in_a_pid_namespace_as_a_program");
    for depth in 1..=2 {
        let mut command = pod.host.command("unshare");
        for _ in 1..depth {
            command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "unshare"]);
        }
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.arg(test.get_program()).args(test.get_args());
        let at = SocketAddr::from((pod.addr, 7304 + depth));
        let orders = (tracked.tracker.pins().to_owned(), at);
        let inside = Program::<Inside>::launch(command, &orders);
        // From here it has the id that is the first of its NSpid.
        let seen = tracked.walker.walk(Adopt::No).unwrap();
        let from_here: Vec<(u64, u32)> = walked_in(&seen, pod)
            .filter(|socket| socket.connection.local_port == at.port())
            .map(|socket| (socket.connection.cookie, socket.holders[0].pid))
            .collect();
        let [(connection, pid)] = from_here[..] else {
            panic!("one connection: {from_here:?}")
        };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let mut lines = status.lines();
        let ids = lines.find_map(|l| l.strip_prefix("NSpid:")).unwrap();
        let ids: Vec<u32> = ids.split_whitespace().map(|n| n.parse().unwrap()).collect();

        let inside = inside.stop();
        assert_eq!(ids.last(), Some(&inside.pid));
        assert_ne!(ids[0], inside.pid);
        assert_eq!(inside.own, connection);
        assert!(!inside.holders.is_empty());
        let its_own = |all: &[(u32, u32)]| all.iter().all(|(pid, _)| *pid == inside.pid);
        assert!(its_own(&inside.holders), "{ids:?}: {:?}", inside.holders);
        if let Some(by_id) = &inside.by_id {
            assert_eq!(*by_id, inside.holders);
        }
        assert!(!inside.all.contains(&cookie(&outside)), "not walked over");
    }
}

/// Not a test but the program, if the environment says so.
#[test]
fn walks_in_a_pid_namespace_as_a_program() {
    let Some((pins, at)) = program::orders::<(std::path::PathBuf, SocketAddr)>() else {
        return;
    };
    let listener = TcpListener::bind(at).unwrap();
    let _client = TcpStream::connect(at).unwrap();
    let (server, _) = listener.accept().unwrap();
    let (pid, id) = (std::process::id(), cookie(&server));
    let mut walker = Walker::open(kernel(), &pins).unwrap();
    let holders = |pass: &Pass| -> Vec<(u32, u32)> {
        let it = pass.sockets.iter().find(|s| s.connection.cookie == id);
        it.map_or(Vec::new(), |s| {
            s.holders.iter().map(|h| (h.pid, h.fd)).collect()
        })
    };
    let pass = walker.walk(Adopt::No).unwrap();
    let by_id = walker.walk_over(&BTreeSet::from([pid]), Adopt::No).unwrap();
    program::ready();
    program::wait_for_the_end();
    program::report(&Inside {
        pid,
        own: id,
        holders: holders(&pass),
        by_id: by_id.map(|pass| holders(&pass)),
        all: pass.sockets.iter().map(|s| s.connection.cookie).collect(),
    });
}

/// What can be compared of two listings: not their times.
fn listed_all(observation: &Observation) -> (Vec<String>, BTreeMap<EndpointKey, Endpoint>) {
    let connections = observation.snapshot.connections.iter();
    let mut connections: Vec<String> = connections
        .map(|c| {
            let (id, at, bytes) = (c.cookie, c.endpoint, (c.bytes_in, c.bytes_out));
            format!(
                "{id} {at:?} {} {:?} {bytes:?} {:?}",
                c.remote, c.state, c.opened
            )
        })
        .collect();
    connections.sort();
    (connections, observation.snapshot.endpoints.clone())
}

/// An observer that has walked over all processes once.
fn observer(tracked: &Tracked) -> Observer {
    let mut observer = Observer::new(tracked.reader(2_048));
    observer.observe(Adopt::No, &CgroupPaths::new()).unwrap();
    observer
}

#[test]
fn a_pass_over_known_processes_lists_what_one_over_all_does() {
    let lab = lab(2);
    let mut tracked = Tracked::in_lab(&lab);
    let _others = Others::start(&lab, 20, 50);
    let mut streams: Vec<_> = (0..40)
        .map(|n| connect(&lab, lab.pod(n % 2).address()))
        .collect();
    for stream in &mut streams {
        request(stream, "/").unwrap();
    }
    let mut observer = observer(&tracked);
    let mut short = 0;
    for n in 0..20 {
        let here = lab.pod(n % 2);
        match n % 4 {
            0 => streams.push(connect(&lab, here.address())),
            1 => drop(streams.remove(0)),
            _ => {
                request(streams.last_mut().unwrap(), "/blob").unwrap();
            }
        }
        // Until the last acknowledgement has come, and what was closed has.
        std::thread::sleep(Duration::from_millis(100));
        let some = observer.observe(Adopt::No, &CgroupPaths::new()).unwrap();
        let all = tracked.observe(Adopt::No);
        assert_eq!(listed_all(&some), listed_all(&all));
        assert_eq!(some.unseen, all.unseen);
        short += usize::from(some.files < all.files / 2);
    }
    assert!(short >= 15, "{short} of 20 were over known processes only");
}

#[test]
fn a_connection_of_a_process_without_earlier_sockets_is_listed_in_the_same_pass() {
    let lab = lab(1);
    let pod = lab.pod(0);
    let tracked = Tracked::in_lab(&lab);
    let path = lab.folder().join("worker");
    let _worker = Server::worker(&pod.host, &path, Kind::Plain);
    let (address, _passes_on) = Server::handing_over(pod, 7310, &path);
    let _others = Others::start(&lab, 20, 50);
    let mut observer = observer(&tracked);
    let listed = |observation: &Observation, client: &TcpStream| {
        let peer = client.local_addr().unwrap();
        let mut all = observation.snapshot.connections.iter();
        all.any(|c| c.remote == peer)
    };
    let mut observe = || observer.observe(Adopt::No, &CgroupPaths::new()).unwrap();
    let nothing_new = observe();
    // Its answer comes from the worker, which held none.
    let client = echoed(&lab, address);
    let seen = observe();
    assert!(listed(&seen, &client));
    assert!(seen.files > 2 * nothing_new.files, "all were walked over");

    // A whole process that was not there.
    let (address, _new) = Server::in_pod(pod, 7311, Kind::Plain);
    let client = echoed(&lab, address);
    for _ in 0..2 {
        assert!(listed(&observe(), &client));
    }
}

/// Processes that hold descriptors of no interest.
pub struct Others {
    _program: Program<()>,
}

impl Others {
    /// Starts so many, with so many each, as far as the limit of open files allows.
    pub fn start(lab: &Lab, processes: usize, each: usize) -> Self {
        let test = "walk::holds_others_as_a_program";
        let _program = Program::start(lab.client(), test, &(processes, each));
        Self { _program }
    }
}

/// Not a test but the program, if the environment says so.
#[test]
fn holds_others_as_a_program() {
    let Some((processes, each)) = program::orders::<(usize, usize)>() else {
        return;
    };
    let file = fs::File::open("/dev/null").unwrap();
    // Each is ready once it has closed its end.
    let (mut wait, ready) = std::io::pipe().unwrap();
    for _ in 0..processes {
        // SAFETY: the copies make system calls only, and end with the thread that made them.
        unsafe {
            if libc::fork() == 0 {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                for _ in 0..each {
                    libc::dup(file.as_raw_fd());
                }
                libc::close(ready.as_raw_fd());
                loop {
                    libc::pause();
                }
            }
        }
    }
    drop(ready);
    std::io::copy(&mut wait, &mut std::io::sink()).unwrap();
    program::ready();
    program::wait_for_the_end();
    program::report(&());
}
