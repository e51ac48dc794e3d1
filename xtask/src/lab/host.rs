//! A host of the lab: a network namespace, and a cgroup whose processes end with the lab.
//! `ip netns exec` is not used: it mounts another `/sys`, which hides cgroups and bpffs.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{fs::MetadataExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::cgroup;

/// A place in the lab to run programs and threads in.
#[derive(Debug)]
pub struct Host {
    netns: PathBuf,
    inode: u64,
    /// Held, so that a command can be made without an error to handle.
    namespace: Arc<OwnedFd>,
    cgroup: PathBuf,
    processes: Arc<OwnedFd>,
}

impl Host {
    pub(crate) fn new(netns: PathBuf, cgroup: PathBuf) -> Result<Self> {
        let namespace = File::open(&netns).with_context(|| netns.display().to_string())?;
        let inode = namespace
            .metadata()
            .with_context(|| netns.display().to_string())?
            .ino();
        let processes = Arc::new(cgroup::make(&cgroup)?);
        Ok(Self {
            netns,
            inode,
            namespace: Arc::new(namespace.into()),
            cgroup,
            processes,
        })
    }

    /// A path to the network namespace, for `nsenter --net=`.
    pub fn netns(&self) -> &Path {
        &self.netns
    }

    /// The network namespace's inode, as `stat -L` of `/proc/PID/ns/net` shows it.
    pub fn netns_inode(&self) -> u64 {
        self.inode
    }

    /// The cgroup that this host's programs join, as an absolute path.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The cgroup's id: the inode of its folder, and what the kernel calls `kn->id`.
    pub fn cgroup_id(&self) -> io::Result<u64> {
        self.cgroup.metadata().map(|folder| folder.ino())
    }

    /// A command that will run here, and end with the lab.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let (namespace, processes) = (Arc::clone(&self.namespace), Arc::clone(&self.processes));
        // SAFETY: between fork and exec only two system calls are made, on descriptors that
        // the closure owns; nothing is allocated and no lock is taken.
        unsafe {
            command.pre_exec(move || {
                rustix::io::write(&processes, b"0")?;
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(())
            });
        }
        command
    }

    /// Starts a program here. It ends with the lab at the latest; the caller waits for it or
    /// ends it earlier.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Result<Child> {
        self.command(program)
            .args(arguments)
            .spawn()
            .with_context(|| format!("start {program}"))
    }

    /// Runs `work` in this host's network namespace, on a thread of its own: the sockets it
    /// makes belong here, and stay here when they are handed out.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let namespace = self.namespace.as_fd();
                move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
                Ok(work())
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
