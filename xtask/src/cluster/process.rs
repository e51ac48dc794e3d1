//! Starts the cluster's servers and waits for conditions.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};

pub(super) use xtask::command::{output, output_with_input};
use xtask::wait;

use super::{cgroups::Cgroup, layout};

/// Lines of a server's log in an error.
const TAIL: usize = 15;

/// A server. It may outlive this program and is killed with the cluster.
pub(super) struct Server {
    name: String,
    child: Child,
}

impl Server {
    /// Starts `command` in `cgroup` and in a new session, with its output in the log `name`.
    pub(super) fn start(name: &str, cgroup: &Cgroup, command: &mut Command) -> Result<Self> {
        let path = log(name);
        let output = fs::File::create(&path).with_context(|| path.display().to_string())?;
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
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("the server's log")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
        })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it, like a crash.
    pub(super) fn kill(&mut self) -> Result<()> {
        let Self { name, child } = self;
        child.kill().with_context(|| format!("kill {name}"))?;
        child.wait().with_context(|| format!("wait for {name}"))?;
        Ok(())
    }

    /// Waits until `ready` returns a value.
    ///
    /// # Errors
    /// The server exited or the time is over; the message has the end of its log.
    pub(super) fn wait<T>(
        &mut self,
        what: &str,
        seconds: u64,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Result<T> {
        let Self { name, child } = self;
        let found = wait::until(Duration::from_secs(seconds), || {
            if let Some(found) = ready() {
                return Ok(Some(found));
            }
            if let Some(status) = child.try_wait()? {
                bail!("{name} exited with {status}");
            }
            Ok(None)
        });
        found.map_err(|problem| {
            let log = fs::read_to_string(log(name)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
            anyhow!("{what}: {problem}\n{tail}")
        })
    }
}

fn log(name: &str) -> PathBuf {
    logs().join(format!("{name}.log"))
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
