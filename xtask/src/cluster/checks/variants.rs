//! The other overlays, least-privilege and read-only, a server-side dry run, and uninstalling.

use anyhow::{Context as _, ensure};
use fs_err as fs;
use serde_json::Value;
use xtask::bpf_objects::{held_by, remaining};

use super::{
    Outcome, State,
    agents::{self, agents, exec, install, list, overlay, overlay_with, pid_on},
    policy, traffic,
};
use crate::{
    cluster::{images, kubectl, process},
    deploy, root,
};

/// The same moves without `privileged`, with Events.
pub(super) fn least_privilege(state: &mut State) -> Outcome {
    install(&overlay_with("least-privilege", &["move-events"])?)?;
    let agent = &agents()?[0];
    let path = "{.spec.containers[0].securityContext}";
    let context = agents::run(&format!("get pod {} -o jsonpath={path}", agent.pod))?;
    ensure!(!context.contains("\"privileged\":true"), "{context}");
    let doctor = exec(&agent.pod, &["doctor"])?;
    traffic::skew(state)?;
    policy::enforce(&policy::enforced("least-privilege", "maxAge: 6s"))?;
    let found = traffic::spread(state)?;
    list(&agent.pod, &["dump"])?;
    let count = process::wait("Events of the moves", 60, || {
        let events = policy::events("ConnectionsMoved").ok()?;
        let of_web = |event: &&Value| {
            let name = event["regarding"]["name"].as_str();
            name.is_some_and(|name| state.web.iter().any(|pod| pod == name))
        };
        let count = events.iter().filter(of_web).count();
        (count > 0).then_some(count)
    })?;
    let lines = doctor.lines().count();
    Ok(format!("{found}; {count} Events; doctor: {lines} lines"))
}

pub(super) fn read_only(_: &mut State) -> Outcome {
    install(&overlay_with("read-only", &[])?)?;
    let mut seen = 0;
    for agent in agents()? {
        let items = list(&agent.pod, &["dump"])?;
        seen += items.len();
        for id in items.iter().take(3).flat_map(|item| item["id"].as_str()) {
            let moved = exec(&agent.pod, &["move", id, "--ignore-guards"]);
            let error = moved.err().map_or(String::new(), |error| error.to_string());
            ensure!(error.contains("Disabled"), "a manual move: {error:?}");
        }
    }
    ensure!(seen > 0, "no connections");
    Ok(format!("{seen} connections dumped; manual moves rejected"))
}

/// Applies base and overlays, and the chart if helm has been built, as a server-side dry run.
pub(super) fn dry_run(_: &mut State) -> Outcome {
    let mut count = 0;
    let overlays = deploy::overlays()?.into_iter();
    for folder in overlays.chain([root().join("deploy/base")]) {
        let folder = folder.to_str().context("UTF-8")?.to_owned();
        kubectl::output(&["apply", "--dry-run=server", "-k", &folder])?;
        count += 1;
    }
    let Some(chart) = deploy::chart_as_sent()? else {
        return Ok(format!(
            "{count} by kustomize; helm is not built (cargo xtask test deploy)"
        ));
    };
    let dry = ["apply", "--dry-run=server", "-f", "-"];
    process::output_with_input(&mut kubectl::command(&dry), &chart)?;
    Ok(format!("{count} by kustomize, and the chart"))
}

/// Follows deploy/README.md: the DaemonSet of uninstall.yaml stops tracking, then the objects are
/// deleted.
pub(super) fn uninstalled(state: &mut State) -> Outcome {
    install(&overlay()?)?;
    let mut objects = Vec::new();
    for node in state.nodes() {
        let held = held_by(pid_on(&node)?.try_into()?)?;
        ensure!(!held.is_empty(), "the agent on {node} holds no BPF objects");
        objects.extend(held);
    }
    let folder = overlay()?;
    let folder = folder.to_str().context("UTF-8")?;
    kubectl::output(&["delete", "-k", folder, "--wait"])?;
    let count = remaining(&objects)?.len();
    ensure!(count > 0, "tracking ended with the agents");
    let file = root().join("deploy/uninstall.yaml");
    let text = fs::read_to_string(&file)?;
    // The cluster has no registry.
    let local = text.replace("registry.k8s.io/pause:3.10", images::PAUSE);
    ensure!(local != text, "uninstall.yaml names another image");
    kubectl::apply(&local)?;
    let namespace = "-n rebalancer-uninstall";
    kubectl::run(&format!(
        "{namespace} rollout status ds/rebalancer-uninstall --timeout=120s"
    ))?;
    let removed = process::wait("removal of all BPF objects", 60, || {
        remaining(&objects).ok()?.is_empty().then_some(())
    });
    removed.with_context(|| {
        let selector = "app.kubernetes.io/name=rebalancer-uninstall";
        let log = kubectl::run(&format!(
            "{namespace} logs --prefix -c uninstall -l {selector}"
        ));
        format!("remaining: {:?}; its log: {log:?}", remaining(&objects))
    })?;
    kubectl::run("delete namespace rebalancer-uninstall --wait")?;
    Ok(format!(
        "{count} programs, maps and links before, none after"
    ))
}
