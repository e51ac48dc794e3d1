//! The Service, its replicas and their client.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::super::kubectl;
use crate::paced::Report;

pub(super) const MANIFEST: &str = include_str!("../../../cluster/workload.yaml");

/// Waits until `replicas` serve; returns their pods.
pub(super) fn ready(replicas: usize) -> Result<Vec<String>> {
    kubectl::output(&["rollout", "status", "deploy/web", "--timeout=120s"])?;
    let names = "jsonpath={.items[*].metadata.name}";
    let names = kubectl::output(&["get", "pods", "-l", "app=web", "-o", names])?;
    let mut pods: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
    ensure!(pods.len() == replicas, "replicas: {pods:?}");
    pods.sort();
    Ok(pods)
}

/// What the client saw last.
pub(super) fn report() -> Result<Report> {
    let line = kubectl::output(&["logs", "client", "--tail=1"])?;
    serde_json::from_str(&line).with_context(|| format!("the client's report {line:?}"))
}

pub(super) fn address(pod: &str) -> Result<String> {
    let pod: Value = serde_json::from_str(&kubectl::output(&["get", "pod", pod, "-o", "json"])?)?;
    let address = pod["status"]["podIP"]
        .as_str()
        .context("the pod's address")?;
    Ok(address.to_owned())
}
