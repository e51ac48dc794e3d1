//! Choices of an operator, each as a kustomize overlay with components and as chart values. Both
//! must render the same objects.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::{Tools, objects};
use crate::root;

struct Choice {
    overlay: &'static str,
    components: &'static [&'static str],
    values: &'static [&'static str],
}

const CHOICES: [Choice; 9] = [
    choice("privileged", &[], &[]),
    choice("least-privilege", &[], &["profile=least-privilege"]),
    choice("read-only", &[], &["profile=read-only"]),
    choice("private-cgroup", &[], &["cgroup=/sys/fs/cgroup"]),
    choice(
        "private-cgroup-hybrid",
        &[],
        &["cgroup=/sys/fs/cgroup/unified"],
    ),
    choice("privileged", &["metrics"], &["metrics.enabled=true"]),
    choice(
        "privileged",
        &["coordinator"],
        &["coordinator.enabled=true"],
    ),
    choice(
        "least-privilege",
        &["selinux", "monitoring"],
        &["profile=least-privilege", "selinux=true", MONITORING],
    ),
    choice(
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

const fn choice(
    overlay: &'static str,
    components: &'static [&'static str],
    values: &'static [&'static str],
) -> Choice {
    Choice {
        overlay,
        components,
        values,
    }
}

/// Renders every choice with kustomize and with helm and compares the objects.
pub(super) fn render_the_same(tools: &Tools) -> Result<String> {
    for choice in &CHOICES {
        let name = format!("{} {:?}", choice.overlay, choice.components);
        let ours = tools.kustomize(&choice.folder()?)?;
        // kustomize always renders the namespace, the chart only on request.
        let mut arguments = vec!["--set", "namespace.create=true"];
        arguments.extend(choice.values.iter().flat_map(|value| ["--set", value]));
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

impl Choice {
    /// The folder for kustomize: the overlay's, or one created for the combination.
    fn folder(&self) -> Result<PathBuf> {
        if self.components.is_empty() {
            return Ok(super::folder().join("overlays").join(self.overlay));
        }
        let folder = root().join("target/deploy");
        super::combined(&folder, self.overlay, self.components)
    }
}
