//! One node: containerd, kubelet and kube-proxy in their own network, mount, UTS, cgroup and PID
//! namespaces. Its cgroups, `/proc` and bpffs show this node only.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use fs_err as fs;
use xtask::process::Process;

use super::{
    Mode,
    certificates::{file, kubeconfig},
    cgroups::{Cgroup, Hierarchy},
    images::{self, Images},
    kubectl,
    layout::{self, Node},
    process::{self, in_namespace, output, program},
};
use crate::word;

/// How long one of its servers may take until it is ready.
const PATIENCE: Duration = Duration::from_secs(90);
const SETUP: &str = include_str!("node.sh");

/// Values that the kubelet requires of machine-wide sysctls.
const SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Starts a node up to the kubelet and returns its pod CIDR.
pub(super) fn start(node: Node, images: &Images) -> Result<String> {
    write_files(node)?;
    enter_namespaces(node, images)?;
    let cgroup = system(node)?;
    containerd(node, &cgroup)?;
    for image in images.all() {
        let import = ["-n", "k8s.io", "images", "import"].map(Path::new);
        let mut ctr = inside(node, "ctr")?;
        output(ctr.args(import).arg(image)).context("import an image")?;
    }
    let mut kubelet = kubelet(node, &cgroup)?;
    let pods = kubelet.wait(
        &format!("registration of {}", node.name()),
        PATIENCE,
        || {
            let get = format!("get node {} -o jsonpath={{.spec.podCIDR}}", node.name());
            let cidr = kubectl::run(&get).ok()?;
            (!cidr.is_empty()).then_some(cidr)
        },
    )?;
    connect_pods(node, &pods)?;
    Ok(pods)
}

/// Removes the files that mark the node as started.
pub(super) fn clear_state(node: Node) -> Result<()> {
    for file in ["ready", "init"] {
        let path = node.folder().join(file);
        fs::remove_file(&path)?;
    }
    Ok(())
}

/// A command in the node's namespaces.
pub(super) fn inside(node: Node, program: impl AsRef<Path>) -> Result<Command> {
    let first = fs::read_to_string(node.folder().join("init")).context("the node's PID 1")?;
    let mut command = Command::new("nsenter");
    command.args(["-t", first.trim(), "-m", "-u", "-n", "-C", "-p"]);
    command.arg(program.as_ref());
    // containerd runs runc, and kube-proxy runs iptables and nft, which are in sbin.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    Ok(command)
}

/// The cgroup of the node's system processes.
fn system(node: Node) -> Result<Cgroup> {
    Cgroup::make(&format!("{}/system", node.name()))
}

fn write_files(node: Node) -> Result<()> {
    let folder = node.folder();
    for part in [
        "containerd",
        "kubelet",
        "cni",
        "cni-conf",
        "pods",
        "containers",
    ] {
        fs::create_dir_all(folder.join(part))?;
    }
    let hierarchies: String = Hierarchy::all()?
        .iter()
        .map(Hierarchy::mount_line)
        .collect();
    fs::write(folder.join("hierarchies"), &hierarchies)?;
    for (name, value) in SYSCTLS {
        let path = folder.join("sysctl").join(name);
        fs::create_dir_all(path.parent().context("a setting's folder")?)?;
        fs::write(path, format!("{value}\n"))?;
    }
    fs::write(folder.join("resolv.conf"), "")?;
    fs::write(folder.join("containerd.toml"), CONTAINERD)?;
    fs::write(folder.join("kubelet.yaml"), kubelet_configuration(node))?;
    Ok(())
}

fn enter_namespaces(node: Node, images: &Images) -> Result<()> {
    let name = node.name();
    // The cgroup in which a cgroup namespace is created becomes its root.
    let cgroup = Cgroup::make(&name)?;
    let mut unshare = in_namespace(&name, "unshare");
    unshare.args([
        "--mount",
        "--uts",
        "--cgroup",
        "--pid",
        "--fork",
        "--kill-child",
    ]);
    unshare.args(["--propagation", "private", "sh", "-c", SETUP, "node"]);
    unshare
        .arg(node.folder())
        .arg(&name)
        .arg(&images.pause_program);
    let mut server = process::start(&format!("{name}-init"), &cgroup, &mut unshare)?;
    let ready = node.folder().join("ready");
    server.wait("the node's namespaces", PATIENCE, || {
        ready.exists().then_some(())
    })?;
    let outer = server.id();
    let children = format!("/proc/{outer}/task/{outer}/children");
    let children = fs::read_to_string(&children).context(children)?;
    let first: u32 = children.trim().parse().context("the node's PID 1")?;
    fs::write(node.folder().join("init"), first.to_string())?;
    // On cgroup v2 a cgroup with processes cannot enable controllers for its children.
    let system = system(node)?;
    system.add(first)?;
    system.add(outer)
}

const CONTAINERD: &str = include_str!("../../cluster/containerd.toml");

fn containerd(node: Node, cgroup: &Cgroup) -> Result<()> {
    debug_assert!(CONTAINERD.contains(images::PAUSE));
    let mut command = inside(node, "containerd")?;
    command
        .arg("--config")
        .arg(node.folder().join("containerd.toml"));
    let mut server = process::start(&format!("{}-containerd", node.name()), cgroup, &mut command)?;
    server.wait("containerd", PATIENCE, || {
        let mut ctr = inside(node, "ctr").ok()?;
        output(ctr.arg("version")).ok()
    })?;
    Ok(())
}

fn kubelet_configuration(node: Node) -> String {
    let name = node.name();
    format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 0.0.0.0
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: {ca}}}}}
authorization: {{mode: Webhook}}
tlsCertFile: {certificate}
tlsPrivateKeyFile: {key}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
oomScoreAdj: 0
maxOpenFiles: 20000
resolvConf: {resolv}
clusterDomain: cluster.local
nodeStatusUpdateFrequency: 5s
# How soon the volume follows its ConfigMap; a minute by default.
syncFrequency: 5s
# Never evict because of the machine's disk and memory.
evictionHard: {{memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%"}}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
"#,
        ca = file("ca.crt").display(),
        certificate = file(&format!("{name}.crt")).display(),
        key = file(&format!("{name}.key")).display(),
        resolv = node.folder().join("resolv.conf").display(),
    )
}

fn kubelet(node: Node, cgroup: &Cgroup) -> Result<Process> {
    let name = node.name();
    let mut command = inside(node, program("kubelet"))?;
    command
        .arg("--config")
        .arg(node.folder().join("kubelet.yaml"))
        .arg("--kubeconfig")
        .arg(kubeconfig(&name))
        .args(["--hostname-override", &name, "--node-ip", &node.address()]);
    process::start(&format!("{name}-kubelet"), cgroup, &mut command)
}

/// Writes the CNI configuration. Written in place: containerd 1.6 does not notice a file that is
/// renamed into the folder, and the node would never become ready.
fn connect_pods(node: Node, pods: &str) -> Result<()> {
    let configuration = format!(
        r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
    "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "{pods}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
  {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}
"#
    );
    fs::write(
        node.folder().join("cni-conf/10-pods.conflist"),
        configuration,
    )?;
    Ok(())
}

pub(super) fn kube_proxy(node: Node, mode: Mode) -> Result<Process> {
    let name = node.name();
    let configuration = format!(
        "\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: {mode}
hostnameOverride: {name}
clientConnection: {{kubeconfig: '{kubeconfig}'}}
clusterCIDR: {pods}
detectLocalMode: ClusterCIDR
metricsBindAddress: 127.0.0.1:10249
healthzBindAddress: 0.0.0.0:10256
# Zero: keep the machine's settings.
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
iptables: {{minSyncPeriod: 100ms}}
nftables: {{minSyncPeriod: 100ms}}
",
        mode = word(mode),
        kubeconfig = kubeconfig("kube-proxy").display(),
        pods = layout::PODS,
    );
    let path = node.folder().join("kube-proxy.yaml");
    fs::write(&path, configuration)?;
    let mut command = inside(node, program("kube-proxy"))?;
    command.arg("--config").arg(path);
    process::start(&format!("{name}-kube-proxy"), &system(node)?, &mut command)
}
