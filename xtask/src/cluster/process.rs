//! Starts the cluster's servers and waits for conditions.

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
pub(super) use xtask::command::{output, output_with_input};
use xtask::{process::Process, wait};

use super::{cgroups::Cgroup, layout};

/// Starts a server in `cgroup` and in a new session, with its output in the log `name`. It may outlive
/// this program and is killed with the cluster.
pub(super) fn start(name: &str, cgroup: &Cgroup, command: &mut Command) -> Result<Process> {
    let lists = cgroup.open()?;
    // SAFETY: between fork and exec the closure makes only system calls, on descriptors that it
    // owns; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            for list in &lists {
                rustix::io::write(list, b"0")?;
            }
            rustix::process::setsid()?;
            Ok(())
        });
    }
    Process::start(command, logs().join(format!("{name}.log")))
}

pub(super) fn logs() -> PathBuf {
    layout::state().join("log")
}

/// Waits until `ready` returns a value.
pub(super) fn wait<T>(what: &str, seconds: u64, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
    wait::until(Duration::from_secs(seconds), || Ok(ready())).with_context(|| what.to_owned())
}

/// A command in a network namespace of the cluster.
pub(super) fn in_namespace(host: &str, program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("nsenter");
    let namespace = layout::namespace_path(host);
    command.arg(format!("--net={}", namespace.display()));
    command.arg(program.as_ref());
    command
}

/// The path of a Kubernetes program.
pub(super) fn program(name: &str) -> PathBuf {
    layout::state().join("bin").join(name)
}
