//! A policy that changes while the agent runs.

use std::{fs, os::unix::fs::symlink};

use crate::support::{Agent, TRACK_ONLY, alone, cgroup, connect, lab, own_pins, request};

fn reloaded(agent: &mut Agent) -> serde_json::Value {
    agent.wait_for("reloaded", |l| l["message"] == "policy reloaded")
}

fn refused(agent: &mut Agent) -> serde_json::Value {
    agent.wait_for("refused", |l| {
        l["message"] == "policy refused, keeping the last valid one"
    })
}

#[test]
fn a_refused_reload_keeps_the_last_good_policy() {
    let _alone = alone();
    let policy = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(policy.path(), TRACK_ONLY).unwrap();
    let path = policy.path();
    let mut agent = Agent::with_file(path, own_pins(), &[]);
    let pid = rustix::process::Pid::from_child(&agent.child);
    let hup = || rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    std::fs::write(path, "mode: Enforce").unwrap();
    hup();
    let said = agent.wait_for("refused", |l| {
        l["message"] == "policy refused, keeping the last valid one"
    });
    assert!(
        said["error"]
            .as_str()
            .unwrap()
            .contains(path.to_str().unwrap()),
        "{said}"
    );
    std::fs::write(path, TRACK_ONLY.replace("Disabled", "DryRun")).unwrap();
    hup();
    let said = agent.wait_for("reloaded", |l| l["message"] == "policy reloaded");
    assert_eq!(said["mode"], "DryRun");
}

#[test]
fn a_config_maps_swap_and_a_plain_write_are_in_force_without_a_signal() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let version = |name: &str, text: &str| {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("policy.yaml"), text).unwrap();
    };
    version("..1", TRACK_ONLY);
    symlink("..1", at("..data")).unwrap();
    symlink("..data/policy.yaml", at("policy.yaml")).unwrap();
    let mut agent = Agent::with_file(&at("policy.yaml"), own_pins(), &[]);

    // As the kubelet does it.
    version("..2", &TRACK_ONLY.replace("Disabled", "DryRun"));
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    assert_eq!(reloaded(&mut agent)["mode"], "DryRun");

    fs::write(at("policy.yaml"), "mode: Enforce").unwrap();
    refused(&mut agent);
    fs::write(at("policy.yaml"), TRACK_ONLY).unwrap();
    assert_eq!(reloaded(&mut agent)["mode"], "Disabled");
    assert_eq!(agent.terminate(), Some(0));
    assert_eq!(
        agent
            .logged("policy refused, keeping the last valid one")
            .len(),
        1,
        "logged once"
    );
}

#[test]
fn moves_that_wait_are_called_back_and_judged_by_the_new_policy() {
    let _alone = alone();
    let lab = lab(1);
    // What waits for thirty quiet seconds waits long enough.
    let policy = |mode: &str, idle: &str| {
        format!(
            "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: {mode}
interval: 1s
budget: {{perService: 100%, perEndpoint: 100%}}
guards: {{minAge: 1s}}
rules:
- name: old
  match: {{ports: [{{port: 80}}]}}
  limits: {{maxAge: 2s}}
  jitter: 0%
  onReconnect: Safe
  steps: [{{step: Reset, when: Quiet, idleFor: {idle}, timeout: 5m}}]
"
        )
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.yaml");
    fs::write(&file, policy("Enforce", "30s")).unwrap();
    let in_lab = ["--cgroup", cgroup(&lab).to_str().unwrap()];
    let mut agent = Agent::with_file(&file, own_pins(), &in_lab);
    let mut stream = connect(&lab, lab.pod(0).address());
    request(&mut stream, "/").unwrap();
    agent.wait_for("a move under way", |l| {
        l["message"] == "listed"
            && l["skipped"]
                .as_str()
                .is_some_and(|s| s.contains("inFlight"))
    });

    fs::write(&file, policy("DryRun", "30s")).unwrap();
    reloaded(&mut agent);
    assert_eq!(agent.wait_for_move()["outcome"], "recalled");
    agent.wait_for_intervals(2);
    request(&mut stream, "/").expect("it lives, and nothing is under way on it");

    fs::write(&file, policy("Enforce", "100ms")).unwrap();
    assert_eq!(
        agent.wait_for_move()["outcome"],
        "reset",
        "chosen again, by the new policy"
    );
}
