//! Who holds a socket: the processes, and their descriptors of it.
//!
//! Found by the socket's inode among the links in `/proc/PID/fd`, so a descriptor that no table
//! shows is not found: io_uring's direct ones, and one that is under way in a unix socket. What
//! is found may be gone a moment later, and its number may mean something else: a process is
//! held by a pidfd, and a duplicate is compared with the connection's cookie before anything is
//! done with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CStr,
    fs, io,
    mem::MaybeUninit,
    os::{fd::AsFd, unix::fs::MetadataExt as _},
    sync::Arc,
};

use rustix::{
    fd::{OwnedFd, RawFd},
    fs::{Mode, OFlags, RawDir, open, readlinkat_raw},
    io::Errno,
    net::sockopt::socket_cookie,
    process::{Pid, PidfdGetfdFlags, pidfd_getfd},
};

use super::{
    Inode,
    process::{Cgroups, Facts, Process},
};
use crate::snapshot::{Cookie, Netns};

/// Descriptors looked at in one search, at some 3 microseconds each. A search that would need
/// more does not say that it has found all owners.
const MOST_DESCRIPTORS: usize = 250_000;

/// What a search found. Valid for the moment: keep it no longer than for one step.
pub(crate) struct Owners {
    of: BTreeMap<Inode, Vec<Owner>>,
    complete: bool,
}

/// A process's descriptor of a socket.
#[derive(Clone)]
pub(crate) struct Owner {
    process: Arc<Process>,
    fd: RawFd,
    /// What the guards ask of the process.
    pub(crate) facts: Facts,
}

impl Owners {
    /// Every owner found of this socket; empty if there may be others, or none was found.
    pub(crate) fn of(&self, inode: Inode) -> &[Owner] {
        match self.of.get(&inode) {
            Some(owners) if self.complete => owners,
            _ => &[],
        }
    }

    /// Those that were found, though there may be others.
    pub(super) fn any_of(&self, inode: Inode) -> &[Owner] {
        self.of.get(&inode).map_or(&[], Vec::as_slice)
    }

    /// Searches for the owners of sockets of one network namespace: among its own processes, and
    /// if that leaves one without an owner, among all others of the node.
    pub(crate) fn find(netns: Netns, wanted: &BTreeSet<Inode>, cgroups: &Cgroups) -> Self {
        let (inside, outside): (Vec<_>, Vec<_>) =
            processes().into_iter().partition(|pid| is_in(*pid, netns));
        Self::among(&inside, &outside, wanted, cgroups)
    }

    pub(super) fn among(
        inside: &[Pid],
        outside: &[Pid],
        wanted: &BTreeSet<Inode>,
        cgroups: &Cgroups,
    ) -> Self {
        let mut search = Search {
            wanted,
            left: MOST_DESCRIPTORS,
            complete: true,
            hits: Vec::new(),
        };
        search.descriptors_of(inside);
        let found: BTreeSet<Inode> = search.hits.iter().map(|(inode, ..)| *inode).collect();
        if found != *wanted {
            search.descriptors_of(outside);
        }
        let mut of: BTreeMap<Inode, Vec<Owner>> = BTreeMap::new();
        for (inode, pid, fd) in search.hits {
            match Owner::hold(pid, fd, inode, cgroups) {
                Some(owner) => of.entry(inode).or_default().push(owner),
                // It has let go of the socket since, or it cannot be looked at.
                None if !leads_to(pid, fd, inode) => {}
                None => search.complete = false,
            }
        }
        Self {
            of,
            complete: search.complete,
        }
    }
}

impl Owner {
    /// Holds on to the process, then looks whether the descriptor is still what it was.
    fn hold(pid: Pid, fd: RawFd, inode: Inode, cgroups: &Cgroups) -> Option<Self> {
        let process = Process::open(pid).ok()?;
        let facts = process.facts(cgroups)?;
        let owns = process.proc(|_| Some(leads_to(pid, fd, inode)))?;
        let process = Arc::new(process);
        owns.then_some(Self { process, fd, facts })
    }

    /// A duplicate of the descriptor, certain to be the socket with this cookie. As long as it is
    /// open the server's own close sends nothing: drop it at once.
    ///
    /// EPERM: Yama, a security module or a missing CAP_SYS_PTRACE forbids it. ESRCH, EBADF,
    /// ESTALE: process or descriptor are not what they were.
    pub(crate) fn duplicate(&self, cookie: Cookie) -> Result<OwnedFd, Errno> {
        let duplicate = pidfd_getfd(self.process.pidfd(), self.fd, PidfdGetfdFlags::empty())?;
        if socket_cookie(duplicate.as_fd()) == Ok(cookie.0) {
            Ok(duplicate)
        } else {
            Err(Errno::STALE)
        }
    }
}

/// One walk over descriptors.
struct Search<'a> {
    wanted: &'a BTreeSet<Inode>,
    left: usize,
    complete: bool,
    hits: Vec<(Inode, Pid, RawFd)>,
}

impl Search<'_> {
    fn descriptors_of(&mut self, pids: &[Pid]) {
        for pid in pids {
            match self.descriptors(*pid) {
                // Ended while it was looked at.
                Ok(()) | Err(Errno::NOENT | Errno::SRCH) => {}
                Err(_hidden) => self.complete = false,
            }
        }
    }

    fn descriptors(&mut self, pid: Pid) -> Result<(), Errno> {
        let path = format!("/proc/{}/fd", pid.as_raw_nonzero());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = open(path, flags, Mode::empty())?;
        let mut names = [MaybeUninit::uninit(); 8 << 10];
        let mut entries = RawDir::new(folder.as_fd(), &mut names);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let Some(fd) = number(entry.file_name()) else {
                continue; // `.` and `..`
            };
            let Some(left) = self.left.checked_sub(1) else {
                self.complete = false;
                return Ok(());
            };
            self.left = left;
            if let Some(inode) = socket(folder.as_fd(), entry.file_name())
                && self.wanted.contains(&inode)
            {
                self.hits.push((inode, pid, fd));
            }
        }
        Ok(())
    }
}

/// Every process, by `/proc`.
fn processes() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

fn is_in(pid: Pid, netns: Netns) -> bool {
    let path = format!("/proc/{}/ns/net", pid.as_raw_nonzero());
    fs::metadata(path).is_ok_and(|found| found.ino() as u32 == netns.0)
}

fn leads_to(pid: Pid, fd: RawFd, inode: Inode) -> bool {
    let path = format!("/proc/{}/fd/{fd}", pid.as_raw_nonzero());
    let link: io::Result<_> = fs::read_link(path);
    link.is_ok_and(|link| inode_of(link.as_os_str().as_encoded_bytes()) == Some(inode))
}

/// The socket that a descriptor leads to.
fn socket(folder: impl AsFd, name: &CStr) -> Option<Inode> {
    // Longer links are not of sockets.
    let mut buffer = [MaybeUninit::uninit(); 32];
    let (link, _) = readlinkat_raw(folder, name, &mut buffer).ok()?;
    inode_of(link)
}

/// `socket:[INODE]`.
fn inode_of(link: &[u8]) -> Option<Inode> {
    let number = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok().map(Inode)
}

fn number(name: &CStr) -> Option<RawFd> {
    name.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::AsRawFd as _};

    use super::*;

    /// Searches this process alone: others may be hidden from who runs the tests.
    fn find(inode: Inode) -> Owners {
        let own = [rustix::process::getpid()];
        Owners::among(&own, &[], &BTreeSet::from([inode]), &Cgroups::read())
    }

    fn inode(socket: &impl AsFd) -> Inode {
        Inode(rustix::fs::fstat(socket).unwrap().st_ino as u32)
    }

    #[test]
    fn links_of_sockets_alone_have_an_inode() {
        assert_eq!(inode_of(b"socket:[4242]"), Some(Inode(4242)));
        for other in [
            &b"pipe:[4242]"[..],
            b"socket:[]",
            b"socket:[-1]",
            b"socket:[9]x",
            b"/",
        ] {
            assert_eq!(inode_of(other), None);
        }
    }

    #[test]
    fn every_descriptor_of_a_socket_is_found_and_leads_to_it() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let twin = socket.try_clone().unwrap();
        let cookie = Cookie(socket_cookie(&socket).unwrap());
        let owners = find(inode(&socket));
        let owners = owners.of(inode(&socket));
        let mut fds: Vec<RawFd> = owners.iter().map(|owner| owner.fd).collect();
        fds.sort_unstable();
        let mut expected = [socket.as_raw_fd(), twin.as_raw_fd()];
        expected.sort_unstable();
        assert_eq!(fds, expected);
        for owner in owners {
            let duplicate = owner.duplicate(cookie).unwrap();
            assert_eq!(socket_cookie(&duplicate).unwrap(), cookie.0);
        }
    }

    #[test]
    fn a_number_that_means_another_socket_by_now_is_refused() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let cookie = Cookie(socket_cookie(&socket).unwrap());
        let owners = find(inode(&socket));
        let [owner] = owners.of(inode(&socket)) else {
            panic!("one descriptor has one owner");
        };
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        // `other` takes the very number of `socket`.
        let mut number = OwnedFd::from(socket);
        rustix::io::dup2(&other, &mut number).unwrap();
        assert_eq!(owner.duplicate(cookie).unwrap_err(), Errno::STALE);
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

    /// To the eye the same: its id, and under it the same number leads to the same socket.
    #[test]
    #[ignore = "needs root, to give a process the id of another: `cargo xtask test kernel` runs it"]
    fn a_process_that_takes_the_owners_id_is_not_the_owner() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let (inode, fd) = (inode(&socket), socket.as_raw_fd());
        let cookie = Cookie(socket_cookie(&socket).unwrap());
        let cgroups = Cgroups::read();
        let first = copy_with_id(None, None);
        let owners = Owners::among(&[first], &[], &BTreeSet::from([inode]), &cgroups);
        let [owner] = owners.of(inode) else {
            panic!("one descriptor has one owner");
        };
        drop(owner.duplicate(cookie).unwrap());
        end(first);
        let second = copy_with_id(Some(first), None);
        assert_eq!(second, first);
        assert!(leads_to(second, fd, inode));
        assert_eq!(owner.duplicate(cookie).unwrap_err(), Errno::SRCH);
        assert_eq!(owner.process.facts(&cgroups), None);
        end(second);
    }

    /// Between the walk over descriptors, which knows ids only, and the hold.
    #[test]
    #[ignore = "needs root, to give a process the id of another: `cargo xtask test kernel` runs it"]
    fn a_process_that_takes_the_id_of_a_hit_is_not_held_for_it() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let (inode, fd) = (inode(&socket), socket.as_raw_fd());
        let cgroups = Cgroups::read();
        let first = copy_with_id(None, None);
        assert!(Owner::hold(first, fd, inode, &cgroups).is_some());
        end(first);
        assert!(Owner::hold(first, fd, inode, &cgroups).is_none());
        let second = copy_with_id(Some(first), Some((other.as_raw_fd(), fd)));
        while leads_to(second, fd, inode) {
            std::thread::yield_now(); // until it has its other descriptor
        }
        assert!(Owner::hold(second, fd, inode, &cgroups).is_none());
        end(second);
    }

    #[test]
    fn a_search_that_was_cut_short_says_nothing() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut owners = find(inode(&socket));
        assert_eq!(owners.of(inode(&socket)).len(), 1);
        owners.complete = false;
        assert_eq!(owners.of(inode(&socket)).len(), 0);
    }
}
