//! The cluster's agents: installs, queries and kills them, and checks that each node has one.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Outcome, State};
use crate::{
    cluster::{cgroups::Hierarchy, kubectl, layout, process},
    deploy, root,
};

const NAMESPACE: &str = "-n rebalancer";
pub(super) const SELECTOR: &str = "app.kubernetes.io/name=rebalancer";

/// An agent's pod and its node.
pub(super) struct Agent {
    pub(super) pod: String,
    pub(super) node: String,
}

/// All agents, sorted by node.
pub(super) fn agents() -> Result<Vec<Agent>> {
    let list = parse(&run(&format!("get pods -l {SELECTOR} -o json"))?)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pods = list["items"].as_array().context("a list of pods")?;
    let mut agents: Vec<Agent> = pods
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .map(|pod| Agent {
            pod: text(&pod["metadata"]["name"]),
            node: text(&pod["spec"]["nodeName"]),
        })
        .collect();
    agents.sort_by(|a, b| a.node.cmp(&b.node));
    Ok(agents)
}

pub(super) fn agent_on(node: &str) -> Result<Agent> {
    let agent = agents()?.into_iter().find(|agent| agent.node == node);
    agent.with_context(|| format!("no agent on {node}"))
}

/// Runs kubectl with `words` in the agents' namespace.
pub(super) fn run(words: &str) -> Result<String> {
    kubectl::run(&format!("{NAMESPACE} {words}"))
}

/// Runs `rebalancer …` in an agent's container.
pub(super) fn exec(target: &str, arguments: &[&str]) -> Result<String> {
    let exec = ["-n", "rebalancer", "exec", target, "--", "rebalancer"];
    kubectl::output(&[&exec, arguments].concat())
}

/// Runs `rebalancer … -o json` in an agent's container and parses the output.
pub(super) fn query(target: &str, arguments: &[&str]) -> Result<Value> {
    parse(&exec(target, &[arguments, &["-o", "json"]].concat())?)
}

/// The items of such an output.
pub(super) fn list(target: &str, arguments: &[&str]) -> Result<Vec<Value>> {
    let items = query(target, arguments)?["items"].take();
    serde_json::from_value(items).context("a list of items")
}

/// `rebalancer status` of `node`'s agent, run in its namespaces: without the API server, which
/// `kubectl exec` needs.
pub(super) fn status_on(node: &str) -> Result<Value> {
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["-t", &pid_on(node)?.to_string(), "-m", "-u", "-n", "-p"]);
    nsenter.args(["rebalancer", "status", "-o", "json"]);
    parse(&process::output(&mut nsenter)?)
}

pub(super) fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("invalid JSON: {text}"))
}

/// Moves that have ended on these nodes.
pub(super) fn moved_on(nodes: &[String]) -> Result<u64> {
    let mut sum = 0;
    for node in nodes {
        let status = status_on(node)?;
        let ended = status["ended"].as_object().context("moves by outcome")?;
        sum += ended.values().filter_map(Value::as_u64).sum::<u64>();
    }
    Ok(sum)
}

/// Waits until every node's agent is ready.
pub(super) fn wait_rolled_out() -> Result<()> {
    run("rollout status ds/rebalancer --timeout=180s").map(drop)
}

/// Restarts all agents and waits until they are ready.
pub(super) fn restart() -> Result<()> {
    run("rollout restart ds/rebalancer")?;
    wait_rolled_out()
}

/// The mount point of cgroup v2 on a node.
pub(super) fn cgroup() -> Result<String> {
    let mut hierarchies = Hierarchy::all()?.into_iter();
    let v2 = hierarchies.find(Hierarchy::is_v2);
    Ok(v2.context("cgroup v2")?.mount().display().to_string())
}

/// The component of deploy/ for nodes in private cgroup namespaces, such as this cluster's.
fn private_cgroup() -> Result<&'static str> {
    Ok(match cgroup()?.as_str() {
        "/sys/fs/cgroup" => "private-cgroup",
        "/sys/fs/cgroup/unified" => "private-cgroup-hybrid",
        other => anyhow::bail!("deploy/ has no component for cgroup v2 at {other}"),
    })
}

/// The overlay of the base for such nodes.
pub(super) fn overlay() -> Result<PathBuf> {
    Ok(root().join("deploy/overlays").join(private_cgroup()?))
}

/// Another overlay of deploy/ for such nodes with components, in the cluster's folder.
pub(super) fn overlay_with(overlay: &str, components: &[&str]) -> Result<PathBuf> {
    let folder = layout::state().join("overlays").join(overlay);
    let components = [components, &[private_cgroup()?]].concat();
    deploy::combined(&folder, overlay, &components)
}

/// `kubectl apply -k`, then waits until every agent is ready.
pub(super) fn install(overlay: &std::path::Path) -> Result<()> {
    let overlay = overlay.to_str().context("the overlay's path is UTF-8")?;
    kubectl::output(&["apply", "-k", overlay])?;
    // Budgets that grow slowly would make the checks slow.
    let mut set = "set env daemonset/rebalancer REBALANCER_NO_RAMP=true".to_owned();
    if let Ok(mechanism) = std::env::var("REBALANCER_RESET_MECHANISM") {
        set.push_str(&format!(" REBALANCER_RESET_MECHANISM={mechanism}"));
    }
    run(&set)?;
    wait_rolled_out()
}

pub(super) fn one_per_node(state: &mut State) -> Outcome {
    install(&overlay()?)?;
    let agents = agents()?;
    let nodes: BTreeSet<&str> = agents.iter().map(|agent| agent.node.as_str()).collect();
    ensure!(
        nodes.len() == state.cluster.nodes.len() && agents.len() == nodes.len(),
        "agents on {nodes:?}, for {} nodes",
        state.cluster.nodes.len()
    );
    Ok(format!("{} ready", agents.len()))
}

pub(super) fn doctor(_: &mut State) -> Outcome {
    // Fails if something is missing.
    let report = exec(&agents()?[0].pod, &["doctor"])?;
    let lines = report.lines().count();
    ensure!(lines > 5, "{report}");
    Ok(format!("{lines} lines, nothing missing"))
}

/// The accept time of each connection to the Service, by ID, from the agent on `node`.
pub(super) fn opened(node: &str) -> Result<Vec<(String, u64)>> {
    let connections = list(&agent_on(node)?.pod, &["dump"])?;
    let of_web = connections.iter().filter(|item| {
        item["services"]
            .as_array()
            .is_some_and(|s| s.contains(&"web".into()))
    });
    of_web
        .map(|item| {
            let id = item["id"].as_str().context("an ID")?.to_owned();
            let opened = item["openedNanoseconds"].as_u64().context("a time")?;
            Ok((id, opened))
        })
        .collect()
}

/// Resident memory in KiB and CPU time in ticks of the agent on `node`, from /proc.
pub(super) fn usage(node: &str) -> Result<(u64, u64)> {
    let pid = pid_on(node)?;
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let status = read("status").context("status")?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.context("VmRSS")?.trim_end_matches("kB").trim();
    let stat = read("stat").context("stat")?;
    // After the name, which may contain spaces, user and system time are fields 12 and 13.
    let fields = stat.rsplit(')').next().unwrap_or("").split_whitespace();
    let times: Vec<u64> = fields.skip(11).take(2).flat_map(str::parse).collect();
    Ok((resident.parse().context("VmRSS")?, times.iter().sum()))
}

/// Kills the agent's process on `node` by SIGKILL and waits until its container runs again.
pub(super) fn kill(node: &str) -> Result<()> {
    let agent = agent_on(node)?;
    let restarts = || -> Result<u64> {
        let path = "{.status.containerStatuses[0].restartCount}";
        let count = run(&format!("get pod {} -o jsonpath={path}", agent.pod))?;
        Ok(count.parse().unwrap_or(0))
    };
    let before = restarts()?;
    let pid = rustix::process::Pid::from_raw(pid_on(node)?).context("a PID")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).context("kill")?;
    process::wait("the container to restart", 60, || {
        (restarts().ok()? > before).then_some(())
    })?;
    wait_rolled_out()?;
    process::wait("the agent to answer", 30, || {
        exec(&agent.pod, &["status"]).ok()
    })
    .map(drop)
}

/// The PID of the agent on `node`.
pub(super) fn pid_on(node: &str) -> Result<i32> {
    let cgroup = format!("/{}/{node}/", layout::NAME);
    let processes = fs::read_dir("/proc").context("/proc")?.flatten();
    let mut found = processes.filter_map(|entry| {
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let is_agent = read("comm").trim() == "rebalancer"
            && read("cgroup").contains(&cgroup)
            && read("cmdline").contains("\0agent\0");
        is_agent.then(|| entry.file_name().to_string_lossy().parse().ok())?
    });
    found
        .next()
        .with_context(|| format!("no agent process on {node}"))
}
