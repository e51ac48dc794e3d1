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
    policy::enforce(&policy::with_rule(
        "kept",
        &format!("{matches}\n  limits: {{maxAge: 8000h}}"),
        60,
    ))?;
    let without = failed()?;
    ensure!(without > 0, "no request failed without a drain");
    policy::enforce(&policy::with_rule(
        "drained",
        &format!("{matches}\n  drain: {{on: [Terminating]}}"),
        60,
    ))?;
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

/// So many requests fail while the Deployment is rolled.
fn failed() -> Result<u64> {
    let before = ROLLED.report()?.errors;
    kubectl::run("rollout restart deploy/rolled")?;
    // Waits until the old ones are gone.
    ROLLED.ready(REPLICAS)?;
    let report = ROLLED.wait_answered()?;
    Ok(report.errors - before)
}
