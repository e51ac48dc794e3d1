//! Faults of real nodes, and what must hold then.

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Context as _, Result, ensure};

use super::{
    Outcome, State,
    agents::{
        Agent, agent_on, agents, exec, kill, list, opened, query, restart, status_on,
        wait_rolled_out,
    },
    policy,
    workload::{self, WEB, pod_field},
};
use crate::cluster::{kubectl, layout::Node, process};

/// Limits under which nothing is moved.
const NO_MOVES: &str = "maxAge: 10h";

/// The accept time of each of the client's connections on all nodes, by ID.
fn accept_times(state: &State) -> Result<BTreeMap<String, u64>> {
    let mut all = BTreeMap::new();
    for node in state.nodes() {
        all.extend(opened(&node)?);
    }
    Ok(all)
}

/// Checks that all connections of `before` still exist with their accept times.
fn assert_kept(state: &State, before: &BTreeMap<String, u64>) -> Outcome {
    let after = accept_times(state)?;
    let is_kept = |(id, opened): &(&String, &u64)| after.get(*id) == Some(opened);
    let kept = before.iter().filter(is_kept).count();
    ensure!(
        kept == before.len() && kept as u64 == WEB.connections,
        "{kept} of {} kept their age; {} exist",
        before.len(),
        after.len()
    );
    Ok(format!("{kept} ages kept, nothing moved"))
}

pub(super) fn killed(state: &mut State) -> Outcome {
    policy::enforce(&policy::enforced("nothing", NO_MOVES))?;
    let before = accept_times(state)?;
    for node in state.nodes() {
        kill(&node)?;
    }
    assert_kept(state, &before)
}

pub(super) fn rollout(state: &mut State) -> Outcome {
    let before = accept_times(state)?;
    let names =
        |agents: Vec<Agent>| -> Vec<String> { agents.into_iter().map(|agent| agent.pod).collect() };
    let old = names(agents()?);
    restart()?;
    ensure!(
        names(agents()?).iter().all(|pod| !old.contains(pod)),
        "the pods were not replaced"
    );
    assert_kept(state, &before)
}

/// A paused agent moves nothing, and neither does its successor.
pub(super) fn paused(state: &mut State) -> Outcome {
    for agent in agents()? {
        exec(&agent.pod, &["pause", "--for", "1h", "--reason", "a check"])?;
    }
    let before = accept_times(state)?;
    policy::enforce(&policy::enforced("paused", "maxAge: 3s"))?;
    std::thread::sleep(std::time::Duration::from_secs(5));
    restart()?;
    std::thread::sleep(std::time::Duration::from_secs(5));
    let found = assert_kept(state, &before)?;
    for agent in agents()? {
        exec(&agent.pod, &["resume"])?;
    }
    process::wait("moves after the pause", 60, || {
        let now = accept_times(state).ok()?;
        now.keys().any(|id| !before.contains_key(id)).then_some(())
    })?;
    Ok(found)
}

/// A pod whose server is in a cgroup named like another pod's.
pub(super) fn lookalike(state: &mut State) -> Outcome {
    policy::enforce(&policy::enforced("nothing", NO_MOVES))?;
    let victim = &state.web[0];
    let uid = pod_field(victim, ".metadata.uid")?;
    kubectl::apply(&workload::LOOKALIKE.replace("VICTIM_UID", &uid))?;
    kubectl::run("wait --for=condition=Ready pod/lookalike --timeout=60s")?;
    let agent = agent_on(&pod_field("lookalike", ".spec.nodeName")?)?;
    let endpoint = process::wait("the lookalike's endpoint", 30, || {
        let endpoints = list(&agent.pod, &["dump", "--endpoints"]).ok()?;
        let is_it = |item: &serde_json::Value| item["pod"]["name"] == "lookalike";
        endpoints.into_iter().find(is_it)
    })?;
    ensure!(endpoint["port"] == 80, "{endpoint}");
    // The victim still has one endpoint.
    let mut endpoints = 0;
    for agent in agents()? {
        let items = list(&agent.pod, &["dump", "--endpoints"])?;
        let of_victim = |item: &&serde_json::Value| item["pod"]["uid"] == *uid;
        endpoints += items.iter().filter(of_victim).count();
    }
    ensure!(endpoints == 1, "{victim} has {endpoints} endpoints");
    let cgroup = kubectl::run("exec lookalike -- cat /proc/1/cgroup")?;
    ensure!(cgroup.contains(&uid), "not in such a cgroup: {cgroup}");
    kubectl::run("delete pod lookalike --wait=false")?;
    Ok(format!("identified in a cgroup pod{uid}"))
}

/// A pod of the same name on the same node is another pod.
pub(super) fn recreated(_: &mut State) -> Outcome {
    let mut slowest: f64 = 0.0;
    let mut uids = Vec::new();
    for label in ["first", "second"] {
        kubectl::apply(&workload::SOLO.replace("LABEL", label))?;
        kubectl::run("wait --for=condition=Ready pod/solo --timeout=60s")?;
        let started = Instant::now();
        let agent = agent_on(&pod_field("solo", ".spec.nodeName")?)?;
        let uid = pod_field("solo", ".metadata.uid")?;
        process::wait("the names of the pod", 20, || {
            let endpoints = list(&agent.pod, &["dump", "--endpoints"]).ok()?;
            let is_it = |item: &serde_json::Value| {
                item["pod"]["name"] == "solo"
                    && item["pod"]["uid"] == *uid
                    && item["pod"]["labels"]["turn"] == label
            };
            endpoints.iter().any(is_it).then_some(())
        })?;
        slowest = slowest.max(started.elapsed().as_secs_f64());
        uids.push(uid);
        kubectl::run("delete pod solo --wait")?;
    }
    ensure!(uids[0] != uids[1], "the pod has the same UID");
    Ok(format!("names within {slowest:.1} s of readiness"))
}

/// How many connections the first node's agent skips because what it knows of Services is old.
fn skipped_as_stale(state: &State) -> Result<Option<u64>> {
    let status = status_on(&state.cluster.nodes[0].0.name())?;
    Ok(status["lastPass"]["skipped"]["staleFacts"].as_u64())
}

pub(super) fn api_server_down(state: &mut State) -> Outcome {
    let before = accept_times(state)?;
    state.cluster.control_plane.stop_api_server()?;
    // A rule by Service must not move connections on stale data.
    let started = Instant::now();
    let skipped = process::wait("moves by Service to stop", 120, || {
        skipped_as_stale(state).ok()?
    })?;
    let after = started.elapsed().as_secs_f64();
    let status = status_on(&state.cluster.nodes[0].0.name())?;
    ensure!(status["passError"].is_null(), "{status}");
    ensure!(
        status["lastPass"]["connections"].as_u64() > Some(0),
        "tracking has stopped"
    );
    state.opened = before;
    Ok(format!(
        "{skipped} skipped as staleFacts after {after:.0} s; tracking continues"
    ))
}

pub(super) fn api_server_back(state: &mut State) -> Outcome {
    state.cluster.control_plane.start_api_server()?;
    let started = Instant::now();
    process::wait("fresh data from the API server", 60, || {
        skipped_as_stale(state).ok()?.is_none().then_some(())
    })?;
    let fresh = started.elapsed().as_secs_f64();
    let before = std::mem::take(&mut state.opened);
    let kept = assert_kept(state, &before)?;
    Ok(format!("fresh {fresh:.1} s after it was ready; {kept}"))
}

/// A reboot loses all records; connections afterwards are new.
pub(super) fn reboot(state: &mut State) -> Outcome {
    let (node, _): (Node, _) = *state.cluster.nodes.last().context("a node")?;
    let agent = agent_on(&node.name())?.pod;
    // All nodes share the machine's monotonic clock.
    let began = query(&agent, &["dump"])?["takenNanoseconds"].as_u64();
    let began = began.context("the dump's time")?;
    state.cluster.reboot(node)?;
    let name = node.name();
    process::wait("the agent to return", 180, || {
        let now = agent_on(&name).ok()?;
        exec(&now.pod, &["status"]).ok()
    })?;
    wait_rolled_out()?;
    WEB.ready(3)?;
    WEB.wait_answered().context("after the reboot")?;
    let now = opened(&name)?;
    let older = now.iter().filter(|(_, at)| *at < began).count();
    ensure!(older == 0, "{older} connections are older than the reboot");
    Ok(format!(
        "{agent} restarted, {} connections, all new",
        now.len()
    ))
}
