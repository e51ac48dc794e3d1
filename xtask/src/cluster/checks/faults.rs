//! What goes wrong on real nodes, and what must hold then.

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Context as _, Result, ensure};

use super::{
    Outcome, Story,
    agents::{Agent, agent_on, agents, ask, beside, exec, kill, opened, rolled_out},
    policy, traffic, workload,
};
use crate::cluster::{Cluster, kubectl, layout::Node, process};

/// Nothing is moved under it.
const QUIET: &str = "maxAge: 10h";

/// When each of the client's connections was accepted, over all nodes, by id.
fn ages(story: &Story) -> Result<BTreeMap<String, u64>> {
    let mut all = BTreeMap::new();
    for node in story.nodes() {
        all.extend(opened(&node)?);
    }
    Ok(all)
}

/// How many of the connections from before are there with their ages.
fn kept(story: &Story, before: &BTreeMap<String, u64>) -> Outcome {
    let after = ages(story)?;
    let kept = before
        .iter()
        .filter(|(id, opened)| after.get(*id) == Some(opened));
    let kept = kept.count();
    ensure!(
        kept == before.len() && kept as u64 == traffic::CONNECTIONS,
        "{kept} of {} kept their age; {} are there",
        before.len(),
        after.len()
    );
    Ok(format!("{kept} ages kept, nothing moved"))
}

pub(super) fn killed(story: &mut Story) -> Outcome {
    policy::enforce(&policy::enforced("nothing", QUIET))?;
    let before = ages(story)?;
    for node in story.nodes() {
        kill(&node)?;
    }
    kept(story, &before)
}

pub(super) fn rollout(story: &mut Story) -> Outcome {
    let before = ages(story)?;
    let names =
        |agents: Vec<Agent>| -> Vec<String> { agents.into_iter().map(|agent| agent.pod).collect() };
    let old = names(agents()?);
    kubectl::output(&["-n", "rebalancer", "rollout", "restart", "ds/rebalancer"])?;
    rolled_out()?;
    ensure!(
        names(agents()?).iter().all(|pod| !old.contains(pod)),
        "the same pods"
    );
    kept(story, &before)
}

/// An agent that is told to wait does, and so does the one after it.
pub(super) fn paused(story: &mut Story) -> Outcome {
    for agent in agents()? {
        exec(&agent.pod, &["pause", "--for", "1h", "--reason", "a check"])?;
    }
    let before = ages(story)?;
    policy::enforce(&policy::enforced("paused", "maxAge: 3s"))?;
    std::thread::sleep(std::time::Duration::from_secs(5));
    kubectl::output(&["-n", "rebalancer", "rollout", "restart", "ds/rebalancer"])?;
    rolled_out()?;
    std::thread::sleep(std::time::Duration::from_secs(5));
    let found = kept(story, &before)?;
    for agent in agents()? {
        exec(&agent.pod, &["resume"])?;
    }
    process::wait("moves after the pause", 60, || {
        let now = ages(story).ok()?;
        now.keys().any(|id| !before.contains_key(id)).then_some(())
    })?;
    Ok(found)
}

/// A pod that makes a cgroup as the kubelet would make another pod's.
pub(super) fn lookalike(story: &mut Story) -> Outcome {
    policy::enforce(&policy::enforced("nothing", QUIET))?;
    let victim = &story.web[0];
    let path = "jsonpath={.metadata.uid}";
    let uid = kubectl::output(&["get", "pod", victim, "-o", path])?;
    kubectl::apply(&workload::LOOKALIKE.replace("VICTIM_UID", &uid))?;
    let ready = [
        "wait",
        "--for=condition=Ready",
        "pod/lookalike",
        "--timeout=60s",
    ];
    kubectl::output(&ready)?;
    let node = "jsonpath={.spec.nodeName}";
    let node = kubectl::output(&["get", "pod", "lookalike", "-o", node])?;
    let agent = agent_on(&node)?;
    let endpoint = process::wait("the lookalike's own endpoint", 30, || {
        let dump = ask(&agent.pod, &["dump", "--endpoints"]).ok()?;
        let of_it = |item: &&serde_json::Value| item["pod"]["name"] == "lookalike";
        dump["items"].as_array()?.iter().find(of_it).cloned()
    })?;
    ensure!(endpoint["port"] == 80, "{endpoint}");
    // Nor is the victim at two places.
    let mut places = 0;
    for agent in agents()? {
        let dump = ask(&agent.pod, &["dump", "--endpoints"])?;
        let items = dump["items"].as_array().context("a list of endpoints")?;
        let of_victim = |item: &&serde_json::Value| item["pod"]["uid"] == *uid;
        places += items.iter().filter(of_victim).count();
    }
    ensure!(places == 1, "{victim} is at {places} endpoints");
    let inside = ["exec", "lookalike", "--", "cat", "/proc/1/cgroup"];
    let inside = kubectl::output(&inside)?;
    ensure!(inside.contains(&uid), "it is in no such cgroup: {inside}");
    kubectl::output(&["delete", "pod", "lookalike", "--wait=false"])?;
    Ok(format!("in a cgroup pod{uid} it is itself"))
}

/// A pod of the same name on the same node is another pod.
pub(super) fn made_again(_: &mut Story) -> Outcome {
    let mut slowest: f64 = 0.0;
    let mut uids = Vec::new();
    for label in ["first", "second"] {
        kubectl::apply(&workload::SOLO.replace("LABEL", label))?;
        let ready = ["wait", "--for=condition=Ready", "pod/solo", "--timeout=60s"];
        kubectl::output(&ready)?;
        let started = Instant::now();
        let node = "jsonpath={.spec.nodeName}";
        let node = kubectl::output(&["get", "pod", "solo", "-o", node])?;
        let uid = kubectl::output(&["get", "pod", "solo", "-o", "jsonpath={.metadata.uid}"])?;
        let agent = agent_on(&node)?;
        process::wait("its names", 20, || {
            let dump = ask(&agent.pod, &["dump", "--endpoints"]).ok()?;
            let is_it = |item: &serde_json::Value| {
                item["pod"]["name"] == "solo"
                    && item["pod"]["uid"] == *uid
                    && item["pod"]["labels"]["turn"] == label
            };
            dump["items"].as_array()?.iter().any(is_it).then_some(())
        })?;
        slowest = slowest.max(started.elapsed().as_secs_f64());
        uids.push(uid);
        kubectl::output(&["delete", "pod", "solo", "--wait"])?;
    }
    ensure!(uids[0] != uids[1], "the same pod");
    ensure!(slowest < 5.0, "names took {slowest:.1} s");
    Ok(format!("names within {slowest:.1} s of readiness"))
}

/// Without the API server kubectl reaches nobody: the agent is asked on its node.
fn on_node(cluster: &Cluster, arguments: &[&str]) -> Result<serde_json::Value> {
    let (node, _) = &cluster.nodes[0];
    let text = beside(&node.name(), arguments)?;
    serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
}

pub(super) fn api_server_down(story: &mut Story) -> Outcome {
    let before = ages(story)?;
    story.cluster.control_plane.stop_api_server()?;
    // A rule by Service may not move what it cannot be sure of any more.
    let started = Instant::now();
    let skipped = process::wait("moves by name to stop", 120, || {
        let status = on_node(&story.cluster, &["status", "-o", "json"]).ok()?;
        status["lastPass"]["skipped"]["staleFacts"].as_u64()
    })?;
    let after = started.elapsed().as_secs_f64();
    let status = on_node(&story.cluster, &["status", "-o", "json"])?;
    ensure!(status["passError"].is_null(), "{status}");
    ensure!(
        status["lastPass"]["connections"].as_u64() > Some(0),
        "nothing is tracked any more"
    );
    story.alive = before;
    Ok(format!(
        "{skipped} skipped as staleFacts after {after:.0} s; tracking goes on"
    ))
}

pub(super) fn api_server_back(story: &mut Story) -> Outcome {
    story.cluster.control_plane.start_api_server()?;
    let started = Instant::now();
    process::wait("fresh names", 60, || {
        let status = on_node(&story.cluster, &["status", "-o", "json"]).ok()?;
        status["lastPass"]["skipped"]["staleFacts"]
            .is_null()
            .then_some(())
    })?;
    let fresh = started.elapsed().as_secs_f64();
    ensure!(fresh < 5.0, "{fresh:.1} s after the API server's answer");
    let before = std::mem::take(&mut story.alive);
    let kept = kept(story, &before)?;
    Ok(format!("fresh {fresh:.1} s after its answer; {kept}"))
}

/// The node's memory is lost, and with it every record: what comes is honestly new.
pub(super) fn reboot(story: &mut Story) -> Outcome {
    let (node, _): (Node, _) = *story.cluster.nodes.last().context("a node")?;
    let agent = agent_on(&node.name())?.pod;
    // Of the clock that records carry: all nodes share the machine's.
    let began = ask(&agent, &["dump"])?["takenNanoseconds"].as_u64();
    let began = began.context("when it was taken")?;
    story.cluster.reboot(node)?;
    let name = node.name();
    process::wait("the agent to be back", 180, || {
        let now = agent_on(&name).ok()?;
        exec(&now.pod, &["status"]).ok()
    })?;
    rolled_out()?;
    workload::ready(3)?;
    traffic::placed().context("after the reboot")?;
    let now = opened(&name)?;
    let older = now.iter().filter(|(_, at)| *at < began).count();
    ensure!(
        older == 0,
        "{older} connections older than the node's start"
    );
    Ok(format!("{agent} again, {} connections, all new", now.len()))
}
