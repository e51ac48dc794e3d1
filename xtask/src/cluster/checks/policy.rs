//! The policy, as a ConfigMap that is edited.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Outcome, Story,
    agents::{NAMESPACE, agents, ask, exec},
};
use crate::cluster::{kubectl, layout, process};

/// The kubelet's sync and its cache, then what the agent needs; both with room for a busy machine.
const CONFIG_MAP_SECONDS: u64 = 60;

/// One rule for the Service, enforced, with budgets that let a round be seen. Its name begins with
/// `rule`, and is another each time: so it is known when it is in force.
pub(super) fn enforced(rule: &str, limits: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let turn = NEXT.fetch_add(1, Ordering::Relaxed);
    format!(
        "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: Enforce
interval: 1s
budget: {{window: 10s, perNode: 60, perService: 100%, perEndpoint: 100%, maxInFlight: 20}}
guards: {{minAge: 2s, stabilizationWindow: 2s}}
rules:
- name: {rule}-{turn}
  match: {{services: [default/web]}}
  limits: {{{limits}}}
  jitter: 50%
  steps: [{{step: Reset, when: Quiet, idleFor: 100ms, timeout: 10s}}]
"
    )
}

/// Writes the ConfigMap and returns at once.
pub(super) fn edit(text: &str) -> Result<()> {
    let file = layout::state().join("policy.yaml");
    std::fs::write(&file, text).context("the policy")?;
    let from = format!("--from-file=policy.yaml={}", file.display());
    let create = [
        "create",
        "configmap",
        "rebalancer-policy",
        "--dry-run=client",
        "-o",
        "yaml",
    ];
    let manifest = kubectl::output(&[&NAMESPACE[..], &create, &[from.as_str()]].concat())?;
    kubectl::apply(&manifest)
}

/// Writes the ConfigMap and waits until every agent goes by it; how long its volume took, and the
/// agent from then on.
pub(super) fn enforce(text: &str) -> Result<[f64; 2]> {
    let before = loaded()?;
    edit(text)?;
    let started = Instant::now();
    let agents = agents()?;
    let name = text.lines().find_map(|line| line.strip_prefix("- name: "));
    let name = name.context("a rule's name")?;
    let explain = ["policy", "explain", "/etc/rebalancer/policy.yaml"];
    process::wait("the volume's new content", CONFIG_MAP_SECONDS, || {
        let has = |pod: &str| exec(pod, &explain).is_ok_and(|text| text.contains(name));
        agents.iter().all(|agent| has(&agent.pod)).then_some(())
    })?;
    let volume = started.elapsed().as_secs_f64();
    process::wait("the agents to go by it", 15, || {
        let now = loaded().ok()?;
        let newer = now.iter().zip(&before).all(|(now, before)| now != before);
        newer.then_some(())
    })?;
    Ok([volume, started.elapsed().as_secs_f64() - volume])
}

/// When each agent read the policy that it goes by.
fn loaded() -> Result<Vec<String>> {
    let loaded = |pod: &str| -> Result<String> {
        let status = ask(pod, &["status"])?;
        Ok(status["policy"]["loadedAt"].to_string())
    };
    agents()?.iter().map(|agent| loaded(&agent.pod)).collect()
}

pub(super) fn arrives(_: &mut Story) -> Outcome {
    let [volume, agent] = enforce(&enforced("too-old", "maxAge: 8s"))?;
    ensure!(agent < 5.0, "the agents took {agent:.1} s after the volume");
    Ok(format!(
        "in every volume after {volume:.0} s, in force {agent:.1} s later"
    ))
}

/// The volume brings it, the agent says no: in its status, and in an Event on its own pod.
pub(super) fn refused(_: &mut Story) -> Outcome {
    let broken = enforced("broken", "maxAge: 8");
    let before = loaded()?;
    edit(&broken)?;
    let agents = agents()?;
    let refused = |pod: &str| -> Option<String> {
        let status = ask(pod, &["status"]).ok()?;
        Some(status["policy"]["refused"]["error"].as_str()?.to_owned())
    };
    let errors = process::wait("the agents to refuse it", CONFIG_MAP_SECONDS, || {
        let errors: Option<Vec<String>> = agents.iter().map(|a| refused(&a.pod)).collect();
        errors
    })?;
    ensure!(
        errors.iter().all(|error| error.contains("missing unit")),
        "{errors:?}"
    );
    ensure!(loaded()? == before, "another policy is in force");
    process::wait("an Event of it on every agent's pod", 20, || {
        let events = events("PolicyRefused").ok()?;
        let told = |pod: &str| events.iter().any(|e| e["regarding"]["name"] == *pod);
        agents.iter().all(|agent| told(&agent.pod)).then_some(())
    })?;
    Ok("told in status and by an Event on each agent's pod".to_owned())
}

/// Events of the agents, by reason.
pub(super) fn events(reason: &str) -> Result<Vec<Value>> {
    let selector = format!("--field-selector=reason={reason}");
    let get = ["get", "events.events.k8s.io", "-A", &selector, "-o", "json"];
    let list: Value = serde_json::from_str(&kubectl::output(&get)?)?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}
