//! What an operator may choose, in both languages: an overlay with components, and values of the
//! chart. Each pair must come to the same objects.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::{Tools, objects};
use crate::root;

/// One choice.
struct Choice {
    overlay: &'static str,
    components: &'static [&'static str],
    values: &'static [&'static str],
}

const CHOICES: [Choice; 8] = [
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

/// Every choice, both ways.
pub(super) fn give_the_same(tools: &Tools) -> Result<String> {
    for choice in &CHOICES {
        let name = format!("{} {:?}", choice.overlay, choice.components);
        let ours = tools.kustomize(&choice.folder()?)?;
        // kustomize has the namespace among its objects; the chart only when it is asked.
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
    Ok(format!("for {} choices", CHOICES.len()))
}

impl Choice {
    /// A folder that kustomize builds: the overlay's, or one made for the combination.
    fn folder(&self) -> Result<PathBuf> {
        if self.components.is_empty() {
            return Ok(super::folder().join("overlays").join(self.overlay));
        }
        let folder = root().join("target/deploy");
        super::combined(&folder, self.overlay, self.components)
    }
}
