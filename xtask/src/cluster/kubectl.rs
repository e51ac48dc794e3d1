//! kubectl, of the cluster's own version, as its administrator.

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
    // By default it would leave a cache in the home folder.
    command
        .arg("--cache-dir")
        .arg(layout::state().join("kubectl"));
    command.args(arguments);
    command
}

/// What it says.
pub(super) fn output(arguments: &[&str]) -> Result<String> {
    process::output(&mut command(arguments))
}

/// `kubectl apply` of what `manifest` holds.
pub(super) fn apply(manifest: &str) -> Result<()> {
    process::output_with_input(&mut command(&["apply", "-f", "-"]), manifest).map(drop)
}
