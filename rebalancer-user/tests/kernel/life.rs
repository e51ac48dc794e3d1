//! An agent's life: what it leaves in the kernel, and how it meets another.

use std::process::Command;

use crate::support::{
    Agent, REBALANCER, TRACK_ONLY, alone, cgroup, connect, eventually, held_by, lab, own_pins,
    request, still_there,
};

#[test]
fn sigterm_leaves_nothing_in_the_kernel() {
    let _alone = alone();
    Agent::on_machine(TRACK_ONLY).leaves_nothing();
}

/// Ends an agent by SIGKILL.
fn kill(agent: &mut Agent) {
    agent.child.kill().unwrap();
    agent.child.wait().unwrap();
}

/// What `rebalancer` says with these arguments and these pins.
fn rebalancer(arguments: &[&str], pins: &std::path::Path) -> std::process::Output {
    Command::new(REBALANCER)
        .args(arguments)
        .arg("--pins")
        .arg(pins)
        .output()
        .unwrap()
}

fn uninstall(pins: &std::path::Path) {
    let out = rebalancer(&["uninstall"], pins);
    assert!(out.status.success(), "{out:?}");
    assert!(!pins.exists());
}

/// The one connection of a dump: its id, when it was opened, whether it was adopted.
fn the_one(connections: &[serde_json::Value]) -> (&str, u64, bool) {
    let [one] = connections else {
        panic!("one connection in {connections:#?}")
    };
    (
        one["id"].as_str().unwrap(),
        one["openedNanoseconds"].as_u64().unwrap(),
        one["adopted"].as_bool().unwrap(),
    )
}

#[test]
fn a_killed_agent_is_succeeded_and_ages_survive() {
    let _alone = alone();
    let lab = lab(1);
    let pod = lab.pod(0);
    let pins = own_pins();
    let in_lab = ["--cgroup", cgroup(&lab).to_str().unwrap()];
    let mut first = Agent::with(TRACK_ONLY, pins.clone(), &in_lab);
    let mut before = connect(&lab, pod.address());
    request(&mut before, "/").unwrap();
    let seen_first = first.connections(pod);
    kill(&mut first);

    // Nobody is there, and all goes on: the dump says so, and sees what is new.
    let mut between = connect(&lab, pod.address());
    request(&mut between, "/").unwrap();
    let out = rebalancer(&["dump", "-o", "json"], &pins);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.contains("tracking continues"), "{said}");
    let dump: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(dump["source"], "pins");
    let of_pod = |items: &serde_json::Value| -> Vec<serde_json::Value> {
        let of_pod = |c: &&serde_json::Value| c["endpoint"]["netns"] == pod.host.netns_inode();
        items
            .as_array()
            .unwrap()
            .iter()
            .filter(of_pod)
            .cloned()
            .collect()
    };
    assert_eq!(of_pod(&dump["items"]).len(), 2, "{dump:#}");
    drop(between);

    let mut second = Agent::with(TRACK_ONLY, pins.clone(), &in_lab);
    assert_eq!(second.logged("started")[0]["taken_over"], true);
    let seen_second = eventually("the one that is left", || {
        let connections = second.connections(pod);
        if connections.len() == 1 {
            Ok(connections)
        } else {
            Err(connections)
        }
    });
    assert_eq!(
        the_one(&seen_second),
        the_one(&seen_first),
        "its age survived"
    );
    assert!(!the_one(&seen_first).2, "its accept was seen");
    // What came and went while nobody was there was counted, once.
    let sums = second.endpoint(pod, 80);
    assert_eq!(
        (&sums["accepted"], &sums["closed"]),
        (&2.into(), &1.into()),
        "{sums:#}"
    );
    // And what comes now is counted once: the program of the first agent has gone.
    drop(connect(&lab, pod.address()));
    eventually("counted once", || {
        let sums = second.endpoint(pod, 80);
        let once = sums["accepted"] == 3 && sums["closed"] == 2;
        if once { Ok(sums) } else { Err(sums) }
    });
    assert_eq!(second.terminate(), Some(0));
    assert!(!pins.exists(), "a clean stop leaves nothing");
}

#[test]
fn tracking_that_is_kept_outlives_a_clean_stop_until_it_is_uninstalled() {
    let _alone = alone();
    let lab = lab(1);
    let pod = lab.pod(0);
    let pins = own_pins();
    let keep = [
        "--on-exit",
        "keep",
        "--cgroup",
        cgroup(&lab).to_str().unwrap(),
    ];
    let mut first = Agent::with(TRACK_ONLY, pins.clone(), &keep);
    let _stream = connect(&lab, pod.address());
    let seen_first = first.connections(pod);
    let held = held_by(first.child.id());
    assert_eq!(first.terminate(), Some(0));
    assert!(
        first
            .logged("tracking continues, for the next agent; `rebalancer uninstall` removes it")
            .len()
            == 1
    );

    let mut second = Agent::with(TRACK_ONLY, pins.clone(), &keep);
    assert_eq!(the_one(&second.connections(pod)), the_one(&seen_first));
    let refused = rebalancer(&["uninstall"], &pins);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&format!("pid {}", second.child.id())),
        "{said}"
    );
    let held = [held, held_by(second.child.id())].concat();
    assert_eq!(second.terminate(), Some(0));

    uninstall(&pins);
    eventually("nothing left", || {
        let left = still_there(&held);
        if left.is_empty() { Ok(left) } else { Err(left) }
    });
    let again = rebalancer(&["uninstall"], &pins);
    assert!(again.status.success());
    assert!(String::from_utf8_lossy(&again.stdout).contains("nothing to remove"));
}

#[test]
fn pins_of_another_version_are_replaced_aloud() {
    let _alone = alone();
    let lab = lab(1);
    let pins = own_pins();
    let mut first = Agent::with(TRACK_ONLY, pins.clone(), &[]);
    kill(&mut first);
    // What an older version would have left.
    let settings = pins.join("settings");
    let mut value = vec!["0"; size_of::<rebalancer_common::Settings>()];
    value[0] = "99";
    let set = Command::new("bpftool")
        .args(["map", "update", "pinned", settings.to_str().unwrap()])
        .args("key 0 0 0 0 value".split(' '))
        .args(value)
        .status()
        .unwrap();
    assert!(set.success());
    let mut second = Agent::with(TRACK_ONLY, pins.clone(), &[]);
    let said =
        second.logged("could not reuse the previous agent's maps; replaced them, ages restart");
    assert!(
        said[0]["why"].as_str().unwrap().contains("ABI version 99"),
        "{said:#?}"
    );
    assert_eq!(second.logged("started")[0]["taken_over"], false);
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
