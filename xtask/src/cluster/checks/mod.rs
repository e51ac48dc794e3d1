//! `cargo xtask test cluster`: the manifests of deploy/ in a real Kubernetes. The checks tell one
//! story, so the first that fails is the last; whatever happens, the cluster is removed.

mod agents;
mod audit;
mod faults;
mod policy;
mod size;
mod traffic;
mod variants;
mod workload;

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Cluster, Options, kubectl, layout, programs, teardown};
use crate::{
    check::{CheckReport, Outcome},
    demo::shares::Shares,
    terminal,
};

type Check = (&'static str, fn(&mut Story) -> Outcome);

/// The width of the names.
const NAMES: usize = 52;

const CHECKS: [Check; 24] = [
    ("an agent on every node", agents::run),
    ("its doctor finds nothing missing", agents::doctor),
    (
        "a client's connections through the ClusterIP",
        traffic::connects,
    ),
    ("kubectl exec … rebalancer dump shows them", traffic::shown),
    ("two more replicas get nothing", traffic::scale_out),
    ("the plan says what DryRun would move", traffic::planned),
    ("an edited ConfigMap reaches the agents", policy::arrives),
    (
        "connections move by age, and spread",
        traffic::spread_by_age,
    ),
    (
        "a broken policy is refused, the last stays",
        policy::refused,
    ),
    (
        "connections move by bytes, and spread",
        traffic::spread_by_bytes,
    ),
    ("ages survive kill -9 of the agent", faults::killed),
    ("ages survive a rollout of the DaemonSet", faults::rollout),
    ("paused means paused, also after a rollout", faults::paused),
    (
        "a cgroup named like another pod is not taken for it",
        faults::lookalike,
    ),
    (
        "a pod made again under its name has its own names",
        faults::made_again,
    ),
    (
        "without an API server the last names stay",
        faults::api_server_down,
    ),
    (
        "with it again names are right at once",
        faults::api_server_back,
    ),
    ("after a node's reboot ages begin anew", faults::reboot),
    ("1,000 pods in the API", size::many_pods),
    (
        "least privilege moves and dumps as well",
        variants::least_privilege,
    ),
    (
        "the read-only overlay dumps, and moves nothing",
        variants::read_only,
    ),
    (
        "every manifest passes a server-side dry run",
        variants::dry_run,
    ),
    (
        "what the agent asked for is what its role grants",
        audit::role,
    ),
    (
        "uninstalled, nothing is left in the kernel",
        variants::uninstalled,
    ),
];

struct Story {
    cluster: Cluster,
    web: Vec<String>,
    before: Option<Shares>,
    /// Requests that had failed when all connections were there.
    refused: u64,
    /// When each connection was accepted, before what is under way.
    alive: BTreeMap<String, u64>,
}

impl Story {
    fn nodes(&self) -> impl Iterator<Item = String> {
        self.cluster.nodes.iter().map(|(node, _)| node.name())
    }
}

/// How to check.
#[derive(Clone, Copy, clap::Args)]
pub(crate) struct Checking {
    /// Do nothing, and say so, where Kubernetes has not been built yet
    #[arg(long)]
    if_built: bool,
    #[command(flatten)]
    options: Options,
}

pub(crate) fn run(Checking { if_built, options }: Checking) -> Result<()> {
    if if_built && !programs::is_built(options.kube)? {
        println!(
            "Kubernetes {} is not built on this machine: its checks are left out.\n\
             `cargo xtask test cluster` builds it, in some ten minutes of CPU, and runs them.",
            options.kube
        );
        return Ok(());
    }
    let started = Instant::now();
    let cluster = super::start(options)?;
    let up = started.elapsed();
    let mut story = Story {
        cluster,
        web: Vec::new(),
        before: None,
        refused: 0,
        alive: BTreeMap::new(),
    };
    terminal::heading("Checks");
    let mut results = vec![CheckReport::new(
        "the cluster comes up",
        up,
        Ok(String::new()),
    )];
    for (name, check) in CHECKS {
        let result = CheckReport::run(name, || check(&mut story));
        let failed = result.has_failed();
        results.push(result);
        if failed {
            show_what_happened();
            break;
        }
    }
    results.push(CheckReport::run("down leaves nothing", || {
        drop(story);
        nothing_left()
    }));
    summarize(options, &results)
}

fn summarize(options: Options, results: &[CheckReport]) -> Result<()> {
    terminal::heading(format!(
        "Summary: Kubernetes {}, nodes: {}, kube-proxy: {}",
        options.kube, options.nodes, options.mode
    ));
    for result in results {
        result.summarize(NAMES);
    }
    for (name, _) in CHECKS.iter().skip(results.len().saturating_sub(2)) {
        terminal::check(false, &format!("{name:<NAMES$}"), "not run");
    }
    if results.iter().any(CheckReport::has_failed) {
        bail!("the cluster's checks failed");
    }
    Ok(())
}

/// For whoever reads a failure: the cluster is about to go.
fn show_what_happened() {
    for arguments in [
        &["get", "pods", "-A", "-o", "wide"][..],
        &["get", "events", "-A", "--sort-by=.lastTimestamp"],
        &[
            "-n",
            "rebalancer",
            "logs",
            "-l",
            "app.kubernetes.io/name=rebalancer",
            "--tail=20",
            "--prefix",
        ],
        &[
            "-n",
            "rebalancer",
            "exec",
            "ds/rebalancer",
            "--",
            "rebalancer",
            "status",
        ],
    ] {
        match kubectl::output(arguments) {
            Ok(text) => eprintln!("{}", end_of(&text)),
            Err(error) => eprintln!("{error:#}"),
        }
    }
}

/// The last lines: a thousand pods may be among them.
fn end_of(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

fn nothing_left() -> Outcome {
    let mut traces = teardown::traces()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("mountinfo")?;
    let ours = mounts.lines().filter(|line| line.contains(layout::NAME));
    traces.extend(ours.map(|line| format!("mount {line}")));
    ensure!(traces.is_empty(), "left: {}", traces.join(", "));
    Ok(String::new())
}
