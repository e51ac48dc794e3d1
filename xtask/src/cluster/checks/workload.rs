//! The workload: a Service, its replicas and their client.

use anyhow::Result;

use super::super::{kubectl, process};
use crate::keepalive_client::Report;

pub(super) const MANIFEST: &str = include_str!("../../../cluster/workload.yaml");

/// Waits until `replicas` pods serve and returns their names.
pub(super) fn ready(replicas: usize) -> Result<Vec<String>> {
    kubectl::run("rollout status deploy/web --timeout=120s")?;
    // Terminating pods are still listed for a moment.
    process::wait(&format!("{replicas} replicas"), 60, || {
        let path = "jsonpath={.items[*].metadata.name}";
        let names = kubectl::run(&format!("get pods -l app=web -o {path}")).ok()?;
        let mut pods: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
        pods.sort();
        (pods.len() == replicas).then_some(pods)
    })
}

/// The client's last report.
pub(super) fn report() -> Result<Report> {
    Report::parse(&kubectl::run("logs client --tail=1")?)
}

pub(super) fn address(pod: &str) -> Result<String> {
    kubectl::run(&format!("get pod {pod} -o jsonpath={{.status.podIP}}"))
}

/// A pod whose server is in a cgroup named like another pod's.
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

/// A single pod with a label.
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
