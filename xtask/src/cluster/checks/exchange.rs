//! What must hold if the objects through which agents and coordinators speak are lost while a Service is being
//! balanced, or if one agent writes none.

use std::{
    collections::BTreeMap,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Outcome, State,
    agents::{self, moved_on, status_on},
    balance::{
        COORDINATORS, MOST_MOVES, REPORT_EVERY, ROUNDS, balanced, balanced_by, is_balanced, least,
        token_of, written,
    },
    disruptions::{begin, ends, memory, skew},
    workload::{EVEN, pod_field},
};
use crate::{
    cluster::{kubectl, process},
    keepalive_client::Report,
    root,
};

const DEFINITION: &str = "nodebalances.rebalancer.dev";
/// How long the definition is gone.
const GONE_FOR: Duration = Duration::from_secs(60);
/// Moves that are under way end within that: the rule's step has a timeout of ten seconds.
const UNDER_WAY: Duration = Duration::from_secs(15);
/// So slow that the balance is in its midst.
const SLOWLY: u32 = 60;
/// Warnings of one process, from the loss until all is even again.
const MOST_WARNINGS: usize = 5;

/// All objects of the exchange are deleted, and nobody can make others.
pub(super) fn definition_lost(state: &mut State) -> Outcome {
    let nodes: Vec<String> = state.nodes().collect();
    let before = begin(&nodes, &balanced_by(SLOWLY))?;
    let (memory, first) = (memory(&nodes)?, EVEN.report()?);
    let began = Instant::now();
    kubectl::run(&format!("delete crd {DEFINITION} --wait --timeout=60s"))?;
    sleep(UNDER_WAY);
    let under_way = moved_on(&nodes)?;
    sleep(GONE_FOR - UNDER_WAY);
    let gone = moved_on(&nodes)? - under_way;
    let last = EVEN.report()?;
    let file = root().join("deploy/components/coordinator/crd.yaml");
    let file = file.to_str().context("UTF-8")?;
    kubectl::output(&["apply", "-f", file])?;
    ensure!(
        gone == 0,
        "{gone} moves while NodeBalance was not defined: by which view?"
    );
    let pods = EVEN.ready(3)?;
    ensure!(
        !is_balanced(EVEN, &pods, &last),
        "all was even before NodeBalance was deleted: this shows nothing"
    );
    let even = ends(&nodes, memory)?;
    let failed = EVEN.report()?.errors - first.errors;
    ensure!(failed == 0, "{failed} requests failed");
    let moves = moved_on(&nodes)? - before;
    let least = least_of_all();
    ensure!(
        moves as f64 <= least * MOST_MOVES,
        "{moves} moves, where {least:.0} are the least: {even}"
    );
    let warnings = warnings(began.elapsed())?;
    let loud = warnings
        .iter()
        .find(|(_, lines)| lines.len() > MOST_WARNINGS);
    if let Some((pod, lines)) = loud {
        let first = lines[..MOST_WARNINGS].join("\n");
        anyhow::bail!("{pod} has logged {} warnings:\n{first}", lines.len());
    }
    let most = warnings.values().map(Vec::len).max().unwrap_or(0);
    Ok(format!(
        "no move while it was gone, at most {most} warnings of one process; {even}; \
         {moves} moves of {least:.0} at least"
    ))
}

/// Of a scale-out from one replica, which has all connections, to three.
fn least_of_all() -> f64 {
    let all = Report {
        connections: BTreeMap::from([(String::new(), EVEN.connections)]),
        ..Report::default()
    };
    least(&all, 3)
}

/// What each agent and coordinator has logged of late that is a warning or worse.
fn warnings(within: Duration) -> Result<BTreeMap<String, Vec<String>>> {
    let mut found = BTreeMap::new();
    for selector in [agents::SELECTOR, COORDINATORS] {
        for pod in agents::run(&format!("get pods -l {selector} -o name"))?.lines() {
            let since = within.as_secs() + 1;
            let log = agents::run(&format!("logs {pod} --since={since}s"))?;
            let is_warning = |line: &&str| {
                let line: Value = serde_json::from_str(line).unwrap_or_default();
                ["WARN", "ERROR"]
                    .iter()
                    .any(|level| line["level"] == *level)
            };
            let lines = log.lines().filter(is_warning).map(str::to_owned).collect();
            found.insert(pod.to_owned(), lines);
        }
    }
    Ok(found)
}

/// Lets no one write the report of a node: its agent is then as one of a release that has no exchange.
const SILENCED: &str = "\
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: check-old-agent}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
    - {apiGroups: [rebalancer.dev], apiVersions: ['*'], operations: [CREATE, UPDATE], resources: [nodebalances]}
  validations:
  - {expression: \"object.metadata.name != 'NODE'\", message: its agent is an old one}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: check-old-agent}
spec: {policyName: check-old-agent, validationActions: [Deny]}
";

/// One node's agent does not report: what its endpoints hold is not known, so nothing is moved on any node.
pub(super) fn old_agent(state: &mut State) -> Outcome {
    let nodes: Vec<String> = state.nodes().collect();
    skew(&balanced())?;
    let only = EVEN.ready(1)?.concat();
    let hot = pod_field(&only, ".spec.nodeName")?;
    let old = nodes.iter().find(|node| **node != hot);
    let old = old.context("another node")?;
    let memory = memory(&nodes)?;
    let manifest = SILENCED.replace("NODE", old);
    kubectl::apply(&manifest)?;
    let silent = with_silent(&nodes, &hot, old);
    let ended =
        process::output_with_input(&mut kubectl::command(&["delete", "-f", "-"]), &manifest);
    let silent = silent?;
    ended?;
    Ok(format!(
        "{silent}; it reports again: {}",
        ends(&nodes, memory)?
    ))
}

/// The Service is scaled out; `old` does not report.
fn with_silent(nodes: &[String], hot: &str, old: &str) -> Outcome {
    let token = token_of(old)?;
    process::wait("the policy that denies its reports", 30, || {
        let denied = written(&token, old, "spec").err()?;
        format!("{denied:#}").contains("an old one").then_some(())
    })?;
    kubectl::run(&format!("delete nodebalance {old} --ignore-not-found"))?;
    let before = moved_on(nodes)?;
    EVEN.scale(3)?;
    let skipped = process::wait("noClusterView on the hot node", 60, || {
        status_on(hot).ok()?["lastPass"]["skipped"]["noClusterView"].as_u64()
    })?;
    let silence = REPORT_EVERY * ROUNDS;
    sleep(silence);
    let moves = moved_on(nodes)? - before;
    ensure!(moves == 0, "{moves} moves though {old} does not report");
    let objects = kubectl::run("get nodebalances -o name")?;
    ensure!(
        !objects.lines().any(|name| name.ends_with(old)),
        "{old} has reported: {objects}"
    );
    Ok(format!(
        "{skipped} skipped as noClusterView on {hot}, no move in {} s without {old}",
        silence.as_secs()
    ))
}
