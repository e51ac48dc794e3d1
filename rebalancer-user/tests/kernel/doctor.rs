//! `rebalancer doctor` says what is there, and names a remedy for what is not.

use std::{os::unix::process::CommandExt as _, process::Command};

use serde_json::Value;

use crate::support::{
    Agent, REBALANCER, TRACK_ONLY, alone, own_pins, pins_left, rebalancer, stdout,
};

fn finding<'a>(findings: &'a Value, what: &str) -> &'a Value {
    let all = findings.as_array().unwrap();
    all.iter()
        .find(|f| f["what"] == what)
        .unwrap_or_else(|| panic!("no {what}: {findings:#}"))
}

#[test]
fn everything_works_here_and_nothing_is_left_behind() {
    let _alone = alone();
    let agent = Agent::on_machine(TRACK_ONLY);
    let out = rebalancer(&agent, &["doctor", "-o", "json"]);
    assert!(out.status.success(), "{out:?}");
    let findings: Value = serde_json::from_slice(&out.stdout).unwrap();
    for what in [
        "kernel",
        "capabilities",
        "cgroup v2",
        "BTF",
        "recording",
        "seeing closes",
        "protocol detection",
    ] {
        assert_eq!(finding(&findings, what)["level"], "ok", "{findings:#}");
    }
    // What it finds depends on the kernel; that a send was counted does not.
    let counting = finding(&findings, "counting sends")["found"]
        .as_str()
        .unwrap();
    let counts = [
        "a send of our own was counted",
        "FIONREAD returns 0 on a counted socket",
    ];
    assert!(
        counts.iter().any(|found| counting.starts_with(found)),
        "{counting}"
    );
    let used = finding(&findings, "reset by SOCK_DESTROY");
    assert_eq!(used["found"], "works: in use");
    let seen = finding(&findings, "agent")["found"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        seen.contains(&format!("pid {}", agent.child.id())),
        "{seen}"
    );
    assert_eq!(pins_left(&agent.pins), std::slice::from_ref(&agent.pins));
}

#[test]
fn a_missing_ability_has_a_remedy_and_sets_the_exit_code() {
    let _alone = alone();
    let pins = own_pins();
    let script = format!(
        "mount -t tmpfs none /sys/kernel/btf && exec {REBALANCER} doctor --pins {}",
        pins.display()
    );
    let out = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()
        .unwrap();
    let findings = stdout(&out);
    assert_eq!(out.status.code(), Some(1), "{findings}");
    assert!(findings.contains("FAILED   BTF"), "{findings}");
    assert!(
        findings.contains("= the kernel must be built with CONFIG_DEBUG_INFO_BTF=y"),
        "{findings}"
    );
    assert_eq!(pins_left(&pins), [] as [std::path::PathBuf; 0]);
}

#[test]
fn without_privileges_the_doctor_still_reports_what_it_can() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    let binary = dir.path().join("rebalancer");
    std::fs::copy(REBALANCER, &binary).unwrap();
    let out = Command::new(&binary)
        .arg("doctor")
        .uid(65_534)
        .gid(65_534)
        .output()
        .unwrap();
    let findings = stdout(&out);
    assert_eq!(out.status.code(), Some(4), "{findings}");
    assert!(
        findings.contains("FAILED   capabilities") && findings.contains("CAP_BPF"),
        "{findings}"
    );
}
