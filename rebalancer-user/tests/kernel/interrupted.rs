//! What happens to a server, or to its whole pod, while a move is under way.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use rustix::process::Signal;
use serde_json::Value;
use xtask::lab::Lab;

use crate::{
    server::{Kind, Server},
    support::{Agent, accepted, echoed, enforce, eventually, has_ended, is_reset, lab, listen},
};

/// Long enough that something can surely happen before it is over.
const CLOSE: &str = "{step: Close, when: Quiet, idleFor: 4s, timeout: 6s}";
const RESET: &str = "{step: Reset, when: Quiet, idleFor: 4s, timeout: 6s}";

/// Waits until the mover has a move and waits for a quiet moment.
fn wait_until_under_way(agent: &mut Agent) {
    agent.wait_for("a move is chosen", |line| line["moves"] == 1);
    // By the next listings it has been ordered, and looked at.
    agent.wait_for_intervals(2);
}

/// The agent holds as many descriptors as it did before, and complains of nothing.
#[track_caller]
fn nothing_is_left(mut agent: Agent, descriptors: usize) {
    // Fewer: one of those before was of a passing kind, a file of /proc.
    let look = || agent.descriptors();
    eventually("all descriptors are closed", look, |n| *n <= descriptors);
    agent.moves_no_more(1, 5); // it is not tried again
    assert_eq!(agent.complaints(), [] as [Value; 0]);
    agent.leaves_nothing();
}

/// A server, and a move of its one connection that waits for a quiet moment.
fn under_way(
    lab: &Lab,
    step: &str,
    agent: impl Fn(&Lab, &str) -> Agent,
) -> (Server, Agent, usize, TcpStream) {
    let (address, server) = Server::in_pod(lab.pod(0), 7060, Kind::Plain);
    let mut agent = agent(lab, &enforce(lab, 7060, "maxAge: 300ms", step));
    let descriptors = agent.descriptors();
    let client = echoed(lab, address);
    wait_until_under_way(&mut agent);
    (server, agent, descriptors, client)
}

/// Stops every thread of it: the signal alone returns before they have.
fn stop(server: &Server) {
    server.signal(Signal::STOP);
    let tasks = format!("/proc/{}/task", server.id());
    let states = || -> Vec<String> {
        let tasks = std::fs::read_dir(&tasks).unwrap().flatten();
        let states = tasks.filter_map(|it| std::fs::read_to_string(it.path().join("status")).ok());
        let is_state = |line: &&str| line.starts_with("State:");
        states
            .filter_map(|it| it.lines().find(is_state).map(str::to_owned))
            .collect()
    };
    eventually("all threads are stopped", states, |states| {
        states.iter().all(|state| state.contains("T (stopped)"))
    });
}

#[test]
fn a_server_stopped_with_a_request_is_not_reset() {
    let lab = lab(1);
    let (server, mut agent, descriptors, mut client) = under_way(&lab, RESET, Agent::in_lab);
    stop(&server);
    client.write_all(b"f").unwrap();
    agent.moved("gaveUp");
    server.signal(Signal::CONT);
    client.read_exact(&mut [0]).unwrap();
    nothing_is_left(agent, descriptors);
}

#[test]
fn a_server_stopped_at_rest_is_reset() {
    let lab = lab(1);
    let (mut server, mut agent, descriptors, mut client) = under_way(&lab, RESET, Agent::in_lab);
    stop(&server);
    agent.moved("reset");
    assert!(is_reset(&mut client));
    server.signal(Signal::CONT);
    // What the reset did to the server's own descriptor does not harm it.
    echoed(&lab, (lab.pod(0).addr, 7060));
    assert!(server.lives());
    nothing_is_left(agent, descriptors);
}

#[test]
fn a_move_whose_server_is_stopped_before_it_closes_fails() {
    let lab = lab(1);
    let (server, mut agent, descriptors, mut client) = under_way(&lab, CLOSE, Agent::in_lab);
    stop(&server);
    let line = agent.moved("failed");
    let detail = line["detail"].as_str().unwrap();
    assert!(detail.contains("asked to close and did not"), "{line}");
    // Once it goes on it closes, as nothing of ours holds the connection.
    server.signal(Signal::CONT);
    has_ended(&mut client, "closed");
    nothing_is_left(agent, descriptors);
}

#[test]
fn a_pod_deleted_during_a_move_is_an_outcome() {
    for step in [CLOSE, RESET] {
        let lab = lab(1);
        let on_machine = |_: &Lab, policy: &str| Agent::on_machine(policy);
        let (server, mut agent, descriptors, _client) = under_way(&lab, step, on_machine);
        drop((server, lab));
        agent.moved("leftByItself");
        nothing_is_left(agent, descriptors);
    }
}

/// The socket lives on in a process elsewhere, in a namespace that no process is in and no name
/// leads to: only the socket itself does.
#[test]
fn a_connection_in_a_namespace_without_processes_is_skipped() {
    let lab = lab(1);
    let listener = listen(lab.pod(0), 7064);
    let mut agent = Agent::on_machine(&enforce(&lab, 7064, "maxAge: 300ms", RESET));
    let descriptors = agent.descriptors();
    let (mut client, mut server) = accepted(&lab, &listener);
    client.write_all(b"f").unwrap();
    server.read_exact(&mut [0]).unwrap();
    // It is quiet, and who holds it is looked at.
    server.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    wait_until_under_way(&mut agent);
    drop(lab);
    agent.refused("foreignProcess");
    nothing_is_left(agent, descriptors);
    drop(server);
}
