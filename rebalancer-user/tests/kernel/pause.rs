//! Moves that an operator pauses.

use std::os::unix::fs::PermissionsExt as _;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    status::socket,
    support::{Agent, Held, PATIENT, answered, command, eventually, lab, request, shows},
};

#[test]
fn a_pause_calls_back_what_waits_and_moves_nothing_until_it_ends() {
    let lab = lab(1);
    let mut agent = Agent::moving(&lab, 80, "maxAge: 400ms", PATIENT);
    let mut stream = answered(&lab, lab.pod(0).address());
    agent.wait_for_skipped("inFlight");

    let text = agent.ask(&["pause", "--for", "1h", "--reason", "an incident"]);
    assert!(text.contains("moves recalled: 1"), "{text}");
    agent.moved("recalled");
    agent.moves_no_more(1, 5); // nothing new is moved
    request(&mut stream, "/").expect("it lives");
    // What would be moved is reported.
    let paused = json!({"/paused/reason": "an incident", "inFlight": [], "/lastPass/moves": 1});
    shows(&agent.status(), paused);
    let table = agent.ask(&["status"]);
    assert!(
        table.contains("an incident") && table.contains("rebalancer resume"),
        "{table}"
    );

    assert_eq!(agent.ask(&["resume"]), "moves resumed\n");
    agent.wait_for_skipped("inFlight");
    assert_eq!(agent.status()["paused"], Value::Null);
    assert_eq!(agent.ask(&["resume"]), "moves were not paused\n");

    // It ends by itself.
    agent.ask(&["pause", "--for", "1500ms"]);
    agent.moved("recalled");
    let on = agent.wait_for_message("moves resumed");
    assert_eq!(on["cause"], "expired");
    agent.wait_for_skipped("inFlight");
    let kinds: Vec<String> = agent
        .ask(&["events", "-o", "json"])
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|event| event["type"] == "paused" || event["type"] == "resumed")
        .map(|event| format!("{} {}", event["type"], event["cause"]).replace('"', ""))
        .collect();
    let expected = [
        "paused null",
        "resumed asked",
        "paused null",
        "resumed expired",
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn a_pause_and_a_signal_are_answered_while_a_walk_hangs() {
    let lab = lab(1);
    let mut agent = Agent::moving(&lab, 80, "maxAge: 1h", PATIENT);
    agent.wait_for_intervals(1);
    let held = Held::thread(&agent, "looking");
    let mut dump = command(&agent, &["dump"]).spawn().unwrap();

    agent.ask(&["pause", "--for", "1h"]);
    assert_ne!(agent.status()["paused"], Value::Null);
    assert!(dump.try_wait().unwrap().is_none(), "it waits for the walk");

    agent.signal(Signal::TERM);
    held.ended();
    assert_eq!(agent.child.wait().unwrap().code(), Some(0));
    assert!(!dump.wait().unwrap().success());
}

#[test]
fn a_pause_outlives_its_agent_and_goes_with_an_uninstall() {
    let lab = lab(1);
    let mut first = Agent::moving(&lab, 80, "maxAge: 400ms", PATIENT);
    let file = socket(&first).with_file_name("pause.json");
    first.ask(&["pause", "--for", "1h", "--reason", "a rollout"]);
    let before = first.status()["paused"].clone();
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    first.kill();

    let mut second = first.successor();
    assert_eq!(second.logged("moves are still paused").len(), 1);
    let _stream = answered(&lab, lab.pod(0).address());
    let moves = || second.status()["lastPass"]["moves"].clone();
    eventually("there is one to move", moves, |moves| *moves == 1);
    second.wait_for_intervals(3);
    let after = second.status();
    for field in ["since", "reason"] {
        assert_eq!(after["paused"][field], before[field]);
    }
    assert_eq!(after["inFlight"], json!([]));
    second.ask(&["resume"]);
    assert!(!file.exists(), "what has ended is not kept");
    second.wait_for_skipped("inFlight");

    second.ask(&["pause", "--for", "1h"]);
    assert_eq!(second.terminate(), Some(0));
    assert!(file.exists(), "also a clean stop is no end of it");
    second.ask(&["uninstall"]);
    assert!(!file.parent().unwrap().exists(), "no trace is left");
    let none = second.fails(5, &["pause", "--for", "1h"]);
    assert!(none.contains("no agent is running"), "{none}");
}
