//! The other ways to install: with few privileges, for reading alone; and how to be rid of it.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Found, Story,
    agents::{NAMESPACE, adapted, agents, ask, exec, install, overlay},
    policy, traffic,
};
use crate::{
    cluster::{images, kubectl, process},
    deploy, root,
};

/// The same moves without `privileged`; or the doctor says what is missing. With Events of them.
pub(super) fn least_privilege(story: &mut Story) -> Found {
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

pub(super) fn read_only(_: &mut Story) -> Found {
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
pub(super) fn dry_run(_: &mut Story) -> Found {
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
    process::fed(&mut kubectl::command(&dry), &chart)?;
    Ok(format!("{done} by kustomize, and the chart"))
}

/// As deploy/README.md says it: tracking ends with the command, the rest with the objects.
pub(super) fn uninstalled(_: &mut Story) -> Found {
    install(&overlay()?)?;
    let ours = programs()?;
    ensure!(!ours.is_empty(), "none of the agents' programs is loaded");
    let folder = overlay()?;
    let folder = folder.to_str().context("UTF-8")?;
    kubectl::output(&["delete", "-k", folder, "--wait"])?;
    let kept = programs()?.intersection(&ours).count();
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
    process::wait("the agents' programs to go", 60, || {
        programs().ok()?.is_disjoint(&ours).then_some(())
    })?;
    kubectl::output(&["delete", "namespace", "rebalancer-uninstall", "--wait"])?;
    Ok(format!("{kept} programs before, none after"))
}

/// The ids of what the kernel has of programs with our names: those of agents elsewhere on the
/// machine too, which have other ids than the nodes'.
fn programs() -> Result<BTreeSet<u64>> {
    let list = process::output(Command::new("bpftool").args(["-j", "prog", "show"]))?;
    let list: Vec<Value> = serde_json::from_str(&list).context("bpftool's list")?;
    let ours = |program: &&Value| {
        ["sock_ops", "list", "adopt", "messages"].contains(&program["name"].as_str().unwrap_or(""))
    };
    let of_ours = list.iter().filter(ours);
    Ok(of_ours
        .filter_map(|program| program["id"].as_u64())
        .collect())
}
