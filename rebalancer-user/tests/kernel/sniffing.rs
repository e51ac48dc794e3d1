//! Without `onReconnect` a connection is only moved between two complete HTTP/1 exchanges.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicU32, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use aya::sys::{Stats, enable_stats};
use rebalancer_common::names::WATCH;
use rustix::process::Signal;
use serde_json::Value;
use xtask::lab::{Host, Lab};

use crate::{
    cost::{program_of, runs},
    guards::refused,
    moves::{QUIET, enforce},
    server::{FILE, Kind, PAUSE, Server, UPLOAD, answer_to},
    support::{
        Agent, alone, cgroup, connect, download, eventually, lab, own_pins, request, still_there,
    },
};

/// HEADERS that open a stream and end it, as a client's GET does.
const HTTP2: &[u8] = &[
    0, 0, 9, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84, 0x41, 3, 1, 2, 3, 4,
];
/// A record with data.
const TLS: &[u8] = &[23, 3, 3, 0, 13, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13];
const REDIS: &[u8] = b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n";

/// A policy without `onReconnect`.
fn sniffing(lab: &Lab, port: u16, limits: &str, steps: &str) -> String {
    let safe = enforce(lab, port, limits, steps);
    let sniffing = safe.replace("  onReconnect: Safe\n", "");
    assert_ne!(safe, sniffing);
    sniffing
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

/// One exchange with a server that speaks HTTP/1.
fn ask(stream: &mut TcpStream, target: &str) -> std::io::Result<()> {
    let method = match target {
        "/only-head" => "HEAD",
        "/upload" => "PUT",
        "a:443" => "CONNECT",
        _ => "GET",
    };
    let fields = match target {
        "/upload" => "Expect: 100-continue\r\nContent-Length: 6\r\n",
        "/websocket" => "Connection: Upgrade\r\nUpgrade: websocket\r\n",
        _ => "",
    };
    let request = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let mut expected = answer_to(target).concat().into_bytes();
    if target == "/file" {
        expected.resize(expected.len() + FILE, 0);
    }
    let mut again = 1;
    if target == "/pipelined" {
        again = 3;
        expected = expected.repeat(again);
    }
    stream.write_all(request.repeat(again).as_bytes())?;
    if target == "/upload" {
        let mut answer = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
        stream.read_exact(&mut answer)?;
        sleep(PAUSE);
        stream.write_all(UPLOAD.as_bytes())?;
    }
    let mut answer = vec![0; expected.len()];
    stream.read_exact(&mut answer)?;
    assert!(answer == expected, "{target}");
    Ok(())
}

/// Repeats an exchange until the agent logs a move.
fn exchange_until_moved(
    agent: &mut Agent,
    stream: &mut TcpStream,
    exchange: impl Fn(&mut TcpStream) -> std::io::Result<()>,
) -> Value {
    for _ in 0..100 {
        // It is reset before that is logged.
        if exchange(stream).is_err() {
            break;
        }
        sleep(Duration::from_millis(150));
        if let Some(line) = agent.logged("move").pop() {
            return line;
        }
    }
    agent.wait_for_move()
}

/// Waits until it sniffs a connection that is at rest.
fn wait_for_sniffing(agent: &mut Agent) {
    agent.wait_for("that one waits", |line| {
        let skipped = line["skipped"].as_str();
        skipped.is_some_and(|skipped| skipped.contains("inFlight"))
    });
    agent.wait_for_intervals(1);
}

/// Whether a program is loaded. By its ID: other agents on this machine use the same names.
fn is_loaded(program: u64) -> bool {
    !still_there(&[("prog", program)]).is_empty()
}

/// The kernel frees a program a moment after its last reference.
fn wait_until_unloaded(program: u64) {
    eventually("it is gone", || {
        if is_loaded(program) {
            Err(program)
        } else {
            Ok(program)
        }
    });
}

fn echo_server(host: &Host, address: SocketAddr) -> Server {
    Server::start(host, address, Kind::Plain)
}

#[test]
fn other_protocols_than_http_1_are_skipped_and_no_longer_sniffed() {
    let _alone = alone();
    let lab = lab(1);
    let _stats = enable_stats(Stats::RunTime).expect("run counts");
    for (port, words, guard) in [
        (7060, HTTP2, "http2"),
        (7061, TLS, "tls"),
        (7062, REDIS, "protocolUnknown"),
    ] {
        let address = SocketAddr::from((lab.pod(0).addr, port));
        let _server = echo_server(&lab.pod(0).host, address);
        let mut agent = Agent::in_lab(&lab, &sniffing(&lab, port, "maxAge: 300ms", QUIET));
        let program = program_of(&agent, WATCH[0]);
        let mut client = connect(&lab, address);
        let line = exchange_until_moved(&mut agent, &mut client, |stream| {
            try_exchange(stream, words)
        });
        refused(&line, guard);
        // It was sniffed, and is not any more.
        let sniffed = runs(program);
        assert!(sniffed > 0);
        for _ in 0..20 {
            exchange(&mut client, words);
        }
        assert_eq!(runs(program), sniffed);
        agent.leaves_nothing();
        exchange(&mut client, words);
    }
}

/// No program runs for packets of other cgroups.
#[test]
fn an_answered_http_1_connection_is_moved_and_others_are_not_sniffed() {
    let _alone = alone();
    let lab = lab(2);
    let mut agent = Agent::in_lab(&lab, &sniffing(&lab, 80, "maxBytes: 1Mi", QUIET));
    let program = program_of(&agent, WATCH[0]);
    let _stats = enable_stats(Stats::RunTime).expect("run counts");
    let mut light = connect(&lab, lab.pod(1).address());
    let mut heavy = connect(&lab, lab.pod(0).address());
    download(&mut heavy);
    wait_for_sniffing(&mut agent);
    assert_eq!(agent.logged("move").len(), 0, "nothing was sniffed yet");
    let so_far = runs(program);
    for _ in 0..50 {
        request(&mut light, "/").unwrap();
    }
    assert_eq!(runs(program), so_far, "the light one is not sniffed");
    let peer = heavy.local_addr().unwrap().to_string();
    let line = exchange_until_moved(&mut agent, &mut heavy, |stream| {
        request(stream, "/blob").map(drop)
    });
    assert_eq!(line["outcome"], "reset", "{line}");
    assert_eq!(line["peer"], peer);
    request(&mut light, "/").unwrap();
}

/// Servers that pause within their responses for longer than it takes to be quiet. No response is cut off,
/// and between exchanges all connections are moved that can be.
#[test]
fn a_response_ends_with_its_framing_and_not_with_a_pause() {
    const MOVED: [&str; 10] = [
        "/sized",
        "/events",
        "/trailers",
        "/early",
        "/head",
        "/unchanged",
        "/only-head",
        "/file",
        "/upload",
        "/pipelined",
    ];
    const NEVER: [&str; 3] = ["/until-close", "/websocket", "a:443"];
    const LONG: Duration = Duration::from_secs(20);
    let _alone = alone();
    let lab = lab(1);
    let (address, _server) = Server::in_pod(lab.pod(0), 7069, Kind::Verdict);
    let quiet = QUIET.replace("100ms", "200ms");
    let mut agent = Agent::in_lab(&lab, &sniffing(&lab, 7069, "maxAge: 300ms", &quiet));
    let until = Instant::now() + LONG;
    let broken = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for target in MOVED {
            let (lab, broken) = (&lab, &broken);
            scope.spawn(move || {
                let (mut moves, mut client) = (0, connect(lab, address));
                while Instant::now() < until {
                    if let Err(error) = ask(&mut client, target) {
                        eprintln!("{target}: {error}");
                        broken.fetch_add(1, Ordering::Relaxed);
                    }
                    sleep(2 * PAUSE);
                    client.set_nonblocking(true).unwrap();
                    let peeked = client.peek(&mut [0]).map_err(|error| error.kind());
                    client.set_nonblocking(false).unwrap();
                    if peeked != Err(std::io::ErrorKind::WouldBlock) {
                        moves += 1;
                        client = connect(lab, address);
                    }
                }
                assert!(moves > 0, "{target}: never moved");
            });
        }
        for target in NEVER {
            let (lab, broken) = (&lab, &broken);
            scope.spawn(move || {
                while Instant::now() < until {
                    let mut client = connect(lab, address);
                    let whole = ask(&mut client, "/sized").and_then(|()| {
                        sleep(PAUSE / 4); // at rest, and not for long enough to be moved
                        ask(&mut client, target)?;
                        if target == "/until-close" {
                            return Ok(());
                        }
                        (0..12).try_for_each(|_| {
                            sleep(PAUSE);
                            try_exchange(&mut client, b"x")
                        })
                    });
                    if let Err(error) = whole {
                        eprintln!("{target}: {error}");
                        broken.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(broken.into_inner(), 0, "broken off");
    let words = |line: &Value| format!("{} {}", line["outcome"], line["detail"]);
    let outcomes: Vec<String> = agent.logged("move").iter().map(words).collect();
    assert!(
        outcomes.iter().any(|line| line.contains("upgraded")),
        "{outcomes:?}"
    );
}

/// In the middle of an exchange bytes prove nothing: a body can look like anything.
#[test]
fn a_connection_in_mid_exchange_is_sniffed_from_the_next_request_on() {
    let _alone = alone();
    let lab = lab(1);
    let (address, _server) = Server::in_pod(lab.pod(0), 7063, Kind::Verdict);
    let mut client = connect(&lab, address);
    let mut agent = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            for _ in 0..3 {
                ask(&mut client, "/events").unwrap();
            }
        });
        let mut agent = Agent::in_lab(&lab, &sniffing(&lab, 7063, "maxAge: 300ms", QUIET));
        wait_for_sniffing(&mut agent);
        asking.join().unwrap();
        agent
    });
    let line = exchange_until_moved(&mut agent, &mut client, |stream| ask(stream, "/sized"));
    assert_eq!(line["outcome"], "reset", "{line}");
}

/// Its client sends nothing, now or for long: its protocol cannot be detected.
#[test]
fn silent_connections_are_skipped() {
    let _alone = alone();
    let lab = lab(1);
    let (address, _server) = Server::in_pod(lab.pod(0), 7064, Kind::Verdict);
    let mut idle = connect(&lab, address);
    ask(&mut idle, "/").unwrap();
    let policy = sniffing(&lab, 7064, "maxAge: 300ms", QUIET);
    let mut agent = Agent::in_lab(&lab, &policy);
    let line = agent.wait_for_move();
    assert_eq!(line["outcome"], "gaveUp", "{line}");
    drop(agent);
    // Until it has been silent for too long to be waited for.
    sleep(Duration::from_secs(6));
    let mut agent = Agent::in_lab(&lab, &policy);
    agent.wait_for_intervals(5);
    assert_eq!(agent.logged("move").len(), 0);
    let listed = agent.logged("listed").pop().unwrap();
    assert_eq!(listed["skipped"], r#"{"silent": 1}"#);
    // It speaks again.
    let line = exchange_until_moved(&mut agent, &mut idle, |stream| ask(stream, "/"));
    assert_eq!(line["outcome"], "reset", "{line}");
}

/// A server with a cgroup_skb program of its own keeps it: ours is attached beside it.
#[test]
fn an_applications_own_filter_is_left_alone() {
    let _alone = alone();
    let lab = lab(1);
    let (address, _server) = Server::in_pod(lab.pod(0), 7065, Kind::Filters);
    let mut agent = Agent::in_lab(&lab, &sniffing(&lab, 7065, "maxAge: 300ms", QUIET));
    let mut client = connect(&lab, address);
    let line = exchange_until_moved(&mut agent, &mut client, |stream| ask(stream, "/sized"));
    assert_eq!(line["outcome"], "reset", "{line}");
}

/// Its programs are detached with it, and nothing remains to be removed.
#[test]
fn connections_sniffed_by_a_killed_agent_stay_open() {
    let _alone = alone();
    let lab = lab(1);
    let address = SocketAddr::from((lab.pod(0).addr, 7066));
    let _server = echo_server(&lab.pod(0).host, address);
    let policy = sniffing(&lab, 7066, "maxAge: 300ms", QUIET);
    let within = ["--cgroup", cgroup(&lab).to_str().unwrap()];
    let mut client = connect(&lab, address);
    exchange(&mut client, b"f");
    let mut agent = Agent::with(&policy, own_pins(), &within);
    wait_for_sniffing(&mut agent);
    let programs = WATCH.map(|name| program_of(&agent, name));
    agent.signal(Signal::KILL);
    agent.child.wait().unwrap();
    programs.into_iter().for_each(wait_until_unloaded);
    exchange(&mut client, b"f");
}
