//! Exclusive use of the cluster, by a lock in the cache folder. While a command starts or tests a
//! cluster, a watcher process waits for the command's exit, even by SIGKILL, and removes the
//! cluster unless it is kept. If the watcher dies as well, the next `up` or `down` cleans up.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};

use super::teardown;

/// The lock on the cluster, released when this is dropped.
pub(super) struct Lock(File);

impl Lock {
    /// Takes the lock; prints a message if it has to wait.
    pub(super) fn take() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("a cluster needs namespaces, mounts and cgroups: run this as root");
        }
        let path = crate::cache()?.join("cluster.lock");
        let lock = File::create(&path).with_context(|| path.display().to_string())?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            println!("waiting for another `cargo xtask cluster` or `test cluster` to finish");
            flock(&lock, FlockOperation::LockExclusive).context("lock the cluster")?;
        }
        Ok(Self(lock))
    }
}

/// Ownership of the cluster; dropping it removes the cluster unless it is kept.
pub(super) struct Claim {
    /// The watcher waits until this pipe is closed.
    owner: Option<ChildStdin>,
    watcher: Child,
    kept: bool,
    _lock: Lock,
}

impl Claim {
    pub(super) fn new(lock: Lock) -> Result<Self> {
        let program = std::env::current_exe().context("this program's path")?;
        // The same open file: the lock is held until both processes have exited.
        let shared: OwnedFd = lock.0.try_clone().context("the cluster's lock")?.into();
        let mut watcher = Command::new(program);
        watcher.args(["cluster", "watch"]).stdin(Stdio::piped());
        watcher.stdout(shared).stderr(Stdio::null());
        // Its own process group: Ctrl-C is for the owner only.
        let mut watcher = watcher
            .process_group(0)
            .spawn()
            .context("start the watcher")?;
        Ok(Self {
            owner: watcher.stdin.take(),
            watcher,
            kept: false,
            _lock: lock,
        })
    }

    /// Keeps the cluster running when this is dropped.
    pub(super) fn keep(mut self) -> Result<()> {
        use io::Write as _;
        let owner = self.owner.as_mut().context("the watcher's input")?;
        owner.write_all(b"keep").context("notify the watcher")?;
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
                "removing the cluster: the watcher exited with {status}; run `cargo xtask cluster down`"
            ),
            Err(error) => eprintln!("removing the cluster: {error}"),
        }
    }
}

/// The watcher process.
pub(super) fn watch() -> Result<()> {
    let mut message = String::new();
    io::Read::read_to_string(&mut io::stdin(), &mut message).context("the owner's pipe")?;
    if message == "keep" {
        return Ok(());
    }
    teardown::remove()
}
