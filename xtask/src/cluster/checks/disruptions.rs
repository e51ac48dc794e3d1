//! What must hold if the cluster is disrupted while a Service is being balanced over its nodes: nothing is moved
//! without a view that is of the present, no agent needs a restart, and once all is well again it becomes even.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Outcome, State,
    agents::{moved_on, usage},
    balance::{balanced, wait_balanced},
    policy,
    workload::{EVEN, pod_field},
};
use crate::cluster::{Cluster, kubectl, network, process};

/// How long a disruption lasts.
const LASTS: Duration = Duration::from_secs(120);
/// After that no view and no name is fresh any more.
const STALE_AFTER: Duration = Duration::from_secs(70);
/// Until it is even again; attempts to reach the API server are up to half a minute apart.
const EVEN_WITHIN: Duration = Duration::from_secs(150);
/// What an agent may need more than before, as a factor.
const GROWTH: f64 = 1.3;

pub(super) fn memory(nodes: &[String]) -> Result<u64> {
    let memory = nodes.iter().map(|node| Ok(usage(node)?.0));
    memory.sum()
}

/// All connections are on one replica, and a policy is enforced.
pub(super) fn skew(policy: &str) -> Result<()> {
    EVEN.apply()?;
    EVEN.scale(1)?;
    EVEN.wait_answered()?;
    policy::enforce(policy).map(drop)
}

/// All connections are on one of three replicas, and the first have been moved; how many had been before.
pub(super) fn begin(nodes: &[String], policy: &str) -> Result<u64> {
    skew(policy)?;
    let before = moved_on(nodes)?;
    EVEN.scale(3)?;
    process::wait("the first moves", 60, || {
        (moved_on(nodes).ok()? > before).then_some(before)
    })
}

/// After a while without what `breaks(true)` takes away nothing may be moved on `watched`; once
/// `breaks(false)` has brought it back all becomes even.
fn outlasts(
    nodes: &[String],
    watched: &[String],
    mut breaks: impl FnMut(bool) -> Result<()>,
) -> Outcome {
    let memory_before = memory(nodes)?;
    breaks(true)?;
    sleep(STALE_AFTER);
    let stale = moved_on(watched);
    sleep(LASTS - STALE_AFTER);
    let end = moved_on(watched);
    breaks(false)?;
    let (stale, end) = (stale?, end?);
    ensure!(stale == end, "{} moves by stale views", end - stale);
    ends(nodes, memory_before)
}

/// Waits until all is even; the agents have not grown meanwhile.
pub(super) fn ends(nodes: &[String], memory_before: u64) -> Outcome {
    let started = Instant::now();
    let (_, last) = wait_balanced(EVEN, &EVEN.ready(3)?, EVEN_WITHIN)?;
    let took = started.elapsed().as_secs();
    let memory = memory(nodes)?;
    ensure!(
        memory as f64 <= memory_before as f64 * GROWTH,
        "agents have {memory} KiB, and had {memory_before}"
    );
    Ok(format!("even {took} s later: {last}"))
}

pub(super) fn api_server_away(state: &mut State) -> Outcome {
    let nodes: Vec<String> = state.nodes().collect();
    begin(&nodes, &balanced())?;
    let control_plane = &mut state.cluster.control_plane;
    outlasts(&nodes, &nodes, |breaks| {
        if breaks {
            control_plane.stop_api_server()
        } else {
            control_plane.start_api_server()
        }
    })
}

/// The hot node is cut off from the API server; its clients still reach it.
pub(super) fn node_cut_off(state: &mut State) -> Outcome {
    let nodes: Vec<String> = state.nodes().collect();
    begin(&nodes, &balanced())?;
    let report = EVEN.report()?;
    let hot = report.connections.iter().max_by_key(|(_, load)| **load);
    let (hot, _) = hot.context("a replica")?;
    let node = pod_field(hot, ".spec.nodeName")?;
    outlasts(&nodes, std::slice::from_ref(&node), |breaks| {
        if breaks {
            return cut(&state.cluster, &node, "-I");
        }
        cut(&state.cluster, &node, "-D")?;
        kubectl::run("wait --for=condition=Ready node --all --timeout=120s").map(drop)
    })
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
