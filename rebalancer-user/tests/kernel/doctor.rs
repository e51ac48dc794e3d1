//! `rebalancer doctor` says what is there, and names a remedy for what is not.

use serde_json::Value;

use crate::support::{Agent, TRACK_ONLY, pins_left};

#[test]
fn everything_works_here_and_nothing_is_left_behind() {
    let agent = Agent::on_machine(TRACK_ONLY);
    let findings = agent.ask_json(&["doctor"]);
    let finding = |what: &str| -> &Value {
        let mut all = findings["items"].as_array().unwrap().iter();
        all.find(|f| f["what"] == what)
            .unwrap_or_else(|| panic!("no {what}: {findings:#}"))
    };
    assert_eq!(findings["kind"], "Diagnosis");
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(findings["kernel"], release.trim());
    for what in [
        "capabilities",
        "cgroup v2",
        "BTF",
        "recording",
        "seeing closes",
        "protocol detection",
    ] {
        assert_eq!(finding(what)["level"], "ok", "{findings:#}");
    }
    // What it finds depends on the kernel; that a send was counted does not.
    let counting = finding("counting sends")["found"].as_str().unwrap();
    let counts = [
        "a send of our own was counted",
        "FIONREAD returns 0 on a counted socket",
    ];
    assert!(
        counts.iter().any(|found| counting.starts_with(found)),
        "{counting}"
    );
    let notice = finding("notice over HTTP/2");
    assert!(
        notice["level"] == "ok" || notice["remedy"] == "needs CONFIG_NET_SOCK_MSG",
        "{notice}"
    );
    assert_eq!(finding("reset by SOCK_DESTROY")["found"], "works: in use");
    let seen = finding("agent")["found"].as_str().unwrap();
    assert!(
        seen.contains(&format!("pid {}", agent.child.id())),
        "{seen}"
    );
    assert_eq!(pins_left(&agent.pins), std::slice::from_ref(&agent.pins));
}
