//! An agent's life: what it leaves in the kernel, and how it meets another.

use std::process::Command;

use crate::support::{Agent, REBALANCER, TRACK_ONLY, alone, connect, lab, own_pins};

#[test]
fn sigterm_leaves_nothing_in_the_kernel() {
    let _alone = alone();
    Agent::on_machine(TRACK_ONLY).leaves_nothing();
}

#[test]
fn pins_of_a_killed_agent_are_replaced() {
    let _alone = alone();
    let lab = lab(1);
    let pins = own_pins();
    let mut first = Agent::with(TRACK_ONLY, pins.clone(), &[]);
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    assert!(pins.join("endpoints").exists(), "a kill leaves the pins");
    let mut second = Agent::with(TRACK_ONLY, pins.clone(), &[]);
    assert_eq!(
        second
            .said("replaced pins that a killed agent had left")
            .len(),
        1
    );
    let _stream = connect(&lab, lab.pod(0).address());
    assert_eq!(
        second.connections(lab.pod(0)).len(),
        1,
        "the maps are the new ones"
    );
    assert_eq!(second.terminate(), Some(0));
    assert!(!pins.exists());
}

#[test]
fn a_second_agent_is_refused_and_names_the_first() {
    let _alone = alone();
    let first = Agent::on_machine(TRACK_ONLY);
    let policy = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(policy.path(), TRACK_ONLY).unwrap();
    let second = Command::new(REBALANCER)
        .args(["agent", "--policy"])
        .arg(policy.path())
        .arg("--pins")
        .arg(&first.pins)
        .output()
        .unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&format!("pid {}", first.child.id())),
        "{said}"
    );
    assert!(said.contains("remedy"), "{said}");
    assert!(
        first.dump(&["--endpoints"]).len() < 1_000_000,
        "the first goes on"
    );
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
        l["message"] == "policy refused, the last good one stays"
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
