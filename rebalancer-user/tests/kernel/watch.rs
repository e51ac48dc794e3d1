//! A victim is moved only once it is heard to speak HTTP/1, unless its rule vouches for it.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
    thread::sleep,
    time::Duration,
};

use aya::sys::{Stats, enable_stats};
use rebalancer_common::names::WATCH;
use rustix::process::Signal;
use serde_json::Value;
use xtask::lab::{Host, Lab};

use crate::{
    cost::{program_of, runs},
    guards::refused,
    moves::{QUIET, enforce, is_reset},
    server::{Kind, Server},
    support::{
        Agent, REBALANCER, alone, bpftool, cgroup, connect, eventually, lab, own_pins, request,
        still_there,
    },
};

const HTTP1: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
/// HEADERS that open a stream and end it, as a client's GET does.
const HTTP2: &[u8] = &[
    0, 0, 9, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84, 0x41, 3, 1, 2, 3, 4,
];
/// A record with data.
const TLS: &[u8] = &[23, 3, 3, 0, 13, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13];
const REDIS: &[u8] = b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n";

/// No word of what a connection's end costs.
fn unsaid(lab: &Lab, port: u16, limits: &str, steps: &str) -> String {
    let vouched = enforce(lab, port, limits, steps);
    let unsaid = vouched.replace("  sessionState: Keeps\n", "");
    assert_ne!(vouched, unsaid);
    unsaid
}

/// One exchange with a server that answers with what it is sent.
fn try_exchange(stream: &mut TcpStream, words: &[u8]) -> std::io::Result<()> {
    stream.write_all(words)?;
    let mut answer = vec![0; words.len()];
    stream.read_exact(&mut answer)?;
    assert_eq!(answer, words);
    Ok(())
}

fn exchange(stream: &mut TcpStream, words: &[u8]) {
    try_exchange(stream, words).unwrap();
}

/// Talks until the agent tells of a move.
fn talk(agent: &mut Agent, stream: &mut TcpStream, words: &[u8]) -> Value {
    for _ in 0..100 {
        // It is reset before that is told.
        if try_exchange(stream, words).is_err() {
            break;
        }
        sleep(Duration::from_millis(150));
        if let Some(line) = agent.said("move").pop() {
            return line;
        }
    }
    agent.wait_for_move()
}

/// Waits until it listens to a victim that is at rest.
fn listens(agent: &mut Agent) {
    agent.wait_for("that one waits", |line| {
        let spared = line["spared"].as_str();
        spared.is_some_and(|spared| spared.contains("inFlight"))
    });
    agent.wait_for_intervals(1);
}

/// Whether a program is in the kernel. By its id: other agents on this machine have the same names.
fn is_there(program: u64) -> bool {
    !still_there(&[("prog", program)]).is_empty()
}

/// No socket keeps it; the kernel frees it a moment later.
fn goes(program: u64) {
    eventually("it is gone", || {
        if is_there(program) {
            Err(program)
        } else {
            Ok(program)
        }
    });
}

fn spoken(host: &Host, address: SocketAddr) -> Server {
    Server::start(host, address, Kind::Plain)
}

#[test]
fn what_is_not_http_1_is_spared_and_its_filter_taken_off() {
    let _alone = alone();
    let lab = lab(1);
    let _stats = enable_stats(Stats::RunTime).expect("run counts");
    for (port, words, guard) in [
        (7060, HTTP2, "http2"),
        (7061, TLS, "tls"),
        (7062, REDIS, "protocolUnknown"),
    ] {
        let address = SocketAddr::from((lab.pod(0).addr, port));
        let _server = spoken(&lab.pod(0).host, address);
        let mut agent = Agent::in_lab(&lab, &unsaid(&lab, port, "maxAge: 300ms", QUIET));
        let program = program_of(&agent, WATCH);
        let mut client = connect(&lab, address);
        let line = talk(&mut agent, &mut client, words);
        refused(&line, guard);
        // It was heard, and is not any more.
        let heard = runs(program);
        assert!(heard > 0);
        for _ in 0..20 {
            exchange(&mut client, words);
        }
        assert_eq!(runs(program), heard);
        agent.leaves_nothing();
        exchange(&mut client, words);
    }
}

/// One is heard, at no cost to the other.
#[test]
fn what_is_heard_to_be_http_1_is_moved_and_nobody_else_pays() {
    let _alone = alone();
    let lab = lab(1);
    let pod = lab.pod(0);
    let mut agent = Agent::in_lab(&lab, &unsaid(&lab, 80, "maxBytes: 1Mi", QUIET));
    let program = program_of(&agent, WATCH);
    let _stats = enable_stats(Stats::RunTime).expect("run counts");
    let mut light = connect(&lab, pod.address());
    let mut heavy = connect(&lab, pod.address());
    for _ in 0..5 {
        request(&mut heavy, "/blob").unwrap();
    }
    listens(&mut agent);
    assert_eq!(agent.said("move").len(), 0, "nothing was heard yet");
    let so_far = runs(program);
    for _ in 0..50 {
        request(&mut light, "/").unwrap();
    }
    assert_eq!(runs(program), so_far, "the light one is not heard");
    request(&mut heavy, "/").unwrap();
    let line = agent.wait_for_move();
    assert_eq!(line["outcome"], "reset", "{line}");
    assert_eq!(line["peer"], heavy.local_addr().unwrap().to_string());
    assert!(is_reset(&mut heavy));
    request(&mut light, "/").unwrap();
}

/// In the middle of an exchange nothing is told by what comes: a body looks like anything.
#[test]
fn what_is_amid_something_is_heard_from_the_next_request_on() {
    let _alone = alone();
    let lab = lab(1);
    let address = SocketAddr::from((lab.pod(0).addr, 7063));
    let _server = spoken(&lab.pod(0).host, address);
    let mut client = connect(&lab, address);
    client.write_all(b"h").unwrap(); // answered after three seconds
    let mut agent = Agent::in_lab(&lab, &unsaid(&lab, 7063, "maxAge: 300ms", QUIET));
    listens(&mut agent);
    client.write_all(REDIS).unwrap();
    client.read_exact(&mut [0; 1 + REDIS.len()]).unwrap();
    sleep(Duration::from_millis(300));
    exchange(&mut client, HTTP1);
    let line = agent.wait_for_move();
    assert_eq!(line["outcome"], "reset", "{line}");
}

/// Its client says nothing, now or for long: nothing is heard of it.
#[test]
fn the_silent_are_left() {
    let _alone = alone();
    let lab = lab(1);
    let address = SocketAddr::from((lab.pod(0).addr, 7064));
    let _server = spoken(&lab.pod(0).host, address);
    let mut idle = connect(&lab, address);
    exchange(&mut idle, b"f");
    let policy = unsaid(&lab, 7064, "maxAge: 300ms", QUIET);
    let mut agent = Agent::in_lab(&lab, &policy);
    let line = agent.wait_for_move();
    assert_eq!(line["outcome"], "gaveUp", "{line}");
    drop(agent);
    // Until it has been silent for too long to be waited for.
    sleep(Duration::from_secs(6));
    let mut agent = Agent::in_lab(&lab, &policy);
    agent.wait_for_intervals(5);
    assert_eq!(agent.said("move").len(), 0);
    let listed = agent.said("listed").pop().unwrap();
    assert_eq!(listed["spared"], r#"{"silent": 1}"#);
    // It speaks again.
    let line = talk(&mut agent, &mut idle, HTTP1);
    assert_eq!(line["outcome"], "reset", "{line}");
}

/// A server that has long been at work is at rest first, and then silent.
#[test]
fn what_is_answered_late_is_moved_all_the_same() {
    let _alone = alone();
    let lab = lab(1);
    let address = SocketAddr::from((lab.pod(0).addr, 7067));
    let _server = spoken(&lab.pod(0).host, address);
    let mut client = connect(&lab, address);
    let policy = unsaid(&lab, 7067, "maxAge: 300ms", &QUIET.replace("10s", "1m"));
    let mut agent = Agent::in_lab(&lab, &policy);
    // Eighteen seconds in which the client says nothing.
    client.write_all(b"hhhhhh").unwrap();
    for _ in 0..6 {
        client.read_exact(&mut [0]).unwrap();
    }
    sleep(Duration::from_millis(300));
    assert_eq!(agent.said("move").len(), 0);
    exchange(&mut client, HTTP1);
    let line = agent.wait_for_move();
    assert_eq!(line["outcome"], "reset", "{line}");
}

/// Also one that it puts in the place of ours while the connection is watched.
#[test]
fn an_applications_own_filter_is_left_alone() {
    let _alone = alone();
    let lab = lab(1);
    for (port, kind) in [(7065, Kind::Filters), (7068, Kind::FiltersLate)] {
        let address = SocketAddr::from((lab.pod(0).addr, port));
        let _server = Server::start(&lab.pod(0).host, address, kind);
        let policy = unsaid(&lab, port, "maxAge: 300ms", QUIET);
        let mut agent = Agent::in_lab(&lab, &policy);
        let program = program_of(&agent, WATCH);
        let _stats = enable_stats(Stats::RunTime).expect("run counts");
        let mut client = connect(&lab, address);
        if kind == Kind::Filters {
            refused(&talk(&mut agent, &mut client, HTTP1), "ownFilter");
            assert_eq!(runs(program), 0);
        } else {
            listens(&mut agent);
            exchange(&mut client, b"F"); // its server has one from now on
            let outcome = agent.wait_for_move();
            assert_eq!(outcome["outcome"], "gaveUp", "{outcome}");
        }
        let mut instructions = [0];
        client.write_all(b"?").unwrap();
        client.read_exact(&mut instructions).unwrap();
        assert_eq!(instructions, [1], "its own is there");
        exchange(&mut client, HTTP1);
    }
}

/// It stays on the sockets that were about to be moved. Whoever comes next takes it off.
#[test]
fn what_a_killed_agent_was_watching_is_left_alone_by_the_next_and_by_uninstall() {
    let _alone = alone();
    let lab = lab(1);
    let address = SocketAddr::from((lab.pod(0).addr, 7066));
    let _server = spoken(&lab.pod(0).host, address);
    let policy = unsaid(&lab, 7066, "maxAge: 300ms", QUIET);
    let pins = own_pins();
    let within = ["--cgroup", cgroup(&lab).to_str().unwrap()];
    let mut client = connect(&lab, address);
    exchange(&mut client, b"f");
    let watching = |agent: &mut Agent| {
        let watched = pins.join("watched");
        let watched = ["map", "dump", "pinned", watched.to_str().unwrap()];
        eventually("it watches", || {
            let all = bpftool(&watched);
            let some = all.as_array().is_some_and(|all| !all.is_empty());
            if some { Ok(all) } else { Err(all) }
        });
        let program = program_of(agent, WATCH);
        agent.signal(Signal::KILL);
        agent.child.wait().unwrap();
        sleep(Duration::from_millis(500));
        assert!(is_there(program), "the socket keeps it");
        program
    };
    let mut first = Agent::with(&policy, pins.clone(), &within);
    let program = watching(&mut first);

    let idle = policy.replace("mode: Enforce", "mode: DryRun");
    let mut second = Agent::with(&idle, pins.clone(), &within);
    // Before it has started.
    let cleaned = second.said("not listened to any more: its agent has ended");
    assert_eq!(cleaned.len(), 1);
    exchange(&mut client, b"f");
    goes(program);
    assert_eq!(second.terminate(), Some(0));
    exchange(&mut client, b"f");

    let mut third = Agent::with(&policy, pins.clone(), &within);
    let program = watching(&mut third);
    let uninstall = Command::new(REBALANCER)
        .args(["uninstall", "--pins"])
        .arg(&pins)
        .output()
        .unwrap();
    assert!(uninstall.status.success(), "{uninstall:?}");
    goes(program);
    exchange(&mut client, b"f");
}
