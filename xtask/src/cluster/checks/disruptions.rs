//! What must hold if the cluster is disrupted while a Service is being balanced over its nodes: nothing is moved
//! without a view that is of the present, no agent needs a restart, and once all is well again it becomes even.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Outcome, State, agents,
    balance::{balanced, is_balanced},
    policy, traffic,
    workload::EVEN,
};
use crate::cluster::{Cluster, kubectl, network, process};

/// How long it lasts.
const LASTS: Duration = Duration::from_secs(120);
/// After that no view and no name is fresh any more.
const STALE_AFTER: Duration = Duration::from_secs(70);
/// Until it is even again; attempts to reach the API server are up to half a minute apart.
const EVEN_WITHIN: Duration = Duration::from_secs(150);
/// What an agent may need more than before, as a factor.
const GROWTH: f64 = 1.3;

/// Moves that have ended on a node, asked without the API server.
fn moved_on(node: &str) -> Result<u64> {
    let text = agents::exec_on_node(node, &["status", "-o", "json"])?;
    let status: Value =
        serde_json::from_str(&text).with_context(|| format!("invalid JSON: {text}"))?;
    let ended = status["ended"].as_object().context("moves by outcome")?;
    Ok(ended.values().filter_map(Value::as_u64).sum())
}

fn moved(nodes: &[String]) -> Result<u64> {
    let moved = nodes.iter().map(|node| moved_on(node));
    moved.sum()
}

fn memory(nodes: &[String]) -> Result<u64> {
    let memory = nodes.iter().map(|node| Ok(agents::usage(node)?.0));
    memory.sum()
}

/// All connections are on one of three replicas, and the first have been moved.
fn begin(nodes: &[String]) -> Result<()> {
    EVEN.apply()?;
    EVEN.scale(1)?;
    EVEN.ready(1)?;
    EVEN.wait_answered()?;
    policy::enforce(&balanced())?;
    let before = moved(nodes)?;
    EVEN.scale(3)?;
    EVEN.ready(3)?;
    process::wait("the first moves", 60, || {
        (moved(nodes).ok()? > before).then_some(())
    })
}

/// Waits until all is even.
fn ends(nodes: &[String], memory_before: u64) -> Outcome {
    let started = Instant::now();
    let pods = EVEN.ready(3)?;
    let mut last = String::new();
    process::wait("balance", EVEN_WITHIN.as_secs(), || {
        let report = EVEN.report().ok()?;
        last = traffic::shares(&pods, &report).line();
        is_balanced(&pods, &report).then_some(())
    })
    .with_context(|| last.clone())?;
    let took = started.elapsed().as_secs();
    let memory = memory(nodes)?;
    ensure!(
        memory as f64 <= memory_before as f64 * GROWTH,
        "agents have {memory} KiB, and had {memory_before}"
    );
    Ok(format!("even {took} s later: {last}"))
}

fn nodes(state: &State) -> Vec<String> {
    state.nodes().collect()
}

pub(super) fn api_server_away(state: &mut State) -> Outcome {
    let nodes = nodes(state);
    begin(&nodes)?;
    let memory = memory(&nodes)?;
    state.cluster.control_plane.stop_api_server()?;
    sleep(STALE_AFTER);
    let stale = moved(&nodes);
    sleep(LASTS - STALE_AFTER);
    let end = moved(&nodes);
    state.cluster.control_plane.start_api_server()?;
    let (stale, end) = (stale?, end?);
    ensure!(stale == end, "{} moves by stale views", end - stale);
    ends(&nodes, memory)
}

/// The hot node is cut off from the API server; its clients still reach it.
pub(super) fn node_cut_off(state: &mut State) -> Outcome {
    let nodes = nodes(state);
    begin(&nodes)?;
    let memory = memory(&nodes)?;
    let report = EVEN.report()?;
    let hot = report.connections.iter().max_by_key(|(_, load)| **load);
    let (hot, _) = hot.context("a replica")?;
    let node = kubectl::run(&format!("get pod {hot} -o jsonpath={{.spec.nodeName}}"))?;
    cut(&state.cluster, &node, "-I")?;
    sleep(STALE_AFTER);
    let stale = moved_on(&node);
    sleep(LASTS - STALE_AFTER);
    let end = moved_on(&node);
    cut(&state.cluster, &node, "-D")?;
    let (stale, end) = (stale?, end?);
    ensure!(stale == end, "{} moves by stale views", end - stale);
    kubectl::run("wait --for=condition=Ready node --all --timeout=120s")?;
    ends(&nodes, memory)
}

/// Drops what the node and its pods send to the API server, or no longer.
fn cut(cluster: &Cluster, node: &str, change: &str) -> Result<()> {
    let found = cluster.nodes.iter().find(|(one, _)| one.name() == node);
    let (one, pods) = found.context("a node")?;
    for source in [one.address(), pods.clone()] {
        let mut iptables = process::in_namespace(network::CONTROL_PLANE, "iptables");
        iptables.args([
            change, "INPUT", "-s", &source, "-p", "tcp", "--dport", "6443", "-j", "DROP",
        ]);
        process::output(&mut iptables)?;
    }
    Ok(())
}
