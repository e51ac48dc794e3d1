//! What happens to a server, or to its whole pod, while a move is under way.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use xtask::lab::Lab;

use crate::{
    guards::echoes,
    moves::{enforce, is_reset},
    server::{Kind, Server},
    support::{Agent, alone, connect, eventually, lab},
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
    eventually("all descriptors are closed", || {
        // Fewer: one of those before was of a passing kind, a file of /proc.
        let now = agent.descriptors();
        if now <= descriptors {
            Ok((now, descriptors))
        } else {
            Err((now, descriptors))
        }
    });
    agent.wait_for_intervals(5);
    assert_eq!(agent.logged("move").len(), 1, "it is not tried again");
    assert_eq!(agent.complaints(), [] as [Value; 0]);
    agent.leaves_nothing();
}

/// A server, and a move of its one connection that waits for a quiet moment.
fn under_way(
    lab: &Lab,
    port: u16,
    step: &str,
    agent: impl Fn(&Lab, &str) -> Agent,
) -> (Server, Agent, usize, TcpStream) {
    let (address, server) = Server::in_pod(lab.pod(0), port, Kind::Plain);
    let mut agent = agent(lab, &enforce(lab, port, "maxAge: 300ms", step));
    let descriptors = agent.descriptors();
    let mut client = connect(lab, address);
    echoes(&mut client);
    wait_until_under_way(&mut agent);
    (server, agent, descriptors, client)
}

/// Stops every thread of it: the signal alone returns before they have.
fn stop(server: &Server) {
    signal(server, Signal::STOP);
    let tasks = format!("/proc/{}/task", server.child.id());
    eventually("all threads are stopped", || {
        let states: Vec<String> = std::fs::read_dir(&tasks)
            .unwrap()
            .flatten()
            .filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok())
            .filter_map(|status| Some(status.lines().find(|l| l.starts_with("State:"))?.to_owned()))
            .collect();
        let stopped = states.iter().all(|state| state.contains("T (stopped)"));
        if stopped { Ok(states) } else { Err(states) }
    });
}

fn signal(server: &Server, signal: Signal) {
    kill_process(Pid::from_child(&server.child), signal).unwrap();
}

#[test]
fn a_server_stopped_with_a_request_is_not_reset() {
    let _alone = alone();
    let lab = lab(1);
    let (server, mut agent, descriptors, mut client) = under_way(&lab, 7060, RESET, Agent::in_lab);
    stop(&server);
    client.write_all(b"f").unwrap();
    let line = agent.wait_for_move();
    assert_eq!(line["outcome"], "gaveUp", "{line}");
    signal(&server, Signal::CONT);
    client.read_exact(&mut [0]).unwrap();
    nothing_is_left(agent, descriptors);
}

#[test]
fn a_server_stopped_at_rest_is_reset() {
    let _alone = alone();
    let lab = lab(1);
    let (mut server, mut agent, descriptors, mut client) =
        under_way(&lab, 7061, RESET, Agent::in_lab);
    stop(&server);
    let line = agent.wait_for_move();
    assert_eq!(line["outcome"], "reset", "{line}");
    assert!(is_reset(&mut client));
    signal(&server, Signal::CONT);
    // What the reset did to the server's own descriptor does not harm it.
    echoes(&mut connect(&lab, (lab.pod(0).addr, 7061)));
    assert!(server.lives());
    nothing_is_left(agent, descriptors);
}

#[test]
fn a_move_whose_server_is_stopped_before_it_closes_fails() {
    let _alone = alone();
    let lab = lab(1);
    let (server, mut agent, descriptors, mut client) = under_way(&lab, 7062, CLOSE, Agent::in_lab);
    stop(&server);
    let line = agent.wait_for_move();
    assert_eq!(line["outcome"], "failed", "{line}");
    let detail = line["detail"].as_str().unwrap();
    assert!(detail.contains("asked to close and did not"), "{line}");
    // Once it goes on it closes, as nothing of ours holds the connection.
    signal(&server, Signal::CONT);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    nothing_is_left(agent, descriptors);
}

#[test]
fn a_pod_deleted_during_a_move_is_an_outcome() {
    let _alone = alone();
    for step in [CLOSE, RESET] {
        let lab = lab(1);
        let (server, mut agent, descriptors, _client) =
            under_way(&lab, 7063, step, |_, policy| Agent::on_machine(policy));
        drop((server, lab));
        let line = agent.wait_for_move();
        assert_eq!(line["outcome"], "leftByItself", "{line}");
        nothing_is_left(agent, descriptors);
    }
}

/// The socket lives on in a process elsewhere, in a namespace that no process is in and no name
/// leads to: only the socket itself does.
#[test]
fn a_connection_in_a_namespace_without_processes_is_skipped() {
    let _alone = alone();
    let lab = lab(1);
    let address = SocketAddr::from((lab.pod(0).addr, 7064));
    let listen = || TcpListener::bind(address);
    let listener = lab.pod(0).host.enter(listen).unwrap().unwrap();
    let mut agent = Agent::on_machine(&enforce(&lab, 7064, "maxAge: 300ms", RESET));
    let descriptors = agent.descriptors();
    let mut client = connect(&lab, address);
    let (mut server, _): (TcpStream, _) = listener.accept().unwrap();
    client.write_all(b"f").unwrap();
    server.read_exact(&mut [0]).unwrap();
    // It is quiet, and who holds it is looked at.
    server.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    wait_until_under_way(&mut agent);
    drop(lab);
    let line = agent.wait_for_move();
    assert_eq!(line["outcome"], "refused", "{line}");
    assert_eq!(line["cause"], "foreignProcess", "{line}");
    nothing_is_left(agent, descriptors);
    drop(server);
}
