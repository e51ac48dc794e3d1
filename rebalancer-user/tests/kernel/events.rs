//! What happens in an agent, followed.

use std::{
    io::{BufRead as _, BufReader, Lines},
    os::unix::net::UnixStream,
    process::{Child, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    status::{answer, send, socket},
    support::{AT_ONCE, Agent, REBALANCER, TRACK_ONLY, connect, eventually, lab, shows},
};

/// `rebalancer events -f -o json`, until it is dropped.
struct Follower {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    received: Vec<Value>,
}

impl Follower {
    fn of(agent: &Agent) -> Self {
        let mut child = Command::new(REBALANCER)
            .args(["events", "-f", "-o", "json", "--pins"])
            .arg(&agent.pins)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            child,
            lines,
            received: Vec::new(),
        }
    }

    /// Waits for the next event of this type.
    fn wait_for(&mut self, kind: &str) -> Value {
        loop {
            let line = self.lines.next().expect("it goes on").unwrap();
            let event: Value = serde_json::from_str(&line).unwrap();
            self.received.push(event.clone());
            if event["type"] == kind {
                return event;
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_follower_receives_each_event_once_also_over_a_restart() {
    let lab = lab(1);
    let mut first = Agent::moving(&lab, 80, "maxAge: 400ms", AT_ONCE);
    let mut follower = Follower::of(&first);
    assert_eq!(follower.wait_for("policyLoaded")["rules"], 1);
    let stream = connect(&lab, lab.pod(0).address());
    let started = follower.wait_for("started");
    let ended = follower.wait_for("ended");
    let peer = stream.local_addr().unwrap().to_string();
    shows(
        &started,
        json!({"rule": "lab", "peer": peer, "reasons": ["age"]}),
    );
    let end = json!({"id": started["id"], "outcome": "reset", "step": "Reset"});
    shows(&ended, end);

    let table = first.ask(&["events"]);
    let kinds: Vec<_> = table.lines().map(|l| l.split_whitespace().nth(1)).collect();
    let expected = ["EVENT", "policyLoaded", "started", "ended"];
    assert_eq!(kinds, expected.map(Some), "{table}");
    let recent = first.ask(&["events", "--since", "1ms", "-o", "json"]);
    assert_eq!(recent, "");

    first.kill();
    let mut second = first.successor();
    follower.wait_for("policyLoaded");
    let _stream = connect(&lab, lab.pod(0).address());
    follower.wait_for("ended");
    second.wait_for_intervals(1);
    let number = |event: &Value| (event["run"].to_string(), event["seq"].as_u64().unwrap());
    let mut numbers: Vec<_> = follower.received.iter().map(number).collect();
    let received = numbers.len();
    numbers.dedup();
    assert_eq!(numbers.len(), received, "nothing twice: {numbers:?}");
    let runs = numbers.iter().filter(|(_, n)| *n == 1).count();
    assert_eq!(runs, 2);
    assert_eq!(second.terminate(), Some(0), "a follower does not keep it");
}

#[test]
fn a_slow_follower_delays_nobody_and_receives_the_count_of_missed_events() {
    let mut agent = Agent::on_machine(TRACK_ONLY);
    let socket = socket(&agent);
    let whole = |request: &str| answer(&socket, request.as_bytes());
    let follow = || send(&socket, b"GET /events?follow=1 HTTP/1.1\r\nhost: a\r\n\r\n");
    let first_line = |stream: &UnixStream| {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    };
    let mut slow = follow();
    let body = r#"{"milliseconds":600000,"reason":null}"#;
    let began = std::time::Instant::now();
    for _ in 0..2500 {
        for (path, body) in [("/pause", body), ("/resume", "")] {
            let length = body.len();
            let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}");
            let answer = whole(&format!("{head}\r\n\r\n{body}"));
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    }
    eprintln!(
        "5000 events beside a follower that reads nothing: {:?}",
        began.elapsed()
    );
    agent.wait_for_intervals(1);
    let mut lines = BufReader::new(&mut slow).lines().map_while(Result::ok);
    let mut last = 0;
    let missed = loop {
        let line = lines.next().expect("the count of missed events");
        // The head, and the lengths of chunks, are no events.
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        let Some(seq) = event["seq"].as_u64() else {
            continue;
        };
        if event["type"] == "missed" {
            assert_eq!(seq, last + event["count"].as_u64().unwrap(), "{event}");
            break event["count"].as_u64().unwrap();
        }
        assert_eq!(seq, last + 1, "{event}");
        last = seq;
    };
    assert!(missed > 0);
    // More than the places there are: the rest is refused, and the agent answers others.
    let more = [(); 5].map(|()| follow());
    let answers = more.each_ref().map(first_line);
    let refused = answers.iter().filter(|line| line.contains(" 503 ")).count();
    assert_eq!(refused, 2, "{answers:?}");
    let metrics = whole("GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n");
    let counted = crate::metrics::sample(&metrics, "rebalancer_events_missed_total");
    assert_eq!(counted, Some(missed as f64));
    // Places are free again when followers go.
    drop((slow, more));
    let again = || first_line(&follow());
    eventually("a place is free", again, |line| line.contains(" 200 "));
    assert_eq!(agent.terminate(), Some(0));
}
