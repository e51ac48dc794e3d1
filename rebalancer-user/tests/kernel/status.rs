//! The agent, asked while it runs; and when none does.

use std::{
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::PathBuf,
    process::Command,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    moves::{AT_ONCE, enforce},
    support::{
        Agent, PATIENCE, REBALANCER, TRACK_ONLY, alone, connect, lab, own_pins, rebalancer,
        request, stderr,
    },
};

pub fn socket(agent: &Agent) -> PathBuf {
    let name = agent.pins.file_name().unwrap();
    PathBuf::from("/run").join(name).join("agent.sock")
}

/// `status -o json`.
pub fn status(agent: &Agent) -> Value {
    let out = rebalancer(agent, &["status", "-o", "json"]);
    assert!(out.status.success(), "{out:?}");
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn the_status_of_a_dry_run_shows_its_mode_and_what_it_would_move() {
    let _alone = alone();
    let lab = lab(1);
    let policy = enforce(&lab, 80, "maxAge: 400ms", AT_ONCE).replace("Enforce", "DryRun");
    let mut agent = Agent::in_lab(&lab, &policy);
    let _stream = connect(&lab, lab.pod(0).address());
    agent.wait_for("would move", |line| line["message"] == "would move");
    agent.wait_for_intervals(2);
    let status = status(&agent);
    assert_eq!(status["kind"], "Status");
    assert_eq!(status["pid"], agent.child.id());
    assert_eq!(status["mode"]["effective"], "DryRun");
    assert_eq!(status["mode"]["limitedBy"], serde_json::json!(["policy"]));
    // Those of the machine that are older than the agent are adopted, and of no rule.
    let skipped = &status["lastPass"]["skipped"];
    let all: u64 = skipped
        .as_object()
        .unwrap()
        .values()
        .filter_map(Value::as_u64)
        .sum();
    assert_eq!(status["lastPass"]["connections"], all, "{status:#}");
    assert_eq!(status["lastPass"]["skipped"]["dryRun"], 1, "{status:#}");
    assert_eq!(status["reportedInDryRun"], 1);
    assert_eq!(status["budgets"][0]["mode"], "DryRun");
    assert_eq!(status["budgets"][0]["used"], 1);
    for form in ["table", "yaml"] {
        let out = rebalancer(&agent, &["status", "-o", form]);
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(text.contains("DryRun"), "{text}");
    }
    // A reader who has seen enough is no error.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let into_nothing = Command::new(REBALANCER)
        .args(["status", "--pins"])
        .arg(&agent.pins)
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!(
        (into_nothing.status.code(), stderr(&into_nothing).as_str()),
        (Some(0), "")
    );
}

#[test]
fn the_status_shows_moves_under_way_and_their_outcomes() {
    let _alone = alone();
    let lab = lab(1);
    let steps = "{step: Reset, when: Quiet, idleFor: 1h, timeout: 3s}";
    let mut agent = Agent::in_lab(&lab, &enforce(&lab, 80, "maxAge: 400ms", steps));
    let mut stream = connect(&lab, lab.pod(0).address());
    request(&mut stream, "/").unwrap();
    let began = |status: &Value| !status["inFlight"].as_array().unwrap().is_empty();
    let under_way = loop {
        agent.wait_for_intervals(1);
        let status = status(&agent);
        if began(&status) {
            break status;
        }
    };
    let moving = &under_way["inFlight"][0];
    assert_eq!(
        (&moving["rule"], &moving["step"]),
        (&"lab".into(), &"Reset".into())
    );
    let id = agent.connections(lab.pod(0))[0]["id"].clone();
    assert_eq!(moving["id"], id);
    assert_eq!(under_way["budgets"][0]["used"], 1);
    agent.wait_for_move();
    agent.wait_for_intervals(1);
    let after = status(&agent);
    assert_eq!(after["ended"]["gaveUp"], 1, "{after:#}");
    assert!(!began(&after), "{after:#}");
    assert_eq!(
        after["budgets"][0]["used"], 0,
        "no harm, no cost: {after:#}"
    );
    assert_eq!(after["mode"]["effective"], "Enforce");
}

#[test]
fn a_plan_is_what_the_agent_would_do_also_by_another_policy() {
    let _alone = alone();
    let lab = lab(1);
    let policy = enforce(&lab, 80, "maxAge: 400ms", AT_ONCE)
        .replace("budget: {", "budget: {window: 10m, perNode: 3, ");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &policy).unwrap();
    let cgroup = crate::support::cgroup(&lab).to_str().unwrap().to_owned();
    let mut agent = Agent::with_file(file.path(), own_pins(), &["--cgroup", &cgroup]);
    let mut streams: Vec<_> = (0..2)
        .map(|_| connect(&lab, lab.pod(0).address()))
        .collect();
    for _ in 0..2 {
        agent.wait_for_move();
    }
    // One more than what is left of the budget.
    streams.extend((0..2).map(|_| connect(&lab, lab.pod(0).address())));
    agent.wait_for_move();
    agent.wait_for_intervals(3);
    let plan = |arguments: &[&str]| -> Value {
        let plan = rebalancer(&agent, &[&["plan", "-o", "json"], arguments].concat());
        assert!(plan.status.success(), "{plan:?}");
        assert_eq!(stderr(&plan), "");
        serde_json::from_slice(&plan.stdout).unwrap()
    };
    let live = plan(&[]);
    assert_eq!(live["budgetLeft"], 0, "the budget is spent: {live:#}");
    assert_eq!(live["skipped"]["budget"], 1, "{live:#}");
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other");
    std::fs::write(&other, policy.replace("perNode: 3", "perNode: 4")).unwrap();
    let other = plan(&["--policy", other.to_str().unwrap()]);
    assert_eq!(other["skipped"]["budget"], Value::Null, "{other:#}");
    assert_eq!(other["budgetLeft"], 0, "{other:#}");
    let id = live["items"][0]["id"].as_str().unwrap();
    let explained = rebalancer(&agent, &["explain", id]);
    let text = String::from_utf8(explained.stdout).unwrap();
    assert!(text.contains("skipped(budget)"), "{text}");
    let none = rebalancer(&agent, &["explain", "1"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(
        stderr(&none).contains("no connection 1 is tracked"),
        "{none:?}"
    );

    // A dump does not contain past moves.
    let dump = rebalancer(&agent, &["dump", "-o", "json"]).stdout;
    let saved = folder.path().join("dump");
    std::fs::write(&saved, dump).unwrap();
    let (policy, saved) = (file.path().to_str().unwrap(), saved.to_str().unwrap());
    let replay = [
        "plan",
        "--policy",
        policy,
        "--snapshot",
        saved,
        "-o",
        "json",
    ];
    let replay = rebalancer(&agent, &replay);
    assert!(stderr(&replay).contains("budgets are shown as unspent"));
    let replay: Value = serde_json::from_slice(&replay.stdout).unwrap();
    assert_eq!(replay["budgetLeft"], 2, "{replay:#}");

    kill_process(Pid::from_child(&agent.child), Signal::TERM).unwrap();
    agent.child.wait().unwrap();
    let nobody = rebalancer(&agent, &["plan"]);
    assert_eq!(nobody.status.code(), Some(5), "{nobody:?}");
    assert!(
        stderr(&nobody).contains("rebalancer dump -o json"),
        "{nobody:?}"
    );
}

#[test]
fn the_status_shows_a_refused_reload_until_a_valid_one() {
    let _alone = alone();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), TRACK_ONLY).unwrap();
    let mut agent = Agent::with_file(file.path(), own_pins(), &[]);
    let hup = |agent: &Agent| kill_process(Pid::from_child(&agent.child), Signal::HUP).unwrap();
    std::fs::write(file.path(), "mode: Enforce").unwrap();
    hup(&agent);
    agent.wait_for("refused", |l| {
        l["message"] == "policy refused, keeping the last valid one"
    });
    agent.wait_for_intervals(1);
    let refused = status(&agent);
    let error = refused["policy"]["refused"]["error"].as_str().unwrap();
    assert!(error.contains("apiVersion"), "{error}");
    assert_eq!(refused["policy"]["rules"], 1);
    let table = rebalancer(&agent, &["status"]).stdout;
    assert!(String::from_utf8(table).unwrap().contains("was refused"));
    std::fs::write(file.path(), TRACK_ONLY).unwrap();
    hup(&agent);
    agent.wait_for("reloaded", |l| l["message"] == "policy reloaded");
    agent.wait_for_intervals(1);
    assert_eq!(status(&agent)["policy"]["refused"], Value::Null);
}

#[test]
fn the_socket_of_a_killed_agent_is_replaced_and_a_clean_stop_removes_it() {
    let _alone = alone();
    let mut first = Agent::on_machine(TRACK_ONLY);
    let socket = socket(&first);
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    assert!(socket.exists(), "a kill leaves the socket");
    let none = rebalancer(&first, &["status"]);
    assert_eq!((none.status.code(), none.stdout.len()), (Some(5), 0));
    assert!(stderr(&none).contains("pins of a killed agent"), "{none:?}");
    let mut second = Agent::with(TRACK_ONLY, first.pins.clone(), &[]);
    assert_eq!(status(&second)["pid"], second.child.id());
    // A live one is not stolen, whatever the pins.
    let pins = own_pins();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), TRACK_ONLY).unwrap();
    let thief = Command::new(REBALANCER)
        .args(["agent", "--policy"])
        .arg(file.path())
        .arg("--pins")
        .arg(&pins)
        .arg("--run-dir")
        .arg(socket.parent().unwrap())
        .output()
        .unwrap();
    assert_eq!(thief.status.code(), Some(1), "{thief:?}");
    assert!(stderr(&thief).contains("--run-dir"), "{thief:?}");
    assert!(!pins.exists(), "what it had made is removed");
    assert_eq!(status(&second)["pid"], second.child.id());
    assert_eq!(second.terminate(), Some(0));
    assert!(!socket.exists());
    // What the next agent goes on from stays: budgets and holds.
    let left = std::fs::read_dir(socket.parent().unwrap())
        .unwrap()
        .flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["ledger.json"]);
    let none = rebalancer(&second, &["status"]);
    assert_eq!(none.status.code(), Some(5));
    assert!(stderr(&none).contains("has no pins"), "{none:?}");
}

#[test]
fn hostile_requests_are_bounded_and_hold_up_neither_the_loop_nor_others() {
    let _alone = alone();
    let mut agent = Agent::on_machine(TRACK_ONLY);
    let socket = socket(&agent);
    let ask = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // It may be left before it has said all.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let huge = [
        b"GET /".to_vec(),
        vec![b'a'; 1 << 20],
        b" HTTP/1.1\r\n\r\n".to_vec(),
    ]
    .concat();
    let many = format!("GET /status HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1000));
    let asked: [(&[u8], &str); 6] = [
        (&huge, " 4"),
        (many.as_bytes(), " 431"),
        (b"\0\xff\r\n\r\n", " 400"),
        (b"GET /nothing HTTP/1.1\r\nhost: a\r\n\r\n", " 404"),
        (
            b"POST /status HTTP/1.1\r\nhost: a\r\ncontent-length: 9999999999\r\n\r\n",
            " 405",
        ),
        (b"GET /status HTTP/1.1\r\nhost: a\r\n\r\n", " 200"),
    ];
    for (bytes, code) in asked {
        let answer = ask(bytes);
        assert!(
            answer.lines().next().unwrap_or_default().contains(code),
            "{code}: {answer}"
        );
    }
    // Clients that say nothing take every place; they are left, and others come to their turn.
    let silent: Vec<_> = (0..20)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    agent.wait_for_intervals(1);
    assert_eq!(status(&agent)["pid"], agent.child.id());
    drop(silent);
    assert_eq!(agent.terminate(), Some(0));
}
