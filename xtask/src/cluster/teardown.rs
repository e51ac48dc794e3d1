//! Removes every trace of a cluster, whatever its state.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{cgroups, layout, process::output};

/// Folders over which a node mounts its own. Those that the machine lacks are created and removed
/// again.
const MOUNT_POINTS: [&str; 9] = [
    "/run/containerd",
    "/run/rebalancer",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/lib/cni",
    "/etc/cni",
    "/etc/cni/net.d",
    "/var/log/pods",
    "/var/log/containers",
];

fn made() -> PathBuf {
    layout::state().join("mount-points")
}

/// Creates the missing mount points and records them.
pub(super) fn make_mount_points() -> Result<()> {
    let missing = |path: &&str| !Path::new(path).exists();
    let paths: Vec<&str> = MOUNT_POINTS.into_iter().filter(missing).collect();
    fs::write(made(), paths.join("\n")).context("record the mount points")?;
    for path in paths {
        fs::create_dir(path).with_context(|| path.to_owned())?;
    }
    Ok(())
}

/// Kills the cluster's processes and removes its namespaces, cgroups and files, if there are any.
pub(super) fn remove() -> Result<()> {
    cgroups::Cgroup::whole()?.destroy()?;
    for name in namespaces()? {
        output(Command::new("ip").args(["netns", "del", &name]))?;
    }
    let made = fs::read_to_string(made()).unwrap_or_default();
    for path in made.lines().rev() {
        // Fails, as it should, if something else uses the folder now.
        let _ = fs::remove_dir(path);
    }
    match fs::remove_dir_all(layout::state()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", layout::state().display()))
        }
        _ => Ok(()),
    }
}

/// What exists of a cluster on this machine; empty after [`remove`].
pub(super) fn traces() -> Result<Vec<String>> {
    let mut traces: Vec<String> = namespaces()?
        .into_iter()
        .map(|name| format!("network namespace {name}"))
        .collect();
    for hierarchy in cgroups::Hierarchy::all()? {
        let cgroup = hierarchy.mount().join(layout::NAME);
        if cgroup.exists() {
            traces.push(cgroup.display().to_string());
        }
    }
    if layout::state().exists() {
        traces.push(layout::state().display().to_string());
    }
    Ok(traces)
}

fn namespaces() -> Result<Vec<String>> {
    let entries = match fs::read_dir("/run/netns") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context("/run/netns")?,
    };
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let prefix = layout::namespace("");
    Ok(names.filter(|name| name.starts_with(&prefix)).collect())
}
