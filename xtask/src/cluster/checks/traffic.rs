//! The story of the problem and its cure: one hot replica, two that get nothing, and connections
//! that move.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Outcome, Story,
    agents::{agents, ask, exec},
    policy, workload,
};
use crate::{
    cluster::{kubectl, process},
    demo::shares::Shares,
    keepalive_client::Report,
};

pub(super) const CONNECTIONS: u64 = 60;

pub(super) fn connects(story: &mut Story) -> Outcome {
    kubectl::apply(workload::MANIFEST)?;
    story.web = workload::ready(1)?;
    story.refused = placed()?.errors;
    Ok(format!("{CONNECTIONS} at {}", story.web.join(", ")))
}

/// Waits until each of the client's connections has been answered. Before the first replica was
/// an endpoint the Service refused them: such errors are the report's.
pub(super) fn placed() -> Result<Report> {
    process::wait("the client's connections", 120, || {
        let report = workload::report().ok()?;
        (report.answered() == CONNECTIONS).then_some(report)
    })
}

/// Each connection of the client's, once, on the node of the pod that serves it.
pub(super) fn shown(story: &mut Story) -> Outcome {
    let table = exec("ds/rebalancer", &["dump"])?;
    ensure!(table.contains("PEER"), "no table: {table}");
    let (client, web) = (
        workload::address("client")?,
        workload::address(&story.web[0])?,
    );
    let mut seen = 0;
    let mut on = Vec::new();
    for agent in agents()? {
        let dump = ask(&agent.pod, &["dump"])?;
        let items = dump["items"].as_array().context("a list of connections")?;
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
                &Value::from(story.web[0].as_str()),
                &serde_json::json!(["web"]),
            );
            ensure!(names == expected, "{names:?} instead of {expected:?}");
        }
        let count = of_web().count();
        if count > 0 {
            on.push(agent.node);
        }
        seen += count as u64;
    }
    ensure!(
        seen == CONNECTIONS,
        "{seen} of {CONNECTIONS} from {client} to {web}"
    );
    ensure!(on.len() == 1, "shown on {on:?}");
    Ok(format!("{seen} on {}", on.join(", ")))
}

pub(super) fn scale_out(story: &mut Story) -> Outcome {
    kubectl::output(&["scale", "deploy/web", "--replicas=3"])?;
    story.web = workload::ready(3)?;
    // Time in which something could move: the policy is the base's DryRun.
    std::thread::sleep(Duration::from_secs(5));
    let report = workload::report()?;
    let shares = shares(&story.web, &report);
    let line = shares.line();
    ensure!(
        report.connections.len() == 1 && report.answered() == CONNECTIONS,
        "{line}"
    );
    story.before = Some(shares);
    Ok(line)
}

/// The agent's own plan, under a policy of the operator's that is not in force.
pub(super) fn planned(_: &mut Story) -> Outcome {
    let policy = policy::enforced("trial", "maxAge: 5s");
    let mut moves = 0;
    for agent in agents()? {
        let exec = [
            "-n",
            "rebalancer",
            "exec",
            "-i",
            agent.pod.as_str(),
            "--",
            "rebalancer",
        ];
        let plan = ["plan", "--policy", "/dev/stdin", "-o", "json"];
        let mut kubectl = kubectl::command(&[&exec[..], &plan].concat());
        let plan = process::output_with_input(&mut kubectl, &policy)?;
        let plan: Value = serde_json::from_str(&plan).context("the plan")?;
        let items = plan["items"].as_array().context("a list of decisions")?;
        let of_trial = |rule: &str| rule.starts_with("trial-");
        let chosen =
            |item: &&Value| item["rule"].as_str().is_some_and(of_trial) && item["place"].is_u64();
        moves += items.iter().filter(chosen).count() as u64;
    }
    ensure!(moves == CONNECTIONS, "{moves} chosen of {CONNECTIONS}");
    let report = workload::report()?;
    ensure!(report.connections.len() == 1, "a plan has moved something");
    Ok(format!("{moves} chosen, none moved"))
}

/// By the pods' own part of their names.
pub(super) fn shares(pods: &[String], report: &Report) -> Shares {
    Shares::new(pods.iter().map(|pod| {
        let name = pod.rsplit('-').next().unwrap_or(pod);
        (
            name.to_owned(),
            report.connections.get(pod).copied().unwrap_or(0),
        )
    }))
}

pub(super) fn spread_by_age(story: &mut Story) -> Outcome {
    spread(story)
}

/// The same once more from the start, with another limit.
pub(super) fn spread_by_bytes(story: &mut Story) -> Outcome {
    skew(story)?;
    policy::enforce(&policy::enforced("too-heavy", "maxBytes: 8Ki"))?;
    spread(story)
}

/// All connections at one of three replicas again.
pub(super) fn skew(story: &mut Story) -> Result<()> {
    // What was read last stays in force, and would move them on.
    policy::enforce(&policy::enforced("nothing", "maxAge: 10h"))?;
    kubectl::output(&["delete", "pod", "client", "--wait"])?;
    kubectl::output(&["scale", "deploy/web", "--replicas=1"])?;
    workload::ready(1)?;
    kubectl::apply(workload::MANIFEST)?;
    story.web = workload::ready(1)?;
    story.refused = placed()?.errors;
    kubectl::output(&["scale", "deploy/web", "--replicas=3"])?;
    story.web = workload::ready(3)?;
    let report = workload::report()?;
    ensure!(report.connections.len() == 1, "not at one replica alone");
    story.before = Some(shares(&story.web, &report));
    Ok(())
}

fn spread(story: &mut Story) -> Outcome {
    let mut last = None;
    let spread = process::wait("spread connections", 120, || {
        let report = workload::report().ok()?;
        let shares = shares(&story.web, &report);
        let spread = shares.is_spread();
        last = Some(shares.line());
        (spread && report.answered() == CONNECTIONS).then_some((shares, report))
    });
    let (shares, report) = spread.with_context(|| last.unwrap_or_default())?;
    if let Some(before) = &story.before {
        print!("{}", before.beside(&shares));
    }
    let answers: u64 = report.answers.values().sum();
    let failed = report.errors - story.refused;
    // A quiet moment is no proof, but most clients find a reset before their next request.
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
