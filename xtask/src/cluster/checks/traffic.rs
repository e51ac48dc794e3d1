//! The problem and its solution: one hot replica, two idle ones, and connections that are moved.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Outcome, State,
    agents::{agents, exec, list, parse},
    policy,
    workload::{WEB, pod_field},
};
use crate::{
    cluster::{kubectl, process},
    demo::shares::Shares,
    keepalive_client::Report,
};

pub(super) fn connects(state: &mut State) -> Outcome {
    WEB.apply()?;
    state.web = WEB.ready(1)?;
    state.refused = WEB.wait_answered()?.errors;
    Ok(format!("{} at {}", WEB.connections, state.web.join(", ")))
}

/// Each of the client's connections is dumped once, on the node of the pod that serves it.
pub(super) fn shown(state: &mut State) -> Outcome {
    let table = exec("ds/rebalancer", &["dump"])?;
    ensure!(table.contains("PEER"), "no table: {table}");
    let address = |pod: &str| pod_field(pod, ".status.podIP");
    let (client, web) = (address("client")?, address(&state.web[0])?);
    let mut seen = 0;
    let mut nodes = Vec::new();
    for agent in agents()? {
        let items = list(&agent.pod, &["dump"])?;
        let from = |item: &&Value, field: &str, address: &str| {
            let socket = item[field].as_str().unwrap_or_default();
            socket.rsplit_once(':').is_some_and(|(ip, _)| {
                ip.trim_matches(['[', ']']).trim_start_matches("::ffff:") == address
            })
        };
        let of_web = || {
            let of_web = |item: &&Value| from(item, "peer", &client) && from(item, "local", &web);
            items.iter().filter(of_web)
        };
        for item in of_web() {
            let names = (&item["namespace"], &item["pod"], &item["services"]);
            let expected = (
                &Value::from("default"),
                &Value::from(state.web[0].as_str()),
                &serde_json::json!(["web"]),
            );
            ensure!(names == expected, "{names:?} instead of {expected:?}");
        }
        let count = of_web().count();
        if count > 0 {
            nodes.push(agent.node);
        }
        seen += count as u64;
    }
    ensure!(
        seen == WEB.connections,
        "{seen} of {} from {client} to {web}",
        WEB.connections
    );
    ensure!(nodes.len() == 1, "dumped on {nodes:?}");
    Ok(format!("{seen} on {}", nodes.join(", ")))
}

pub(super) fn scale_out(state: &mut State) -> Outcome {
    state.web = WEB.scale(3)?;
    // Moves would happen now, but the base's policy is in DryRun.
    std::thread::sleep(Duration::from_secs(5));
    let report = WEB.report()?;
    let shares = shares(&state.web, &report);
    let line = shares.line();
    ensure!(
        report.connections.len() == 1 && report.answered() == WEB.connections,
        "{line}"
    );
    state.before = Some(shares);
    Ok(line)
}

/// `plan` under a policy that is not loaded.
pub(super) fn planned(_: &mut State) -> Outcome {
    let policy = policy::enforced("trial", "maxAge: 5s");
    let mut moves = 0;
    for agent in agents()? {
        let exec = format!("-n rebalancer exec -i {} --", agent.pod);
        let plan = "rebalancer plan --policy /dev/stdin -o json";
        let words: Vec<&str> = exec.split(' ').chain(plan.split(' ')).collect();
        let mut kubectl = kubectl::command(&words);
        let plan = process::output_with_input(&mut kubectl, &policy)?;
        let plan = parse(&plan)?;
        let items = plan["items"].as_array().context("a list of decisions")?;
        let of_trial = |rule: &str| rule.starts_with("trial-");
        let chosen =
            |item: &&Value| item["rule"].as_str().is_some_and(of_trial) && item["place"].is_u64();
        moves += items.iter().filter(chosen).count() as u64;
    }
    ensure!(
        moves == WEB.connections,
        "{moves} chosen of {}",
        WEB.connections
    );
    let report = WEB.report()?;
    ensure!(report.connections.len() == 1, "the plan moved connections");
    Ok(format!("{moves} chosen, none moved"))
}

/// The shares by the last part of the pods' names.
pub(super) fn shares(pods: &[String], report: &Report) -> Shares {
    Shares::new(pods.iter().map(|pod| {
        let name = pod.rsplit('-').next().unwrap_or(pod);
        (
            name.to_owned(),
            report.connections.get(pod).copied().unwrap_or(0),
        )
    }))
}

/// The same from the start, with another limit.
pub(super) fn spread_by_bytes(state: &mut State) -> Outcome {
    skew(state)?;
    policy::enforce(&policy::enforced("too-heavy", "maxBytes: 8Ki"))?;
    spread(state)
}

/// Puts all connections on one of three replicas again.
pub(super) fn skew(state: &mut State) -> Result<()> {
    // The loaded policy would move them.
    policy::enforce(&policy::enforced("nothing", "maxAge: 10h"))?;
    WEB.scale(1)?;
    WEB.replace_client()?;
    WEB.ready(1)?;
    state.refused = WEB.wait_answered()?.errors;
    state.web = WEB.scale(3)?;
    let report = WEB.report()?;
    ensure!(
        report.connections.len() == 1,
        "connections on more than one replica"
    );
    state.before = Some(shares(&state.web, &report));
    Ok(())
}

/// Waits until a policy has spread the connections.
pub(super) fn spread(state: &mut State) -> Outcome {
    let mut last = None;
    let spread = process::wait("spread connections", 120, || {
        let report = WEB.report().ok()?;
        let shares = shares(&state.web, &report);
        let spread = shares.is_spread();
        last = Some(shares.line());
        (spread && report.answered() == WEB.connections).then_some((shares, report))
    });
    let (shares, report) = spread.with_context(|| last.unwrap_or_default())?;
    if let Some(before) = &state.before {
        print!("{}", before.beside(&shares));
    }
    let answers: u64 = report.answers.values().sum();
    let failed = report.errors - state.refused;
    // A quiet moment guarantees nothing, but most clients notice a reset before their next request.
    ensure!(
        failed * 100 <= answers,
        "{failed} of {answers} requests failed: {:?}",
        report.last_error
    );
    Ok(format!(
        "{}; {failed} of {answers} requests failed",
        shares.line()
    ))
}
