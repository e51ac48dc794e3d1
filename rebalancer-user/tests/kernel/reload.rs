//! A policy that changes while the agent runs.

use std::{fs, os::unix::fs::symlink};

use serde_json::Value;

use crate::support::{Agent, PATIENT, TRACK_ONLY, answered, enforce, lab, request};

pub const REFUSED: &str = "policy refused, keeping the last valid one";

fn reloaded(agent: &mut Agent) -> Value {
    agent.wait_for_message("policy reloaded")
}

#[test]
fn a_refused_reload_keeps_the_last_good_policy_and_the_status_shows_it_until_a_valid_one() {
    let mut agent = Agent::on_machine(TRACK_ONLY);
    agent.reload("mode: Enforce");
    let line = agent.wait_for_message(REFUSED);
    let error = line["error"].as_str().unwrap();
    assert!(error.contains(agent.policy()), "{line}");
    agent.wait_for_intervals(1);
    let policy = &agent.status()["policy"];
    let error = policy["refused"]["error"].as_str().unwrap();
    assert!(error.contains("apiVersion"), "{error}");
    assert_eq!(policy["rules"], 1);
    assert!(agent.ask(&["status"]).contains("was refused"));

    agent.reload(&TRACK_ONLY.replace("Disabled", "DryRun"));
    assert_eq!(reloaded(&mut agent)["mode"], "DryRun");
    agent.wait_for_intervals(1);
    assert_eq!(agent.status()["policy"]["refused"], Value::Null);
}

#[test]
fn a_config_maps_swap_and_a_plain_write_are_in_force_without_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let version = |name: &str, text: &str| {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("policy.yaml"), text).unwrap();
    };
    version("..1", TRACK_ONLY);
    symlink("..1", at("..data")).unwrap();
    symlink("..data/policy.yaml", at("policy.yaml")).unwrap();
    let file = at("policy.yaml");
    let mut agent = Agent::on_machine_with("", &["--policy", file.to_str().unwrap()]);

    // As the kubelet does it.
    version("..2", &TRACK_ONLY.replace("Disabled", "DryRun"));
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    assert_eq!(reloaded(&mut agent)["mode"], "DryRun");

    fs::write(&file, "mode: Enforce").unwrap();
    agent.wait_for_message(REFUSED);
    fs::write(&file, TRACK_ONLY).unwrap();
    assert_eq!(reloaded(&mut agent)["mode"], "Disabled");
    assert_eq!(agent.terminate(), Some(0));
    assert_eq!(agent.logged(REFUSED).len(), 1, "logged once");
}

#[test]
fn moves_that_wait_are_called_back_and_judged_by_the_new_policy() {
    let lab = lab(1);
    // What waits for thirty quiet seconds waits long enough.
    let policy = enforce(&lab, 80, "maxAge: 2s", PATIENT).replace("200ms", "1s");
    let mut agent = Agent::in_lab(&lab, &policy);
    let mut stream = answered(&lab, lab.pod(0).address());
    agent.wait_for_skipped("inFlight");

    // Seen without a signal.
    fs::write(agent.policy(), policy.replace("Enforce", "DryRun")).unwrap();
    reloaded(&mut agent);
    agent.moved("recalled");
    agent.wait_for_intervals(2);
    request(&mut stream, "/").expect("it lives, and nothing is under way on it");

    fs::write(
        agent.policy(),
        policy.replace("idleFor: 30s", "idleFor: 100ms"),
    )
    .unwrap();
    agent.moved("reset"); // chosen again, by the new policy
}
