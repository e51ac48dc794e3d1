//! A move hits its victim and nothing else.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    thread::sleep,
    time::{Duration, Instant},
};

use rebalancer_user::{
    bpf::{Adopt, Walker},
    host::CgroupPaths,
    moves::{Mechanism, Mover, Order},
    observe::observe,
    plan::{Ledger, Move, Outcome, decide},
    policy,
    snapshot::CgroupId,
};
use tokio::sync::mpsc::unbounded_channel;
use xtask::lab::Lab;

use crate::{
    server::{Kind, served},
    support::{
        AT_ONCE, Agent, PATIENCE, QUIET, TRACK_ONLY, answered, connect, connect_many, enforce,
        is_reset, kernel, lab, request,
    },
};

#[test]
fn connections_past_max_age_are_moved_within_the_budget() {
    let lab = lab(1);
    let policy = enforce(&lab, 80, "maxAge: 400ms", AT_ONCE)
        .replace("budget: {", "budget: {window: 1m, perNode: 3, ");
    let mut agent = Agent::in_lab(&lab, &policy);
    let _streams = connect_many(&lab, lab.pod(0).address(), 10);
    for _ in 0..3 {
        agent.wait_for_move();
    }
    agent.moves_no_more(3, 6); // the budget of the window is spent
    assert_eq!(agent.connections(lab.pod(0)).len(), 7);
}

#[test]
fn a_dry_run_reports_moves_and_makes_none() {
    let lab = lab(1);
    let enforcing = enforce(&lab, 80, "maxAge: 400ms", AT_ONCE);
    let dry = enforcing.replace("mode: Enforce", "mode: DryRun");
    // The command line overrides an enforcing policy.
    for (policy, more) in [(dry, &[][..]), (enforcing, &["--mode", "dry-run"])] {
        let mut agent = Agent::in_lab_with(&lab, &policy, more);
        let mut stream = connect(&lab, lab.pod(0).address());
        agent.wait_for_message("would move");
        agent.wait_for_intervals(5);
        let reported = agent.logged("would move");
        assert_eq!(reported.len(), 1, "a connection is reported once");
        agent.has_moved(0);
        request(&mut stream, "/").unwrap();
    }
}

/// A server that answers `f` at once and `s` after a second, and a client that sends `s` within
/// the tick of the answer to `f`: everything but the order of the last words looks quiet.
#[test]
fn a_request_in_the_tick_of_the_last_answer_is_not_cut_off() {
    let (lab, address, _server) = served(7010, Kind::Plain);
    let mut agent = Agent::on_machine(&enforce(&lab, 7010, "maxAge: 1s", QUIET));
    let busy = || {
        let mut stream = connect(&lab, address);
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
        let threads: Vec<_> = (0..7).map(|_| scope.spawn(busy)).collect();
        for thread in threads {
            let (mut stream, answers) = thread.join().unwrap();
            assert!(answers >= 6);
            // Now it is quiet, last words in one tick or not, and so it is moved.
            assert!(is_reset(&mut stream), "a quiet one past its age is moved");
        }
    });
    for _ in 0..7 {
        agent.moved("reset");
    }
}

/// A fresh connection whose first request takes long: its times start at its accept, so only
/// "the server has sent something" shows it.
#[test]
fn a_slow_first_request_is_not_cut_off() {
    let (lab, address, _server) = served(7011, Kind::Plain);
    let mut agent = Agent::on_machine(&enforce(&lab, 7011, "maxAge: 500ms", QUIET));
    let mut client = connect(&lab, address);
    // It is answered after three seconds.
    client.write_all(b"h").unwrap();
    agent.moves_no_more(0, 10); // it waits
    client.read_exact(&mut [0]).unwrap();
    agent.moved("reset");
}

#[test]
fn a_move_without_a_quiet_moment_gives_up_and_the_connection_stays_open() {
    let lab = lab(1);
    let steps = "{step: Reset, when: Quiet, idleFor: 10s, timeout: 500ms}";
    let mut agent = Agent::moving(&lab, 80, "maxAge: 400ms", steps);
    let mut stream = answered(&lab, lab.pod(0).address());
    agent.moved("gaveUp");
    request(&mut stream, "/").unwrap();
}

/// A mover that is given orders, and the move of the lab's only connection.
struct Ordered {
    chosen: Move,
    cgroup: CgroupId,
    give: Box<dyn FnMut(Order) -> Outcome>,
}

impl Ordered {
    fn of(lab: &Lab, agent: &Agent, steps: &str) -> Self {
        let mut walker = Walker::open(kernel(), &agent.pins).unwrap();
        let policy = policy::parse("test", &enforce(lab, 80, "maxAge: 300ms", steps)).unwrap();
        sleep(Duration::from_millis(400));
        let seen = observe(&mut walker, Adopt::No, &CgroupPaths::new()).unwrap();
        let now = seen.snapshot.taken;
        let plan = decide(&policy, &seen.snapshot, &Ledger::default(), now);
        let (sender, mut done) = unbounded_channel();
        let mover = Mover::start(walker, None, None, Mechanism::SockDestroy, sender).unwrap();
        Self {
            chosen: plan.moves().next().expect("it is old enough").clone(),
            cgroup: CgroupId(lab.pod(0).host.cgroup_id().unwrap()),
            give: Box::new(move |order| {
                mover.order(order).unwrap();
                done.blocking_recv().unwrap().outcome
            }),
        }
    }

    fn outcome(&mut self) -> Outcome {
        (self.give)(Order {
            chosen: self.chosen.clone(),
            device: 0,
            cgroup: self.cgroup,
        })
    }
}

#[test]
fn a_move_of_an_ended_connection_is_an_outcome_and_does_not_affect_the_listener() {
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let pod = lab.pod(0);
    let mut stream = connect(&lab, pod.address());
    let mut ordered = Ordered::of(&lab, &agent, AT_ONCE);
    let from = ordered.chosen.remote();
    assert_eq!(from, stream.local_addr().unwrap());
    // First while it lives, then again: now another connection may have its place, the cookie
    // tells it apart, and the listener on the port is never meant.
    assert_eq!(
        [(); 3].map(|()| ordered.outcome()),
        [Outcome::Reset, Outcome::GoneBefore, Outcome::GoneBefore]
    );
    assert!(is_reset(&mut stream));
    // A new connection from the very same port as the victim's.
    let again = lab.client().enter(|| {
        use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        drop(stream);
        bind(&socket, &from)?;
        connect(&socket, &pod.address())?;
        Ok::<_, rustix::io::Errno>(TcpStream::from(socket))
    });
    let mut again = again
        .unwrap()
        .expect("the port is free again after a reset");
    again.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(ordered.outcome(), Outcome::GoneBefore);
    request(&mut again, "/").expect("the one with the same addresses is skipped");
    request(&mut connect(&lab, pod.address()), "/").expect("the listener lives");
}

#[test]
fn a_move_in_a_deleted_network_namespace_is_an_outcome() {
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let _stream = connect(&lab, lab.pod(0).address());
    let mut ordered = Ordered::of(&lab, &agent, QUIET);
    drop(lab);
    assert_eq!(ordered.outcome(), Outcome::GoneBefore);
}
