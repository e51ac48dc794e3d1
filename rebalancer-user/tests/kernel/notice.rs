//! The step Notice: clients of HTTP/2 are asked to leave, and no call fails.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread::{sleep, spawn},
    time::{Duration, Instant},
};

use aya::sys::{Stats, enable_stats};
use serde_json::json;
use tempfile::tempdir;
use xtask::lab::nginx;

use crate::{
    calls::{Report, ask, serve},
    cost::runs,
    messages::{NEVER, counting, program, wait_for_joined},
    sniffing::{exchange_until_moved, sniffing as detecting},
    support::{AT_ONCE, Agent, PATIENCE, QUIET, connect, enforce, eventually, lab, request},
};

/// Between the calls of a client.
const PAUSE: Duration = Duration::from_millis(40);

const NOTICE: &str = "{step: Notice, idleFor: 10ms, timeout: 30s}";

/// So many moves of busy clients that ask for this, by outcome, and what the clients saw.
fn move_all(
    port: u16,
    clients: usize,
    moves: usize,
    query: &str,
) -> (BTreeMap<String, usize>, Report) {
    let lab = lab(1);
    let (address, _server) = serve(&lab, port);
    let clients = ask(&lab, address, clients, PAUSE, query);
    let mut agent = Agent::in_lab(&lab, &detecting(&lab, port, "maxAge: 500ms", NOTICE));
    let until = Instant::now() + 3 * PATIENCE;
    while agent.logged("move").len() < moves && Instant::now() < until {
        sleep(Duration::from_millis(100));
    }
    let report = clients.stop();
    let mut count = |message: &str, field: &str| {
        let mut counts = BTreeMap::<String, usize>::new();
        for line in agent.logged(message) {
            let word = line[field].to_string().replace('"', "");
            *counts.entry(word).or_default() += 1;
        }
        counts
    };
    let outcomes = count("move", "outcome");
    let others = count("not asked to leave", "state");
    eprintln!("{query}: {outcomes:?}, tries that ended by state {others:?}, {report:?}");
    (outcomes, report)
}

#[track_caller]
fn none_failed(report: &Report) {
    assert_eq!((report.failed, report.wrong), (0, 0), "{report:?}");
}

#[track_caller]
fn none_of_many_failed(report: &Report) {
    assert!(report.calls > 100, "{report:?}");
    none_failed(report);
}

#[test]
fn busy_clients_of_http_2_leave_and_no_call_fails() {
    let (outcomes, report) = move_all(7080, 8, 40, "bytes=3000");
    none_of_many_failed(&report);
    let noticed = outcomes.get("noticed").copied().unwrap_or_default();
    assert!(noticed >= 30, "{outcomes:?}");
    // Those who were notified last have not called again.
    assert!(report.connections >= noticed as u64, "{report:?}");
}

/// Bodies that are made of fake frames, in pieces with pauses that are longer than it takes to be quiet.
#[test]
fn fake_frames_in_bodies_are_not_taken_for_frames() {
    let pieces = "bytes=20000&piece=1234&pause=15ms";
    for (port, query) in [(7081, pieces), (7082, "bytes=200000")] {
        let (_outcomes, report) = move_all(port, 8, 20, query);
        none_of_many_failed(&report);
    }
}

/// One that the rule does not want to be notified is skipped as before, and HTTP/1 takes the other steps.
#[test]
fn each_protocol_takes_its_own_steps() {
    let lab = lab(1);
    let (address, _server) = serve(&lab, 7083);
    let clients = ask(&lab, address, 1, PAUSE, "bytes=100");
    let mut agent = Agent::in_lab(&lab, &detecting(&lab, 7083, "maxAge: 300ms", QUIET));
    agent.refused("http2");
    let report = clients.stop();
    assert_eq!((report.failed, report.connections), (0, 1), "{report:?}");
    drop(agent);

    let both = format!("{NOTICE}, {QUIET}");
    let mut agent = Agent::in_lab(&lab, &detecting(&lab, 80, "maxAge: 300ms", &both));
    let mut client = connect(&lab, lab.pod(0).address());
    let ask = |stream: &mut TcpStream| request(stream, "/").map(drop);
    let line = exchange_until_moved(&mut agent, &mut client, ask);
    assert_eq!(line["outcome"], "reset", "{line}");
}

/// The program runs for the sends of what is being moved, and of nothing else.
#[test]
fn no_program_runs_for_what_is_not_moved() {
    let lab = lab(1);
    let (address, _server) = serve(&lab, 7084);
    let moved = ask(&lab, address, 2, PAUSE, "bytes=1000");
    let mut agent = Agent::in_lab(&lab, &detecting(&lab, 7084, "maxAge: 1s", NOTICE));
    let _stats = enable_stats(Stats::RunTime).expect("run counts");
    agent.moved("noticed");
    none_failed(&moved.stop());
    let program = program(&agent).expect("loaded");
    agent.reload(&detecting(&lab, 7084, NEVER, NOTICE));
    let left = ask(&lab, address, 2, PAUSE, "bytes=1000");
    sleep(Duration::from_millis(500));
    let before = runs(program);
    sleep(Duration::from_secs(1));
    assert_eq!(runs(program), before);
    none_failed(&left.stop());
}

/// nginx reads by FIONREAD, which is wrong on a socket in the hash of some kernels: once it has left and was
/// signalled, an upload that had stopped goes on. The next agent signals for one that was killed.
#[test]
fn a_reader_that_trusts_fionread_goes_on_once_its_socket_has_left() {
    const UPLOAD: usize = 8 << 20;
    const WOKE: &str = "woke the readers that a killed agent has left";
    let lab = lab(1);
    let pod = lab.pod(0);
    let folder = tempdir().unwrap();
    let address = SocketAddr::from((pod.addr, 7085));
    // What is behind it reads all, and answers.
    let behind = || TcpListener::bind("127.0.0.1:7086").unwrap();
    let behind = pod.host.enter(behind).unwrap();
    spawn(move || {
        for stream in behind.incoming() {
            let Ok(mut stream) = stream else { continue };
            spawn(move || {
                let mut left = UPLOAD;
                let mut buffer = vec![0; 64 << 10];
                while left > 0 {
                    match stream.read(&mut buffer) {
                        Ok(n @ 1..) => left = left.saturating_sub(n),
                        _ => return,
                    }
                }
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
            });
        }
    });
    let server = format!(
        "server {{ listen {address}; client_max_body_size 0; \
         location / {{ proxy_pass http://127.0.0.1:7086; }} \
         location /small {{ return 200 'x'; }} }}\n"
    );
    let mut proxy = nginx(&pod.host, folder.path(), &server).unwrap();
    let mut proxy = proxy.spawn().unwrap();
    let connected = || lab.client().enter(|| TcpStream::connect(address)).unwrap();
    drop(eventually("nginx listens", connected, Result::is_ok));
    let counting = counting(&lab, 7085, NEVER, AT_ONCE);
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {UPLOAD}\r\n\r\n");
    let count_anyway = ["--count-despite-fionread"];
    for is_killed in [false, true] {
        let mut client = connected().unwrap();
        let patience = Some(Duration::from_secs(3));
        client.set_read_timeout(patience).unwrap();
        let mut agent = Agent::in_lab_with(&lab, &counting, &count_anyway);
        let line = agent.wait_for("whether it counts", |line| line["fionread"].is_string());
        let misled = line["fionread"] == "Wrong";
        wait_for_joined(&mut agent, 1);
        client.write_all(head.as_bytes()).unwrap();
        let mut sender = client.try_clone().unwrap();
        let sending = spawn(move || sender.write_all(&vec![0; UPLOAD]));
        let mut answer = [0; 100];
        let mut read = client.read(&mut answer);
        assert_eq!(read.is_err(), misled, "it stops where FIONREAD is wrong");
        if misled {
            if is_killed {
                agent.kill();
                let waits = client.read(&mut answer);
                assert!(waits.is_err(), "a killed agent wakes nobody");
                std::fs::write(agent.policy(), enforce(&lab, 7085, NEVER, AT_ONCE)).unwrap();
                agent = agent.successor();
                let woken = agent.logged(WOKE);
                assert_eq!(
                    (&woken[0]["left"], &woken[0]["woken"]),
                    (&json!(1), &json!(1))
                );
            } else {
                agent.reload(&enforce(&lab, 7085, NEVER, AT_ONCE));
                agent.wait_for_message("stopped counting sends");
            }
            read = client.read(&mut answer);
        }
        assert!(answer[..read.unwrap()].starts_with(b"HTTP/1.1 204"));
        sending.join().unwrap().unwrap();
        // The next agent finds none that is left.
        agent.kill();
        agent = Agent::in_lab(&lab, &enforce(&lab, 7085, NEVER, AT_ONCE));
        assert!(
            agent
                .logged("woke the readers that a killed agent has left")
                .is_empty()
        );
        agent.terminate();
    }
    let _ = proxy.kill();
    let _ = proxy.wait();
}
