//! Drain: a Deployment is rolled whose servers break their connections off when they are asked to stop.

use anyhow::{Result, ensure};

use super::{Outcome, State, balance::ended, policy, workload::ROLLED};
use crate::cluster::kubectl;

const REPLICAS: usize = 3;

/// Requests that fail while all replicas are replaced, without a drain and with one.
pub(super) fn rolled(_: &mut State) -> Outcome {
    ROLLED.apply()?;
    ROLLED.ready(REPLICAS)?;
    ROLLED.wait_answered()?;
    let matches = "match: {services: [default/rolled]}";
    let enforce = |rule, fields| {
        policy::enforce(&policy::with_rule(
            rule,
            &format!("{matches}\n  {fields}"),
            60,
        ))
    };
    enforce("kept", "limits: {maxAge: 8000h}")?;
    let without = failed()?;
    ensure!(without > 0, "no request failed without a drain");
    enforce("drained", "drain: {on: [Terminating]}")?;
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

/// How many requests fail while the Deployment is rolled.
fn failed() -> Result<u64> {
    let before = ROLLED.report()?.errors;
    kubectl::run("rollout restart deploy/rolled")?;
    // Waits until the old ones are gone.
    ROLLED.ready(REPLICAS)?;
    let report = ROLLED.wait_answered()?;
    Ok(report.errors - before)
}
