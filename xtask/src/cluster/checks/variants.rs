//! The other ways to install: with few privileges, for reading alone; and how to be rid of it.

use std::fs;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use xtask::bpf_objects::{held_by, remaining};

use super::{
    Outcome, Story,
    agents::{NAMESPACE, adapted, agents, ask, exec, install, overlay, process_of},
    policy, traffic,
};
use crate::{
    cluster::{images, kubectl, process},
    deploy, root,
};

/// The same moves without `privileged`; or the doctor says what is missing. With Events of them.
pub(super) fn least_privilege(story: &mut Story) -> Outcome {
    install(&adapted("least-privilege", &["move-events"])?)?;
    let agent = &agents()?[0];
    let privileged = "jsonpath={.spec.containers[0].securityContext}";
    let get = ["get", "pod", &agent.pod, "-o", privileged];
    let context = kubectl::output(&[&NAMESPACE[..], &get].concat())?;
    ensure!(!context.contains("\"privileged\":true"), "{context}");
    let doctor = exec(&agent.pod, &["doctor"])?;
    traffic::skew(story)?;
    policy::enforce(&policy::enforced("with-little", "maxAge: 6s"))?;
    let found = traffic::spread_by_age(story)?;
    let dump = ask(&agent.pod, &["dump"])?;
    ensure!(dump["items"].is_array(), "{dump}");
    let told = process::wait("Events of the moves", 60, || {
        let events = policy::events("ConnectionsMoved").ok()?;
        let of_web = |event: &&Value| {
            let name = event["regarding"]["name"].as_str();
            name.is_some_and(|name| story.web.iter().any(|pod| pod == name))
        };
        let told = events.iter().filter(of_web).count();
        (told > 0).then_some(told)
    })?;
    let lines = doctor.lines().count();
    Ok(format!(
        "{found}; Events of it: {told}; doctor: {lines} lines"
    ))
}

pub(super) fn read_only(_: &mut Story) -> Outcome {
    install(&adapted("read-only", &[])?)?;
    let mut seen = 0;
    for agent in agents()? {
        let dump = ask(&agent.pod, &["dump"])?;
        let items = dump["items"].as_array().context("a list")?;
        seen += items.len();
        for id in items.iter().take(3).flat_map(|item| item["id"].as_str()) {
            let moved = exec(&agent.pod, &["move", id, "--ignore-guards"]);
            let words = moved
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            ensure!(words.contains("Disabled"), "a move by hand: {words:?}");
        }
    }
    ensure!(seen > 0, "no connections");
    Ok(format!(
        "{seen} connections dumped; moves by hand are refused"
    ))
}

/// Everything in deploy/ that kustomize builds, and the chart where helm is there.
pub(super) fn dry_run(_: &mut Story) -> Outcome {
    let mut done = 0;
    let overlays = deploy::overlays()?.into_iter();
    for folder in overlays.chain([root().join("deploy/base")]) {
        let folder = folder.to_str().context("UTF-8")?.to_owned();
        kubectl::output(&["apply", "--dry-run=server", "-k", &folder])?;
        done += 1;
    }
    let Some(chart) = deploy::chart_as_sent()? else {
        return Ok(format!(
            "{done} by kustomize; helm is not built here (cargo xtask test deploy)"
        ));
    };
    let dry = ["apply", "--dry-run=server", "-f", "-"];
    process::output_with_input(&mut kubectl::command(&dry), &chart)?;
    Ok(format!("{done} by kustomize, and the chart"))
}

/// As deploy/README.md says it: tracking ends with the command, the rest with the objects.
pub(super) fn uninstalled(story: &mut Story) -> Outcome {
    install(&overlay()?)?;
    let mut ours = Vec::new();
    for node in story.nodes() {
        let held = held_by(process_of(&node)?.try_into()?)?;
        ensure!(!held.is_empty(), "the agent on {node} holds nothing");
        ours.extend(held);
    }
    let folder = overlay()?;
    let folder = folder.to_str().context("UTF-8")?;
    kubectl::output(&["delete", "-k", folder, "--wait"])?;
    let kept = remaining(&ours)?.len();
    ensure!(kept > 0, "tracking ended with the agents");
    let file = root().join("deploy/uninstall.yaml");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    // No registry is asked for anything here.
    let local = text.replace("registry.k8s.io/pause:3.10", images::PAUSE);
    ensure!(local != text, "uninstall.yaml names another image");
    kubectl::apply(&local)?;
    let namespace = ["-n", "rebalancer-uninstall"];
    let status = [
        "rollout",
        "status",
        "ds/rebalancer-uninstall",
        "--timeout=120s",
    ];
    kubectl::output(&[&namespace[..], &status].concat())?;
    let gone = process::wait("all of it to go", 60, || {
        remaining(&ours).ok()?.is_empty().then_some(())
    });
    gone.with_context(|| {
        let selector = "app.kubernetes.io/name=rebalancer-uninstall";
        let logs = ["logs", "--prefix", "-c", "uninstall", "-l", selector];
        let said = kubectl::output(&[&namespace[..], &logs].concat());
        format!("still there: {:?}; it said: {said:?}", remaining(&ours))
    })?;
    kubectl::output(&["delete", "namespace", "rebalancer-uninstall", "--wait"])?;
    Ok(format!(
        "{kept} programs, maps and links before, none after"
    ))
}
