//! `cargo xtask test cluster`: the manifests of deploy/ in a real Kubernetes. The checks tell one
//! story, so the first that fails is the last; whatever happens, the cluster is removed.

mod workload;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{Options, cgroups::Hierarchy, kubectl, places, process, teardown};
use crate::{
    demo::{policies::Policy, shares::Shares},
    paced::Report,
    progress::Step,
    root, terminal,
};

const CONNECTIONS: u64 = 60;
const AGENT: [&str; 2] = ["-n", "rebalancer"];
/// The kubelet's sync and its cache, then what the agent needs; both with room for a busy machine.
const CONFIG_MAP_SECONDS: u64 = 60;

/// What a check found, in a few words.
type Found = Result<String>;
type Check = (&'static str, fn(&mut Story) -> Found);

const CHECKS: [Check; 6] = [
    ("an agent on every node", agents_run),
    (
        "a client's connections through the ClusterIP",
        client_connects,
    ),
    ("kubectl exec … rebalancer dump shows them", dump_shows),
    ("two more replicas get nothing", scale_out),
    ("an edited ConfigMap reaches the agents", policy_arrives),
    ("connections move and spread", connections_spread),
];

struct Story {
    nodes: u8,
    web: Vec<String>,
    before: Option<Shares>,
    /// Requests that had failed when all connections were there.
    refused: u64,
}

pub(crate) fn run(options: Options) -> Result<()> {
    let started = Instant::now();
    let cluster = super::start(options)?;
    let up = started.elapsed();
    let mut story = Story {
        nodes: options.nodes,
        web: Vec::new(),
        before: None,
        refused: 0,
    };
    terminal::heading("Checks");
    let mut results = vec![("the cluster comes up", up, Ok(String::new()))];
    for (name, check) in CHECKS {
        let result = timed(name, || check(&mut story));
        let failed = result.2.is_err();
        results.push(result);
        if failed {
            show_what_happened();
            break;
        }
    }
    results.push(timed("down leaves nothing", || {
        drop(cluster);
        nothing_left()
    }));
    summarize(options, &results)
}

type Outcome = (&'static str, Duration, Found);

fn timed(name: &'static str, work: impl FnOnce() -> Found) -> Outcome {
    let step = Step::start(name);
    let started = Instant::now();
    let found = work();
    match &found {
        Ok(_) => step.done(),
        Err(error) => {
            step.failed();
            eprintln!("{error:#}");
        }
    }
    (name, started.elapsed(), found)
}

fn summarize(options: Options, results: &[Outcome]) -> Result<()> {
    terminal::heading(format!(
        "Summary: Kubernetes {}, nodes: {}, kube-proxy: {}",
        options.kube, options.nodes, options.mode
    ));
    for (name, time, found) in results {
        let (there, text) = match found {
            Ok(text) => (true, text.clone()),
            Err(error) => (false, error.to_string()),
        };
        let text = format!("{:>6.1} s  {text}", time.as_secs_f64());
        terminal::check(there, &format!("{name:<46}"), text.trim_end());
    }
    for (name, _) in CHECKS.iter().skip(results.len().saturating_sub(2)) {
        terminal::check(false, &format!("{name:<46}"), "not run");
    }
    if results.iter().any(|(.., found)| found.is_err()) {
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
        ],
    ] {
        match kubectl::output(arguments) {
            Ok(text) => eprintln!("{text}"),
            Err(error) => eprintln!("{error:#}"),
        }
    }
}

/// Where a node mounts cgroup v2.
fn cgroup() -> Result<String> {
    let hierarchies = Hierarchy::all()?;
    let v2 = hierarchies.iter().find(|hierarchy| hierarchy.is_v2());
    Ok(v2.context("cgroup v2")?.mount().display().to_string())
}

/// The overlay for nodes in cgroup namespaces, as this cluster's are.
fn overlay() -> Result<PathBuf> {
    let name = match cgroup()?.as_str() {
        "/sys/fs/cgroup" => "private-cgroup",
        "/sys/fs/cgroup/unified" => "private-cgroup-hybrid",
        other => bail!("deploy/ has no overlay for cgroup v2 at {other}"),
    };
    Ok(root().join("deploy/overlays").join(name))
}

fn agents_run(story: &mut Story) -> Found {
    let overlay = overlay()?;
    let overlay = overlay.to_str().context("the overlay's path is UTF-8")?;
    kubectl::output(&["apply", "-k", overlay])?;
    let status = ["rollout", "status", "ds/rebalancer", "--timeout=120s"];
    kubectl::output(&[&AGENT[..], &status].concat())?;
    let agents = agents()?;
    let nodes: BTreeSet<&str> = agents.iter().map(|agent| agent.node.as_str()).collect();
    ensure!(
        nodes.len() == usize::from(story.nodes) && agents.len() == nodes.len(),
        "agents on {nodes:?}, for {} nodes",
        story.nodes
    );
    Ok(format!("{} of {} ready", agents.len(), story.nodes))
}

struct Agent {
    pod: String,
    node: String,
}

fn agents() -> Result<Vec<Agent>> {
    let get = [
        "get",
        "pods",
        "-l",
        "app.kubernetes.io/name=rebalancer",
        "-o",
        "json",
    ];
    let list: Value = serde_json::from_str(&kubectl::output(&[&AGENT[..], &get].concat())?)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pods = list["items"].as_array().context("a list of pods")?;
    Ok(pods
        .iter()
        .map(|pod| Agent {
            pod: text(&pod["metadata"]["name"]),
            node: text(&pod["spec"]["nodeName"]),
        })
        .collect())
}

/// `rebalancer …` in an agent's container.
fn exec(target: &str, arguments: &[&str]) -> Result<String> {
    let exec = ["exec", target, "--", "rebalancer"];
    kubectl::output(&[&AGENT[..], &exec, arguments].concat())
}

fn client_connects(story: &mut Story) -> Found {
    kubectl::apply(workload::MANIFEST)?;
    story.web = workload::ready(1)?;
    let report = process::wait("the client's connections", 90, || {
        let report = workload::report().ok()?;
        (report.placed() == CONNECTIONS).then_some(report)
    })?;
    // Before the first replica was an endpoint the Service refused them.
    story.refused = report.errors;
    Ok(format!("{CONNECTIONS} at {}", story.web.join(", ")))
}

/// Each connection of the client's, once, on the node of the pod that serves it.
fn dump_shows(story: &mut Story) -> Found {
    let table = exec("ds/rebalancer", &["dump"])?;
    ensure!(
        table.contains("PEER") || table.contains("REMOTE"),
        "no table: {table}"
    );
    let (client, web) = (
        workload::address("client")?,
        workload::address(&story.web[0])?,
    );
    let mut seen = 0;
    let mut on = Vec::new();
    for agent in agents()? {
        let dump: Value = serde_json::from_str(&exec(&agent.pod, &["dump", "-o", "json"])?)?;
        let items = dump["items"].as_array().context("a list of connections")?;
        let from = |item: &&Value, field: &str, address: &str| {
            let socket = item[field].as_str().unwrap_or_default();
            socket.rsplit_once(':').is_some_and(|(ip, _)| {
                ip.trim_matches(['[', ']']).trim_start_matches("::ffff:") == address
            })
        };
        let of_web = || {
            let of_web = |item: &&Value| from(item, "peer", &client) && from(item, "local", &web);
            items.iter().filter(of_web)
        };
        for item in of_web() {
            let names = (&item["namespace"], &item["pod"], &item["services"]);
            let expected = (
                &Value::from("default"),
                &Value::from(story.web[0].as_str()),
                &serde_json::json!(["web"]),
            );
            ensure!(names == expected, "{names:?} instead of {expected:?}");
        }
        let count = of_web().count();
        if count > 0 {
            on.push(agent.node);
        }
        seen += count as u64;
    }
    ensure!(
        seen == CONNECTIONS,
        "{seen} of {CONNECTIONS} from {client} to {web}"
    );
    ensure!(on.len() == 1, "shown on {on:?}");
    Ok(format!("{seen} on {}", on.join(", ")))
}

fn scale_out(story: &mut Story) -> Found {
    kubectl::output(&["scale", "deploy/web", "--replicas=3"])?;
    story.web = workload::ready(3)?;
    // Time in which something could move: the policy is the base's DryRun.
    std::thread::sleep(Duration::from_secs(5));
    let report = workload::report()?;
    let shares = shares(&story.web, &report);
    let line = shares.line();
    ensure!(
        report.connections.len() == 1 && report.placed() == CONNECTIONS,
        "{line}"
    );
    story.before = Some(shares);
    Ok(line)
}

/// By the pods' own part of their names.
fn shares(pods: &[String], report: &Report) -> Shares {
    Shares::new(pods.iter().map(|pod| {
        let name = pod.rsplit('-').next().unwrap_or(pod);
        (
            name.to_owned(),
            report.connections.get(pod).copied().unwrap_or(0),
        )
    }))
}

fn policy_arrives(_: &mut Story) -> Found {
    let policy = Policy {
        rule: "moved-in-the-cluster",
        limit: "maxAge: 8s",
        client_subnet: places::PODS,
    };
    let file = places::state().join("policy.yaml");
    // By the Service's name, as its kube-proxy balances it.
    let text = policy
        .enforce()
        .replace("ports: [{port: 80}]", "services: [default/web]");
    ensure!(
        text.contains("default/web"),
        "a policy without ports: {text}"
    );
    std::fs::write(&file, text).context("the policy")?;
    let from = format!("--from-file=policy.yaml={}", file.display());
    let create = [
        "create",
        "configmap",
        "rebalancer-policy",
        "--dry-run=client",
        "-o",
        "yaml",
    ];
    let manifest = kubectl::output(&[&AGENT[..], &create, &[from.as_str()]].concat())?;
    kubectl::apply(&manifest)?;
    let started = Instant::now();
    let agents = agents()?;
    process::wait("the volume's new content", CONFIG_MAP_SECONDS, || {
        let explain = ["policy", "explain", "/etc/rebalancer/policy.yaml"];
        let has =
            |agent: &Agent| exec(&agent.pod, &explain).is_ok_and(|text| text.contains(policy.rule));
        agents.iter().all(has).then_some(())
    })?;
    Ok(format!(
        "in every volume after {:.0} s",
        started.elapsed().as_secs_f64()
    ))
}

fn connections_spread(story: &mut Story) -> Found {
    let mut last = None;
    let spread = process::wait("spread connections", 120, || {
        let report = workload::report().ok()?;
        let shares = shares(&story.web, &report);
        let spread = shares.is_spread();
        last = Some(shares.line());
        (spread && report.placed() == CONNECTIONS).then_some((shares, report))
    });
    let (shares, report) = spread.with_context(|| last.unwrap_or_default())?;
    if let Some(before) = &story.before {
        print!("{}", before.beside(&shares));
    }
    let answers: u64 = report.answers.values().sum();
    let failed = report.errors - story.refused;
    // A quiet moment is no proof, but most clients find a reset before their next request.
    ensure!(
        failed * 100 <= answers,
        "{failed} of {answers} requests failed: {:?}",
        report.last_error
    );
    Ok(format!(
        "{}; {failed} of {answers} requests failed",
        shares.line()
    ))
}

fn nothing_left() -> Found {
    let mut traces = teardown::traces()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("mountinfo")?;
    let ours = mounts.lines().filter(|line| line.contains(places::NAME));
    traces.extend(ours.map(|line| format!("mount {line}")));
    ensure!(traces.is_empty(), "left: {}", traces.join(", "));
    Ok(String::new())
}
