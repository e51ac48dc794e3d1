//! `cargo xtask cluster`: a real Kubernetes cluster on this machine: etcd, API server, controllers
//! and scheduler in one network namespace, and nodes with their own namespaces, cgroups,
//! containerd, kubelet and kube-proxy. It needs no registry and no service manager and does not
//! change the machine's own network. For tests of the manifests and for experiments.

mod certificates;
mod cgroups;
mod checks;
mod claim;
mod control_plane;
mod images;
mod kubectl;
mod layout;
mod network;
mod node;
mod process;
mod programs;
mod teardown;

use std::{ffi::OsString, fmt, fs};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand, ValueEnum};

use crate::{
    build,
    progress::Step,
    setup::{self, Need},
    terminal::{self, bold, dim, green},
    word,
};

use cgroups::Cgroup;
pub(crate) use checks::{Args as CheckArgs, build_rollouts, run as check};
use claim::{Claim, Lock};
use control_plane::ControlPlane;
use images::Images;
use layout::Node;

/// An arbitrary limit: memory is what runs out.
const MAX_NODES: u8 = 9;

#[derive(Subcommand)]
pub(crate) enum Action {
    /// Start a cluster and leave it running; builds Kubernetes on first use
    Up(Options),
    /// Remove the cluster, or what an interrupted command left of it
    Down,
    /// Run kubectl in the cluster, as administrator
    Kubectl {
        #[arg(last = true, required = true)]
        arguments: Vec<OsString>,
    },
    /// Remove the cluster when standard input is closed
    #[command(hide = true)]
    Watch,
}

/// Options of a cluster.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Number of nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_NODES)))]
    pub(crate) nodes: u8,
    /// The version of Kubernetes
    #[arg(long, value_enum, default_value_t = Kube::V1_37)]
    pub(crate) kube: Kube,
    /// Mode of kube-proxy
    #[arg(long, value_enum, default_value_t = Mode::Iptables)]
    pub(crate) mode: Mode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kube {
    #[value(name = "1.34.4")]
    V1_34,
    #[value(name = "1.37.2")]
    V1_37,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    Iptables,
    Nftables,
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kube, mode) = (word(self.kube), word(self.mode));
        write!(
            f,
            "Kubernetes {kube}, nodes: {}, kube-proxy: {mode}",
            self.nodes
        )
    }
}

pub(crate) fn run(action: &Action) -> Result<()> {
    match action {
        Action::Up(options) => {
            start(*options)?.claim.keep()?;
            show(*options);
            Ok(())
        }
        Action::Down => {
            let _lock = Lock::take()?;
            let traces = teardown::traces()?;
            teardown::remove()?;
            println!(
                "{}",
                if traces.is_empty() {
                    "no cluster is running"
                } else {
                    "removed"
                }
            );
            Ok(())
        }
        Action::Kubectl { arguments } => {
            if layout::running().is_none() {
                bail!("no cluster is running: start one with `cargo xtask cluster up`");
            }
            let status = kubectl::command(arguments).status().context("kubectl")?;
            // kubectl has printed its own error.
            std::process::exit(status.code().unwrap_or(1));
        }
        Action::Watch => claim::watch(),
    }
}

/// A running cluster. It is removed when this is dropped or this process dies, even by SIGKILL.
struct Cluster {
    control_plane: ControlPlane,
    /// The nodes and their pod CIDRs.
    nodes: Vec<(Node, String)>,
    images: Images,
    mode: Mode,
    // The last field: dropping it removes the cluster.
    claim: Claim,
}

impl Cluster {
    /// Kills all of the node's processes at once and starts it again. Its disk is kept; network,
    /// cgroups, `/run` and bpffs are lost.
    fn reboot(&self, node: Node) -> Result<()> {
        Cgroup::make(&node.name())?.destroy()?;
        network::reset(node)?;
        node::clear_state(node)?;
        join(&[node], &self.images)?;
        network::route(&self.nodes)?;
        node::kube_proxy(node, self.mode).map(drop)
    }
}

/// Starts a cluster and waits until it is ready.
fn start(options: Options) -> Result<Cluster> {
    setup::needs_this_kernel()?;
    setup::ensure(&[Need::Kernel, Need::Host, Need::Cluster])?;
    let agent = build::unoptimized()?;
    let lock = Lock::take()?;
    if let Some(last) = layout::running() {
        println!("  replacing the running cluster ({last})");
    }
    terminal::heading(format!("A cluster: {options}"));
    let programs = programs::build(options.kube)?;
    teardown::remove().context("remove the previous cluster")?;
    let claim = Claim::new(lock)?;
    fs::create_dir_all(process::logs()).context("the cluster's folder")?;
    teardown::make_mount_points()?;
    programs::install(&programs)?;
    let nodes: Vec<Node> = (1..=options.nodes).map(Node).collect();
    let images = step("images", || Images::make(&agent))?;
    step("certificates", || certificates::make(&nodes))?;
    step("network", || network::make(&nodes))?;
    let control_plane = step("control plane", ControlPlane::start)?;
    let joined = step("nodes", || {
        let joined = join(&nodes, &images)?;
        network::route(&joined)?;
        for node in &nodes {
            node::kube_proxy(*node, options.mode)?;
        }
        Ok(joined)
    })?;
    step("all ready", || wait_ready(&nodes))?;
    fs::write(layout::description(), options.to_string()).context("describe the cluster")?;
    Ok(Cluster {
        control_plane,
        nodes: joined,
        images,
        mode: options.mode,
        claim,
    })
}

/// Runs one step of the start and shows its progress.
fn step<T>(title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    Step::run(title, |_| work()).with_context(|| title.to_owned())
}

/// Starts all `nodes` in parallel and returns them with their pod CIDRs.
fn join(nodes: &[Node], images: &Images) -> Result<Vec<(Node, String)>> {
    std::thread::scope(|scope| {
        let starts: Vec<_> = nodes
            .iter()
            .map(|&node| (node, scope.spawn(move || node::start(node, images))))
            .collect();
        starts
            .into_iter()
            .map(|(node, start)| match start.join() {
                Ok(pods) => Ok((node, pods.with_context(|| node.name())?)),
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    })
}

fn wait_ready(nodes: &[Node]) -> Result<()> {
    process::wait("the default service account", 60, || {
        kubectl::run("get serviceaccount default").ok()
    })?;
    kubectl::run("wait --for=condition=Ready node --all --timeout=120s")?;
    for node in nodes {
        // kube-proxy is healthy once it has written its rules.
        let get = format!(
            "--server http://{}:10256 get --raw /healthz",
            node.address()
        );
        process::wait(&format!("kube-proxy on {}", node.name()), 90, || {
            kubectl::run(&get).ok()
        })?;
    }
    Ok(())
}

fn show(options: Options) {
    println!("\n{} {options}", green("running:"));
    println!("\n{}", bold("Commands to inspect it"));
    for (command, what) in [
        (
            "cargo xtask cluster kubectl -- get pods -A",
            "run kubectl as administrator",
        ),
        ("cargo xtask cluster down", "remove the cluster"),
    ] {
        println!("  {command:<46} {}", dim(what));
    }
    println!(
        "  {:<46} {}",
        process::logs().display(),
        dim("the servers' logs")
    );
}
