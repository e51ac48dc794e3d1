//! A move hits its victim and nothing else.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use rebalancer_user::{
    bpf::{Adopt, Kernel, Walker},
    host::CgroupPaths,
    moves::{Mechanism, Mover, Order},
    observe::observe,
    plan::{Ledger, Outcome, decide},
    policy,
    snapshot::CgroupId,
};

use crate::{
    server::{Kind, Server},
    support::{Agent, PATIENCE, TRACK_ONLY, alone, connect, lab, request},
};

/// A policy for the lab's clients and one port. It vouches for them: what they speak is not asked.
pub fn enforce(lab: &xtask::lab::Lab, port: u16, limits: &str, steps: &str) -> String {
    format!(
        "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: Enforce
interval: 200ms
budget: {{perService: 1000000, perEndpoint: 1000000}}
guards: {{minAge: 200ms}}
rules:
- name: lab
  match: {{ports: [{{port: {port}}}], peers: [{{ipBlock: {{cidr: {}}}}}]}}
  limits: {{{limits}}}
  jitter: 0%
  onReconnect: Safe
  steps: [{steps}]
",
        lab.client_subnet()
    )
}

pub const AT_ONCE: &str = "{step: Reset, when: AtOnce, timeout: 5s}";
pub const QUIET: &str = "{step: Reset, when: Quiet, idleFor: 100ms, timeout: 10s}";

pub fn is_reset(stream: &mut TcpStream) -> bool {
    stream
        .read_exact(&mut [0])
        .is_err_and(|e| e.kind() == ErrorKind::ConnectionReset)
}

#[test]
fn connections_past_max_age_are_moved_within_the_budget() {
    let _alone = alone();
    let lab = lab(1);
    let policy = enforce(&lab, 80, "maxAge: 400ms", AT_ONCE)
        .replace("budget: {", "budget: {window: 1m, perNode: 3, ");
    let mut agent = Agent::in_lab(&lab, &policy);
    let streams: Vec<_> = (0..10)
        .map(|_| connect(&lab, lab.pod(0).address()))
        .collect();
    for _ in 0..3 {
        agent.wait_for_move();
    }
    agent.wait_for_intervals(6);
    assert_eq!(
        agent.logged("move").len(),
        3,
        "the budget of the window is spent"
    );
    assert_eq!(agent.connections(lab.pod(0)).len(), 7);
    drop(streams);
}

#[test]
fn dry_run_reports_moves_and_makes_none() {
    let _alone = alone();
    let lab = lab(1);
    let policy =
        enforce(&lab, 80, "maxAge: 400ms", AT_ONCE).replace("mode: Enforce", "mode: DryRun");
    let mut agent = Agent::in_lab(&lab, &policy);
    let mut stream = connect(&lab, lab.pod(0).address());
    agent.wait_for("would move", |line| line["message"] == "would move");
    agent.wait_for_intervals(5);
    assert_eq!(
        agent.logged("would move").len(),
        1,
        "a connection is reported once"
    );
    assert_eq!(agent.logged("move"), [] as [serde_json::Value; 0]);
    request(&mut stream, "/").unwrap();
}

#[test]
fn mode_dry_run_on_the_command_line_overrides_an_enforcing_policy() {
    let _alone = alone();
    let lab = lab(1);
    let policy = enforce(&lab, 80, "maxAge: 400ms", AT_ONCE);
    let cgroup = crate::support::cgroup(&lab).to_str().unwrap().to_owned();
    let mut agent = Agent::with(
        &policy,
        crate::support::own_pins(),
        &["--cgroup", &cgroup, "--mode", "dry-run"],
    );
    let mut stream = connect(&lab, lab.pod(0).address());
    agent.wait_for("would move", |line| line["message"] == "would move");
    request(&mut stream, "/").unwrap();
}

/// A server that answers `f` at once and `s` after a second, and a client that sends `s` within
/// the tick of the answer to `f`: everything but the order of the last words looks quiet.
#[test]
fn a_request_in_the_tick_of_the_last_answer_is_not_cut_off() {
    let _alone = alone();
    let lab = lab(1);
    let (address, _server) = Server::in_pod(lab.pod(0), 7010, Kind::Plain);
    let mut agent = Agent::on_machine(&enforce(&lab, 7010, "maxAge: 1s", QUIET));
    let busy = |lab: &xtask::lab::Lab| {
        let mut stream = connect(lab, address);
        let until = Instant::now() + Duration::from_secs(4);
        let mut answers = 0;
        while Instant::now() < until {
            for word in [b"f", b"s"] {
                stream.write_all(word).expect("the busy are not reset");
                stream.read_exact(&mut [0]).expect("the busy are not reset");
                answers += 1;
            }
        }
        (stream, answers)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..7).map(|_| scope.spawn(|| busy(&lab))).collect();
        for thread in threads {
            let (mut stream, answers) = thread.join().unwrap();
            assert!(answers >= 6);
            // Now it is quiet, last words in one tick or not, and so it is moved.
            assert!(is_reset(&mut stream), "a quiet one past its age is moved");
        }
    });
    for _ in 0..7 {
        assert_eq!(agent.wait_for_move()["outcome"], "reset");
    }
}

/// A fresh connection whose first request takes long: its times start at its accept, so only
/// "the server has sent something" shows it.
#[test]
fn a_slow_first_request_is_not_cut_off() {
    let _alone = alone();
    let lab = lab(1);
    let (address, _server) = Server::in_pod(lab.pod(0), 7011, Kind::Plain);
    let mut agent = Agent::on_machine(&enforce(&lab, 7011, "maxAge: 500ms", QUIET));
    let mut client = connect(&lab, address);
    // It is answered after three seconds.
    client.write_all(b"h").unwrap();
    agent.wait_for_intervals(10);
    assert_eq!(agent.logged("move").len(), 0, "it waits");
    client.read_exact(&mut [0]).unwrap();
    assert_eq!(agent.wait_for_move()["outcome"], "reset");
}

#[test]
fn a_move_without_a_quiet_moment_gives_up_and_the_connection_stays_open() {
    let _alone = alone();
    let lab = lab(1);
    let steps = "{step: Reset, when: Quiet, idleFor: 10s, timeout: 500ms}";
    let mut agent = Agent::in_lab(&lab, &enforce(&lab, 80, "maxAge: 400ms", steps));
    let mut stream = connect(&lab, lab.pod(0).address());
    request(&mut stream, "/").unwrap();
    let line = agent.wait_for_move();
    assert_eq!(line["outcome"], "gaveUp", "{line}");
    request(&mut stream, "/").unwrap();
}

#[test]
fn a_move_of_an_ended_connection_is_an_outcome_and_does_not_affect_the_listener() {
    let _alone = alone();
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let pod = lab.pod(0);
    let stream = connect(&lab, pod.address());
    let kernel = Arc::new(Kernel::read().unwrap());
    let mut walker = Walker::open(Arc::clone(&kernel), &agent.pins).unwrap();
    let text = enforce(&lab, 80, "maxAge: 300ms", AT_ONCE);
    let policy = policy::parse("test", &text).unwrap();
    std::thread::sleep(Duration::from_millis(400));
    let snapshot = observe(&mut walker, Adopt::No, &CgroupPaths::new())
        .unwrap()
        .snapshot;
    let plan = decide(&policy, &snapshot, &Ledger::default(), snapshot.taken);
    let cgroup = CgroupId(pod.host.cgroup_id().unwrap());
    let chosen = plan.moves().next().expect("it is old enough").clone();
    assert_eq!(chosen.remote(), stream.local_addr().unwrap());

    let (sender, mut done) = tokio::sync::mpsc::unbounded_channel();
    let mover = Mover::start(walker, None, Mechanism::SockDestroy, sender).unwrap();
    // First while it lives, then again: now another connection may have its place, the cookie
    // tells it apart, and the listener on the port is never meant.
    let mut outcomes = Vec::new();
    let mut stream = stream;
    for _ in 0..3 {
        let order = Order {
            chosen: chosen.clone(),
            device: 0,
            cgroup,
        };
        mover.order(order).unwrap();
        outcomes.push(done.blocking_recv().unwrap().outcome);
    }
    assert_eq!(
        outcomes,
        [Outcome::Reset, Outcome::GoneBefore, Outcome::GoneBefore]
    );
    assert!(is_reset(&mut stream));
    // A new connection from the very same port as the victim's.
    let from = chosen.remote();
    let again = lab
        .client()
        .enter(|| {
            let socket = rustix::net::socket(
                rustix::net::AddressFamily::INET,
                rustix::net::SocketType::STREAM,
                None,
            )?;
            rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
            drop(stream);
            rustix::net::bind(&socket, &from)?;
            rustix::net::connect(&socket, &SocketAddr::from(pod.address()))?;
            Ok::<_, rustix::io::Errno>(TcpStream::from(socket))
        })
        .unwrap();
    let mut again = again.expect("the port is free again after a reset");
    again.set_read_timeout(Some(PATIENCE)).unwrap();
    let order = Order {
        chosen,
        device: 0,
        cgroup,
    };
    mover.order(order).unwrap();
    assert_eq!(done.blocking_recv().unwrap().outcome, Outcome::GoneBefore);
    request(&mut again, "/").expect("the one with the same addresses is skipped");
    request(&mut connect(&lab, pod.address()), "/").expect("the listener lives");
}

#[test]
fn a_move_in_a_deleted_network_namespace_is_an_outcome() {
    let _alone = alone();
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let _stream = connect(&lab, lab.pod(0).address());
    let kernel = Arc::new(Kernel::read().unwrap());
    let mut walker = Walker::open(kernel, &agent.pins).unwrap();
    let policy = policy::parse("test", &enforce(&lab, 80, "maxAge: 300ms", QUIET)).unwrap();
    std::thread::sleep(Duration::from_millis(400));
    let snapshot = observe(&mut walker, Adopt::No, &CgroupPaths::new())
        .unwrap()
        .snapshot;
    let plan = decide(&policy, &snapshot, &Ledger::default(), snapshot.taken);
    let cgroup = CgroupId(lab.pod(0).host.cgroup_id().unwrap());
    let chosen = plan.moves().next().unwrap().clone();
    let (sender, mut done) = tokio::sync::mpsc::unbounded_channel();
    let mover = Mover::start(walker, None, Mechanism::SockDestroy, sender).unwrap();
    drop(lab);
    let order = Order {
        chosen,
        device: 0,
        cgroup,
    };
    mover.order(order).unwrap();
    assert_eq!(done.blocking_recv().unwrap().outcome, Outcome::GoneBefore);
}
