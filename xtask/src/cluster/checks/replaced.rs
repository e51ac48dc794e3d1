//! Pods that are replaced under a rule that drains and balances: all requests are answered, and what comes after is even.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{
    Outcome, State,
    balance::{balance, ended, wait_balanced},
    policy,
    workload::{ROLLED, pod_field},
};
use crate::cluster::kubectl;

const REPLICAS: usize = 3;
const EVEN_WITHIN: Duration = Duration::from_secs(60);

/// Under the rule all is even.
fn begin() -> Result<()> {
    ROLLED.apply()?;
    ROLLED.ready(REPLICAS)?;
    ROLLED.wait_answered()?;
    let matches = "match: {services: [default/rolled]}";
    let rule = format!("{matches}\n  drain: {{on: [Terminating]}}\n  {}", balance());
    policy::enforce(&policy::with_rule("replaced", &rule, 300))?;
    even().map(drop)
}

/// Waits until no replica holds too much, and says what each does.
fn even() -> Outcome {
    let (_, shares) = wait_balanced(ROLLED, &ROLLED.ready(REPLICAS)?, EVEN_WITHIN)?;
    Ok(shares)
}

/// Replaces pods by `replace`, with at most so many moves.
fn holds(most: u64, replace: impl FnOnce() -> Result<()>) -> Outcome {
    let (before, first) = (ended()?, ROLLED.report()?);
    replace()?;
    let even = even()?;
    let failed = ROLLED.report()?.errors - first.errors;
    let moves = ended()? - before;
    ensure!(failed == 0, "{failed} requests failed");
    ensure!(
        moves <= most,
        "{moves} moves of {} connections, where {most} are enough: {even}",
        ROLLED.connections
    );
    Ok(format!("{moves} moves, no request failed; {even}"))
}

/// All replicas are replaced, one after the other.
pub(super) fn rolled(_: &mut State) -> Outcome {
    begin()?;
    // A connection may come to a replica that is replaced later, twice in the worst case; the mean is 1.4 times, and
    // what the last replica lacks is moved to it.
    holds(ROLLED.connections * 2, || {
        kubectl::run("rollout restart deploy/rolled").map(drop)
    })
}

/// The node of a replica is cordoned and drained.
pub(super) fn drained(_: &mut State) -> Outcome {
    begin()?;
    let node = pod_field(&ROLLED.ready(REPLICAS)?[0], ".spec.nodeName")?;
    let holds = holds(ROLLED.connections, || {
        // Bare pods of other checks are not to be lost.
        kubectl::run(&format!(
            "drain {node} --ignore-daemonsets --pod-selector=app=rolled --timeout=90s"
        ))?;
        let left = format!("get pods -l app=rolled --field-selector spec.nodeName={node} -o name");
        let left = kubectl::run(&left)?;
        ensure!(left.is_empty(), "still on {node}: {left}");
        Ok(())
    });
    kubectl::run(&format!("uncordon {node}"))?;
    Ok(format!("{node}: {}", holds?))
}
