//! What can be missing on a machine, each with its remedy.

use std::{io, path::PathBuf};

use crate::host::{CgroupError, FolderError};

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
        "{path}: {why}\n  remedy: the kernel must be built with CONFIG_DEBUG_INFO_BTF=y (distribution kernels since 2021 are)"
    )]
    NoBtf {
        /// Where it was looked for.
        path: PathBuf,
        /// The error of reading it. Not its source, which would be printed again after the remedy.
        why: io::Error,
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
    /// The cgroup cannot be used.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// There is no bpffs for the pins.
    #[error(
        "{path}: {what}\n  remedy: mount it (`mount -t bpf -o mode=0700 bpf /sys/fs/bpf`), or set --pins PATH to a directory on another bpffs"
    )]
    Bpffs {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Other users can change the directory of the pins.
    #[error(
        "the directory for the pins, {path}: {why}\n  remedy: correct that, or set --pins PATH to another directory"
    )]
    NotOurs {
        /// The folder.
        path: PathBuf,
        /// Why it is not used.
        why: FolderError,
    },
    /// Another agent runs.
    #[error("an agent is already running on this node{}: its pins are in {path}\n  remedy: stop it first; `dump` reads its maps without stopping it", named(.pid))]
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
        "the maps in {path} have ABI version {found}, this program uses {expected}\n  remedy: use the running agent's version of `rebalancer`, or restart the agent"
    )]
    Abi {
        /// The pins.
        path: PathBuf,
        /// Their version.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// No program can be loaded at all.
    #[error(
        "even an empty BPF program cannot be loaded: {message}\n  remedy: see `dmesg` and the audit log for what forbids it, such as a seccomp profile or a security module"
    )]
    NoPrograms {
        /// The error of the kernel.
        message: String,
    },
    /// The object's maps cannot be created, or its programs cannot be prepared.
    #[error(
        "loading the BPF object: {message}\n  remedy: give it memory (RLIMIT_MEMLOCK, or the memory cgroup's limit), and allow bpf(2) where a security policy forbids it; else please report it with the output of `uname -a`"
    )]
    Object {
        /// The error of the kernel or the loader.
        message: String,
    },
    /// The kernel has no `iter/task_file`.
    #[error(
        "this kernel has no iterator over open files: {message}\n  remedy: use Linux 5.15 or later, built with CONFIG_DEBUG_INFO_BTF=y; existing records are kept"
    )]
    NoWalk {
        /// What was missing.
        message: String,
    },
    /// The kernel does not load a program.
    #[error(
        "this kernel rejects the program {program}: {why}\n  remedy: use Linux 5.15 or later; there a security policy may forbid it (lockdown, seccomp), and `rebalancer doctor` tries all that is needed; otherwise please report it with the output of `uname -a`"
    )]
    Refused {
        /// Its name.
        program: &'static str,
        /// The error of the kernel.
        why: String,
    },
    /// A call failed.
    #[error("{call}: {message}")]
    Call {
        /// The system call or the step, and its object.
        call: String,
        /// Its error.
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

impl Error {
    /// The verifier's log can be very long: its verdict is in the last line before its statistics. The
    /// whole goes to the debug log.
    pub(super) fn refused(program: &'static str, error: &io::Error, log: &str) -> Self {
        tracing::debug!(program, log, "the verifier's log");
        const STATISTICS: [&str; 3] = ["verification time", "stack depth", "processed "];
        let is_verdict = |line: &&str| {
            !line.trim().is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start))
        };
        let verdict = log.lines().rfind(is_verdict);
        let why = match verdict {
            Some(verdict) => format!("{error}: {}", verdict.trim()),
            None => format!("{error}, without a word of its verifier"),
        };
        Self::Refused { program, why }
    }
}

fn named(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_verifiers_verdict_and_not_its_log() {
        let error = io::Error::from_raw_os_error(libc::EACCES);
        let log = "0: R1=ctx() R10=fp0\n37: (85) call bpf_skc_to_mptcp_sock#196\n\
                   R1 type=ptr_ expected=sock_common\nverification time 347 usec\n\
                   stack depth 216+0+0\nprocessed 34 insns (limit 1000000)\n";
        let message = Error::refused("walk", &error, log).to_string();
        assert!(
            message.starts_with(
                "this kernel rejects the program walk: Permission denied (os error 13): \
                 R1 type=ptr_ expected=sock_common\n"
            ),
            "{message}"
        );
        let message = Error::refused("walk", &error, "").to_string();
        assert!(message.contains("without a word"), "{message}");
    }
}
