//! Facts of a process: its network namespace and cgroup, and whether SIGPIPE would kill it.

use std::{fs, io, os::fd::AsFd as _, path::PathBuf};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{OwnedFd, RawFd},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{cgroup::CgroupMounts, netns};
use crate::snapshot::{CgroupId, Netns};

/// A process, held by a pidfd, so that a reuse of its ID is noticed.
pub(super) struct Process {
    pid: Pid,
    pidfd: OwnedFd,
}

/// What the guards check of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Its network namespace.
    pub(crate) netns: Netns,
    /// Its cgroup v2; `None` if no mount here shows it.
    pub(crate) cgroup: Option<CgroupId>,
    /// SIGPIPE is neither caught nor ignored, so that a write to a reset connection kills it.
    pub(crate) dies_of_sigpipe: bool,
}

impl Process {
    /// Opens the process that has this ID now.
    pub(super) fn open(pid: Pid) -> Result<Self, Errno> {
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { pid, pidfd })
    }

    pub(super) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Reads something below `/proc/PID`; `None` unless it was certainly this process's: if it has not ended
    /// afterwards, its ID was not reused before.
    pub(super) fn proc<T>(&self, read: impl FnOnce(PathBuf) -> Option<T>) -> Option<T> {
        let path = PathBuf::from(format!("/proc/{}", self.pid.as_raw_nonzero()));
        let read = read(path)?;
        (!self.has_ended()).then_some(read)
    }

    /// What the guards check; `None` if it has ended, or is hidden.
    pub(super) fn facts(&self, mounts: &CgroupMounts) -> Option<Facts> {
        self.proc(|path| {
            let status = fs::read_to_string(path.join("status")).ok()?;
            let cgroup = fs::read_to_string(path.join("cgroup")).ok()?;
            Some(Facts {
                netns: netns::inode_of(&path)?,
                cgroup: mounts.id(&cgroup),
                dies_of_sigpipe: dies_of_sigpipe(&status)?,
            })
        })
    }

    /// Whether this descriptor is a socket; `None` if that cannot be determined.
    pub(super) fn holds_socket(&self, fd: RawFd) -> Option<bool> {
        self.proc(|path| match fs::read_link(path.join(format!("fd/{fd}"))) {
            Ok(link) => Some(link.as_os_str().as_encoded_bytes().starts_with(b"socket:[")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Some(false),
            Err(_) => None,
        })
    }

    /// A pidfd is readable from the end of its process on.
    fn has_ended(&self) -> bool {
        let mut ended = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
        !matches!(poll(&mut ended, Some(&Timespec::default())), Ok(0))
    }
}

/// From `/proc/PID/status`. A signal that is only blocked does not count: another thread may not
/// block it. `None` if the file lacks the masks.
fn dies_of_sigpipe(status: &str) -> Option<bool> {
    const SIGPIPE: u64 = 1 << (libc::SIGPIPE - 1);
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let handled = mask("SigIgn:")? | mask("SigCgt:")?;
    Some(handled & SIGPIPE == 0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn sigpipe_kills_a_process_that_neither_ignores_nor_handles_it() {
        let status = |ignored: &str, caught: &str| {
            format!("Name:\tx\nSigBlk:\t0000000000001000\nSigIgn:\t{ignored}\nSigCgt:\t{caught}\n")
        };
        let none = "0000000000000000";
        let pipe = "0000000000001000";
        let others = "ffffffffffffefff";
        assert_eq!(dies_of_sigpipe(&status(none, none)), Some(true));
        assert_eq!(dies_of_sigpipe(&status(others, others)), Some(true));
        assert_eq!(dies_of_sigpipe(&status(pipe, none)), Some(false));
        assert_eq!(dies_of_sigpipe(&status(none, pipe)), Some(false));
        assert_eq!(dies_of_sigpipe("Name:\tx\n"), None);
        assert_eq!(dies_of_sigpipe(&status("?", none)), None);
    }

    #[test]
    fn facts_of_a_process_are_read_only_while_it_runs() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let process = Process::open(Pid::from_child(&child)).unwrap();
        let facts = process.facts(&CgroupMounts::read_or_none()).unwrap();
        assert_eq!(Some(facts.netns), netns::inode_of(Path::new("/proc/self")));
        // std gives a child the default action back.
        assert!(facts.dies_of_sigpipe);
        child.kill().unwrap();
        // Until it is reaped its directory still exists, but no longer counts.
        process.wait_for_its_end();
        assert_eq!(process.proc(|path| Some(path.exists())), None);
        assert_eq!(process.facts(&CgroupMounts::read_or_none()), None);
        child.wait().unwrap();
        assert_eq!(process.facts(&CgroupMounts::read_or_none()), None);
    }

    impl Process {
        fn wait_for_its_end(&self) {
            let mut ended = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
            poll(&mut ended, None).unwrap();
        }
    }
}
