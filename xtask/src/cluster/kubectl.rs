//! kubectl of the cluster's version, as administrator.

use std::{ffi::OsStr, process::Command};

use anyhow::Result;

use super::{
    certificates, layout, network,
    process::{self, in_namespace, program},
};

pub(super) fn command(arguments: &[impl AsRef<OsStr>]) -> Command {
    let mut command = in_namespace(network::CONTROL_PLANE, program("kubectl"));
    command
        .arg("--kubeconfig")
        .arg(certificates::kubeconfig("admin"));
    // The default is the home folder.
    command
        .arg("--cache-dir")
        .arg(layout::state().join("kubectl"));
    command.args(arguments);
    command
}

/// Runs kubectl with `words`, split at spaces, and returns its output.
pub(super) fn run(words: &str) -> Result<String> {
    output(&words.split(' ').collect::<Vec<_>>())
}

/// Runs kubectl and returns its output.
pub(super) fn output(arguments: &[&str]) -> Result<String> {
    process::output(&mut command(arguments))
}

/// `kubectl apply` of `manifest`.
pub(super) fn apply(manifest: &str) -> Result<()> {
    process::output_with_input(&mut command(&["apply", "-f", "-"]), manifest).map(drop)
}
