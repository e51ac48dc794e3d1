//! Moves that an operator pauses.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::{
    moves::enforce,
    status::{socket, status},
    support::{
        Agent, alone, cgroup, connect, eventually, lab, own_pins, rebalancer, request, stderr,
    },
};

/// Waits longer than any test.
const PATIENT: &str = "{step: Reset, when: Quiet, idleFor: 30s, timeout: 5m}";

fn in_flight(agent: &mut Agent) {
    agent.wait_for("a move under way", |l| {
        l["message"] == "listed"
            && l["skipped"]
                .as_str()
                .is_some_and(|s| s.contains("inFlight"))
    });
}

fn paused(agent: &Agent) -> Value {
    status(agent)["paused"].clone()
}

#[test]
fn a_pause_calls_back_what_waits_and_moves_nothing_until_it_ends() {
    let _alone = alone();
    let lab = lab(1);
    let mut agent = Agent::in_lab(&lab, &enforce(&lab, 80, "maxAge: 400ms", PATIENT));
    let mut stream = connect(&lab, lab.pod(0).address());
    request(&mut stream, "/").unwrap();
    in_flight(&mut agent);

    let out = rebalancer(&agent, &["pause", "--for", "1h", "--reason", "an incident"]);
    assert!(out.status.success(), "{out:?}");
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("moves recalled: 1"), "{text}");
    assert_eq!(agent.wait_for_move()["outcome"], "recalled");
    agent.wait_for_intervals(5);
    assert_eq!(agent.logged("move").len(), 1, "nothing new is moved");
    request(&mut stream, "/").expect("it lives");
    let status = status(&agent);
    assert_eq!(status["paused"]["reason"], "an incident");
    assert_eq!(status["inFlight"], serde_json::json!([]));
    assert_eq!(
        status["lastPass"]["moves"], 1,
        "what would be moved is reported"
    );
    let table = String::from_utf8(rebalancer(&agent, &["status"]).stdout).unwrap();
    assert!(
        table.contains("an incident") && table.contains("rebalancer resume"),
        "{table}"
    );

    let out = rebalancer(&agent, &["resume"]);
    assert_eq!(String::from_utf8(out.stdout).unwrap(), "moves resumed\n");
    in_flight(&mut agent);
    assert_eq!(paused(&agent), Value::Null);
    let again = rebalancer(&agent, &["resume"]);
    assert_eq!(again.stdout, b"moves were not paused\n");

    // It ends by itself.
    let out = rebalancer(&agent, &["pause", "--for", "1500ms"]);
    assert!(out.status.success(), "{out:?}");
    assert_eq!(agent.wait_for_move()["outcome"], "recalled");
    let on = agent.wait_for("the end", |line| line["message"] == "moves resumed");
    assert_eq!(on["cause"], "expired");
    in_flight(&mut agent);
    let events = rebalancer(&agent, &["events", "-o", "json"]).stdout;
    let kinds: Vec<String> = String::from_utf8(events)
        .unwrap()
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
fn a_pause_outlives_its_agent_and_goes_with_an_uninstall() {
    let _alone = alone();
    let lab = lab(1);
    let policy = enforce(&lab, 80, "maxAge: 400ms", PATIENT);
    let in_lab = ["--cgroup", cgroup(&lab).to_str().unwrap()];
    let pins = own_pins();
    let mut first = Agent::with(&policy, pins.clone(), &in_lab);
    let file = socket(&first).with_file_name("pause.json");
    let out = rebalancer(&first, &["pause", "--for", "1h", "--reason", "a rollout"]);
    assert!(out.status.success(), "{out:?}");
    let before = paused(&first);
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    first.child.kill().unwrap();
    first.child.wait().unwrap();

    let mut second = Agent::with(&policy, pins, &in_lab);
    assert_eq!(second.logged("moves are still paused").len(), 1);
    let mut stream = connect(&lab, lab.pod(0).address());
    request(&mut stream, "/").unwrap();
    eventually("there is one to move", || {
        let moves = status(&second)["lastPass"]["moves"].clone();
        if moves == 1 { Ok(moves) } else { Err(moves) }
    });
    second.wait_for_intervals(3);
    let after = paused(&second);
    assert_eq!(
        (&after["since"], &after["reason"]),
        (&before["since"], &before["reason"])
    );
    assert_eq!(status(&second)["inFlight"], serde_json::json!([]));
    assert!(rebalancer(&second, &["resume"]).status.success());
    assert!(!file.exists(), "what has ended is not kept");
    in_flight(&mut second);

    assert!(
        rebalancer(&second, &["pause", "--for", "1h"])
            .status
            .success()
    );
    assert_eq!(second.terminate(), Some(0));
    assert!(file.exists(), "also a clean stop is no end of it");
    let out = rebalancer(&second, &["uninstall"]);
    assert!(out.status.success(), "{out:?}");
    assert!(!file.parent().unwrap().exists(), "no trace is left");
    let none = rebalancer(&second, &["pause", "--for", "1h"]);
    assert_eq!(none.status.code(), Some(5), "{none:?}");
    assert!(stderr(&none).contains("no agent is running"), "{none:?}");
}
