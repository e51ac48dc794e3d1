//! etcd, the API server, the controllers and the scheduler.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use xtask::process::Process;

use super::{
    certificates::{file, kubeconfig},
    cgroups::Cgroup,
    kubectl, layout, network,
    process::{self, in_namespace, program},
};

/// Audit user, verb and resource of each request, without bodies.
const AUDIT: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
";

/// The control plane, whose API server can be stopped and started.
pub(super) struct ControlPlane {
    cgroup: Cgroup,
    api_server: Process,
}

impl ControlPlane {
    pub(super) fn start() -> Result<Self> {
        let cgroup = Cgroup::make(network::CONTROL_PLANE)?;
        etcd(&cgroup)?;
        let api_server = api_server(&cgroup)?;
        let mut started = Self { cgroup, api_server };
        started.wait()?;
        controller_manager(&started.cgroup)?;
        scheduler(&started.cgroup)?;
        Ok(started)
    }

    /// Stops the API server only.
    pub(super) fn stop_api_server(&mut self) -> Result<()> {
        self.api_server.stop(Signal::KILL)
    }

    /// Starts the API server again, with the data in etcd.
    pub(super) fn start_api_server(&mut self) -> Result<()> {
        self.api_server = api_server(&self.cgroup)?;
        self.wait()
    }

    fn wait(&mut self) -> Result<()> {
        let ready = || kubectl::run("get --raw /readyz").ok();
        let patience = Duration::from_secs(120);
        (self.api_server.wait("the API server", patience, ready)).map(drop)
    }
}

/// The API server's audit log, one JSON document per line.
pub(super) fn audit_log() -> PathBuf {
    process::logs().join("audit.log")
}

fn serve(cgroup: &Cgroup, name: &str, arguments: &[String]) -> Result<Process> {
    let mut command = in_namespace(network::CONTROL_PLANE, program(name));
    process::start(name, cgroup, command.args(arguments))
}

fn option(name: &str, value: impl AsRef<Path>) -> String {
    format!("--{name}={}", value.as_ref().display())
}

fn etcd(cgroup: &Cgroup) -> Result<()> {
    let (clients, peers) = ("http://127.0.0.1:2379", "http://127.0.0.1:2380");
    let arguments = [
        option("name", "cluster"),
        option("data-dir", layout::state().join("etcd")),
        // The data need not survive a crash of the machine.
        option("unsafe-no-fsync", "true"),
        option("log-level", "warn"),
        option("listen-client-urls", clients),
        option("advertise-client-urls", clients),
        option("listen-peer-urls", peers),
        option("initial-advertise-peer-urls", peers),
        option("initial-cluster", format!("cluster={peers}")),
    ];
    serve(cgroup, "etcd", &arguments).map(drop)
}

fn api_server(cgroup: &Cgroup) -> Result<Process> {
    let audit = layout::state().join("audit-policy.yaml");
    fs::write(&audit, AUDIT).context("the audit policy")?;
    let arguments = [
        option("etcd-servers", "http://127.0.0.1:2379"),
        option("secure-port", "6443"),
        option("bind-address", "0.0.0.0"),
        option("advertise-address", layout::CONTROL_PLANE),
        option("client-ca-file", file("ca.crt")),
        option("tls-cert-file", file("apiserver.crt")),
        option("tls-private-key-file", file("apiserver.key")),
        option("authorization-mode", "Node,RBAC"),
        option("enable-admission-plugins", "NodeRestriction"),
        option("service-account-key-file", file("sa.pub")),
        option("service-account-signing-key-file", file("sa.key")),
        option(
            "service-account-issuer",
            "https://kubernetes.default.svc.cluster.local",
        ),
        option("service-cluster-ip-range", layout::SERVICES),
        option("allow-privileged", "true"),
        option(
            "kubelet-client-certificate",
            file("apiserver-kubelet-client.crt"),
        ),
        option("kubelet-client-key", file("apiserver-kubelet-client.key")),
        option("kubelet-certificate-authority", file("ca.crt")),
        option("kubelet-preferred-address-types", "InternalIP"),
        option("requestheader-client-ca-file", file("ca.crt")),
        option("requestheader-allowed-names", "front-proxy-client"),
        option("requestheader-username-headers", "X-Remote-User"),
        option("requestheader-group-headers", "X-Remote-Group"),
        option("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
        option("proxy-client-cert-file", file("front-proxy-client.crt")),
        option("proxy-client-key-file", file("front-proxy-client.key")),
        option("audit-policy-file", audit),
        option("audit-log-path", audit_log()),
        option("audit-log-maxsize", "100"),
    ];
    serve(cgroup, "kube-apiserver", &arguments)
}

/// Options of a control plane component as a client of the API server, and of its own endpoint.
fn as_client(name: &str) -> Vec<String> {
    let config = kubeconfig(name);
    [
        "kubeconfig",
        "authentication-kubeconfig",
        "authorization-kubeconfig",
    ]
    .map(|flag| option(flag, &config))
    .into_iter()
    .chain([
        option("bind-address", "127.0.0.1"),
        option("leader-elect", "false"),
    ])
    .collect()
}

fn controller_manager(cgroup: &Cgroup) -> Result<()> {
    let name = "kube-controller-manager";
    let mut arguments = as_client(name);
    arguments.extend([
        // The default makes scaling slow.
        option("kube-api-qps", "200"),
        option("kube-api-burst", "400"),
        option("use-service-account-credentials", "true"),
        option("allocate-node-cidrs", "true"),
        option("cluster-cidr", layout::PODS),
        option("service-cluster-ip-range", layout::SERVICES),
        option("root-ca-file", file("ca.crt")),
        option("service-account-private-key-file", file("sa.key")),
        option("cluster-signing-cert-file", file("ca.crt")),
        option("cluster-signing-key-file", file("ca.key")),
    ]);
    serve(cgroup, name, &arguments).map(drop)
}

fn scheduler(cgroup: &Cgroup) -> Result<()> {
    let name = "kube-scheduler";
    serve(cgroup, name, &as_client(name)).map(drop)
}
