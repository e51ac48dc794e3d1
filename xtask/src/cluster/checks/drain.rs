//! Drain: pods go away whose servers break their connections off when they are asked to stop, or a Service does not
//! select them any more.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{
    Outcome, State,
    agents::{agents, exec, moved_on},
    balance::ended,
    fleet::everywhere,
    policy,
    workload::{ALONE, BLUE, GREEN, ROLLED, ROLLED_SET, Workload},
};
use crate::{
    cluster::{kubectl, process},
    keepalive_client::Report,
};

const REPLICAS: usize = 3;
/// The time that the rule gives a pod that its Service does not select any more.
const WITHIN: Duration = Duration::from_secs(60);

/// Requests that fail while all replicas are replaced, without a drain and with one.
pub(super) fn rolled(_: &mut State) -> Outcome {
    ROLLED.apply()?;
    ROLLED.ready(REPLICAS)?;
    ROLLED.wait_answered()?;
    enforce("kept", "limits: {maxAge: 8000h}")?;
    let before = ended()?;
    let without = failed()?;
    ensure!(without > 0, "no request failed without a drain");
    let moves = ended()? - before;
    ensure!(moves == 0, "{moves} moves without a drain");
    enforce_drain()?;
    let before = ended()?;
    let with = failed()?;
    let moves = ended()? - before;
    ensure!(
        with == 0,
        "{with} requests failed with a drain, {without} without"
    );
    let connections = ROLLED.connections;
    ensure!(
        moves >= connections,
        "{moves} moves of {connections} connections"
    );
    Ok(format!(
        "{without} requests failed without a drain; none with one, by {moves} moves"
    ))
}

/// Enforces a rule for the Services of this module.
fn enforce(rule: &str, fields: &str) -> Result<()> {
    let services = ["rolled", "rolled-set", "flip", "alone"].map(|name| format!("default/{name}"));
    let fields = format!("match: {{services: [{}]}}\n  {fields}", services.join(", "));
    policy::enforce(&policy::with_rule(rule, &fields, 300)).map(drop)
}

fn enforce_drain() -> Result<()> {
    let within = WITHIN.as_secs();
    enforce(
        "drained",
        &format!("drain: {{on: [Terminating, Removed], within: {within}s}}"),
    )
}

/// How many requests fail while `change` is made, and until all connections answer again.
fn failing(workload: Workload, change: impl FnOnce() -> Result<()>) -> Result<u64> {
    let before = workload.report()?.errors;
    change()?;
    // A report is of the second before.
    sleep(Duration::from_secs(2));
    Ok(workload.wait_answered()?.errors - before)
}

/// The same, and no request may fail.
fn loses_none(workload: Workload, change: impl FnOnce() -> Result<()>) -> Outcome {
    let (before, started) = (ended()?, Instant::now());
    let failed = failing(workload, change)?;
    let (moves, took) = (ended()? - before, started.elapsed().as_secs());
    ensure!(failed == 0, "{failed} requests failed, {moves} moves");
    Ok(format!("no request failed in {took} s, {moves} moves"))
}

/// A Service's selector is flipped to pods that are there already; both live on.
pub(super) fn flipped(_: &mut State) -> Outcome {
    BLUE.apply()?;
    BLUE.ready(2)?;
    GREEN.ready(2)?;
    BLUE.wait_answered()?;
    enforce_drain()?;
    let there = flip(GREEN)?;
    let back = flip(BLUE)?;
    Ok(format!("{there}; back: {back}"))
}

/// Selects these pods, and waits until all connections are with them.
fn flip(to: Workload) -> Outcome {
    let pods = to.ready(2)?;
    let started = Instant::now();
    loses_none(to, || {
        let selector = format!(r#"{{"spec":{{"selector":{{"app":"{}"}}}}}}"#, to.name);
        kubectl::output(&["patch", "service", "flip", "-p", &selector])?;
        let are_there = |report: &Report| {
            let of = |pod: &String| report.connections.get(pod).copied().unwrap_or(0);
            pods.iter().map(of).sum::<u64>() == to.connections
        };
        process::wait(
            "all connections on the other pods",
            WITHIN.as_secs(),
            || are_there(&to.report().ok()?).then_some(()),
        )
    })
    .map(|text| format!("after {} s: {text}", started.elapsed().as_secs()))
}

/// Three of six replicas are taken away.
pub(super) fn scaled_in(_: &mut State) -> Outcome {
    ROLLED.apply()?;
    ROLLED.scale(2 * REPLICAS)?;
    ROLLED.replace_client()?;
    ROLLED.wait_answered()?;
    enforce_drain()?;
    let pods = ROLLED.report()?.connections;
    ensure!(pods.len() == 2 * REPLICAS, "{pods:?}");
    let before = ended()?;
    let outcome = loses_none(ROLLED, || ROLLED.scale(REPLICAS).map(drop))?;
    let moves = ended()? - before;
    let left = ROLLED.ready(REPLICAS)?;
    let gone = pods.iter().filter(|(pod, _)| !left.contains(pod));
    let held: u64 = gone.map(|(_, held)| held).sum();
    ensure!(moves >= held, "{moves} moves of {held}: {outcome}");
    Ok(outcome)
}

/// A pod is deleted without a grace period: there is nothing to drain. Its connections break off, and no others.
pub(super) fn deleted_at_once(_: &mut State) -> Outcome {
    ROLLED.apply()?;
    let pod = ROLLED.ready(REPLICAS)?.remove(0);
    let report = ROLLED.wait_answered()?;
    enforce_drain()?;
    let held = report.connections.get(&pod).copied().unwrap_or(0);
    let failed = failing(ROLLED, || {
        kubectl::run(&format!("delete pod {pod} --grace-period=0 --force"))?;
        ROLLED.ready(REPLICAS).map(drop)
    })?;
    ensure!(
        failed <= 2 * held,
        "{failed} requests failed, and the pod had {held} connections"
    );
    Ok(format!("{failed} requests failed, of {held} connections"))
}

/// A StatefulSet is rolled: a pod is gone before the next of its name comes.
pub(super) fn set_rolled(_: &mut State) -> Outcome {
    ROLLED_SET.apply()?;
    let rolled_out =
        || kubectl::run("rollout status statefulset/rolled-set --timeout=180s").map(drop);
    rolled_out()?;
    ROLLED_SET.wait_answered()?;
    enforce_drain()?;
    let outcome = loses_none(ROLLED_SET, || {
        kubectl::run("rollout restart statefulset/rolled-set")?;
        rolled_out()
    });
    kubectl::run(
        "delete statefulset/rolled-set pod/rolled-set-client service/rolled-set --wait=false",
    )?;
    outcome
}

/// Nothing is moved, and the agent says why.
pub(super) fn nowhere_to_go(_: &mut State) -> Outcome {
    ALONE.apply()?;
    kubectl::run("wait --for=condition=Ready pod/alone --timeout=60s")?;
    ALONE.wait_answered()?;
    enforce_drain()?;
    let before = ended()?;
    kubectl::run("delete pod alone --wait")?;
    let moves = ended()? - before;
    ensure!(moves == 0, "{moves} moves to nowhere");
    let ended = last_drain("default/alone")?;
    let why = &ended["connections"];
    let expected = serde_json::json!({"minReadyEndpoints": ALONE.connections});
    ensure!(*why == expected, "{ended}");
    kubectl::run("delete pod/alone-client service/alone --wait=false")?;
    Ok(format!("left: {why}"))
}

/// How the last drain of this pod ended, as the agents report it.
fn last_drain(pod: &str) -> Result<Value> {
    let mut last = Value::Null;
    for agent in agents()? {
        for line in exec(&agent.pod, &["events", "-o", "json"])?.lines() {
            let event: Value = serde_json::from_str(line)?;
            if event["type"] == "drainEnded" && event["pod"] == pod {
                last = event;
            }
        }
    }
    Ok(last)
}

/// The API server is away while the first pods of a rollout are drained, and comes back.
pub(super) fn api_server_away(state: &mut State) -> Outcome {
    ROLLED.apply()?;
    ROLLED.ready(REPLICAS)?;
    ROLLED.wait_answered()?;
    enforce_drain()?;
    let nodes: Vec<String> = state.nodes().collect();
    let before = ended()?;
    let control_plane = &mut state.cluster.control_plane;
    loses_none(ROLLED, || {
        kubectl::run("rollout restart deploy/rolled")?;
        process::wait("the first moves", 60, || {
            (moved_on(&nodes).ok()? > before).then_some(())
        })?;
        control_plane.stop_api_server()?;
        sleep(Duration::from_secs(15));
        control_plane.start_api_server()?;
        ROLLED.ready(REPLICAS).map(drop)
    })
}

/// By hand, whatever the policy's mode.
pub(super) fn by_hand(_: &mut State) -> Outcome {
    ROLLED.apply()?;
    let pod = ROLLED.ready(REPLICAS)?.remove(0);
    ROLLED.wait_answered()?;
    policy::enforce(
        &policy::with_rule(
            "kept",
            "match: {services: [default/rolled]}\n  limits: {maxAge: 8000h}",
            60,
        )
        .replace("mode: Enforce", "mode: DryRun"),
    )?;
    let held = ROLLED.report()?.connections.get(&pod).copied().unwrap_or(0);
    let target = format!("pod/default/{pod}");
    let mut text = String::new();
    let outcome = loses_none(ROLLED, || {
        text = everywhere(&format!("drain {target} --within 30s"))?;
        Ok(())
    })?;
    ensure!(text.contains("all have left"), "{text}");
    Ok(format!("{held} connections: {outcome}"))
}

/// How many requests fail while the Deployment is rolled.
fn failed() -> Result<u64> {
    let before = ROLLED.report()?.errors;
    kubectl::run("rollout restart deploy/rolled")?;
    // Waits until the old ones are gone.
    ROLLED.ready(REPLICAS)?;
    let report = ROLLED.wait_answered()?;
    Ok(report.errors - before)
}
