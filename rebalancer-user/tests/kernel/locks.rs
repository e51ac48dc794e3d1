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
    guards::echoes,
    messages::{NEVER, counting, nothing_left, sends, start, wait_for_joined},
    moves::{AT_ONCE, enforce, is_reset},
    server::{Kind, Server},
    status::status,
    support::{
        Agent, alone, cgroup, connect, eventually, held_by, lab, own_pins, pins_left, rebalancer,
        stderr,
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

/// A lab and its server.
fn served(port: u16) -> (Server, Lab, SocketAddr) {
    let lab = lab(1);
    let (address, server) = Server::in_pod(lab.pod(0), port, Kind::Holds);
    (server, lab, address)
}

impl Scene {
    /// The one that is held is the oldest.
    fn begin((server, lab, address): (Server, Lab, SocketAddr), others: usize) -> Self {
        let mut held = connect(&lab, address);
        let mut others: Vec<_> = (0..others).map(|_| connect(&lab, address)).collect();
        for stream in &mut others {
            echoes(stream);
        }
        held.write_all(b"l").unwrap();
        eventually("the lock is held", || match server.locks() {
            1 => Ok(1),
            none => Err(none),
        });
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
}

fn mover(agent: &Agent) -> Value {
    status(agent)["mover"].clone()
}

/// How many threads of a process wait for a socket's lock.
fn waiting(pid: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    let waits = |task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("wchan")).is_ok_and(|at| at == "__lock_sock")
    };
    tasks.filter(waits).count()
}

#[track_caller]
fn one_waits(child: &Child) {
    eventually("a thread waits for the lock", || {
        match waiting(child.id()) {
            1 => Ok(1),
            other => Err(other),
        }
    });
}

/// Outcomes of moves, sorted, of so many.
fn outcomes(agent: &mut Agent, count: usize) -> Vec<(String, Value)> {
    let mut all: Vec<_> = (0..count)
        .map(|_| {
            let line = agent.wait_for_move();
            (
                line["outcome"].as_str().unwrap().to_owned(),
                line["peer"].clone(),
            )
        })
        .collect();
    all.sort_by(|one, other| one.0.cmp(&other.0));
    all
}

fn words(outcomes: &[(String, Value)]) -> Vec<&str> {
    outcomes.iter().map(|(word, _)| word.as_str()).collect()
}

/// Outcomes of four moves that were not begun, once the mover is abandoned: the one at which it
/// was is left alone, the others are judged again.
const GIVEN_UP: [&str; 4] = ["recalled", "recalled", "recalled", "refused"];

/// All four are under way.
#[track_caller]
fn is_stuck_with_all(agent: &Agent) {
    one_waits(&agent.child);
    eventually("all are under way", || {
        let in_flight = status(agent)["inFlight"].as_array().unwrap().len();
        if in_flight == 4 {
            Ok(4)
        } else {
            Err(in_flight)
        }
    });
}

/// What the other tests stand on.
#[test]
fn reading_a_locked_socket_blocks_until_it_is_released() {
    let _alone = alone();
    let mut scene = Scene::begin(served(7090), 0);
    let mut command = scene.lab.pod(0).host.command("ss");
    let mut look = command.arg("-ti").stdout(Stdio::null()).spawn().unwrap();
    one_waits(&look);
    scene.release();
    assert!(look.wait().unwrap().success());
}

#[test]
fn a_stuck_mover_is_reported_and_replaced() {
    let _alone = alone();
    let served = served(7091);
    let policy = enforce(&served.1, 7091, "maxAge: 2s", AT_ONCE)
        .replace("interval: 200ms", "interval: 7s")
        .replace("budget: {", "budget: {window: 10m, perNode: 9, ");
    let mut agent = Agent::in_lab(&served.1, &policy);
    let mut scene = Scene::begin(served, 3);
    let peer = Value::from(scene.held.local_addr().unwrap().to_string());
    one_waits(&agent.child);
    // Reported until the next interval, at which another takes over.
    let stuck = eventually("it is stuck", || {
        let mover = mover(&agent);
        if mover["state"] == "stuck" {
            Ok(mover)
        } else {
            Err(mover)
        }
    });
    let ready = rebalancer(&agent, &["probe", "ready"]);
    assert_eq!(ready.status.code(), Some(1));
    assert!(stderr(&ready).contains("the mover is stuck"), "{ready:?}");
    assert!(rebalancer(&agent, &["probe", "live"]).status.success());
    let listed = agent.connections(scene.lab.pod(0));
    let held = listed.iter().find(|c| c["peer"] == peer).unwrap();
    assert_eq!(stuck["at"], held["id"]);

    let given_up = outcomes(&mut agent, 4);
    assert_eq!(words(&given_up), GIVEN_UP);
    assert_eq!(given_up[3].1, peer);
    let moved = outcomes(&mut agent, 3);
    assert_eq!(words(&moved), ["reset"; 3]);
    for stream in &mut scene.others {
        assert!(is_reset(stream));
    }
    agent.wait_for_intervals(1);
    assert!(rebalancer(&agent, &["probe", "ready"]).status.success());
    let now = status(&agent);
    assert_eq!(
        now["mover"],
        json!({"state": "fine", "stuckSeconds": null, "at": null, "replaced": 1})
    );
    assert_eq!(
        now["ended"],
        json!({"recalled": 3, "refused": 1, "reset": 3})
    );
    // Nothing was done to what was given up.
    assert_eq!(
        (&now["budgets"][0]["used"], &now["inFlight"]),
        (&json!(3), &json!([]))
    );

    assert_eq!(waiting(agent.child.id()), 1);
    scene.release();
    agent.wait_for("the end of the thread", |line| {
        line["message"] == "the kernel has answered an abandoned moving thread, which has ended"
    });
    echoes(&mut scene.held);
    assert_eq!(waiting(agent.child.id()), 0);
    assert!(is_reset(&mut connect(&scene.lab, scene.address)));
    agent.leaves_nothing();
}

#[test]
fn a_pause_while_the_mover_is_stuck_holds_when_it_resumes() {
    let _alone = alone();
    let served = served(7092);
    let policy = enforce(&served.1, 7092, "maxAge: 2s", AT_ONCE);
    let mut agent = Agent::in_lab(&served.1, &policy);
    let mut scene = Scene::begin(served, 3);
    is_stuck_with_all(&agent);
    // Whatever it receives meanwhile.
    let paused = rebalancer(&agent, &["pause", "--for", "1h"]);
    let text = String::from_utf8(paused.stdout).unwrap();
    assert!(text.contains("moves recalled: 4"), "{text}");
    scene.release();
    assert_eq!(words(&outcomes(&mut agent, 4)), ["recalled"; 4]);
    for stream in scene.others.iter_mut().chain([&mut scene.held]) {
        echoes(stream);
    }
    agent.leaves_nothing();
}

#[test]
fn an_agent_with_a_stuck_mover_stops_and_another_starts() {
    let _alone = alone();
    let served = served(7093);
    let policy = enforce(&served.1, 7093, "maxAge: 2s", AT_ONCE);
    let in_lab = cgroup(&served.1).to_str().unwrap().to_owned();
    let in_lab = ["--cgroup", &in_lab];
    let mut agent = Agent::with(&policy, own_pins(), &in_lab);
    let scene = Scene::begin(served, 3);
    is_stuck_with_all(&agent);
    agent.signal(Signal::TERM);
    // Each move has its outcome all the same.
    let given_up = outcomes(&mut agent, 4);
    assert_eq!(words(&given_up), GIVEN_UP);
    eventually("its pins are gone", || {
        let left = pins_left(&agent.pins);
        if left.is_empty() { Ok(left) } else { Err(left) }
    });
    // A thread in such a sleep keeps its process from ending.
    assert_eq!(
        (waiting(agent.child.id()), agent.child.try_wait().unwrap()),
        (1, None)
    );
    let mut next = Agent::with(&policy, agent.pins.clone(), &in_lab);
    let mut scene = scene;
    // It knows of which one nothing is to be had.
    assert_eq!(words(&outcomes(&mut next, 3)), ["reset"; 3]);
    next.wait_for_intervals(5);
    assert_eq!(waiting(next.child.id()), 0);
    scene.release();
    assert_eq!(agent.child.wait().unwrap().code(), Some(0));
    echoes(&mut scene.held);
    next.leaves_nothing();
}

#[test]
fn a_locked_socket_blocks_neither_counting_on_others_nor_the_agent() {
    let _alone = alone();
    let served = served(7094);
    let policy = counting(&served.1, 7094, NEVER, AT_ONCE);
    let mut agent = start(&served.1, &policy, &[]);
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
    for stream in scene.others.iter_mut().chain([&mut scene.held]) {
        echoes(stream);
    }
    nothing_left(&all);
}

#[test]
fn an_agent_that_waits_for_a_locked_socket_to_count_on_stops() {
    let _alone = alone();
    let served = served(7095);
    let policy = counting(&served.1, 7095, NEVER, AT_ONCE);
    let mut agent = start(&served.1, &policy, &[]);
    let mut scene = Scene::begin(served, 1);
    wait_for_joined(&mut agent, 1);
    one_waits(&agent.child);
    agent.signal(Signal::TERM);
    let line = agent.wait_for("the end of counting", |line| {
        line["message"] == "stopped counting sends"
    });
    assert_eq!(line["left"], 1, "{line}");
    eventually("its pins are gone", || {
        let left = pins_left(&agent.pins);
        if left.is_empty() { Ok(left) } else { Err(left) }
    });
    echoes(&mut scene.others[0]);
    assert_eq!(
        (waiting(agent.child.id()), agent.child.try_wait().unwrap()),
        (1, None)
    );
    scene.release();
    assert_eq!(agent.child.wait().unwrap().code(), Some(0));
    echoes(&mut scene.held);
}
