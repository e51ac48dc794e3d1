//! The agents of the cluster: that each node has one, and what they say.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Outcome, Story};
use crate::{
    cluster::{cgroups::Hierarchy, kubectl, layout, process},
    deploy, root,
};

pub(super) const NAMESPACE: [&str; 2] = ["-n", "rebalancer"];
pub(super) const SELECTOR: &str = "app.kubernetes.io/name=rebalancer";

/// An agent's pod.
pub(super) struct Agent {
    pub(super) pod: String,
    pub(super) node: String,
}

/// All of them, by node.
pub(super) fn agents() -> Result<Vec<Agent>> {
    let get = ["get", "pods", "-l", SELECTOR, "-o", "json"];
    let list: Value = serde_json::from_str(&kubectl::output(&[&NAMESPACE[..], &get].concat())?)?;
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

/// `rebalancer …` in an agent's container.
pub(super) fn exec(target: &str, arguments: &[&str]) -> Result<String> {
    let exec = ["exec", target, "--", "rebalancer"];
    kubectl::output(&[&NAMESPACE[..], &exec, arguments].concat())
}

/// What `rebalancer … -o json` says there.
pub(super) fn ask(target: &str, arguments: &[&str]) -> Result<Value> {
    let text = exec(target, &[arguments, &["-o", "json"]].concat())?;
    serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
}

/// `rebalancer …` in the namespaces of `node`'s agent, without the API server's help.
pub(super) fn beside(node: &str, arguments: &[&str]) -> Result<String> {
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["-t", &process_of(node)?.to_string(), "-m", "-u", "-n", "-p"]);
    process::output(nsenter.arg("rebalancer").args(arguments))
}

/// Waits until every node's agent is there and ready.
pub(super) fn rolled_out() -> Result<()> {
    let status = ["rollout", "status", "ds/rebalancer", "--timeout=180s"];
    kubectl::output(&[&NAMESPACE[..], &status].concat()).map(drop)
}

/// Where a node mounts cgroup v2.
pub(super) fn cgroup() -> Result<String> {
    let hierarchies = Hierarchy::all()?;
    let v2 = hierarchies.iter().find(|hierarchy| hierarchy.is_v2());
    Ok(v2.context("cgroup v2")?.mount().display().to_string())
}

/// What deploy/ has for nodes in cgroup namespaces, as this cluster's are.
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

/// Another overlay of deploy/ for such nodes, with components, in a folder of the cluster's own.
pub(super) fn adapted(overlay: &str, components: &[&str]) -> Result<PathBuf> {
    let folder = layout::state().join("overlays").join(overlay);
    let components = [components, &[private_cgroup()?]].concat();
    deploy::combined(&folder, overlay, &components)
}

/// `kubectl apply -k`, and every node has its agent.
pub(super) fn install(overlay: &std::path::Path) -> Result<()> {
    let overlay = overlay.to_str().context("the overlay's path is UTF-8")?;
    kubectl::output(&["apply", "-k", overlay])?;
    // Nobody here waits until the budgets have grown.
    let no_ramp = [
        "set",
        "env",
        "daemonset/rebalancer",
        "REBALANCER_NO_RAMP=true",
    ];
    kubectl::output(&[&NAMESPACE[..], &no_ramp].concat())?;
    rolled_out()
}

pub(super) fn run(story: &mut Story) -> Outcome {
    install(&overlay()?)?;
    let agents = agents()?;
    let nodes: BTreeSet<&str> = agents.iter().map(|agent| agent.node.as_str()).collect();
    ensure!(
        nodes.len() == story.cluster.nodes.len() && agents.len() == nodes.len(),
        "agents on {nodes:?}, for {} nodes",
        story.cluster.nodes.len()
    );
    Ok(format!("{} ready", agents.len()))
}

/// What the doctor finds on a node of a real cluster.
pub(super) fn doctor(_: &mut Story) -> Outcome {
    let agent = &agents()?[0];
    // It ends with an error if something is missing.
    let said = exec(&agent.pod, &["doctor"])?;
    let lines: Vec<&str> = said.lines().collect();
    ensure!(lines.len() > 5, "{said}");
    Ok(format!("{} lines, no complaint", lines.len()))
}

/// When each connection to the Service was accepted, by its id, as the agent on `node` has it.
pub(super) fn opened(node: &str) -> Result<Vec<(String, u64)>> {
    let dump = ask(&agent_on(node)?.pod, &["dump"])?;
    let items = dump["items"].as_array().context("a list of connections")?;
    let of_web = items.iter().filter(|item| {
        item["services"]
            .as_array()
            .is_some_and(|s| s.contains(&"web".into()))
    });
    of_web
        .map(|item| {
            let id = item["id"].as_str().context("an id")?.to_owned();
            let opened = item["openedNanoseconds"].as_u64().context("a time")?;
            Ok((id, opened))
        })
        .collect()
}

/// Resident memory in KiB and CPU time in ticks of the agent on `node`, by the machine's /proc.
pub(super) fn usage(node: &str) -> Result<(u64, u64)> {
    let process = process_of(node)?;
    let read = |file: &str| fs::read_to_string(format!("/proc/{process}/{file}"));
    let status = read("status").context("status")?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.context("VmRSS")?.trim_end_matches("kB").trim();
    let stat = read("stat").context("stat")?;
    // Behind the name, which may hold blanks: user and system time are 12th and 13th.
    let fields = stat.rsplit(')').next().unwrap_or("").split_whitespace();
    let times: Vec<u64> = fields.skip(11).take(2).flat_map(str::parse).collect();
    Ok((resident.parse().context("VmRSS")?, times.iter().sum()))
}

/// The agent's process on `node` is ended as by the kernel; its container starts again.
pub(super) fn kill(node: &str) -> Result<()> {
    let agent = agent_on(node)?;
    let restarts = || -> Result<u64> {
        let path = "jsonpath={.status.containerStatuses[0].restartCount}";
        let get = ["get", "pod", &agent.pod, "-o", path];
        let text = kubectl::output(&[&NAMESPACE[..], &get].concat())?;
        Ok(text.parse().unwrap_or(0))
    };
    let before = restarts()?;
    let process = process_of(node)?;
    let process = rustix::process::Pid::from_raw(process).context("a process")?;
    rustix::process::kill_process(process, rustix::process::Signal::KILL).context("kill")?;
    process::wait("the container to start again", 60, || {
        (restarts().ok()? > before).then_some(())
    })?;
    rolled_out()?;
    process::wait("the agent to answer", 30, || {
        exec(&agent.pod, &["status"]).ok()
    })
    .map(drop)
}

pub(super) fn process_of(node: &str) -> Result<i32> {
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
        .with_context(|| format!("no agent's process on {node}"))
}
