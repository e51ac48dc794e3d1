//! The agent, asked while it runs; and when none does.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::support::{
    AT_ONCE, Agent, PATIENCE, REBALANCER, TRACK_ONLY, answered, connect, connect_many, enforce,
    failed, file_of, lab, own_pins, rebalancer, shows, stderr,
};

pub fn socket(agent: &Agent) -> PathBuf {
    let name = agent.pins.file_name().unwrap();
    PathBuf::from("/run").join(name).join("agent.sock")
}

/// Sends this to an agent's socket.
pub fn send(socket: &Path, request: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // It may be left before it has said all.
    let _ = stream.write_all(request);
    stream
}

/// The same, and all that is answered.
pub fn answer(socket: &Path, request: &[u8]) -> String {
    let mut answer = Vec::new();
    let _ = send(socket, request).read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn the_status_of_a_dry_run_shows_its_mode_and_what_it_would_move() {
    let lab = lab(1);
    let policy = enforce(&lab, 80, "maxAge: 400ms", AT_ONCE).replace("Enforce", "DryRun");
    let mut agent = Agent::in_lab(&lab, &policy);
    let _stream = connect(&lab, lab.pod(0).address());
    agent.wait_for_message("would move");
    agent.wait_for_intervals(2);
    let status = agent.status();
    // Those of the machine that are older than the agent are adopted, and of no rule.
    let skipped = status["lastPass"]["skipped"].as_object().unwrap();
    let all: u64 = skipped.values().filter_map(Value::as_u64).sum();
    shows(
        &status,
        json!({
            "kind": "Status", "pid": agent.child.id(), "reportedInDryRun": 1,
            "/mode/effective": "DryRun", "/mode/limitedBy": ["policy"],
            "/lastPass/connections": all, "/lastPass/skipped/dryRun": 1,
            "/budgets/0/mode": "DryRun", "/budgets/0/used": 1,
        }),
    );
    for form in ["table", "yaml"] {
        let text = agent.ask(&["status", "-o", form]);
        assert!(text.contains("DryRun"), "{text}");
    }
    // A reader who has seen enough is no error.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut into_nothing = Command::new(REBALANCER);
    into_nothing.args(["status", "--pins"]).arg(&agent.pins);
    let out = into_nothing.stdout(writer).output().unwrap();
    assert_eq!((out.status.code(), stderr(&out).as_str()), (Some(0), ""));
}

#[test]
fn the_status_shows_moves_under_way_and_their_outcomes() {
    let lab = lab(1);
    let steps = "{step: Reset, when: Quiet, idleFor: 1h, timeout: 3s}";
    let mut agent = Agent::moving(&lab, 80, "maxAge: 400ms", steps);
    let _stream = answered(&lab, lab.pod(0).address());
    agent.wait_for_skipped("inFlight");
    let id = agent.connection(lab.pod(0))["id"].clone();
    let under_way = json!({
        "/inFlight/0/rule": "lab", "/inFlight/0/step": "Reset", "/inFlight/0/id": id,
        "/budgets/0/used": 1,
    });
    shows(&agent.status(), under_way);
    agent.wait_for_move();
    agent.wait_for_intervals(1);
    // No harm, no cost.
    let after = json!({
        "/ended/gaveUp": 1, "inFlight": [], "/budgets/0/used": 0, "/mode/effective": "Enforce",
    });
    shows(&agent.status(), after);
}

#[test]
fn a_plan_is_what_the_agent_would_do_also_by_another_policy() {
    let lab = lab(1);
    let policy = enforce(&lab, 80, "maxAge: 400ms", AT_ONCE)
        .replace("budget: {", "budget: {window: 10m, perNode: 3, ");
    let mut agent = Agent::in_lab(&lab, &policy);
    let _two = connect_many(&lab, lab.pod(0).address(), 2);
    for _ in 0..2 {
        agent.wait_for_move();
    }
    // One more than what is left of the budget.
    let _two_more = connect_many(&lab, lab.pod(0).address(), 2);
    agent.wait_for_move();
    agent.wait_for_intervals(3);
    let live = rebalancer(&agent, &["plan", "-o", "json"]);
    assert_eq!((live.status.code(), stderr(&live).as_str()), (Some(0), ""));
    let live: Value = serde_json::from_slice(&live.stdout).unwrap();
    shows(&live, json!({"budgetLeft": 0, "/skipped/budget": 1}));
    let other = agent.plan_by(&policy.replace("perNode: 3", "perNode: 4"), &[]);
    shows(&other, json!({"budgetLeft": 0, "/skipped/budget": null}));
    let text = agent.ask(&["explain", live["items"][0]["id"].as_str().unwrap()]);
    assert!(text.contains("skipped(budget)"), "{text}");
    let none = agent.fails(1, &["explain", "1"]);
    assert!(none.contains("no connection 1 is tracked"), "{none}");

    // A dump does not contain past moves.
    let saved = file_of(&agent.ask(&["dump", "-o", "json"]));
    let saved = saved.path().to_str().unwrap();
    let of_saved = ["plan", "-o", "json", "--snapshot", saved, "--policy"];
    let replay = rebalancer(&agent, &[&of_saved[..], &[agent.policy()]].concat());
    assert!(stderr(&replay).contains("budgets are shown as unspent"));
    let replay: Value = serde_json::from_slice(&replay.stdout).unwrap();
    assert_eq!(replay["budgetLeft"], 2, "{replay:#}");

    agent.terminate();
    let nobody = agent.fails(5, &["plan"]);
    assert!(nobody.contains("rebalancer dump -o json"), "{nobody}");
}

#[test]
fn the_socket_of_a_killed_agent_is_replaced_and_a_clean_stop_removes_it() {
    let mut first = Agent::on_machine(TRACK_ONLY);
    let socket = socket(&first);
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    first.kill();
    assert!(socket.exists(), "a kill leaves the socket");
    let none = rebalancer(&first, &["status"]);
    assert_eq!(none.stdout.len(), 0);
    assert!(
        failed(5, &none).contains("pins of an agent that has ended"),
        "{none:?}"
    );
    let mut second = first.successor();
    assert_eq!(second.status()["pid"], second.child.id());
    // A live one is not stolen, whatever the pins.
    let pins = own_pins();
    let run_dir = socket.parent().unwrap();
    let there = ["--run-dir", run_dir.to_str().unwrap()];
    let run = [&["agent", "--policy", first.policy()][..], &there].concat();
    let thief = failed(1, &rebalancer(&pins, &run));
    assert!(thief.contains("--run-dir"), "{thief}");
    assert!(!pins.exists(), "what it had made is removed");
    assert_eq!(second.status()["pid"], second.child.id());
    assert_eq!(second.terminate(), Some(0));
    assert!(!socket.exists());
    // What the next agent goes on from stays: budgets and holds.
    let left = fs::read_dir(run_dir).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["ledger.json"]);
    let none = second.fails(5, &["status"]);
    assert!(none.contains("has no pins"), "{none}");
}

#[test]
fn hostile_requests_are_bounded_and_hold_up_neither_the_loop_nor_others() {
    let mut agent = Agent::on_machine(TRACK_ONLY);
    let socket = socket(&agent);
    let huge = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(1 << 20));
    let many = format!("GET /status HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1000));
    let too_long = b"POST /status HTTP/1.1\r\nhost: a\r\ncontent-length: 9999999999\r\n\r\n";
    for (request, code) in [
        (huge.as_bytes(), " 4"),
        (many.as_bytes(), " 431"),
        (b"\0\xff\r\n\r\n", " 400"),
        (b"GET /nothing HTTP/1.1\r\nhost: a\r\n\r\n", " 404"),
        (too_long, " 405"),
        (b"GET /status HTTP/1.1\r\nhost: a\r\n\r\n", " 200"),
    ] {
        let answer = answer(&socket, request);
        let head = answer.lines().next().unwrap_or_default();
        assert!(head.contains(code), "{code}: {answer}");
    }
    // Clients that say nothing take every place; they are left, and others come to their turn.
    let silent = [(); 20].map(|()| UnixStream::connect(&socket).unwrap());
    agent.wait_for_intervals(1);
    assert_eq!(agent.status()["pid"], agent.child.id());
    drop(silent);
    assert_eq!(agent.terminate(), Some(0));
}
