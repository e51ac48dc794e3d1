//! The steps, one after the other, on real servers.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    moves::{enforce, is_reset},
    server::{Kind, Server},
    support::{Agent, alone, connect, download, eventually, lab, request, ss},
};

const CLOSE: &str = "{step: Close, when: Quiet, idleFor: 100ms, timeout: 5s}";
const CLOSE_AT_ONCE: &str = "{step: Close, when: AtOnce, timeout: 5s}";
/// The server is given this long to close.
const CLOSE_SHORT: &str = "{step: Close, when: AtOnce, timeout: 1s}";
const RESET: &str = "{step: Reset, when: Quiet, idleFor: 100ms, timeout: 5s}";

#[test]
fn the_close_step_makes_nginx_close_only_that_connection() {
    let _alone = alone();
    let lab = lab(1);
    let pod = lab.pod(0);
    let mut agent = Agent::in_lab(&lab, &enforce(&lab, 80, "maxBytes: 1Mi", CLOSE));
    let mut light = connect(&lab, pod.address());
    let mut heavy = connect(&lab, pod.address());
    request(&mut light, "/").unwrap();
    download(&mut heavy);
    let line = agent.wait_for_move();
    assert_eq!(line["outcome"], "closed", "{line}");
    assert_eq!(line["peer"], heavy.local_addr().unwrap().to_string());
    // A clean end: no data is lost, no reset.
    assert_eq!(heavy.read(&mut [0]).unwrap(), 0);
    request(&mut light, "/").unwrap();
    request(&mut connect(&lab, pod.address()), "/").unwrap();
    agent.wait_for_intervals(3);
    assert_eq!(agent.logged("move").len(), 1);
    assert_eq!(agent.endpoint(pod, 80)["closedByAbort"], 0);
}

/// A client that acknowledges the end and keeps its own: of the server's socket only a shadow is
/// left then, which has the same cookie.
#[test]
fn the_remains_of_a_closed_socket_are_not_taken_for_it() {
    let _alone = alone();
    let lab = lab(1);
    let pod = lab.pod(0);
    let policy = enforce(&lab, 80, "maxAge: 300ms", CLOSE_AT_ONCE);
    let mut agent = Agent::in_lab(&lab, &policy);
    let mut client = connect(&lab, pod.address());
    let line = agent.wait_for_move();
    assert_eq!(line["outcome"], "closed", "{line}");
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

/// Close waits for a quiet moment.
#[test]
fn a_busy_server_is_not_asked_to_close() {
    let _alone = alone();
    let lab = lab(1);
    let (address, _server) = Server::in_pod(lab.pod(0), 7040, Kind::Plain);
    let mut agent = Agent::in_lab(&lab, &enforce(&lab, 7040, "maxAge: 300ms", CLOSE));
    let mut client = connect(&lab, address);
    // Asked while it worked, it would answer and close: the next request would find no server.
    for work in [b"h", b"s", b"s"] {
        client.write_all(work).unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
    assert_eq!(agent.wait_for_move()["outcome"], "closed");
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_server_that_does_not_close_is_reset_by_the_next_step() {
    let _alone = alone();
    let lab = lab(1);
    let (address, _server) = Server::in_pod(lab.pod(0), 7041, Kind::Stays);
    let steps = format!("{CLOSE_SHORT}, {RESET}");
    let mut agent = Agent::in_lab(&lab, &enforce(&lab, 7041, "maxAge: 300ms", &steps));
    let mut client = connect(&lab, address);
    client.write_all(b"f").unwrap();
    client.read_exact(&mut [0]).unwrap();
    let line = agent.wait_for_move();
    assert_eq!(line["outcome"], "reset", "{line}");
    assert!(line["waited_ms"].as_u64().unwrap() >= 1000, "{line}");
    assert!(is_reset(&mut client));
}

/// It was touched, so it is not reported as given up, which says that nothing was done.
#[test]
fn a_move_whose_server_does_not_close_fails_without_a_next_step() {
    let _alone = alone();
    let lab = lab(1);
    let (address, _server) = Server::in_pod(lab.pod(0), 7042, Kind::Stays);
    let policy = enforce(&lab, 7042, "maxAge: 300ms", CLOSE_SHORT);
    let mut agent = Agent::in_lab(&lab, &policy);
    let _client = connect(&lab, address);
    let line = agent.wait_for_move();
    assert_eq!(line["outcome"], "failed", "{line}");
    let detail = line["detail"].as_str().unwrap();
    assert!(detail.contains("asked to close and did not"), "{line}");
}

#[test]
fn a_stopped_server_gets_the_next_step() {
    let _alone = alone();
    let lab = lab(1);
    let (address, server) = Server::in_pod(lab.pod(0), 7043, Kind::Plain);
    let mut client = connect(&lab, address);
    client.write_all(b"f").unwrap();
    client.read_exact(&mut [0]).unwrap();
    kill_process(Pid::from_child(&server.child), Signal::STOP).unwrap();
    let steps = format!("{CLOSE_SHORT}, {RESET}");
    let mut agent = Agent::in_lab(&lab, &enforce(&lab, 7043, "maxAge: 300ms", &steps));
    let line = agent.wait_for_move();
    assert_eq!(line["outcome"], "reset", "{line}");
    assert!(is_reset(&mut client));
}

#[test]
fn at_end_reset_now_resets_after_the_last_step() {
    let _alone = alone();
    let lab = lab(1);
    let steps = "{step: Close, when: Quiet, idleFor: 10s, timeout: 500ms}";
    let policy = enforce(&lab, 80, "maxAge: 300ms", steps) + "  atEnd: ResetNow\n";
    let mut agent = Agent::in_lab(&lab, &policy);
    let mut client = connect(&lab, lab.pod(0).address());
    request(&mut client, "/").unwrap();
    let line = agent.wait_for_move();
    assert_eq!(line["outcome"], "reset", "{line}");
    assert!(is_reset(&mut client));
}

/// What waits to be read when the server is asked to close is read before the end of file.
#[test]
fn requests_received_before_the_close_step_are_still_answered() {
    let _alone = alone();
    let lab = lab(1);
    let (address, _server) = Server::in_pod(lab.pod(0), 7044, Kind::Plain);
    let policy = enforce(&lab, 7044, "maxAge: 300ms", CLOSE_AT_ONCE);
    let mut agent = Agent::in_lab(&lab, &policy);
    let mut client = connect(&lab, address);
    client.write_all(b"hf").unwrap();
    let mut answers = [0; 2];
    client.read_exact(&mut answers).unwrap();
    assert_eq!(&answers, b"hf");
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    let line = agent.wait_for_move();
    assert_eq!(line["outcome"], "closed", "{line}");
    // It was asked while it worked, not afterwards.
    assert!(line["waited_ms"].as_u64().unwrap() >= 1500, "{line}");
}

/// Data that arrives between the end of file and the server's own close is never read: the client must
/// get a reset, and not assume that its request was served.
#[test]
fn a_request_that_crosses_the_end_of_file_gets_a_reset() {
    let _alone = alone();
    let lab = lab(1);
    let (address, _server) = Server::in_pod(lab.pod(0), 7045, Kind::Lingers);
    let policy = enforce(&lab, 7045, "maxAge: 300ms", CLOSE_AT_ONCE);
    let mut agent = Agent::in_lab(&lab, &policy);
    for _ in 0..5 {
        let mut client = connect(&lab, address);
        let end = loop {
            // More often than the server takes to close, so that one surely crosses.
            std::thread::sleep(Duration::from_millis(50));
            if let Err(e) = client
                .write_all(b"f")
                .and_then(|()| client.read_exact(&mut [0]))
            {
                break e.kind();
            }
        };
        assert_eq!(end, ErrorKind::ConnectionReset);
        assert_eq!(agent.wait_for_move()["outcome"], "closed");
    }
}

/// Nothing of ours keeps the connection open: the server's close sends its FIN at once.
#[test]
fn the_duplicated_descriptor_is_closed_at_once() {
    let _alone = alone();
    let lab = lab(1);
    let pod = lab.pod(0);
    let mut agent = Agent::in_lab(&lab, &enforce(&lab, 80, "maxAge: 300ms", CLOSE));
    let before = sockets_of(&agent);
    let mut client = connect(&lab, pod.address());
    request(&mut client, "/").unwrap();
    assert_eq!(agent.wait_for_move()["outcome"], "closed");
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    drop(client);
    eventually("nothing is left", || {
        let left = ss(&pod.host, 80).len();
        if left == 0 { Ok(left) } else { Err(left) }
    });
    assert_eq!(sockets_of(&agent), before);
}

fn sockets_of(agent: &Agent) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", agent.child.id()))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|link| link.to_string_lossy().starts_with("socket:"))
        .count()
}
