//! A host of the lab: a network namespace, and a cgroup whose processes are killed with the lab.
//! `ip netns exec` is not used, as it mounts a new `/sys`, which hides cgroups and bpffs.

use std::{
    fs::File,
    io,
    net::{SocketAddr, TcpStream},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{fs::MetadataExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::cgroup;

/// A network namespace and cgroup of the lab to run programs and threads in.
#[derive(Debug)]
pub struct Host {
    netns: PathBuf,
    inode: u64,
    /// Opened once, so that creating a command cannot fail.
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

    /// The path of the network namespace, for `nsenter --net=`.
    pub fn netns(&self) -> &Path {
        &self.netns
    }

    /// The network namespace's inode, as `stat -L` of `/proc/PID/ns/net` shows it.
    pub fn netns_inode(&self) -> u64 {
        self.inode
    }

    /// The absolute path of the cgroup that this host's programs join.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The cgroup's ID: the inode of its folder, in the kernel `kn->id`.
    pub fn cgroup_id(&self) -> io::Result<u64> {
        self.cgroup.metadata().map(|folder| folder.ino())
    }

    /// A command that runs in this host and is killed with the lab.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let (namespace, processes) = (Arc::clone(&self.namespace), Arc::clone(&self.processes));
        // SAFETY: between fork and exec the closure makes only two system calls, on descriptors
        // that it owns; it allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(move || {
                rustix::io::write(&processes, b"0")?;
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(())
            });
        }
        command
    }

    /// Starts a program in this host. It is killed with the lab; the caller waits for it or kills
    /// it earlier.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Result<Child> {
        self.command(program)
            .args(arguments)
            .spawn()
            .with_context(|| format!("start {program}"))
    }

    /// Whether a connection from this host to `target` can be established.
    pub fn connects(&self, target: SocketAddr) -> bool {
        let connect = || TcpStream::connect_timeout(&target, Duration::from_secs(1));
        self.enter(connect).flatten().is_ok()
    }

    /// Runs `work` in this host's network namespace, on a separate thread. Sockets that it creates
    /// stay in this namespace.
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
