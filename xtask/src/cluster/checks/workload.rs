//! The workload: a Service, its replicas and their client.

use anyhow::{Context as _, Result};

use super::super::{kubectl, process};
use crate::keepalive_client::Report;

/// A Deployment behind a Service of the same name, and a client that keeps connections to it.
#[derive(Clone, Copy)]
pub(super) struct Workload {
    /// Of the Deployment and, as the label `app`, of its pods.
    pub(super) name: &'static str,
    client: &'static str,
    manifest: &'static str,
    /// The connections of the client.
    pub(super) connections: u64,
}

/// The Service of most checks.
pub(super) const WEB: Workload = Workload {
    name: "web",
    client: "client",
    manifest: include_str!("../../../cluster/workload.yaml"),
    connections: 60,
};

/// The Service of the checks of balance; its replicas are on different nodes.
pub(super) const EVEN: Workload = Workload {
    name: "even",
    client: "even-client",
    manifest: include_str!("../../../cluster/balance.yaml"),
    connections: 300,
};

/// The Service of the check of drains.
pub(super) const ROLLED: Workload = Workload {
    name: "rolled",
    client: "rolled-client",
    manifest: include_str!("../../../cluster/drain.yaml"),
    connections: 60,
};

/// A Service that is flipped between two Deployments: that which it selects first.
pub(super) const BLUE: Workload = Workload {
    name: "flip-blue",
    client: "flip-client",
    manifest: include_str!("../../../cluster/flip.yaml"),
    connections: 300,
};

/// And the other.
pub(super) const GREEN: Workload = Workload {
    name: "flip-green",
    ..BLUE
};

/// The same servers as a StatefulSet.
pub(super) const ROLLED_SET: Workload = Workload {
    name: "rolled-set",
    client: "rolled-set-client",
    manifest: include_str!("../../../cluster/drain-set.yaml"),
    connections: 60,
};

/// A Service with a single pod.
pub(super) const ALONE: Workload = Workload {
    name: "alone",
    client: "alone-client",
    manifest: include_str!("../../../cluster/drain-alone.yaml"),
    connections: 20,
};

/// A Service whose traffic stays in its zone, and the client of one zone: of the zone with two nodes.
pub(super) const NEAR_WEST: Workload = Workload {
    name: "near",
    client: "near-west",
    manifest: include_str!("../../../cluster/zones-west.yaml"),
    connections: 120,
};

/// Likewise of the zone with one node.
pub(super) const NEAR_EAST: Workload = Workload {
    client: "near-east",
    manifest: include_str!("../../../cluster/zones-east.yaml"),
    connections: 200,
    ..NEAR_WEST
};

impl Workload {
    pub(super) fn apply(self) -> Result<()> {
        kubectl::apply(self.manifest)
    }

    /// Replaces its client, which opens all of its connections again. How many replicas there are stays.
    pub(super) fn replace_client(self) -> Result<()> {
        kubectl::run(&format!("delete pod {} --wait", self.client))?;
        let name = format!("name: {}}}", self.client);
        let mut objects = self.manifest.split("---\n");
        let client = objects.find(|object| object.contains(&name));
        kubectl::apply(client.context("the client in its manifest")?)
    }

    /// Scales it and waits until it is ready.
    pub(super) fn scale(self, replicas: usize) -> Result<Vec<String>> {
        kubectl::run(&format!("scale deploy/{} --replicas={replicas}", self.name))?;
        self.ready(replicas)
    }

    /// Waits until `replicas` pods serve and returns their names.
    pub(super) fn ready(self, replicas: usize) -> Result<Vec<String>> {
        let name = self.name;
        kubectl::run(&format!("rollout status deploy/{name} --timeout=120s"))?;
        // Terminating pods are still listed for a moment.
        process::wait(&format!("{replicas} replicas"), 60, || {
            let path = "jsonpath={.items[*].metadata.name}";
            let names = kubectl::run(&format!("get pods -l app={name} -o {path}")).ok()?;
            let mut pods: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
            pods.sort();
            (pods.len() == replicas).then_some(pods)
        })
    }

    /// The client's last report.
    pub(super) fn report(self) -> Result<Report> {
        Report::parse(&kubectl::run(&format!("logs {} --tail=1", self.client))?)
    }

    /// Waits until each of the client's connections has had a response. The report contains errors from
    /// before the first replica became an endpoint.
    pub(super) fn wait_answered(self) -> Result<Report> {
        process::wait("the client's connections", 120, || {
            let report = self.report().ok()?;
            (report.answered() == self.connections).then_some(report)
        })
    }
}

/// A field of the pod, by JSONPath.
pub(super) fn pod_field(pod: &str, path: &str) -> Result<String> {
    kubectl::run(&format!("get pod {pod} -o jsonpath={{{path}}}"))
}

/// A pod whose server is in a cgroup named like another pod's.
pub(super) const LOOKALIKE: &str = include_str!("../../../cluster/lookalike.yaml");

/// A single pod with a label.
pub(super) const SOLO: &str = include_str!("../../../cluster/solo.yaml");
