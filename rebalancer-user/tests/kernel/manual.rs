//! `rebalancer move` and `rebalancer drain`: through the same executor, with the same guards.

use std::{net::TcpStream, path::Path, process::Stdio, thread::sleep, time::Duration};

use serde_json::{Value, json};

use crate::{
    server::{Kind, Server},
    support::{
        Agent, TRACK_ONLY, answered, cgroup, command, echoed, eventually, has_ended, is_reset, lab,
        own_pins, pins_left, rebalancer, request, shows, ss, stderr, stdout,
    },
};

/// The items that `rebalancer move` prints, which ends with this exit code.
#[track_caller]
pub fn moves(pins: impl AsRef<Path>, code: i32, arguments: &[&str]) -> Vec<Value> {
    let out = rebalancer(pins, &[&["move", "-o", "json"], arguments].concat());
    assert_eq!(out.status.code(), Some(code), "{out:?}");
    let list: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(list["kind"], "MoveList");
    list["items"].as_array().unwrap().clone()
}

/// The outcomes of the same.
#[track_caller]
fn outcomes(agent: &Agent, code: i32, arguments: &[&str]) -> Vec<Value> {
    let items = moves(agent, code, arguments).into_iter();
    items.map(|item| item["outcome"].clone()).collect()
}

fn id_of(agent: &Agent, client: &TcpStream) -> String {
    let connection = agent.connection_of(client);
    connection["id"].as_str().unwrap().to_owned()
}

#[test]
fn manual_moves_are_refused_beside_an_agent_in_mode_disabled() {
    let lab = lab(1);
    let agent = Agent::in_lab_with(&lab, TRACK_ONLY, &["--mode", "Disabled"]);
    let mut stream = answered(&lab, lab.pod(0).address());
    let id = id_of(&agent, &stream);
    let refused = agent.fails(1, &["move", "-o", "json", "--ignore-guards", &id]);
    assert!(
        refused.contains("--mode Disabled") && refused.contains("remedy:"),
        "{refused}"
    );
    request(&mut stream, "/").unwrap();
    assert_eq!(outcomes(&agent, 0, &["--dry-run", &id]), ["wouldMove"]);
}

#[test]
fn each_id_gets_an_outcome() {
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let mut streams = [(); 3].map(|()| answered(&lab, lab.pod(0).address()));
    let ids = streams.each_ref().map(|stream| id_of(&agent, stream));
    let [first, second, third] = ids.each_ref().map(String::as_str);
    assert_eq!(outcomes(&agent, 0, &["--dry-run", first]), ["wouldMove"]);
    request(&mut streams[0], "/").unwrap();

    // Twice the same, and one that there never was: an outcome each, and a failing code.
    let some = outcomes(&agent, 1, &[first, first, "dead0000beef"]);
    assert_eq!(some, ["reset", "notFound"]);
    assert!(is_reset(&mut streams[0]));

    assert_eq!(
        outcomes(&agent, 0, &["--step", "close", second]),
        ["closed"]
    );
    has_ended(&mut streams[1], "closed");
    request(&mut streams[2], "/").unwrap();

    // Never quiet in that time: given up, and not moved.
    let wait = ["--idle-for", "1h", "--timeout", "300ms", third];
    assert_eq!(outcomes(&agent, 1, &wait), ["gaveUp"]);
    let table = agent.ask(&["move", "--when", "at-once", third]);
    assert!(
        table.starts_with("ID") && table.contains("the move reset it"),
        "{table}"
    );
}

#[test]
fn guards_apply_unless_they_are_ignored_and_reported() {
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    for (port, kind, outcome, cause) in [
        (5432, Kind::Plain, "skipped", "statefulPort"),
        (10250, Kind::Plain, "skipped", "systemPort"),
        (7070, Kind::DiesOfSigpipe, "refused", "sigpipe"),
    ] {
        let (address, _server) = Server::in_pod(lab.pod(0), port, kind);
        let mut client = echoed(&lab, address);
        let id = id_of(&agent, &client);
        let kept = &moves(&agent, 1, &["--when", "at-once", &id])[0];
        shows(kept, json!({"outcome": outcome, "cause": cause}));

        let ignore = ["move", "-o", "json", "--when", "at-once", "--ignore-guards"];
        let moved = rebalancer(&agent, &[&ignore, &[&*id][..]].concat());
        assert!(moved.status.success(), "{moved:?}");
        let note = stderr(&moved);
        assert!(note.contains("guard ignored"), "{note}");
        let list: Value = serde_json::from_slice(&moved.stdout).unwrap();
        assert_eq!(list["items"][0]["outcome"], "reset");
        assert!(is_reset(&mut client));
    }
}

#[test]
fn works_without_an_agent_and_leaves_nothing() {
    let lab = lab(1);
    let pod = lab.pod(0);
    let mut stream = answered(&lab, pod.address());
    let id = format!("sk:{}", ss(&pod.host, 80)[0].cookie);
    let pins = own_pins();
    moves(&pins, 0, &["--cgroup", cgroup(&lab).to_str().unwrap(), &id]);
    assert!(is_reset(&mut stream));
    assert_eq!(pins_left(&pins), [] as [std::path::PathBuf; 0]);
    answered(&lab, pod.address());
}

/// On a plain host, by a policy without a rule for it: what is detected as HTTP leaves, also clients that never pause
/// for long; what is opened meanwhile stays.
#[test]
fn an_endpoint_is_drained_by_its_address() {
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let address = lab.pod(0).address();
    let target = address.to_string();
    let nothing = agent.fails(1, &["drain", "192.0.2.1:80"]);
    assert!(nothing.contains("192.0.2.1:80: no endpoint"), "{nothing}");
    let clients = [(); 5].map(|()| {
        let mut stream = answered(&lab, address);
        std::thread::spawn(move || {
            // As a client that looks at a connection before it uses it again.
            while stream.take_error().unwrap().is_none() {
                request(&mut stream, "/").unwrap();
                sleep(Duration::from_millis(300));
            }
        })
    });
    let dry_run = agent.ask(&["drain", &target, "--dry-run"]);
    assert!(
        dry_run.contains("LEAVE") && dry_run.contains(" 5 "),
        "{dry_run}"
    );

    // A pause forbids it, and an end recalls what waits.
    agent.ask(&["pause", "--for", "1h"]);
    let paused = agent.fails(1, &["drain", &target]);
    assert!(paused.contains("moves are paused"), "{paused}");
    agent.ask(&["resume"]);
    agent.ask(&["drain", &target, "--within", "1h", "--no-wait"]);
    let status = || agent.status()["drains"].clone();
    let drains = eventually("it is shown", status, |drains| drains[0].is_object());
    shows(&drains[0], json!({"cause": "requested", "port": 80}));
    let cancelled = agent.ask(&["drain", &target, "--cancel"]);
    assert_eq!(cancelled, "drain cancelled, endpoints: 1\n");
    eventually("it has ended", status, |drains| drains[0].is_null());
    let twice = agent.fails(1, &["drain", &target, "--cancel"]);
    assert!(twice.contains("no drain was asked for"), "{twice}");

    let within = ["drain", &target, "--within", "10s"];
    let drained = command(&agent, &within)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("it has begun", status, |drains| drains[0].is_object());
    sleep(Duration::from_millis(1500));
    let mut later = answered(&lab, address);
    let drained = drained.wait_with_output().unwrap();
    let text = stdout(&drained);
    assert!(drained.status.success(), "{text}");
    assert!(text.contains("all have left"), "{text}");
    for client in clients {
        client.join().expect("no request broke off");
    }
    request(&mut later, "/").unwrap();
}
