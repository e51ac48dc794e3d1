//! The step Notice: clients of HTTP/2 are asked to leave, and no call fails.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    thread::{sleep, spawn},
    time::{Duration, Instant},
};

use aya::sys::{Stats, enable_stats};
use serde_json::json;
use tempfile::tempdir;
use xtask::lab::{Lab, nginx};

use crate::{
    calls::{Program, Report},
    cost::runs,
    messages::{NEVER, counting, program, wait_for_joined},
    support::{AT_ONCE, Agent, PATIENCE, connect, enforce, lab, request, shows},
};

const NOTICE: &str = "{step: Notice, idleFor: 10ms, timeout: 30s}";

/// A policy that detects protocols.
fn detecting(lab: &Lab, port: u16, limits: &str, steps: &str) -> String {
    enforce(lab, port, limits, steps).replace("  onReconnect: Safe\n", "")
}

/// So many moves of busy clients that ask for this, by outcome, and what the clients saw.
fn move_all(
    port: u16,
    clients: usize,
    moves: usize,
    query: &str,
) -> (BTreeMap<String, usize>, Report) {
    let lab = lab(1);
    let address = SocketAddr::from((lab.pod(0).addr, port));
    let _server = Program::serve(&lab.pod(0).host, address);
    let pause = Duration::from_millis(40);
    let clients = Program::ask(lab.client(), address, clients, pause, query);
    let mut agent = Agent::in_lab(&lab, &detecting(&lab, port, "maxAge: 500ms", NOTICE));
    let until = Instant::now() + 3 * PATIENCE;
    while agent.logged("move").len() < moves && Instant::now() < until {
        sleep(Duration::from_millis(100));
    }
    let report = clients.report();
    let mut outcomes = BTreeMap::new();
    for line in agent.logged("move") {
        let outcome = line["outcome"].as_str().unwrap();
        *outcomes.entry(outcome.to_owned()).or_default() += 1;
    }
    let mut others = BTreeMap::<String, usize>::new();
    for line in agent.logged("not asked to leave") {
        *others.entry(line["state"].to_string()).or_default() += 1;
    }
    eprintln!("{query}: {outcomes:?}, tries that ended by state {others:?}, {report:?}");
    (outcomes, report)
}

#[track_caller]
fn none_failed(report: &Report) {
    assert!(report.calls > 100, "{report:?}");
    assert_eq!((report.failed, report.wrong), (0, 0), "{report:?}");
}

#[test]
fn busy_clients_of_http_2_leave_and_no_call_fails() {
    let (outcomes, report) = move_all(7080, 8, 40, "bytes=3000");
    none_failed(&report);
    let noticed = outcomes.get("noticed").copied().unwrap_or_default();
    assert!(noticed >= 30, "{outcomes:?}");
    // Those who were notified last have not called again.
    assert!(report.connections >= noticed as u64, "{report:?}");
}

/// Bodies that are made of fake frames, in pieces with pauses that are longer than it takes to be quiet.
#[test]
fn fake_frames_in_bodies_are_not_taken_for_frames() {
    let query = "bytes=20000&piece=1234&pause=15ms";
    let (_outcomes, report) = move_all(7081, 8, 20, query);
    none_failed(&report);
    let (_outcomes, report) = move_all(7082, 8, 20, "bytes=200000");
    none_failed(&report);
}

/// One that the rule does not want to be notified is skipped as before, and HTTP/1 takes the other steps.
#[test]
fn each_protocol_takes_its_own_steps() {
    let lab = lab(1);
    let address = SocketAddr::from((lab.pod(0).addr, 7083));
    let _server = Program::serve(&lab.pod(0).host, address);
    let pause = Duration::from_millis(40);
    let clients = Program::ask(lab.client(), address, 1, pause, "bytes=100");
    let reset = "{step: Reset, when: Quiet, idleFor: 100ms, timeout: 10s}";
    let mut agent = Agent::in_lab(&lab, &detecting(&lab, 7083, "maxAge: 300ms", reset));
    agent.refused("http2");
    let report = clients.report();
    assert_eq!((report.failed, report.connections), (0, 1), "{report:?}");
    drop(agent);

    let both = format!("{NOTICE}, {reset}");
    let mut agent = Agent::in_lab(&lab, &detecting(&lab, 80, "maxAge: 300ms", &both));
    let mut client = connect(&lab, lab.pod(0).address());
    for _ in 0..100 {
        if request(&mut client, "/").is_err() {
            break;
        }
        sleep(Duration::from_millis(150));
        if !agent.logged("move").is_empty() {
            break;
        }
    }
    let line = agent
        .logged("move")
        .pop()
        .unwrap_or_else(|| agent.wait_for_move());
    shows(&line, json!({"outcome": "reset"}));
}

/// The program runs for the sends of what is being moved, and of nothing else.
#[test]
fn no_program_runs_for_what_is_not_moved() {
    let lab = lab(1);
    let address = SocketAddr::from((lab.pod(0).addr, 7084));
    let _server = Program::serve(&lab.pod(0).host, address);
    let pause = Duration::from_millis(50);
    let moved = Program::ask(lab.client(), address, 2, pause, "bytes=1000");
    let mut agent = Agent::in_lab(&lab, &detecting(&lab, 7084, "maxAge: 1s", NOTICE));
    let _stats = enable_stats(Stats::RunTime).expect("run counts");
    agent.moved("noticed");
    none_failed_yet(moved.report());
    let program = program(&agent).expect("loaded");
    agent.reload(&detecting(&lab, 7084, NEVER, NOTICE));
    let left = Program::ask(lab.client(), address, 2, pause, "bytes=1000");
    sleep(Duration::from_millis(500));
    let before = runs(program);
    sleep(Duration::from_secs(1));
    assert_eq!(runs(program), before);
    none_failed_yet(left.report());
}

#[track_caller]
fn none_failed_yet(report: Report) {
    assert_eq!((report.failed, report.wrong), (0, 0), "{report:?}");
}

/// nginx reads by FIONREAD, which is wrong on a socket in the hash of some kernels: once it has left and was
/// signalled, an upload that had stopped goes on.
#[test]
fn a_reader_that_trusts_fionread_goes_on_once_its_socket_has_left() {
    const UPLOAD: usize = 8 << 20;
    let lab = lab(1);
    let pod = lab.pod(0);
    let folder = tempdir().unwrap();
    let address = SocketAddr::from((pod.addr, 7085));
    // What is behind it reads all, and answers.
    let behind = pod
        .host
        .enter(|| TcpListener::bind("127.0.0.1:7086").unwrap())
        .unwrap();
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
    let mut proxy = nginx(&pod.host, folder.path(), &server)
        .unwrap()
        .spawn()
        .unwrap();
    let mut client = loop {
        let connected = lab.client().enter(|| std::net::TcpStream::connect(address));
        if let Ok(Ok(client)) = connected {
            break client;
        }
        sleep(Duration::from_millis(50));
    };
    client
        .set_read_timeout(Some(Duration::from_secs(3)))
        .unwrap();
    let policy = counting(&lab, 7085, NEVER, AT_ONCE);
    let mut agent = Agent::in_lab_with(&lab, &policy, &["--count-despite-fionread"]);
    let line = agent.wait_for("whether it counts", |line| line["fionread"].is_string());
    let misled = line["fionread"] == "Wrong";
    wait_for_joined(&mut agent, 1);
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {UPLOAD}\r\n\r\n");
    client.write_all(head.as_bytes()).unwrap();
    let mut sender = client.try_clone().unwrap();
    let sending = spawn(move || sender.write_all(&vec![0; UPLOAD]));
    let stalled = client.read(&mut [0; 100]).is_err();
    assert_eq!(stalled, misled, "it stops where FIONREAD is wrong");
    if stalled {
        agent.reload(&enforce(&lab, 7085, NEVER, AT_ONCE));
        agent.wait_for_message("stopped counting sends");
        let mut answer = [0; 100];
        let read = client.read(&mut answer).unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 204"));
    }
    sending.join().unwrap().unwrap();
    let _ = proxy.kill();
    let _ = proxy.wait();
}
