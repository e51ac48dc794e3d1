//! Who holds a socket: processes, and their descriptors of it.
//!
//! Descriptors that are in no process's table are not found: io_uring's direct descriptors, and those in
//! flight over a Unix socket. A process may exit and a descriptor number may be reused at any time, so a
//! process is held by a pidfd, and a duplicate's cookie is compared before it is used.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::fd::AsFd as _,
    sync::Arc,
};

use rustix::{
    fd::{OwnedFd, RawFd},
    io::Errno,
    net::sockopt::socket_cookie,
    process::{Pid, PidfdGetfdFlags, pidfd_getfd},
};

use super::{
    cgroup::CgroupMounts,
    netns,
    process::{Facts, Process},
};
use crate::snapshot::{Cookie, Netns};

/// A process's descriptor of a socket, by numbers that may be reused at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// The process ID in this process's pid namespace; 0 if it has none there.
    pub pid: u32,
    /// The descriptor.
    pub fd: u32,
}

/// The owners of one socket.
pub(crate) struct SocketOwners {
    owners: Vec<Owner>,
    /// Every holder could be inspected, so there is no other owner.
    is_complete: bool,
}

/// A process's descriptor of a socket; the process is held by a pidfd.
#[derive(Clone)]
pub(crate) struct Owner {
    process: Arc<Process>,
    fd: RawFd,
    /// What the guards check of the process.
    pub(crate) facts: Facts,
}

/// Processes that were opened already; `None` for those that could not be.
#[derive(Default)]
pub(crate) struct Processes(BTreeMap<u32, Option<(Arc<Process>, Facts)>>);

impl Processes {
    /// Opens the processes that hold a socket.
    pub(crate) fn hold(
        &mut self,
        holders: &[Holder],
        cookie: Cookie,
        mounts: &CgroupMounts,
    ) -> SocketOwners {
        let mut found = SocketOwners::none();
        for holder in holders {
            let process = self.0.entry(holder.pid);
            match process.or_insert_with(|| open(holder.pid, mounts)) {
                Some((process, facts)) => {
                    let owner = Owner {
                        process: Arc::clone(process),
                        fd: holder.fd as RawFd,
                        facts: *facts,
                    };
                    // It may have closed the socket since, or its ID may be another process's.
                    match owner.leads_to(cookie) {
                        Some(true) => found.owners.push(owner),
                        Some(false) => {}
                        None => found.is_complete = false,
                    }
                }
                // It has exited; or it cannot be inspected, and may be an owner.
                None => found.is_complete &= has_exited(holder.pid),
            }
        }
        found
    }
}

fn open(pid: u32, mounts: &CgroupMounts) -> Option<(Arc<Process>, Facts)> {
    let process = Process::open(Pid::from_raw(pid.try_into().ok()?)?).ok()?;
    let facts = process.facts(mounts)?;
    Some((Arc::new(process), facts))
}

fn has_exited(pid: u32) -> bool {
    let found = fs::metadata(format!("/proc/{pid}"));
    pid != 0 && found.is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
}

impl SocketOwners {
    /// No process holds the socket.
    pub(crate) fn none() -> Self {
        Self {
            owners: Vec::new(),
            is_complete: true,
        }
    }

    /// Every owner; empty if there may be unknown ones.
    pub(crate) fn all(&self) -> &[Owner] {
        if self.is_complete { &self.owners } else { &[] }
    }

    /// The owners that were found, though there may be others.
    pub(crate) fn known(&self) -> &[Owner] {
        &self.owners
    }
}

impl Owner {
    /// Whether the descriptor leads to this socket now; `None` if that cannot be determined.
    fn leads_to(&self, cookie: Cookie) -> Option<bool> {
        match self.duplicate(cookie) {
            Ok(_) => Some(true),
            Err(Errno::SRCH | Errno::BADF | Errno::STALE) => Some(false),
            // Yama may forbid to duplicate what may be read.
            Err(_) => self.process.holds_socket(self.fd),
        }
    }

    /// A duplicate of the descriptor, verified to be the socket with this cookie. While it is open the
    /// server's own close sends no FIN, so drop it at once.
    ///
    /// EPERM: Yama, a security module or a missing CAP_SYS_PTRACE forbids it. ESRCH, EBADF, ESTALE: the
    /// process has exited, or the descriptor has been closed or reused.
    fn duplicate(&self, cookie: Cookie) -> Result<OwnedFd, Errno> {
        let duplicate = pidfd_getfd(self.process.pidfd(), self.fd, PidfdGetfdFlags::empty())?;
        match socket_cookie(duplicate.as_fd()) {
            Ok(found) if found == cookie.0 => Ok(duplicate),
            _ => Err(Errno::STALE),
        }
    }

    /// Opens this network namespace by the process, or else by the socket.
    pub(crate) fn open_netns(&self, cookie: Cookie, netns: Netns) -> Option<File> {
        let by_process = self.process.proc(|path| netns::of_process(&path, netns));
        by_process.or_else(|| netns::of_socket(self.duplicate(cookie).ok()?, netns))
    }
}

/// Uses a duplicate of the socket, of the first owner with which that works.
///
/// # Errors
/// The last owner's, as [`Owner::duplicate`] or `action` returned it; `None` without owners.
pub(crate) fn with_duplicate<T>(
    owners: &[Owner],
    cookie: Cookie,
    mut action: impl FnMut(OwnedFd) -> Result<T, Errno>,
) -> Result<T, Option<Errno>> {
    let mut last = None;
    for owner in owners {
        match owner.duplicate(cookie).and_then(&mut action) {
            Ok(done) => return Ok(done),
            Err(error) => last = Some(error),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::AsRawFd as _};

    use super::*;

    fn own_pid() -> u32 {
        std::process::id()
    }

    fn bound() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    fn cookie_of(socket: &TcpListener) -> Cookie {
        Cookie(socket_cookie(socket).unwrap())
    }

    /// One descriptor has one owner.
    fn only(found: &SocketOwners) -> &Owner {
        let [owner] = found.known() else {
            panic!("{} owners", found.known().len());
        };
        owner
    }

    /// What is found if a walk says that these hold the socket.
    fn hold(socket: &TcpListener, holders: &[(u32, RawFd)]) -> SocketOwners {
        let cookie = cookie_of(socket);
        let holder = |(pid, fd): &(u32, RawFd)| Holder {
            pid: *pid,
            fd: *fd as u32,
        };
        let holders: Vec<Holder> = holders.iter().map(holder).collect();
        Processes::default().hold(&holders, cookie, &CgroupMounts::read_or_none())
    }

    #[test]
    fn every_descriptor_of_a_socket_has_an_owner_that_can_duplicate_it() {
        let socket = bound();
        let twin = socket.try_clone().unwrap();
        let cookie = cookie_of(&socket);
        let both = [socket.as_raw_fd(), twin.as_raw_fd()];
        let found = hold(&socket, &both.map(|fd| (own_pid(), fd)));
        assert!(found.is_complete);
        assert_eq!(found.known().iter().map(|o| o.fd).collect::<Vec<_>>(), both);
        for owner in found.known() {
            let duplicate = owner.duplicate(cookie).unwrap();
            assert_eq!(socket_cookie(&duplicate).unwrap(), cookie.0);
        }
    }

    #[test]
    fn a_descriptor_number_reused_for_another_socket_is_stale() {
        let socket = bound();
        let cookie = cookie_of(&socket);
        let found = hold(&socket, &[(own_pid(), socket.as_raw_fd())]);
        let owner = only(&found);
        let other = bound();
        // `other` takes the very number of `socket`.
        let mut number = OwnedFd::from(socket);
        rustix::io::dup2(&other, &mut number).unwrap();
        assert_eq!(owner.duplicate(cookie).unwrap_err(), Errno::STALE);
    }

    #[test]
    fn a_descriptor_that_no_longer_leads_to_the_socket_is_no_owner() {
        let socket = bound();
        let other = bound();
        let found = hold(&socket, &[(own_pid(), other.as_raw_fd())]);
        assert!(found.known().is_empty() && found.is_complete);
    }

    /// It may be a sidecar of another user, or a process outside of our pid namespace.
    #[test]
    fn with_a_holder_that_cannot_be_inspected_the_owners_are_incomplete() {
        let socket = bound();
        let own = (own_pid(), socket.as_raw_fd());
        let hidden = (0, 5);
        let owners = hold(&socket, &[own, hidden]);
        assert_eq!(owners.known().len(), 1);
        assert!(owners.all().is_empty());
        // One that has ended since is nobody's.
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let ended = (child.id(), 5);
        child.wait().unwrap();
        assert_eq!(hold(&socket, &[own, ended]).all().len(), 1);
    }

    /// A copy of this process, with all of its descriptors, that does nothing. It is given this
    /// id, which must be free, and `other` in the place of a descriptor.
    fn copy_with_id(id: Option<Pid>, other: Option<(RawFd, RawFd)>) -> Pid {
        let id = id.map(|pid| pid.as_raw_nonzero().get());
        // `struct clone_args` of `linux/sched.h`.
        let mut arguments = [0_u64; 10];
        arguments[4] = libc::SIGCHLD as u64; // exit_signal
        if let Some(id) = &id {
            arguments[8] = std::ptr::from_ref(id) as u64; // set_tid
            arguments[9] = 1; // set_tid_size
        }
        // SAFETY: a fork; the copy only makes system calls.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, 80) };
        if pid == 0 {
            // SAFETY: as above; it ends by a signal.
            unsafe {
                if let Some((from, to)) = other {
                    libc::dup2(from, to);
                }
                loop {
                    libc::pause();
                }
            }
        }
        Pid::from_raw(pid as i32).unwrap_or_else(|| panic!("{}", io::Error::last_os_error()))
    }

    fn end(pid: Pid) {
        use rustix::process::{Signal, WaitOptions, kill_process, waitpid};
        kill_process(pid, Signal::KILL).unwrap();
        waitpid(Some(pid), WaitOptions::empty()).unwrap();
    }

    /// Same process ID, and the same descriptor number leads to the same socket.
    #[test]
    #[ignore = "needs root, to give a process the id of another: `cargo xtask test kernel` runs it"]
    fn a_process_that_reuses_the_owners_pid_is_not_the_owner() {
        let socket = bound();
        let cookie = cookie_of(&socket);
        let first = copy_with_id(None, None);
        let pid = first.as_raw_nonzero().get() as u32;
        let found = hold(&socket, &[(pid, socket.as_raw_fd())]);
        let owner = only(&found);
        drop(owner.duplicate(cookie).unwrap());
        end(first);
        let second = copy_with_id(Some(first), None);
        assert_eq!(second, first);
        assert_eq!(owner.duplicate(cookie).unwrap_err(), Errno::SRCH);
        assert_eq!(owner.process.facts(&CgroupMounts::read_or_none()), None);
        end(second);
    }

    /// The ID is reused between the walk, which reports IDs only, and the `pidfd_open`.
    #[test]
    #[ignore = "needs root, to give a process the id of another: `cargo xtask test kernel` runs it"]
    fn a_process_that_reuses_a_holders_pid_is_not_held_in_its_place() {
        let socket = bound();
        let other = bound();
        let fd = socket.as_raw_fd();
        let first = copy_with_id(None, None);
        let pid = first.as_raw_nonzero().get() as u32;
        assert_eq!(hold(&socket, &[(pid, fd)]).known().len(), 1);
        end(first);
        assert!(hold(&socket, &[(pid, fd)]).known().is_empty());
        let second = copy_with_id(Some(first), Some((other.as_raw_fd(), fd)));
        let link = format!("/proc/{pid}/fd/{fd}");
        let own = format!("/proc/self/fd/{fd}");
        while fs::read_link(&link).unwrap() == fs::read_link(&own).unwrap() {
            std::thread::yield_now(); // until it has its other descriptor
        }
        assert!(hold(&socket, &[(pid, fd)]).known().is_empty());
        end(second);
    }
}
