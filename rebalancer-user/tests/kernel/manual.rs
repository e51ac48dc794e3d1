//! `rebalancer move`: through the same executor, with the same guards.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    path::Path,
    process::Output,
};

use serde_json::Value;

use crate::{
    moves::is_reset,
    server::{Kind, Server},
    support::{
        Agent, TRACK_ONLY, alone, cgroup, connect, lab, own_pins, pins_left, rebalancer, request,
        ss, stdout,
    },
};

pub fn manual(pins: impl AsRef<Path>, arguments: &[&str]) -> Output {
    rebalancer(pins, &[&["move", "-o", "json"], arguments].concat())
}

#[track_caller]
pub fn items(out: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&out.stdout).unwrap();
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {out:?}"));
    assert_eq!(value["kind"], "MoveList");
    value["items"].as_array().unwrap().clone()
}

#[test]
fn manual_moves_are_refused_beside_an_agent_in_mode_disabled() {
    let _alone = alone();
    let lab = lab(1);
    let pod = lab.pod(0);
    let cgroup = cgroup(&lab).to_str().unwrap();
    let disabled = ["--cgroup", cgroup, "--mode", "Disabled"];
    let agent = Agent::with(TRACK_ONLY, own_pins(), &disabled);
    let mut stream = connect(&lab, pod.address());
    request(&mut stream, "/").unwrap();
    let id = agent.connections(pod)[0]["id"].as_str().unwrap().to_owned();

    let refused = manual(&agent.pins, &["--ignore-guards", &id]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(words.contains("--mode Disabled"), "{words}");
    assert!(words.contains("remedy:"), "{words}");
    request(&mut stream, "/").unwrap();

    let dry = manual(&agent.pins, &["--dry-run", &id]);
    assert_eq!(dry.status.code(), Some(0), "{dry:?}");
    assert_eq!(items(&dry)[0]["outcome"], "wouldMove");
}

#[test]
fn each_id_gets_an_outcome() {
    let _alone = alone();
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let pod = lab.pod(0);
    let mut streams: Vec<_> = (0..3).map(|_| connect(&lab, pod.address())).collect();
    for stream in &mut streams {
        request(stream, "/").unwrap();
    }
    let id_of = |stream: &std::net::TcpStream| {
        let peer = stream.local_addr().unwrap().to_string();
        let known = agent.connections(pod);
        let found = known.iter().find(|c| c["peer"] == peer).unwrap();
        found["id"].as_str().unwrap().to_owned()
    };
    let (first, second) = (id_of(&streams[0]), id_of(&streams[1]));

    let dry = manual(&agent.pins, &["--dry-run", &first]);
    assert_eq!(dry.status.code(), Some(0), "{dry:?}");
    assert_eq!(items(&dry)[0]["outcome"], "wouldMove");
    request(&mut streams[0], "/").unwrap();

    // Twice the same, and one that there never was: an outcome each, and a failing code.
    let some = manual(&agent.pins, &[&first, &first, "dead0000beef"]);
    assert_eq!(some.status.code(), Some(1), "{some:?}");
    let got = items(&some);
    let outcomes: Vec<_> = got.iter().map(|i| i["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["reset", "notFound"]);
    assert!(is_reset(&mut streams[0]));

    let closed = manual(&agent.pins, &["--step", "close", &second]);
    assert_eq!(closed.status.code(), Some(0), "{closed:?}");
    assert_eq!(items(&closed)[0]["outcome"], "closed");
    assert_eq!(streams[1].read(&mut [0]).unwrap(), 0);
    request(&mut streams[2], "/").unwrap();

    // Never quiet in that time: given up, and not moved.
    let third = id_of(&streams[2]);
    let wait = ["--idle-for", "1h", "--timeout", "300ms", &third];
    let gave_up = manual(&agent.pins, &wait);
    assert_eq!(gave_up.status.code(), Some(1), "{gave_up:?}");
    assert_eq!(items(&gave_up)[0]["outcome"], "gaveUp");
    let table = rebalancer(&agent, &["move", "--when", "at-once", &third]);
    let table = stdout(&table);
    assert!(
        table.starts_with("ID") && table.contains("the move reset it"),
        "{table}"
    );
}

#[test]
fn guards_apply_unless_they_are_ignored_and_reported() {
    let _alone = alone();
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let pod = lab.pod(0);
    for (port, kind, outcome, cause) in [
        (5432, Kind::Plain, "skipped", "statefulPort"),
        (10250, Kind::Plain, "skipped", "systemPort"),
        (7070, Kind::DiesOfSigpipe, "refused", "sigpipe"),
    ] {
        let address = SocketAddr::from((pod.addr, port));
        let _server = Server::start(&pod.host, address, kind);
        let mut client = connect(&lab, address);
        client.write_all(b"f").unwrap();
        client.read_exact(&mut [0]).unwrap();
        let known = agent.connections(pod);
        let found = known
            .iter()
            .find(|c| c["endpoint"]["port"] == port)
            .unwrap();
        let id = found["id"].as_str().unwrap();

        let kept = manual(&agent.pins, &["--when", "at-once", id]);
        assert_eq!(kept.status.code(), Some(1), "{kept:?}");
        let item = &items(&kept)[0];
        assert_eq!(
            (&item["outcome"], &item["cause"]),
            (&outcome.into(), &cause.into()),
            "{item}"
        );

        let ignore = ["--when", "at-once", "--ignore-guards", id];
        let moved = manual(&agent.pins, &ignore);
        assert_eq!(moved.status.code(), Some(0), "{moved:?}");
        let note = String::from_utf8_lossy(&moved.stderr).into_owned();
        assert!(note.contains("guard ignored"), "{note}");
        assert_eq!(items(&moved)[0]["outcome"], "reset");
        assert!(is_reset(&mut client));
    }
}

#[test]
fn works_without_an_agent_and_leaves_nothing() {
    let _alone = alone();
    let lab = lab(1);
    let pod = lab.pod(0);
    let mut stream = connect(&lab, pod.address());
    request(&mut stream, "/").unwrap();
    let id = ss(&pod.host, 80)[0].cookie.clone();
    let pins = own_pins();
    let cgroup = cgroup(&lab).to_str().unwrap().to_owned();
    let moved = manual(&pins, &["--cgroup", &cgroup, &format!("sk:{id}")]);
    assert_eq!(moved.status.code(), Some(0), "{moved:?}");
    assert!(is_reset(&mut stream));
    assert_eq!(pins_left(&pins), [] as [std::path::PathBuf; 0]);
    request(&mut connect(&lab, pod.address()), "/").unwrap();
}
