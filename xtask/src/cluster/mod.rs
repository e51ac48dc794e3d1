//! `cargo xtask cluster`: a real Kubernetes on this machine alone: etcd, API server, controllers
//! and scheduler in one network namespace, and nodes that each have namespaces, cgroups,
//! containerd, kubelet and kube-proxy of their own. No registry, no service manager, nothing in
//! the machine's own network. For the manifests' tests and for playing.

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
};

use cgroups::Cgroup;
pub(crate) use checks::{Checking, run as check};
use claim::{Claim, Turn};
use control_plane::ControlPlane;
use images::Images;
use layout::{Description, Node};

/// The cgroup namespaces hold a few; this machine's memory is the limit.
const MOST_NODES: u8 = 9;

#[derive(Subcommand)]
pub(crate) enum Action {
    /// Bring a cluster up and leave it up; the first time its programs are built
    Up(Options),
    /// Remove the cluster, also what an interrupted command left of one
    Down,
    /// kubectl in the cluster, as its administrator
    Kubectl {
        #[arg(last = true, required = true)]
        arguments: Vec<OsString>,
    },
    /// Removes the cluster when the input ends
    #[command(hide = true)]
    Watch,
}

/// What a cluster shall have.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Options {
    /// How many nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_NODES)))]
    pub(crate) nodes: u8,
    /// The version of Kubernetes
    #[arg(long, value_enum, default_value_t = Kube::V1_37)]
    pub(crate) kube: Kube,
    /// How kube-proxy does it
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

impl Kube {
    fn minor(self) -> u32 {
        match self {
            Self::V1_34 => 34,
            Self::V1_37 => 37,
        }
    }
}

impl fmt::Display for Kube {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1_34 => "1.34.4",
            Self::V1_37 => "1.37.2",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    Iptables,
    Nftables,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
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
            let _turn = Turn::take()?;
            let traces = teardown::traces()?;
            teardown::remove()?;
            println!(
                "{}",
                if traces.is_empty() {
                    "no cluster is up"
                } else {
                    "removed"
                }
            );
            Ok(())
        }
        Action::Kubectl { arguments } => {
            if Description::read().is_none() {
                bail!("no cluster is up: cargo xtask cluster up");
            }
            let status = kubectl::command(arguments).status().context("kubectl")?;
            // Its own complaint was enough.
            std::process::exit(status.code().unwrap_or(1));
        }
        Action::Watch => claim::watch(),
    }
}

/// A cluster that is up. It ends when this is dropped, or with this process, whatever the cause.
struct Cluster {
    control_plane: ControlPlane,
    /// With the range of their pods' addresses.
    nodes: Vec<(Node, String)>,
    images: Images,
    mode: Mode,
    // Last: whatever the others still hold of it, it is removed.
    claim: Claim,
}

impl Cluster {
    /// Ends all of the node's processes at once and starts it anew. What is on its disk stays;
    /// its memory is lost: network, cgroups, `/run` and BPF file system.
    fn reboot(&self, node: Node) -> Result<()> {
        Cgroup::make(&node.name())?.end()?;
        network::renew(node)?;
        node::forget(node)?;
        join(&[node], &self.images)?;
        network::route(&self.nodes)?;
        node::kube_proxy(node, self.mode).map(drop)
    }
}

/// Brings a cluster up and waits until it is ready.
fn start(options: Options) -> Result<Cluster> {
    setup::needs_this_kernel()?;
    setup::ensure(&[Need::Kernel, Need::Host, Need::Cluster])?;
    let agent = build::agent()?;
    let turn = Turn::take()?;
    if let Some(last) = Description::read() {
        println!(
            "  the cluster that is up (Kubernetes {}) is replaced",
            last.kube
        );
    }
    terminal::heading(format!(
        "A cluster: Kubernetes {}, nodes: {}, kube-proxy: {}",
        options.kube, options.nodes, options.mode
    ));
    let programs = programs::build(options.kube)?;
    teardown::remove().context("remove what is left of another cluster")?;
    let claim = Claim::of(turn)?;
    fs::create_dir_all(process::logs()).context("the cluster's folder")?;
    teardown::make_mount_points()?;
    programs::place(&programs)?;
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
    step("all ready", || settle(&nodes))?;
    Description::of(options).write()?;
    Ok(Cluster {
        control_plane,
        nodes: joined,
        images,
        mode: options.mode,
        claim,
    })
}

/// One step of bringing a cluster up, shown.
fn step<T>(title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let step = Step::start(title);
    match work() {
        Ok(done) => {
            step.done();
            Ok(done)
        }
        Err(error) => {
            step.failed();
            Err(error).with_context(|| title.to_owned())
        }
    }
}

/// Starts all of `nodes` at once; with the range of their pods' addresses.
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

fn settle(nodes: &[Node]) -> Result<()> {
    process::wait("the default service account", 60, || {
        kubectl::output(&["get", "serviceaccount", "default"]).ok()
    })?;
    let ready = [
        "wait",
        "--for=condition=Ready",
        "node",
        "--all",
        "--timeout=120s",
    ];
    kubectl::output(&ready)?;
    for node in nodes {
        // Its health port answers once it has written its rules; until then with an error.
        let server = format!("http://{}:10256", node.address());
        let ask = ["--server", &server, "get", "--raw", "/healthz"];
        process::wait(&format!("kube-proxy on {}", node.name()), 90, || {
            kubectl::output(&ask).ok()
        })?;
    }
    Ok(())
}

fn show(options: Options) {
    println!("\n{} Kubernetes {}", green("up:"), options.kube);
    println!("\n{}", bold("Look into it"));
    for (command, what) in [
        (
            "cargo xtask cluster kubectl -- get pods -A",
            "kubectl, as administrator",
        ),
        ("cargo xtask cluster down", "remove it all"),
    ] {
        println!("  {command:<46} {}", dim(what));
    }
    println!(
        "  {:<46} {}",
        process::logs().display(),
        dim("the servers' logs")
    );
}
