//! Edits the policy's ConfigMap and checks that agents load or reject it.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Outcome, State,
    agents::{self, agents, exec, query},
};
use crate::cluster::{kubectl, layout, process};

/// The kubelet's sync period and cache, and up to half a minute more if the API server was away just before.
const CONFIG_MAP_SECONDS: u64 = 90;

/// An enforced policy with one rule for the Service `web`. The rule's name is `rule` with a number that
/// is unique to this policy.
pub(super) fn enforced(rule: &str, limits: &str) -> String {
    let matches = "match: {services: [default/web]}";
    with_rule(
        rule,
        &format!("{matches}\n  limits: {{{limits}}}\n  jitter: 50%"),
        60, // so few that rounds are observed
    )
}

/// Likewise with the fields of its rule, and so many moves per node in ten seconds.
pub(super) fn with_rule(rule: &str, fields: &str, per_node: u32) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let in_flight = per_node / 3;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!(
        "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: Enforce
interval: 1s
budget: {{window: 10s, perNode: {per_node}, perService: 100%, perEndpoint: 100%, maxInFlight: {in_flight}}}
guards: {{minAge: 2s, stabilizationWindow: 2s}}
rules:
- name: {rule}-{number}
  {fields}
  steps: [{{step: Reset, when: Quiet, idleFor: 100ms, timeout: 10s}}]
"
    )
}

/// Applies the ConfigMap and returns at once.
pub(super) fn edit(text: &str) -> Result<()> {
    let file = layout::state().join("policy.yaml");
    std::fs::write(&file, text).context("the policy")?;
    let from = format!("--from-file=policy.yaml={}", file.display());
    let create = "create configmap rebalancer-policy --dry-run=client -o yaml";
    kubectl::apply(&agents::run(&format!("{create} {from}"))?)
}

/// Applies the ConfigMap and waits until every agent uses it. Returns the seconds until it was in
/// every volume, and from then until every agent used it.
pub(super) fn enforce(text: &str) -> Result<[f64; 2]> {
    let before = loaded()?;
    edit(text)?;
    let started = Instant::now();
    let agents = agents()?;
    let name = text.lines().find_map(|line| line.strip_prefix("- name: "));
    let name = name.context("a rule's name")?;
    let explain = ["policy", "explain", "/etc/rebalancer/policy.yaml"];
    process::wait("the new policy in every volume", CONFIG_MAP_SECONDS, || {
        let has = |pod: &str| exec(pod, &explain).is_ok_and(|text| text.contains(name));
        agents.iter().all(|agent| has(&agent.pod)).then_some(())
    })?;
    let volume = started.elapsed().as_secs_f64();
    process::wait("the agents to load it", 15, || {
        let now = loaded().ok()?;
        let newer = now.iter().zip(&before).all(|(now, before)| now != before);
        newer.then_some(())
    })?;
    Ok([volume, started.elapsed().as_secs_f64() - volume])
}

/// When each agent loaded its policy.
fn loaded() -> Result<Vec<String>> {
    let loaded = |pod: &str| -> Result<String> {
        let status = query(pod, &["status"])?;
        Ok(status["policy"]["loadedAt"].to_string())
    };
    agents()?.iter().map(|agent| loaded(&agent.pod)).collect()
}

pub(super) fn loaded_soon(_: &mut State) -> Outcome {
    let [volume, agent] = enforce(&enforced("too-old", "maxAge: 8s"))?;
    Ok(format!(
        "in every volume after {volume:.0} s, loaded {agent:.1} s later"
    ))
}

/// An agent reports a rejected policy in its status and by an Event on its own pod.
pub(super) fn rejected(_: &mut State) -> Outcome {
    let broken = enforced("broken", "maxAge: 8");
    let before = loaded()?;
    edit(&broken)?;
    let agents = agents()?;
    let error_of = |pod: &str| -> Option<String> {
        let status = query(pod, &["status"]).ok()?;
        Some(status["policy"]["refused"]["error"].as_str()?.to_owned())
    };
    let errors = process::wait("the agents to reject it", CONFIG_MAP_SECONDS, || {
        let errors: Option<Vec<String>> = agents.iter().map(|a| error_of(&a.pod)).collect();
        errors
    })?;
    ensure!(
        errors.iter().all(|error| error.contains("missing unit")),
        "{errors:?}"
    );
    ensure!(loaded()? == before, "the policy was replaced");
    process::wait("an Event on every agent's pod", 20, || {
        let events = events("PolicyRefused").ok()?;
        let has_event = |pod: &str| events.iter().any(|e| e["regarding"]["name"] == *pod);
        agents
            .iter()
            .all(|agent| has_event(&agent.pod))
            .then_some(())
    })?;
    Ok("reported in status and by an Event on each agent's pod".to_owned())
}

/// Events of the agents, by reason.
pub(super) fn events(reason: &str) -> Result<Vec<Value>> {
    let selector = format!("--field-selector=reason={reason}");
    let get = format!("get events.events.k8s.io -A {selector} -o json");
    let list: Value = serde_json::from_str(&kubectl::run(&get)?)?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}
