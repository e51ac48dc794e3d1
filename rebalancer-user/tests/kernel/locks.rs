//! A server that holds its socket's lock for as long as it likes: whoever wants the lock sleeps where
//! no signal reaches.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Stdio},
};

use rustix::process::Signal;
use serde_json::{Value, json};
use xtask::lab::Lab;

use crate::{
    messages::{sends, start, wait_for_joined},
    server::{self, Kind, Server, threads_at},
    support::{
        AT_ONCE, Agent, connect, connect_many, echoes, enforce, eventually, held_by, is_reset,
        nothing_left, pins_left, shows,
    },
};

/// A server, a connection whose lock it holds, and others.
///
/// It goes before an agent that waits for the lock, which cannot end before.
struct Scene {
    server: Server,
    lab: Lab,
    address: SocketAddr,
    held: TcpStream,
    others: Vec<TcpStream>,
}

/// A lab and its server, which is dropped first.
fn served(port: u16) -> (Server, Lab, SocketAddr) {
    let (lab, address, server) = server::served(port, Kind::Holds);
    (server, lab, address)
}

impl Scene {
    /// The one that is held is the oldest.
    fn begin((server, lab, address): (Server, Lab, SocketAddr), others: usize) -> Self {
        let mut held = connect(&lab, address);
        let mut others = connect_many(&lab, address, others);
        others.iter_mut().for_each(echoes);
        held.write_all(b"l").unwrap();
        eventually("the lock is held", || server.locks(), |n| *n == 1);
        Self {
            server,
            lab,
            address,
            held,
            others,
        }
    }

    /// Until now nothing came of the send, nor of anybody else's wish for the lock.
    fn release(&mut self) {
        assert_eq!(self.server.locks(), 1);
        let mut asks = connect(&self.lab, self.address);
        asks.write_all(b"u").unwrap();
        asks.read_exact(&mut [0]).unwrap();
        self.held.read_exact(&mut [0]).unwrap();
    }

    /// The other connections, and the held one.
    fn all(&mut self) -> impl Iterator<Item = &mut TcpStream> {
        self.others.iter_mut().chain([&mut self.held])
    }
}

/// How many threads of a process wait for a socket's lock.
fn waiting(process: &Child) -> usize {
    threads_at(process.id(), "__lock_sock")
}

#[track_caller]
fn one_waits(child: &Child) {
    eventually(
        "a thread waits for the lock",
        || waiting(child),
        |n| *n == 1,
    );
}

/// The next moves, of so many, have these outcomes, which are sorted; their clients.
#[track_caller]
fn have_outcomes<const N: usize>(agent: &mut Agent, outcomes: [&str; N]) -> [Value; N] {
    let mut lines = [(); N].map(|()| agent.wait_for_move());
    lines.sort_by_key(|line| line["outcome"].to_string());
    assert_eq!(lines.each_ref().map(|line| &line["outcome"]), outcomes);
    lines.map(|line| line["peer"].clone())
}

/// Outcomes of four moves that were not begun, once the mover is abandoned: the one at which it
/// was is left alone, the others are judged again.
const GIVEN_UP: [&str; 4] = ["recalled", "recalled", "recalled", "refused"];

/// All four are under way.
#[track_caller]
fn is_stuck_with_all(agent: &Agent) {
    one_waits(&agent.child);
    let in_flight = || agent.status()["inFlight"].as_array().unwrap().len();
    eventually("all are under way", in_flight, |n| *n == 4);
}

/// Its pins are gone, and a thread in such a sleep keeps its process from ending.
#[track_caller]
fn only_its_process_is_left(agent: &mut Agent) {
    eventually(
        "its pins are gone",
        || pins_left(&agent.pins),
        Vec::is_empty,
    );
    let ended = agent.child.try_wait().unwrap();
    assert_eq!((waiting(&agent.child), ended), (1, None));
}

/// What the other tests stand on.
#[test]
fn reading_a_locked_socket_blocks_until_it_is_released() {
    let mut scene = Scene::begin(served(7090), 0);
    let mut command = scene.lab.pod(0).host.command("ss");
    let mut look = command.arg("-ti").stdout(Stdio::null()).spawn().unwrap();
    one_waits(&look);
    scene.release();
    assert!(look.wait().unwrap().success());
}

#[test]
fn a_stuck_mover_is_reported_and_replaced() {
    let served = served(7091);
    let policy = enforce(&served.1, 7091, "maxAge: 2s", AT_ONCE)
        .replace("interval: 200ms", "interval: 7s")
        .replace("budget: {", "budget: {window: 10m, perNode: 9, ");
    let mut agent = Agent::in_lab(&served.1, &policy);
    let mut scene = Scene::begin(served, 3);
    one_waits(&agent.child);
    // Reported until the next interval, at which another takes over.
    let mover = || agent.status()["mover"].clone();
    let stuck = eventually("it is stuck", mover, |mover| mover["state"] == "stuck");
    let ready = agent.fails(1, &["probe", "ready"]);
    assert!(ready.contains("the mover is stuck"), "{ready}");
    agent.ask(&["probe", "live"]);
    let held = agent.connection_of(&scene.held);
    assert_eq!(stuck["at"], held["id"]);

    let given_up = have_outcomes(&mut agent, GIVEN_UP);
    assert_eq!(given_up[3], held["peer"]);
    have_outcomes(&mut agent, ["reset"; 3]);
    assert!(scene.others.iter_mut().all(is_reset));
    agent.wait_for_intervals(1);
    agent.ask(&["probe", "ready"]);
    // Nothing was done to what was given up.
    shows(
        &agent.status(),
        json!({
            "mover": {"state": "fine", "stuckSeconds": null, "at": null, "replaced": 1},
            "ended": {"recalled": 3, "refused": 1, "reset": 3},
            "/budgets/0/used": 3, "inFlight": [],
        }),
    );

    assert_eq!(waiting(&agent.child), 1);
    scene.release();
    agent.wait_for_message("the kernel has answered an abandoned moving thread, which has ended");
    echoes(&mut scene.held);
    assert_eq!(waiting(&agent.child), 0);
    assert!(is_reset(&mut connect(&scene.lab, scene.address)));
    agent.leaves_nothing();
}

#[test]
fn a_pause_while_the_mover_is_stuck_holds_when_it_resumes() {
    let served = served(7092);
    let mut agent = Agent::moving(&served.1, 7092, "maxAge: 2s", AT_ONCE);
    let mut scene = Scene::begin(served, 3);
    is_stuck_with_all(&agent);
    // Whatever it receives meanwhile.
    let text = agent.ask(&["pause", "--for", "1h"]);
    assert!(text.contains("moves recalled: 4"), "{text}");
    scene.release();
    have_outcomes(&mut agent, ["recalled"; 4]);
    scene.all().for_each(echoes);
    agent.leaves_nothing();
}

#[test]
fn an_agent_with_a_stuck_mover_stops_and_another_starts() {
    let served = served(7093);
    let mut agent = Agent::moving(&served.1, 7093, "maxAge: 2s", AT_ONCE);
    let mut scene = Scene::begin(served, 3);
    is_stuck_with_all(&agent);
    agent.signal(Signal::TERM);
    // Each move has its outcome all the same.
    have_outcomes(&mut agent, GIVEN_UP);
    only_its_process_is_left(&mut agent);
    let mut next = agent.successor();
    // It knows of which one nothing is to be had.
    have_outcomes(&mut next, ["reset"; 3]);
    next.wait_for_intervals(5);
    assert_eq!(waiting(&next.child), 0);
    scene.release();
    assert_eq!(agent.child.wait().unwrap().code(), Some(0));
    echoes(&mut scene.held);
    next.leaves_nothing();
}

#[test]
fn a_locked_socket_blocks_neither_counting_on_others_nor_the_agent() {
    let served = served(7094);
    let mut agent = start(&served.1, 7094);
    let mut scene = Scene::begin(served, 3);
    wait_for_joined(&mut agent, 3);
    one_waits(&agent.child);
    for stream in &mut scene.others {
        echoes(stream);
        assert_eq!(sends(&agent, stream)["messages"], 1);
    }
    // Those that come later, too.
    scene.others.push(connect(&scene.lab, scene.address));
    wait_for_joined(&mut agent, 4);
    assert_eq!(sends(&agent, &scene.held), Value::Null);
    let not = agent.logged("sends not counted");
    let reasons: Vec<_> = not.iter().map(|line| &line["reason"]).collect();
    assert_eq!(reasons, ["unanswered"]);
    // Once it is released it is counted as well.
    scene.release();
    wait_for_joined(&mut agent, 5);
    echoes(&mut scene.held);
    assert_eq!(sends(&agent, &scene.held)["messages"], 1);
    let all = held_by(agent.child.id());
    assert_eq!(agent.terminate(), Some(0));
    // A server's receive that is under way holds on to the program until it returns.
    scene.all().for_each(echoes);
    nothing_left(&all);
}

#[test]
fn an_agent_that_waits_for_a_locked_socket_to_count_on_stops() {
    let served = served(7095);
    let mut agent = start(&served.1, 7095);
    let mut scene = Scene::begin(served, 1);
    wait_for_joined(&mut agent, 1);
    one_waits(&agent.child);
    agent.signal(Signal::TERM);
    let line = agent.wait_for_message("stopped counting sends");
    assert_eq!(line["left"], 1, "{line}");
    echoes(&mut scene.others[0]);
    only_its_process_is_left(&mut agent);
    scene.release();
    assert_eq!(agent.child.wait().unwrap().code(), Some(0));
    echoes(&mut scene.held);
}
