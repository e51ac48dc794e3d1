//! The steps, one after the other, on real servers.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    server::{Kind, served, served_and_moved},
    support::{
        Agent, CLOSE_AT_ONCE, answered, connect, echoed, enforce, eventually, has_ended, heavy,
        lab, request, ss,
    },
};

const CLOSE: &str = "{step: Close, when: Quiet, idleFor: 100ms, timeout: 5s}";
/// The server is given this long to close.
const CLOSE_SHORT: &str = "{step: Close, when: AtOnce, timeout: 1s}";
const RESET: &str = "{step: Reset, when: Quiet, idleFor: 100ms, timeout: 5s}";

#[test]
fn the_close_step_makes_nginx_close_only_that_connection() {
    let lab = lab(1);
    let pod = lab.pod(0);
    let mut agent = Agent::moving(&lab, 80, "maxBytes: 1Mi", CLOSE);
    let mut light = answered(&lab, pod.address());
    let mut heavy = heavy(&lab, pod);
    let line = agent.moved("closed");
    assert_eq!(line["peer"], heavy.local_addr().unwrap().to_string());
    // A clean end: no data is lost, no reset.
    has_ended(&mut heavy, "closed");
    request(&mut light, "/").unwrap();
    answered(&lab, pod.address());
    agent.moves_no_more(1, 3);
    assert_eq!(agent.endpoint(pod, 80)["closedByAbort"], 0);
}

/// A client that acknowledges the end and keeps its own: of the server's socket only a shadow is
/// left then, which has the same cookie.
#[test]
fn the_remains_of_a_closed_socket_are_not_taken_for_it() {
    let lab = lab(1);
    let mut agent = Agent::moving(&lab, 80, "maxAge: 300ms", CLOSE_AT_ONCE);
    let mut client = connect(&lab, lab.pod(0).address());
    agent.moved("closed");
    has_ended(&mut client, "closed");
}

/// Close waits for a quiet moment.
#[test]
fn a_busy_server_is_not_asked_to_close() {
    let (lab, address, _server, mut agent) = served_and_moved(7040, Kind::Plain, CLOSE);
    let mut client = connect(&lab, address);
    // Asked while it worked, it would answer and close: the next request would find no server.
    for work in [b"h", b"s", b"s"] {
        client.write_all(work).unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
    agent.moved("closed");
    has_ended(&mut client, "closed");
}

#[test]
fn a_server_that_does_not_close_gets_the_next_step_or_the_move_fails() {
    let and_reset = format!("{CLOSE_SHORT}, {RESET}");
    for (kind, is_stopped, steps, outcome) in [
        (Kind::Stays, false, and_reset.as_str(), "reset"),
        (Kind::Plain, true, &and_reset, "reset"),
        // It was touched, so it is not reported as given up, which says that nothing was done.
        (Kind::Stays, false, CLOSE_SHORT, "failed"),
    ] {
        let (lab, address, server) = served(7041, kind);
        let mut client = echoed(&lab, address);
        if is_stopped {
            server.signal(Signal::STOP);
        }
        let mut agent = Agent::moving(&lab, 7041, "maxAge: 300ms", steps);
        let line = agent.moved(outcome);
        assert!(line["waited_ms"].as_u64().unwrap() >= 1000, "{line}");
        if outcome == "reset" {
            has_ended(&mut client, outcome);
        } else {
            let detail = line["detail"].as_str().unwrap();
            assert!(detail.contains("asked to close and did not"), "{line}");
        }
    }
}

#[test]
fn at_end_reset_now_resets_after_the_last_step() {
    let lab = lab(1);
    let steps = "{step: Close, when: Quiet, idleFor: 10s, timeout: 500ms}";
    let policy = enforce(&lab, 80, "maxAge: 300ms", steps) + "  atEnd: ResetNow\n";
    let mut agent = Agent::in_lab(&lab, &policy);
    let mut client = answered(&lab, lab.pod(0).address());
    agent.moved("reset");
    has_ended(&mut client, "reset");
}

/// What waits to be read when the server is asked to close is read before the end of file.
#[test]
fn requests_received_before_the_close_step_are_still_answered() {
    let (lab, address, _server, mut agent) = served_and_moved(7044, Kind::Plain, CLOSE_AT_ONCE);
    let mut client = connect(&lab, address);
    client.write_all(b"hf").unwrap();
    let mut answers = [0; 2];
    client.read_exact(&mut answers).unwrap();
    assert_eq!(&answers, b"hf");
    has_ended(&mut client, "closed");
    let line = agent.moved("closed");
    // It was asked while it worked, not afterwards.
    assert!(line["waited_ms"].as_u64().unwrap() >= 1500, "{line}");
}

/// Data that arrives between the end of file and the server's own close is never read: the client must
/// get a reset, and not assume that its request was served.
#[test]
fn a_request_that_crosses_the_end_of_file_gets_a_reset() {
    let (lab, address, _server, mut agent) = served_and_moved(7045, Kind::Lingers, CLOSE_AT_ONCE);
    for _ in 0..5 {
        let mut client = connect(&lab, address);
        let end = loop {
            // More often than the server takes to close, so that one surely crosses.
            std::thread::sleep(Duration::from_millis(50));
            let asked = client.write_all(b"f");
            if let Err(e) = asked.and_then(|()| client.read_exact(&mut [0])) {
                break e.kind();
            }
        };
        assert_eq!(end, ErrorKind::ConnectionReset);
        agent.moved("closed");
    }
}

/// Nothing of ours keeps the connection open: the server's close sends its FIN at once.
#[test]
fn the_duplicated_descriptor_is_closed_at_once() {
    let lab = lab(1);
    let pod = lab.pod(0);
    let mut agent = Agent::moving(&lab, 80, "maxAge: 300ms", CLOSE);
    let before = sockets_of(&agent);
    let mut client = answered(&lab, pod.address());
    agent.moved("closed");
    has_ended(&mut client, "closed");
    drop(client);
    eventually("nothing is left", || ss(&pod.host, 80), Vec::is_empty);
    assert_eq!(sockets_of(&agent), before);
}

fn sockets_of(agent: &Agent) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", agent.child.id()))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|link| link.to_string_lossy().starts_with("socket:"))
        .count()
}
