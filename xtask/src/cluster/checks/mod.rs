//! `cargo xtask test cluster`: the manifests of deploy/ in a real Kubernetes cluster. The first
//! checks set up what all others need, so a failure of one of them ends the run; after any other
//! failure the run continues. The cluster is always removed.

mod agents;
mod audit;
mod balance;
mod disruptions;
mod drain;
mod exchange;
mod faults;
mod fleet;
mod policy;
mod replaced;
mod requests;
mod rollouts;
mod scale_out_page;
mod size;
mod traffic;
mod variants;
mod workload;
mod zones;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{Cluster, Options, kubectl, layout, programs, teardown};
use crate::{
    check::{self, CheckReport, Outcome},
    demo::shares::Shares,
    setup::{self, Need},
    terminal, word,
};

pub(crate) use rollouts::build as build_rollouts;

type Check = (&'static str, fn(&mut State) -> Outcome);

/// How many of the checks all others build on.
const FOUNDATION: usize = 5;

/// The first of all.
const FIRST: [Check; 18] = [
    ("an agent on every node", agents::one_per_node),
    ("doctor finds nothing missing", agents::doctor),
    ("a client connects through the ClusterIP", traffic::connects),
    ("dump shows the client's connections", traffic::shown),
    ("new replicas get no connections", traffic::scale_out),
    ("plan chooses what a policy would move", traffic::planned),
    (
        "an edited ConfigMap reaches the agents",
        policy::loaded_soon,
    ),
    ("connections are moved by age and spread", traffic::spread),
    (
        "an invalid policy is rejected, the last stays",
        policy::rejected,
    ),
    (
        "connections are moved by bytes and spread",
        traffic::spread_by_bytes,
    ),
    ("ages survive kill -9 of the agent", faults::killed),
    ("ages survive a rollout of the DaemonSet", faults::rollout),
    ("a pause survives a rollout", faults::paused),
    (
        "a cgroup named like another pod's is not attributed to it",
        faults::lookalike,
    ),
    (
        "a pod recreated under its name is another pod",
        faults::recreated,
    ),
    (
        "without the API server rules by Service stop moving",
        faults::api_server_down,
    ),
    (
        "with the API server back names are fresh at once",
        faults::api_server_back,
    ),
    ("after a node's reboot ages restart", faults::reboot),
];

/// Balance across nodes: only with [`balance::NODES`] or more.
const ACROSS_NODES: [Check; 15] = [
    ("a coordinator leads", balance::coordinators),
    (
        "a scale-out over three nodes is balanced",
        balance::scale_out,
    ),
    ("an agent writes its own report only", balance::forged),
    ("then nothing is moved", requests::at_rest),
    ("scaled to six and back to three", balance::scaled),
    (
        "the standby takes over from the leader",
        balance::taken_over,
    ),
    (
        "without coordinators nothing is moved across nodes",
        balance::without_coordinators,
    ),
    (
        "balance outlasts two minutes without the API server",
        disruptions::api_server_away,
    ),
    (
        "a node that is cut off moves nothing by an old view",
        disruptions::node_cut_off,
    ),
    (
        "balance outlasts the deletion of the definition",
        exchange::definition_lost,
    ),
    (
        "beside an old agent nothing is moved blindly",
        exchange::old_agent,
    ),
    (
        "the API server counts what the intervals say",
        requests::while_balancing,
    ),
    (
        "a zone-aware Service is compared within its zone",
        zones::compared_within,
    ),
    (
        "a Deployment rolled is even and loses no request",
        replaced::rolled,
    ),
    (
        "a node drained leaves all even and loses no request",
        replaced::drained,
    ),
];

/// Only if they are asked for.
const ROLLOUTS: [Check; 1] = [(
    "rollouts with a drain lose no request, by server and client",
    rollouts::table,
)];

/// Likewise, and on three nodes.
const PAGE: [Check; 1] = [(
    "a page of a scale-out, without balance and with it",
    scale_out_page::written,
)];

const LAST: [Check; 16] = [
    ("a rollout with a drain loses no request", drain::rolled),
    ("a scale-in with a drain loses no request", drain::scaled_in),
    (
        "a StatefulSet rolled with a drain loses no request",
        drain::set_rolled,
    ),
    (
        "a drain outlasts the API server's absence",
        drain::api_server_away,
    ),
    ("a drain by hand empties a pod in a dry run", drain::by_hand),
    (
        "a drain after a flip of the selector loses no request",
        drain::flipped,
    ),
    (
        "without another endpoint a drain moves nothing",
        drain::nowhere_to_go,
    ),
    ("a pod deleted at once has no drain", drain::deleted_at_once),
    ("kubectl rebalancer asks all nodes", fleet::asked),
    ("an annotation pauses all nodes", fleet::paused),
    ("1,000 pods in the API", size::many_pods),
    ("least privilege moves and dumps", variants::least_privilege),
    (
        "the read-only overlay dumps and moves nothing",
        variants::read_only,
    ),
    (
        "every manifest passes a server-side dry run",
        variants::dry_run,
    ),
    ("the role grants exactly what the agent uses", audit::role),
    (
        "uninstalling leaves nothing in the kernel",
        variants::uninstalled,
    ),
];

/// The checks of a cluster with so many nodes that `only` selects, if it selects any.
fn checks(nodes: usize, only: &[String], rollouts: u32, page: bool) -> Result<Vec<Check>> {
    let across: &[Check] = if nodes < balance::NODES {
        println!(
            "  balance across nodes is not checked: it takes --nodes {}",
            balance::NODES
        );
        &[]
    } else {
        &ACROSS_NODES
    };
    let (foundation, first) = FIRST.split_at(FOUNDATION);
    let rollouts = if rollouts == 0 { &[][..] } else { &ROLLOUTS };
    ensure!(
        !page || nodes >= balance::NODES,
        "--page takes --nodes {}",
        balance::NODES
    );
    let page = if page { &PAGE } else { &[][..] };
    let mut others = [first, across, page, rollouts, &LAST].concat();
    if !only.is_empty() {
        let is_meant = |name: &str| only.iter().any(|text| name.contains(text.as_str()));
        others.retain(|(name, _)| is_meant(name));
        let any = foundation
            .iter()
            .chain(&others)
            .any(|(name, _)| is_meant(name));
        ensure!(any, "no check's name contains {}", only.join(" or "));
    }
    Ok([foundation, &others].concat())
}

/// What the checks pass on to each other.
struct State {
    cluster: Cluster,
    /// The pods of the Service.
    web: Vec<String>,
    /// The distribution of connections before moves.
    before: Option<Shares>,
    /// Requests that had failed before all connections were established.
    refused: u64,
    /// Accept time of each connection before the current disruption.
    opened: BTreeMap<String, u64>,
    /// How long nothing may be moved once all is balanced.
    rest: Duration,
    /// How often servers are rolled without a drain and with one.
    rollouts: u32,
    /// The file of the page that shows a scale-out.
    page: Option<PathBuf>,
}

impl State {
    fn nodes(&self) -> impl Iterator<Item = String> {
        self.cluster.nodes.iter().map(|(node, _)| node.name())
    }
}

/// Options of the checks.
#[derive(Clone, clap::Args)]
#[group(id = "cluster-suite")]
pub(crate) struct Args {
    /// Skip the suite with a message if Kubernetes has not been built yet
    #[arg(long)]
    if_built: bool,
    /// Run only the checks whose names contain TEXT, and the first five, which all others need; may be
    /// repeated. Some need others before them: `coordinator` for all balance across nodes
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// How long nothing may be moved once all is balanced, such as 10m
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = time)]
    rest: Duration,
    /// Roll servers of five kinds so many times without a drain and with one, under clients of six, and print
    /// what fails: about a minute each time, beside other checks only if --only selects `rollouts`
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    rollouts: u32,
    /// Write a page that shows a scale-out over three nodes, second by second, without balance and with it
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

/// Seconds or minutes: `90s`, `10m`.
fn time(text: &str) -> Result<Duration> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(number) => (number, 60),
        None => (text.strip_suffix('s').context("neither s nor m")?, 1),
    };
    let number: u64 = number.parse().context("not a whole number")?;
    Ok(Duration::from_secs(number * unit))
}

pub(crate) fn run(
    Args {
        if_built,
        only,
        rest,
        rollouts,
        page,
        options,
    }: Args,
) -> Result<()> {
    let checks = checks(options.nodes.into(), &only, rollouts, page.is_some())?;
    if if_built && !programs::is_built(options.kube)? {
        println!(
            "skipped: Kubernetes {} is not built on this machine.\n\
             `cargo xtask test cluster` builds it in about ten minutes of CPU and runs the checks.",
            word(options.kube)
        );
        return Ok(());
    }
    if rollouts > 0 {
        setup::ensure(&[Need::Rollouts])?;
    }
    let started = Instant::now();
    let cluster = super::start(options)?;
    let up = started.elapsed();
    let mut run = 0;
    let mut state = State {
        cluster,
        web: Vec::new(),
        before: None,
        refused: 0,
        opened: BTreeMap::new(),
        rest,
        rollouts,
        page,
    };
    terminal::heading("Checks");
    let mut results = vec![CheckReport::new(
        "the cluster starts",
        up,
        Ok(String::new()),
    )];
    for (name, check) in &checks {
        let result = CheckReport::run(name, || check(&mut state));
        let failed = result.has_failed();
        results.push(result);
        run += 1;
        if failed {
            show_diagnostics();
            if run <= FOUNDATION {
                break;
            }
        }
    }
    results.push(CheckReport::run("down leaves nothing behind", || {
        drop(state);
        assert_nothing_left()
    }));
    results.extend(checks.iter().skip(run).map(|(name, _)| {
        let outcome = Err(anyhow!("not run"));
        CheckReport::new(name, Duration::ZERO, outcome)
    }));
    check::summarize(&format!("Summary: {options}"), &results)
}

/// Prints the state of the cluster after a failure, before it is removed.
fn show_diagnostics() {
    for arguments in [
        "get pods -A -o wide",
        "get events -A --sort-by=.lastTimestamp",
        "-n rebalancer logs -l app.kubernetes.io/name=rebalancer --tail=20 --prefix",
        "-n rebalancer exec ds/rebalancer -- rebalancer status",
    ] {
        match kubectl::run(arguments) {
            Ok(text) => eprintln!("{}", end_of(&text)),
            Err(error) => eprintln!("{error:#}"),
        }
    }
}

/// The last lines: there may be a thousand pods.
fn end_of(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

fn assert_nothing_left() -> Outcome {
    let mut traces = teardown::traces()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("mountinfo")?;
    let ours = mounts.lines().filter(|line| line.contains(layout::NAME));
    traces.extend(ours.map(|line| format!("mount {line}")));
    ensure!(traces.is_empty(), "left behind: {}", traces.join(", "));
    Ok(String::new())
}
