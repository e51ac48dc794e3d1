//! `rebalancer doctor` says what is there, and names a remedy for what is not; `rebalancer bugreport` has that and more.

use std::{collections::BTreeMap, io::Read as _, os::unix::fs::PermissionsExt as _, path::Path};

use flate2::read::GzDecoder;
use serde_json::Value;

use crate::support::{Agent, TRACK_ONLY, answered, lab, own_pins, pins_left, rebalancer, stderr};

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

/// The files of an archive.
fn files(archive: &Path) -> BTreeMap<String, String> {
    let archive = GzDecoder::new(std::fs::File::open(archive).unwrap());
    let mut archive = tar::Archive::new(archive);
    let read = |entry: std::io::Result<tar::Entry<'_, _>>| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), text)
    };
    archive.entries().unwrap().map(read).collect()
}

#[test]
fn a_bug_report_has_all_that_the_agent_says_and_no_address() {
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let stream = answered(&lab, lab.pod(0).address());
    agent.connection_of(&stream);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.tar.gz");
    let output = ["bugreport", "--output", file.to_str().unwrap()];
    let out = rebalancer(&agent, &output);
    assert!(out.status.success() && out.stdout.is_empty(), "{out:?}");
    let listed = stderr(&out);
    let files = files(&file);
    for (name, text) in &files {
        assert!(listed.contains(name.as_str()), "{name}: {listed}");
        for address in [stream.local_addr().unwrap(), stream.peer_addr().unwrap()] {
            let address = address.ip().to_string();
            assert!(!text.contains(&address), "{name} has {address}");
        }
    }
    assert_eq!(files.len(), 9, "{files:?}");
    let json = |name: &str| -> Value { serde_json::from_str(&files[name]).unwrap() };
    assert_eq!(json("status.json")["pid"], agent.child.id());
    assert_eq!(json("doctor.json")["kind"], "Diagnosis");
    let peer = json("plan.json")["items"][0]["peer"].to_string();
    let port = stream.local_addr().unwrap().port();
    assert!(
        peer.starts_with("\"ipv4-") && peer.ends_with(&format!(":{port}\"")),
        "{peer}"
    );
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // What is there stays.
    let refused = agent.fails(1, &output);
    assert!(refused.contains("remedy: name another file"), "{refused}");
}

#[test]
fn a_bug_report_without_an_agent_says_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.tar.gz");
    let out = rebalancer(
        own_pins(),
        &["bugreport", "--output", file.to_str().unwrap()],
    );
    assert!(out.status.success(), "{out:?}");
    let missing = "missing: status.json: no agent is running";
    assert!(stderr(&out).contains(missing), "{out:?}");
    let files = files(&file);
    assert!(files["README.txt"].contains(missing), "{files:?}");
    assert!(files.contains_key("doctor.json"), "{files:?}");
    let listed = rebalancer(own_pins(), &["bugreport", "--list"]);
    assert!(listed.status.success() && stderr(&listed).contains("plan.json"));
}
