//! Balance across nodes: a coordinator, and a Service whose replicas are on different nodes.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Outcome, State,
    agents::{self, agents, install, moved_on, overlay_with, pid_on, query},
    policy, traffic,
    workload::{EVEN, Workload},
};
use crate::{
    cluster::{kubectl, layout, network, process},
    keepalive_client::Report,
};

/// How many nodes it takes to show a Service with one replica on each of three.
pub(super) const NODES: usize = 3;
/// What an endpoint may hold above the mean, in percent, as the policy has it.
const TOLERANCE: u64 = 10;
/// The least time between two reports of an agent.
pub(super) const REPORT_EVERY: Duration = Duration::from_secs(10);
/// The most rounds of reports until the connections are balanced.
pub(super) const ROUNDS: u32 = 4;
/// The most moves, to the least.
pub(super) const MOST_MOVES: f64 = 1.15;
pub(super) const COORDINATORS: &str = "app.kubernetes.io/component=coordinator";

/// The field of a rule that balances.
pub(super) fn balance() -> String {
    format!("balance: {{by: Connections, tolerance: {TOLERANCE}%}}")
}

/// A policy that balances the Service over all nodes.
pub(super) fn balanced() -> String {
    balanced_by(300)
}

/// The same by so many moves per node in ten seconds.
pub(super) fn balanced_by(per_node: u32) -> String {
    let fields = format!("match: {{services: [default/even]}}\n  {}", balance());
    policy::with_rule("even", &fields, per_node)
}

/// The Lease's holder, once an identity holds it.
fn leader() -> Option<String> {
    let get = "get lease rebalancer-coordinator -o jsonpath={.spec.holderIdentity}";
    agents::run(get).ok().filter(|holder| !holder.is_empty())
}

fn wait_led() -> Result<String> {
    process::wait("a leader", 60, leader)
}

pub(super) fn coordinators(_: &mut State) -> Outcome {
    install(&overlay_with("privileged", &["coordinator"])?)?;
    agents::run("rollout status deploy/rebalancer-coordinator --timeout=120s")?;
    let leader = wait_led()?;
    let found = agents::run(&format!(
        "get pods -l {COORDINATORS} -o jsonpath={{.items[*].metadata.name}}"
    ))?;
    ensure!(
        found.split(' ').any(|pod| pod == leader),
        "{leader} of {found}"
    );
    Ok(format!("{leader} leads"))
}

/// The agent's own token, as a thief on its node could use it.
pub(super) fn token_of(node: &str) -> Result<String> {
    let root = format!("/proc/{}/root", pid_on(node)?);
    let path = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    fs::read_to_string(format!("{root}{path}")).context("the agent's token")
}

/// Writes the `field` of the object of `node` with a token, as an agent does.
pub(super) fn written(token: &str, node: &str, field: &str) -> Result<String> {
    let mut kubectl = process::in_namespace(network::CONTROL_PLANE, process::program("kubectl"));
    kubectl.args(["--kubeconfig", "/dev/null", "--server", layout::API_SERVER]);
    kubectl.args(["--insecure-skip-tls-verify", "--token", token]);
    kubectl.args([
        "apply",
        "--server-side",
        "--force-conflicts",
        "--validate=false",
        "-f",
        "-",
    ]);
    if field == "status" {
        kubectl.arg("--subresource=status");
    }
    let object = format!(
        "apiVersion: rebalancer.dev/v1alpha1\nkind: NodeBalance\nmetadata: {{name: {node}}}\n{field}: {{sequence: 1}}\n"
    );
    let written = process::output_with_input(&mut kubectl, &object);
    // The error has the command, and with it the token.
    written.map_err(|error| anyhow::anyhow!(format!("{error:#}").replace(token, "TOKEN")))
}

/// An agent's token is good for the report of its own node, and for no view.
pub(super) fn forged(_: &mut State) -> Outcome {
    let token = token_of("node1")?;
    let claims = |node: &str| {
        process::wait(&format!("the report of {node}"), 60, || {
            kubectl::run(&format!("get nodebalance {node}")).ok()
        })
    };
    claims("node1")?;
    claims("node2")?;
    // The agent writes the whole of it again soon.
    written(&token, "node1", "spec").context("its own report")?;
    for (node, field, reason) in [
        ("node2", "spec", "may not report for node2"),
        ("node1", "status", "forbidden"),
    ] {
        let error = written(&token, node, field).err();
        let error = error.map_or(String::new(), |error| format!("{error:#}"));
        ensure!(error.contains(reason), "{field} of {node}: {error:?}");
    }
    Ok("an agent writes its own report only".to_owned())
}

/// Moves that ended on all nodes.
pub(super) fn ended() -> Result<u64> {
    let nodes: Vec<String> = agents()?.into_iter().map(|agent| agent.node).collect();
    moved_on(&nodes)
}

/// The most that a pod of `pods` may hold: the mean, the tolerance, and what chance explains.
fn most(connections: u64, pods: usize) -> u64 {
    let mean = connections as f64 / pods as f64;
    (mean * (100 + TOLERANCE) as f64 / 100.0 + 2.0 * mean.sqrt()).ceil() as u64
}

/// Whether all connections of the workload's client are on `pods`, and on none of them too many.
pub(super) fn is_balanced(workload: Workload, pods: &[String], report: &Report) -> bool {
    let of = |pod: &String| report.connections.get(pod).copied().unwrap_or(0);
    let most = most(workload.connections, pods.len());
    pods.iter().map(of).sum::<u64>() == workload.connections
        && pods.iter().all(|pod| of(pod) <= most)
}

/// The fewest moves after which no pod holds more than the mean and the tolerance: what is moved comes to any pod by
/// chance, and only what comes to one that did not hold too much is a gain.
pub(super) fn least(report: &Report, replicas: usize) -> f64 {
    let mean = report.answered() as f64 / replicas as f64;
    let stop = mean * (100 + TOLERANCE) as f64 / 100.0;
    let excess = |load: &u64| *load as f64 - stop;
    let hot: Vec<f64> = report.connections.values().map(excess).collect();
    let hot: Vec<f64> = hot.into_iter().filter(|excess| *excess > 0.0).collect();
    let gains = (replicas - hot.len()) as f64 / replicas as f64;
    hot.iter().sum::<f64>() / gains
}

/// Waits until no pod of `pods` holds too much; the last report, and the shares in it.
pub(super) fn wait_balanced(
    workload: Workload,
    pods: &[String],
    within: Duration,
) -> Result<(Report, String)> {
    let mut last = String::new();
    let report = process::wait("balance", within.as_secs(), || {
        let report = workload.report().ok()?;
        last = traffic::shares(pods, &report).line();
        is_balanced(workload, pods, &report).then_some(report)
    });
    Ok((report.with_context(|| last.clone())?, last))
}

/// Scales and waits until no pod of `replicas` holds too much; what that took.
fn balances(replicas: usize, within: Duration) -> Outcome {
    let (before, first) = (ended()?, EVEN.report()?);
    let started = Instant::now();
    let pods = EVEN.scale(replicas)?;
    let scaled = Instant::now();
    let (report, last) = wait_balanced(EVEN, &pods, within)?;
    let took = scaled.elapsed().as_secs_f64();
    let moves = ended()? - before;
    let failed = report.errors - first.errors;
    ensure!(
        failed == 0,
        "{failed} requests failed: {:?}",
        report.last_error
    );
    let least = least(&first, replicas);
    ensure!(
        moves as f64 <= least * MOST_MOVES,
        "{moves} moves, where {least:.0} are the least: {last}"
    );
    Ok(format!(
        "{last}; {moves} moves of {least:.0} at least in {took:.0} s after {:.0} s of scaling, no request failed",
        scaled.duration_since(started).as_secs_f64()
    ))
}

/// One replica has everything; then there are three, on three nodes.
pub(super) fn scale_out(_: &mut State) -> Outcome {
    EVEN.apply()?;
    EVEN.ready(1)?;
    EVEN.wait_answered()?;
    policy::enforce(&balanced())?;
    balances(3, REPORT_EVERY * ROUNDS)
}

/// Scales in and out again: what is left has all connections, and the new replicas their part.
pub(super) fn scaled(_: &mut State) -> Outcome {
    let six = balances(6, REPORT_EVERY * ROUNDS)?;
    // Connections of the pods that go are lost with them: that is no move.
    let pods = EVEN.scale(3)?;
    EVEN.wait_answered()?;
    let within = Duration::from_secs(60);
    let (_, three) = wait_balanced(EVEN, &pods, within).context("after scaling in")?;
    Ok(format!("{six}; then {three}"))
}

/// The leader is killed: the standby leads within its lease, and views go on.
pub(super) fn taken_over(_: &mut State) -> Outcome {
    let old = wait_led()?;
    let started = Instant::now();
    agents::run(&format!("delete pod {old} --grace-period=0 --force"))?;
    let new = process::wait("another leader", 40, || leader().filter(|new| *new != old))?;
    let took = started.elapsed().as_secs_f64();
    let given_by = "get nodebalances -o jsonpath={.items[*].status.coordinator}";
    process::wait("its views", 60, || {
        let given = kubectl::run(given_by).ok()?;
        given.split(' ').all(|by| by == new).then_some(())
    })?;
    agents::run("rollout status deploy/rebalancer-coordinator --timeout=60s")?;
    Ok(format!("{new} after {took:.0} s"))
}

/// What agents say of Services on several nodes.
fn views() -> Result<Vec<String>> {
    let of = |agent: agents::Agent| -> Result<String> {
        let status = query(&agent.pod, &["status"])?;
        Ok(status["cluster"]["views"]
            .as_str()
            .unwrap_or("none")
            .to_owned())
    };
    agents()?.into_iter().map(of).collect()
}

/// Without any coordinator nothing is moved across nodes; once one is back, it is.
pub(super) fn without_coordinators(_: &mut State) -> Outcome {
    agents::run("scale deploy/rebalancer-coordinator --replicas=0")?;
    let started = Instant::now();
    process::wait("the views to expire", 90, || {
        let views = views().ok()?;
        views.iter().all(|view| view == "expired").then_some(())
    })?;
    let expired = started.elapsed().as_secs_f64();
    // All on one replica again.
    EVEN.scale(1)?;
    EVEN.wait_answered()?;
    EVEN.scale(3)?;
    let before = ended()?;
    std::thread::sleep(REPORT_EVERY * 2);
    let moves = ended()? - before;
    ensure!(moves == 0, "{moves} moves without a view");
    agents::run("scale deploy/rebalancer-coordinator --replicas=2")?;
    // A coordinator that starts knows no report's age before it changes.
    let within = REPORT_EVERY * (ROUNDS + 3);
    Ok(format!(
        "expired after {expired:.0} s, nothing moved; back: {}",
        balances(3, within)?
    ))
}
