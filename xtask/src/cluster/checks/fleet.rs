//! All agents at once: the plugin of kubectl, and the pause of all nodes.

use std::{env, os::unix::fs::symlink, time::Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Outcome, State, agents};
use crate::{
    build,
    cluster::{certificates, kubectl, network, process},
};

/// Agents look at their namespace every two seconds.
const SEEN_WITHIN: u64 = 15;

/// `kubectl rebalancer …`, as an operator types it.
pub(super) fn everywhere(words: &str) -> Result<String> {
    let kubectl = process::program("kubectl");
    let folder = kubectl.parent().context("the folder of kubectl")?;
    let plugin = folder.join("kubectl-rebalancer");
    if !plugin.exists() {
        symlink(build::unoptimized()?, &plugin).context("the plugin")?;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(
        [folder.to_owned()]
            .into_iter()
            .chain(env::split_paths(&path)),
    )?;
    let mut command = process::in_namespace(network::CONTROL_PLANE, &kubectl);
    command.env("PATH", path);
    command.env("KUBECONFIG", certificates::kubeconfig("admin"));
    process::output(command.arg("rebalancer").args(words.split(' ')))
}

fn everywhere_json(words: &str) -> Result<Value> {
    agents::parse(&everywhere(&format!("{words} -o json"))?)
}

pub(super) fn asked(state: &mut State) -> Outcome {
    let nodes: Vec<String> = state.nodes().collect();
    let started = Instant::now();
    let answers = everywhere_json("status")?;
    let took = started.elapsed().as_secs_f64();
    let items = answers["items"].as_array().context("items")?;
    let found: Vec<&str> = items
        .iter()
        .filter_map(|item| item["node"].as_str())
        .collect();
    ensure!(
        found == nodes && answers["failed"] == json!([]),
        "{answers}"
    );
    // There may be none.
    let cooldowns = everywhere("cooldowns list")?;
    ensure!(cooldowns.starts_with("NODE"), "cooldowns list: {cooldowns}");
    for (words, head) in [("events", "NODE"), ("top", ""), ("plan", "")] {
        let table = everywhere(words)?;
        ensure!(table.starts_with(head), "{words}: {table}");
        for node in &nodes {
            let of_node = table.lines().any(|line| line.starts_with(node.as_str()));
            ensure!(of_node, "{words}: no line of {node}: {table}");
        }
    }
    let error = everywhere("--node elsewhere status").err();
    let error = error.map_or(String::new(), |error| format!("{error:#}"));
    ensure!(
        error.contains("no agent runs on node elsewhere"),
        "{error:?}"
    );
    Ok(format!("{} answers in {took:.1} s", nodes.len()))
}

/// What each node says of its pause.
fn pauses() -> Result<Vec<Value>> {
    let answers = everywhere_json("status")?;
    let items = answers["items"].as_array().context("items")?;
    Ok(items
        .iter()
        .map(|item| item["answer"]["paused"].clone())
        .collect())
}

pub(super) fn paused(_: &mut State) -> Outcome {
    let annotate = |value: &str| {
        kubectl::run(&format!(
            "annotate namespace rebalancer rebalancer.dev/paused{value}"
        ))
    };
    annotate("=incident")?;
    let started = Instant::now();
    process::wait("all nodes to be paused", SEEN_WITHIN, || {
        let pauses = pauses().ok()?;
        let is_paused =
            |paused: &Value| paused["by"] == "namespace" && paused["reason"] == "incident";
        pauses.iter().all(is_paused).then_some(())
    })?;
    let took = started.elapsed().as_secs_f64();
    // Those that start now are paused too.
    agents::restart()?;
    let after = pauses()?;
    ensure!(
        after.iter().all(|paused| paused["by"] == "namespace"),
        "{after:?}"
    );
    annotate("-")?;
    process::wait("all nodes to resume", SEEN_WITHIN, || {
        pauses().ok()?.iter().all(Value::is_null).then_some(())
    })?;
    Ok(format!("within {took:.1} s, across a rollout"))
}
