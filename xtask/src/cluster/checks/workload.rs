//! The Service, its replicas and their client.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::super::{kubectl, process};
use crate::keepalive_client::Report;

pub(super) const MANIFEST: &str = include_str!("../../../cluster/workload.yaml");

/// Waits until `replicas` serve; returns their pods.
pub(super) fn ready(replicas: usize) -> Result<Vec<String>> {
    kubectl::output(&["rollout", "status", "deploy/web", "--timeout=120s"])?;
    // Those that are going are still listed for a moment.
    process::wait(&format!("{replicas} replicas"), 60, || {
        let names = "jsonpath={.items[*].metadata.name}";
        let names = kubectl::output(&["get", "pods", "-l", "app=web", "-o", names]).ok()?;
        let mut pods: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
        pods.sort();
        (pods.len() == replicas).then_some(pods)
    })
}

/// What the client saw last.
pub(super) fn report() -> Result<Report> {
    let line = kubectl::output(&["logs", "client", "--tail=1"])?;
    Report::parse(&line)
}

pub(super) fn address(pod: &str) -> Result<String> {
    let pod: Value = serde_json::from_str(&kubectl::output(&["get", "pod", pod, "-o", "json"])?)?;
    let address = pod["status"]["podIP"]
        .as_str()
        .context("the pod's address")?;
    Ok(address.to_owned())
}

/// A pod whose server is in a cgroup that is named as the
/// kubelet would name another pod's.
pub(super) const LOOKALIKE: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: lookalike}
spec:
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers:
  - name: nginx
    image: rebalancer.local/web:1
    imagePullPolicy: Never
    securityContext: {privileged: true}
    command: [sh, -c]
    args:
    - |
      while IFS= read -r line; do
        case $line in 0::*) mine=${line#0::} ;; esac
      done </proc/self/cgroup
      for root in /node-cgroup/unified /node-cgroup; do
        [ -e $root/cgroup.procs ] || continue
        fake=$root$mine/kubepods/podVICTIM_UID/inner
        /bin/busybox mkdir -p $fake && echo 0 >$fake/cgroup.procs && break
      done
      exec nginx
    readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
    volumeMounts: [{name: cgroup, mountPath: /node-cgroup}]
  volumes: [{name: cgroup, hostPath: {path: /sys/fs/cgroup}}]
";

/// A bare pod with a label.
pub(super) const SOLO: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: solo, labels: {turn: LABEL}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers:
  - name: nginx
    image: rebalancer.local/web:1
    imagePullPolicy: Never
    readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
";
