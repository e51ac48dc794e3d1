//! With no more than the capabilities of deploy/overlays/least-privilege.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, process::Command};

use serde_json::{Value, json};
use xtask::lab::Pod;

use crate::{
    sniffing::sniffing,
    support::{Agent, CLOSE_QUIET, REBALANCER, cgroup, enforce, heavy, lab, shows},
};

/// Without it a cgroup cannot be opened by its ID, and so its connections cannot be sniffed.
const SIGHT: &str = "DAC_READ_SEARCH";

/// The overlay's capabilities.
fn capabilities() -> Vec<String> {
    let overlay = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy/overlays/least-privilege/daemonset.yaml");
    let patch: Value = serde_saphyr::from_str(&fs::read_to_string(overlay).unwrap()).unwrap();
    let context = &patch["spec"]["template"]["spec"]["containers"][0]["securityContext"];
    let names = context["capabilities"]["add"].as_array().unwrap();
    let names = names.iter().map(|name| name.as_str().unwrap().to_owned());
    let names: Vec<String> = names.collect();
    assert!(names.iter().any(|name| name == SIGHT), "{names:?}");
    names
}

/// A program that has these capabilities and can gain no other.
fn with_only(capabilities: &[String], program: &str) -> Command {
    let added = capabilities
        .iter()
        .map(|name| format!(",+{}", name.to_lowercase()));
    let bounds = format!("--bounding-set=-all{}", added.collect::<String>());
    let mut setpriv = Command::new("setpriv");
    setpriv.args([&bounds, "--inh-caps=-all", "--no-new-privs", program]);
    setpriv
}

/// The users by which nginx serves in this pod.
fn servers_users(pod: &Pod) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let of_pod = processes.filter(|process| {
        let netns = fs::metadata(process.path().join("ns/net"));
        netns.is_ok_and(|netns| netns.ino() == pod.host.netns_inode())
    });
    of_pod
        .filter_map(|process| Some(fs::metadata(process.path()).ok()?.uid()))
        .collect()
}

/// Closing a connection of nginx's, whose worker is another user's.
fn close_by(capabilities: &[String], vouched: bool) -> Value {
    let lab = lab(1);
    let pod = lab.pod(0);
    let policy = if vouched { enforce } else { sniffing };
    let policy = policy(&lab, 80, "maxBytes: 1Mi", CLOSE_QUIET);
    let arguments = ["--cgroup", cgroup(&lab).to_str().unwrap()];
    let mut agent = Agent::by(&policy, &arguments, |agent| {
        let mut command = with_only(capabilities, REBALANCER);
        command.args(agent.get_args());
        command
    });
    let users = servers_users(pod);
    assert!(
        users.iter().any(|user| *user != 0),
        "all are root's: {users:?}"
    );
    let _heavy = heavy(&lab, pod);
    agent.wait_for_move()
}

#[test]
fn the_capabilities_of_the_overlay_suffice() {
    let line = close_by(&capabilities(), true);
    assert_eq!(line["outcome"], "closed", "{line}");
}

#[test]
fn without_cap_dac_read_search_nothing_is_sniffed_and_the_doctor_reports_it() {
    let mut few = capabilities();
    few.retain(|name| name != SIGHT);
    let refused = json!({"outcome": "refused", "cause": "cannotSniff"});
    shows(&close_by(&few, false), refused);
    // Who holds it is seen all the same, and what a rule vouches for is moved.
    assert_eq!(close_by(&few, true)["outcome"], "closed");
    let doctor = with_only(&few, REBALANCER).arg("doctor").output().unwrap();
    let findings = String::from_utf8_lossy(&doctor.stdout);
    assert!(
        findings.contains("warning  protocol detection"),
        "{findings}"
    );
    assert!(findings.contains(&format!("CAP_{SIGHT}")), "{findings}");
}
