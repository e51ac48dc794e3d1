//! What a process is: whether SIGPIPE would kill it, and where it lives.

use std::{
    fs, io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::PathBuf,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{OwnedFd, RawFd},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::cgroup::{Cgroup2Mount, cgroup2_mounts};
use crate::snapshot::{CgroupId, Netns};

/// A process, held so that its id cannot come to mean another one unnoticed.
pub(super) struct Process {
    pid: Pid,
    pidfd: OwnedFd,
}

/// What the guards ask of a process.
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
    /// Holds on to the process that has this id now.
    pub(super) fn open(pid: Pid) -> Result<Self, Errno> {
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { pid, pidfd })
    }

    pub(super) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Reads a file, or the like, below `/proc/PID`; `None` if that is not certain to have been
    /// this process. As it was not reaped afterwards, its id was its own all along.
    pub(super) fn proc<T>(&self, read: impl FnOnce(PathBuf) -> Option<T>) -> Option<T> {
        let path = PathBuf::from(format!("/proc/{}", self.pid.as_raw_nonzero()));
        let read = read(path)?;
        (!self.has_ended()).then_some(read)
    }

    /// What the guards ask; `None` if it has ended, or is hidden.
    pub(super) fn facts(&self, cgroups: &Cgroups) -> Option<Facts> {
        self.proc(|path| {
            let status = fs::read_to_string(path.join("status")).ok()?;
            let netns = fs::metadata(path.join("ns/net")).ok()?.ino() as u32;
            let cgroup = fs::read_to_string(path.join("cgroup")).ok()?;
            Some(Facts {
                netns: Netns(netns),
                cgroup: cgroups.id(&cgroup),
                dies_of_sigpipe: dies_of_sigpipe(&status)?,
            })
        })
    }

    /// Whether this descriptor is a socket; `None` if that cannot be told.
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

/// The cgroup of this process, in which its sockets are made.
pub(crate) fn own_cgroup(cgroups: &Cgroups) -> Option<CgroupId> {
    cgroups.id(&fs::read_to_string("/proc/self/cgroup").ok()?)
}

/// From a process's cgroup path to the cgroup's id.
pub(crate) struct Cgroups {
    mounts: Vec<Cgroup2Mount>,
}

impl Cgroups {
    /// Reads this process's mounts.
    pub(crate) fn read() -> Self {
        // Without them no cgroup is known, and then the guards skip.
        Self {
            mounts: cgroup2_mounts().unwrap_or_default(),
        }
    }

    /// The id of the cgroup v2 in the text of `/proc/PID/cgroup`: the inode of its folder.
    ///
    /// In a private cgroup namespace both the process's path and the mount's root are told from
    /// the namespace's own root, with `/..` for what is above it.
    fn id(&self, cgroup: &str) -> Option<CgroupId> {
        let path = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
        self.mounts.iter().find_map(|mount| {
            let below = below(path, mount.root.to_str()?)?;
            let folder = fs::metadata(mount.path.join(below)).ok()?;
            Some(CgroupId(folder.ino()))
        })
    }
}

/// `path` as seen from `root`, both of `/`-separated names; `None` if it is not below it.
fn below<'a>(path: &'a str, root: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(root.trim_end_matches('/'))?;
    let below = match rest.strip_prefix('/') {
        Some(below) => below,
        None if rest.is_empty() => "",
        None => return None,
    };
    (!below.split('/').any(|name| name == "..")).then_some(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigpipe_kills_whom_it_finds_unprepared() {
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
    fn cgroups_are_found_from_inside_a_namespace_too() {
        assert_eq!(below("/a/b", "/"), Some("a/b"));
        assert_eq!(below("/", "/"), Some(""));
        assert_eq!(below("/../../pod/x", "/../.."), Some("pod/x"));
        assert_eq!(below("/a/b", "/a"), Some("b"));
        assert_eq!(below("/a", "/a"), Some(""));
        // Neither a sibling with the same beginning, nor what is above the mount.
        assert_eq!(below("/ab", "/a"), None);
        assert_eq!(below("/../pod/x", "/"), None);
        assert_eq!(below("/../../pod/x", "/.."), None);
    }

    #[test]
    fn a_process_is_read_as_long_as_it_lives() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let process = Process::open(Pid::from_child(&child)).unwrap();
        let here = fs::metadata("/proc/self/ns/net").unwrap().ino() as u32;
        let facts = process.facts(&Cgroups::read()).unwrap();
        assert_eq!(facts.netns, Netns(here));
        // std gives a child the default action back.
        assert!(facts.dies_of_sigpipe);
        child.kill().unwrap();
        // Before it is reaped its folder is still there, and says nothing that counts.
        process.wait_for_its_end();
        assert_eq!(process.proc(|path| Some(path.exists())), None);
        assert_eq!(process.facts(&Cgroups::read()), None);
        child.wait().unwrap();
        assert_eq!(process.facts(&Cgroups::read()), None);
    }

    impl Process {
        fn wait_for_its_end(&self) {
            let mut ended = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
            poll(&mut ended, None).unwrap();
        }
    }
}
