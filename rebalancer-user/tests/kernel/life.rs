//! An agent's life: what it leaves in the kernel, and how it meets another.

use std::{os::unix::net::UnixDatagram, process::Command};

use serde_json::{Value, json};

use crate::support::{
    Agent, PATIENCE, TRACK_ONLY, answered, connect, eventually, failed, held_by, lab, nothing_left,
    of_pod, rebalancer, shows, stderr,
};

#[test]
fn sigterm_leaves_nothing_in_the_kernel() {
    Agent::on_machine(TRACK_ONLY).leaves_nothing();
}

#[test]
fn systemd_is_notified_when_the_agent_answers_and_when_it_stops() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let next = || {
        let mut message = [0; 256];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length])
            .trim()
            .to_owned()
    };
    let mut agent = Agent::by(TRACK_ONLY, &[], |mut command| {
        command.env("NOTIFY_SOCKET", &socket);
        command
    });
    assert_eq!(next(), "READY=1\nSTATUS=mode Disabled, 1 rule");
    let status = rebalancer(&agent, &["status"]);
    assert!(status.status.success(), "{status:?}");
    agent.terminate();
    assert_eq!(next(), "STOPPING=1");
}

/// What of a connection survives its agent.
fn identity(connection: &Value) -> [&Value; 3] {
    ["id", "openedNanoseconds", "adopted"].map(|field| &connection[field])
}

#[test]
fn a_killed_agent_is_succeeded_and_ages_survive() {
    let lab = lab(1);
    let pod = lab.pod(0);
    let mut first = Agent::in_lab(&lab, TRACK_ONLY);
    let _before = answered(&lab, pod.address());
    let seen_first = first.connection(pod);
    first.kill();

    // Nobody is there, and all goes on: the dump says so, and sees what is new.
    let between = answered(&lab, pod.address());
    let out = rebalancer(&first, &["dump", "-o", "json"]);
    assert!(stderr(&out).contains("tracking continues"), "{out:?}");
    let dump: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(dump["source"], "pins");
    let items = dump["items"].as_array().unwrap().clone();
    assert_eq!(of_pod(items, pod).len(), 2, "{dump:#}");
    drop(between);

    let mut second = first.successor();
    assert_eq!(second.logged("started")[0]["taken_over"], true);
    let left = || second.connections(pod);
    let seen_second = eventually("the one that is left", left, |all| all.len() == 1);
    assert_eq!(identity(&seen_second[0]), identity(&seen_first));
    assert_eq!(seen_first["adopted"], false, "its accept was seen");
    // What came and went while nobody was there was counted, once.
    shows(
        &second.endpoint(pod, 80),
        json!({"accepted": 2, "closed": 1}),
    );
    // And what comes now is counted once: the program of the first agent has gone.
    drop(connect(&lab, pod.address()));
    second.endpoint_when(pod, 80, |e| e["accepted"] == 3 && e["closed"] == 2);
    assert_eq!(second.terminate(), Some(0));
    assert!(!first.pins.exists(), "a clean stop leaves nothing");
}

#[test]
fn tracking_that_is_kept_outlives_a_clean_stop_until_it_is_uninstalled() {
    let lab = lab(1);
    let pod = lab.pod(0);
    let mut first = Agent::in_lab_with(&lab, TRACK_ONLY, &["--on-exit", "keep"]);
    let _stream = connect(&lab, pod.address());
    let seen_first = first.connection(pod);
    let held = held_by(first.child.id());
    assert_eq!(first.terminate(), Some(0));
    let kept = "tracking continues, for the next agent; `rebalancer uninstall` removes it";
    assert_eq!(first.logged(kept).len(), 1);

    let mut second = first.successor();
    assert_eq!(identity(&second.connection(pod)), identity(&seen_first));
    let said = second.fails(1, &["uninstall"]);
    let names_it = said.contains(&format!("pid {}", second.child.id()));
    assert!(names_it, "{said}");
    let held = [held, held_by(second.child.id())].concat();
    assert_eq!(second.terminate(), Some(0));

    second.ask(&["uninstall"]);
    assert!(!second.pins.exists());
    nothing_left(&held);
    assert!(second.ask(&["uninstall"]).contains("nothing to remove"));
}

#[test]
fn pins_of_another_version_are_replaced_aloud() {
    let lab = lab(1);
    let mut first = Agent::on_machine(TRACK_ONLY);
    first.kill();
    // What an older version would have left.
    let mut value = vec!["0"; size_of::<rebalancer_common::Settings>()];
    value[0] = "99";
    let mut set = Command::new("bpftool");
    set.args(["map", "update", "pinned"]);
    set.arg(first.pins.join("settings"));
    set.args("key 0 0 0 0 value".split(' ')).args(value);
    assert!(set.status().unwrap().success());
    let mut second = first.successor();
    let replaced = "could not reuse the previous agent's maps; replaced them, ages restart";
    let said = second.logged(replaced);
    let why = said[0]["why"].as_str().unwrap();
    assert!(why.contains("ABI version 99"), "{why}");
    assert_eq!(second.logged("started")[0]["taken_over"], false);
    let _stream = connect(&lab, lab.pod(0).address());
    second.connection(lab.pod(0)); // the maps are the new ones
    assert_eq!(second.terminate(), Some(0));
    assert!(!second.pins.exists());
}

#[test]
fn a_second_agent_is_refused_and_names_the_first() {
    let first = Agent::on_machine(TRACK_ONLY);
    let second = rebalancer(&first, &["agent", "--policy", first.policy()]);
    let said = failed(1, &second);
    let names_it = said.contains(&format!("pid {}", first.child.id()));
    assert!(names_it && said.contains("remedy"), "{said}");
    first.dump(&["--endpoints"]); // the first goes on
}
