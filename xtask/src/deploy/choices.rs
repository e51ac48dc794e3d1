//! Choices of an operator, each as a kustomize overlay with components and as chart values. Both
//! must render the same objects.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::{Tools, objects};
use crate::root;

/// An overlay, components, and the values of the chart that stand for both.
type Choice = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

const CHOICES: [Choice; 9] = [
    ("privileged", &[], &[]),
    ("least-privilege", &[], &["profile=least-privilege"]),
    ("read-only", &[], &["profile=read-only"]),
    ("private-cgroup", &[], &["cgroup=/sys/fs/cgroup"]),
    (
        "private-cgroup-hybrid",
        &[],
        &["cgroup=/sys/fs/cgroup/unified"],
    ),
    ("privileged", &["metrics"], &["metrics.enabled=true"]),
    (
        "privileged",
        &["coordinator"],
        &["coordinator.enabled=true"],
    ),
    (
        "least-privilege",
        &["selinux", "monitoring"],
        &["profile=least-privilege", "selinux=true", MONITORING],
    ),
    (
        "read-only",
        &["private-cgroup", "move-events", "monitoring"],
        &[
            "profile=read-only",
            "cgroup=/sys/fs/cgroup",
            "moveEvents=true",
            MONITORING,
        ],
    ),
];

const MONITORING: &str = "metrics.enabled=true,metrics.podMonitor.enabled=true,\
                          metrics.prometheusRule.enabled=true,metrics.dashboard.enabled=true";

/// Renders every choice with kustomize and with helm and compares the objects.
pub(super) fn render_the_same(tools: &Tools) -> Result<String> {
    for (overlay, components, values) in CHOICES {
        let name = format!("{overlay} {components:?}");
        let ours = tools.kustomize(&folder(overlay, components)?)?;
        // kustomize always renders the namespace, the chart only on request.
        let mut arguments = vec!["--set", "namespace.create=true"];
        arguments.extend(values.iter().flat_map(|value| ["--set", value]));
        let theirs = tools.template(&arguments)?;
        let (ours, theirs) = (objects::parse(&ours)?, objects::parse(&theirs)?);
        let found = objects::differences(&ours, &theirs);
        ensure!(
            found.is_empty(),
            "{name}, kustomize and helm:\n  {}",
            found.join("\n  ")
        );
    }
    Ok(format!("{} choices", CHOICES.len()))
}

/// The folder for kustomize: the overlay's, or one created for the combination.
fn folder(overlay: &str, components: &[&str]) -> Result<PathBuf> {
    if components.is_empty() {
        return Ok(super::folder().join("overlays").join(overlay));
    }
    super::combined(&root().join("target/deploy"), overlay, components)
}
