//! Without `onReconnect` a connection is only moved between two complete HTTP/1 exchanges.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicU32, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use aya::sys::{Stats, enable_stats};
use rebalancer_common::names::SNIFF;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use xtask::lab::Lab;

use crate::{
    cost::{program_of, runs},
    server::{FILE, Kind, PAUSE, Server, UPLOAD, answer_to, served},
    support::{
        Agent, QUIET, connect, echoed, echoes, enforce, heavy, lab, nothing_left, request, shows,
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
pub fn sniffing(lab: &Lab, port: u16, limits: &str, steps: &str) -> String {
    let safe = enforce(lab, port, limits, steps);
    let sniffing = safe.replace("  onReconnect: Safe\n", "");
    assert_ne!(safe, sniffing);
    sniffing
}

/// One exchange with a server that answers with what it is sent.
fn exchange(stream: &mut TcpStream, words: &[u8]) -> std::io::Result<()> {
    stream.write_all(words)?;
    let mut answer = vec![0; words.len()];
    stream.read_exact(&mut answer)?;
    assert_eq!(answer, words);
    Ok(())
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
pub fn exchange_until_moved(
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
    agent.wait_for_skipped("inFlight");
    agent.wait_for_intervals(1);
}

/// A lab, a server, and an agent that sniffs and moves its connections soon.
fn sniffed(port: u16, kind: Kind) -> (Lab, SocketAddr, Server, Agent) {
    let (lab, address, server) = served(port, kind);
    let agent = Agent::in_lab(&lab, &sniffing(&lab, port, "maxAge: 300ms", QUIET));
    (lab, address, server, agent)
}

#[test]
fn other_protocols_than_http_1_are_skipped_and_no_longer_sniffed() {
    let _stats = enable_stats(Stats::RunTime).expect("run counts");
    for (words, guard) in [(HTTP2, "http2"), (TLS, "tls"), (REDIS, "protocolUnknown")] {
        let (lab, address, _server, mut agent) = sniffed(7060, Kind::Plain);
        let program = program_of(&agent, SNIFF[0]);
        let mut client = connect(&lab, address);
        let line = exchange_until_moved(&mut agent, &mut client, |stream| exchange(stream, words));
        shows(&line, json!({"outcome": "refused", "cause": guard}));
        // It was sniffed, and is not any more.
        let sniffed = runs(program);
        assert!(sniffed > 0);
        for _ in 0..20 {
            exchange(&mut client, words).unwrap();
        }
        assert_eq!(runs(program), sniffed);
        agent.leaves_nothing();
        exchange(&mut client, words).unwrap();
    }
}

/// No program runs for packets of other cgroups.
#[test]
fn an_answered_http_1_connection_is_moved_and_others_are_not_sniffed() {
    let lab = lab(2);
    let mut agent = Agent::in_lab(&lab, &sniffing(&lab, 80, "maxBytes: 1Mi", QUIET));
    let program = program_of(&agent, SNIFF[0]);
    let _stats = enable_stats(Stats::RunTime).expect("run counts");
    let mut light = connect(&lab, lab.pod(1).address());
    let mut heavy = heavy(&lab, lab.pod(0));
    wait_for_sniffing(&mut agent);
    agent.has_moved(0); // nothing was sniffed yet
    let so_far = runs(program);
    for _ in 0..50 {
        request(&mut light, "/").unwrap();
    }
    assert_eq!(runs(program), so_far, "the light one is not sniffed");
    let peer = heavy.local_addr().unwrap().to_string();
    let line = exchange_until_moved(&mut agent, &mut heavy, |stream| {
        request(stream, "/blob").map(drop)
    });
    shows(&line, json!({"outcome": "reset", "peer": peer}));
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
    let (lab, address, _server) = served(7069, Kind::Verdict);
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
                            exchange(&mut client, b"x")
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
    let upgraded = outcomes.iter().any(|line| line.contains("upgraded"));
    assert!(upgraded, "{outcomes:?}");
}

/// In the middle of an exchange bytes prove nothing: a body can look like anything.
#[test]
fn a_connection_in_mid_exchange_is_sniffed_from_the_next_request_on() {
    let (lab, address, _server) = served(7063, Kind::Verdict);
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
    let (lab, address, _server) = served(7064, Kind::Verdict);
    let mut idle = connect(&lab, address);
    ask(&mut idle, "/").unwrap();
    let policy = sniffing(&lab, 7064, "maxAge: 300ms", QUIET);
    let mut agent = Agent::in_lab(&lab, &policy);
    agent.moved("gaveUp");
    drop(agent);
    // Until it has been silent for too long to be waited for.
    sleep(Duration::from_secs(6));
    let mut agent = Agent::in_lab(&lab, &policy);
    agent.moves_no_more(0, 5);
    let listed = agent.logged("listed").pop().unwrap();
    assert_eq!(listed["skipped"], r#"{"silent": 1}"#);
    // It speaks again.
    let line = exchange_until_moved(&mut agent, &mut idle, |stream| ask(stream, "/"));
    assert_eq!(line["outcome"], "reset", "{line}");
}

/// A server with a cgroup_skb program of its own keeps it: ours is attached beside it.
#[test]
fn an_applications_own_filter_is_left_alone() {
    let (lab, address, _server, mut agent) = sniffed(7065, Kind::Filters);
    let mut client = connect(&lab, address);
    let line = exchange_until_moved(&mut agent, &mut client, |stream| ask(stream, "/sized"));
    assert_eq!(line["outcome"], "reset", "{line}");
}

/// Its programs are detached with it, and nothing remains to be removed.
#[test]
fn connections_sniffed_by_a_killed_agent_stay_open() {
    let (lab, address, _server) = served(7066, Kind::Plain);
    let mut client = echoed(&lab, address);
    let mut agent = Agent::in_lab(&lab, &sniffing(&lab, 7066, "maxAge: 300ms", QUIET));
    wait_for_sniffing(&mut agent);
    // By ID: other agents on this machine use the same names.
    let programs = SNIFF.map(|name| ("prog", program_of(&agent, name)));
    agent.kill();
    // The kernel frees a program a moment after its last reference.
    nothing_left(&programs);
    echoes(&mut client);
}

/// The agent acts at the beginning of a pause, when the client's next request is far. If it comes late it waits for
/// the next one.
#[test]
fn a_client_is_not_moved_late_in_its_pause() {
    const STEP: &str = "{step: Reset, when: Quiet, idleFor: 100ms, timeout: 30s}";
    let lab = lab(1);
    let mut agent = Agent::in_lab(&lab, &sniffing(&lab, 80, "maxAge: 300ms", STEP));
    let mut client = connect(&lab, lab.pod(0).address());
    // Long enough to be chosen and followed, and never quiet.
    for _ in 0..50 {
        request(&mut client, "/").unwrap();
        sleep(Duration::from_millis(40));
    }
    request(&mut client, "/").unwrap();
    let pid = Pid::from_child(&agent.child);
    kill_process(pid, Signal::STOP).unwrap();
    sleep(Duration::from_millis(500));
    kill_process(pid, Signal::CONT).unwrap();
    sleep(Duration::from_millis(500));
    request(&mut client, "/").expect("it was late");
    agent.moved("reset");
}
