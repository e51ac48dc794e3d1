//! Who may touch the cluster: one command at a time, by a lock in the cache. While a command
//! brings a cluster up or tests in it, a watcher waits for its end, also by SIGKILL, and removes
//! the cluster unless it was to stay. Should the watcher die as well, the next `up` or `down`
//! cleans up.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};

use super::teardown;

/// The right to touch the cluster, for as long as this lives.
pub(super) struct Turn(File);

impl Turn {
    /// Waits for it, and says so.
    pub(super) fn take() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("a cluster is made of namespaces, mounts and cgroups: run this as root");
        }
        let path = crate::cache()?.join("cluster.lock");
        let lock = File::create(&path).with_context(|| path.display().to_string())?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            println!("another `cargo xtask cluster` or its test is at work; waiting for its end");
            flock(&lock, FlockOperation::LockExclusive).context("lock the cluster")?;
        }
        Ok(Self(lock))
    }
}

/// A cluster that ends with this, unless it is kept.
pub(super) struct Claim {
    /// Until this is closed the watcher waits.
    owner: Option<ChildStdin>,
    watcher: Child,
    kept: bool,
    _turn: Turn,
}

impl Claim {
    pub(super) fn of(turn: Turn) -> Result<Self> {
        let program = std::env::current_exe().context("where this program is")?;
        // The same open file: the lock ends with the later of the two.
        let lock: OwnedFd = turn.0.try_clone().context("the cluster's lock")?.into();
        let mut watcher = Command::new(program);
        watcher.args(["cluster", "watch"]).stdin(Stdio::piped());
        watcher.stdout(lock).stderr(Stdio::null());
        // Out of the terminal's foreground: Ctrl-C is for its owner.
        let mut watcher = watcher
            .process_group(0)
            .spawn()
            .context("start the watcher")?;
        Ok(Self {
            owner: watcher.stdin.take(),
            watcher,
            kept: false,
            _turn: turn,
        })
    }

    /// Leaves the cluster up when this is dropped.
    pub(super) fn keep(mut self) -> Result<()> {
        use io::Write as _;
        let owner = self.owner.as_mut().context("the watcher's input")?;
        owner.write_all(b"keep").context("tell the watcher")?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.owner = None;
        match self.watcher.wait() {
            Ok(status) if status.success() || self.kept => {}
            Ok(status) => eprintln!(
                "removing the cluster: the watcher ended with {status}; run `cargo xtask cluster down`"
            ),
            Err(error) => eprintln!("removing the cluster: {error}"),
        }
    }
}

/// The watcher's own work.
pub(super) fn watch() -> Result<()> {
    let mut said = String::new();
    io::Read::read_to_string(&mut io::stdin(), &mut said).context("the owner's pipe")?;
    if said == "keep" {
        return Ok(());
    }
    teardown::remove()
}
