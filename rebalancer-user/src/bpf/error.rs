//! What can be missing on a machine, in words that name the remedy.

use std::{io, path::PathBuf};

use crate::folder::FolderError;

/// Why the kernel side cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Capabilities are missing.
    #[error(
        "not allowed to load BPF programs: missing {}\n  remedy: run as root, or in Kubernetes with `privileged: true` or these capabilities",
        .0.join(", ")
    )]
    Privilege(Vec<&'static str>),
    /// The kernel exports no BTF.
    #[error(
        "{path}: {source}\n  remedy: the kernel must be built with CONFIG_DEBUG_INFO_BTF=y (any distribution's kernel since 2021 is)"
    )]
    NoBtf {
        /// Where it was looked for.
        path: PathBuf,
        /// What reading it said.
        source: io::Error,
    },
    /// The BTF lacks a field, or is damaged.
    #[error(
        "{path}: {what}\n  remedy: this kernel is not supported (5.15 or later is); please report it with the output of `uname -a`"
    )]
    Btf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// No cgroup v2 root is mounted.
    #[error(
        "no cgroup v2 hierarchy's root is mounted{hint}\n  remedy: mount it (`mount -t cgroup2 none /sys/fs/cgroup/unified`), or name it with --cgroup PATH"
    )]
    NoCgroup2 {
        /// What was found instead.
        hint: String,
    },
    /// The path given is not in a cgroup v2 hierarchy.
    #[error(
        "{path}: not a cgroup v2 folder\n  remedy: give the mount point of a cgroup2 file system, or a folder below it"
    )]
    NotCgroup2 {
        /// The path.
        path: PathBuf,
    },
    /// The bpffs for the pins cannot be had.
    #[error(
        "{path}: {what}\n  remedy: mount it (`mount -t bpf -o mode=0700 bpf /sys/fs/bpf`), or name another bpffs folder with --pins PATH"
    )]
    Bpffs {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The pins' folder is not ours alone.
    #[error(
        "the folder for the pins, {path}: {why}\n  remedy: correct that, or name another folder with --pins PATH"
    )]
    NotOurs {
        /// The folder.
        path: PathBuf,
        /// Why it is not used.
        why: FolderError,
    },
    /// Another agent runs.
    #[error("an agent runs already on this node{}: its pins are in {path}\n  remedy: stop it first; `dump` reads its maps without stopping it", named(.pid))]
    Busy {
        /// The pins.
        path: PathBuf,
        /// Its process id, if it could be read.
        pid: Option<u32>,
    },
    /// No agent runs here.
    #[error("no agent has pinned its maps in {path}")]
    NoPins {
        /// The pins.
        path: PathBuf,
    },
    /// Pins of another version.
    #[error(
        "the maps in {path} have ABI version {found}, this program speaks {expected}\n  remedy: use the `rebalancer` of the agent that runs, or restart the agent"
    )]
    Abi {
        /// The pins.
        path: PathBuf,
        /// Their version.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// A call failed.
    #[error("{call}: {message}")]
    Call {
        /// The system call or the step, and its object.
        call: String,
        /// What it said.
        message: String,
    },
}

impl Error {
    /// A failed call, with the whole chain of its reasons.
    pub(crate) fn call(call: impl Into<String>, source: impl Into<anyhow::Error>) -> Self {
        Self::Call {
            call: call.into(),
            message: format!("{:#}", source.into()),
        }
    }
}

fn named(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}
