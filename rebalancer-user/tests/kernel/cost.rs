//! Nothing runs per packet.

use aya::sys::{Stats, enable_stats};
use rebalancer_common::names::SOCK_OPS;

use crate::support::{Agent, TRACK_ONLY, answered, bpftool, eventually, held_by, lab, request};

/// Runs of a program so far, while they are counted.
pub fn runs(program: u64) -> u64 {
    bpftool(&["prog", "show", "id", &program.to_string()])["run_cnt"]
        .as_u64()
        .unwrap_or(0)
}

/// The first of this agent's programs that has this value in this field.
pub fn program_where(agent: &Agent, field: &str, value: &str) -> Option<u64> {
    let is_it = |id: &u64| bpftool(&["prog", "show", "id", &id.to_string()])[field] == value;
    let held = held_by(agent.child.id()).into_iter();
    let mut programs = held.filter_map(|(what, id)| (what == "prog").then_some(id));
    programs.find(is_it)
}

/// This agent's program of this name.
pub fn program_of(agent: &Agent, name: &str) -> u64 {
    program_where(agent, "name", name).expect("it holds its program")
}

#[test]
fn a_gibibyte_over_one_connection_runs_no_program() {
    let lab = lab(1);
    // Attached to the lab's cgroup: nothing else on this machine can make it run.
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let program = program_of(&agent, SOCK_OPS);
    let _stats = enable_stats(Stats::RunTime).expect("run counts");
    let pod = lab.pod(0);
    let mut stream = answered(&lab, pod.address());
    let at_start = runs(program);
    assert!(at_start > 0, "the accept is counted, so a run would be too");

    const GIBIBYTE: u64 = 1 << 30;
    let mut moved = 0;
    while moved < GIBIBYTE {
        moved += request(&mut stream, "/blob").unwrap() as u64;
    }
    assert_eq!(runs(program), at_start, "after {moved} bytes out");

    let segments = agent.connection(pod)["segmentsOut"].as_u64().unwrap();
    assert!(segments > 10_000, "{segments} segments were sent on it");
    drop(stream);
    let now = || runs(program);
    eventually("the close is one run", now, |now| *now > at_start);
}

#[test]
fn a_gibibyte_received_runs_no_program() {
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let program = program_of(&agent, SOCK_OPS);
    let _stats = enable_stats(Stats::RunTime).expect("run counts");
    let pod = lab.pod(0);
    let mut server = pod.host.spawn("iperf3", &["-s", "-1"]).unwrap();
    agent.endpoint_when(pod, 5201, |e| e["listeners"].as_u64() >= Some(1));
    let to = pod.addr.to_string();
    let client = lab.client().spawn("iperf3", &["-c", &to, "-n", "20G"]);
    let mut client = client.unwrap();
    let received = || {
        let all = agent.connections(pod);
        let bytes = all.iter().filter_map(|c| c["bytesIn"].as_u64());
        bytes.max().unwrap_or(0)
    };
    let first = eventually("under way", received, |got| *got > 1 << 20);
    let at_start = runs(program);
    let last = eventually("a GiB more", received, |got| *got > first + (1 << 30));
    assert_eq!(runs(program), at_start, "after {} bytes in", last - first);
    client.kill().unwrap();
    client.wait().unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
}
