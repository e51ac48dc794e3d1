//! Who holds a socket: the processes, and their descriptors of it, as a walk has found them.
//!
//! A descriptor that no table shows is not found: io_uring's direct ones, and one that is under way
//! in a unix socket. What is found may be gone a moment later, and its number may mean something
//! else: a process is held by a pidfd, and a duplicate is compared with the connection's cookie
//! before anything is done with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::fd::AsFd as _,
    sync::Arc,
    time::{Duration, Instant},
};

use rebalancer_common::Live;
use rustix::{
    fd::{OwnedFd, RawFd},
    io::Errno,
    net::sockopt::socket_cookie,
    process::{Pid, PidfdGetfdFlags, pidfd_getfd},
};

use super::{
    netns,
    process::{Cgroups, Facts, Process},
};
use crate::{
    bpf::{self, Adopt, Holder, Walker},
    snapshot::{Cookie, Netns, TcpState},
};

/// What a walk has found.
#[derive(Default)]
pub(crate) struct Owners {
    of: BTreeMap<Cookie, Found>,
}

/// Who holds one socket.
struct Found {
    owners: Vec<Owner>,
    /// Nobody was found who could not be looked at.
    complete: bool,
    /// What the socket was when the walk came by; `None` if no descriptor led to it.
    state: Option<TcpState>,
    at: Instant,
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
    /// Looks for the owners of these sockets among all processes.
    pub(crate) fn find(
        walker: &mut Walker,
        wanted: &BTreeSet<Cookie>,
        cgroups: &Cgroups,
    ) -> Result<Self, bpf::Error> {
        let mut owners = Self::default();
        owners.refresh(walker, wanted, cgroups)?;
        Ok(owners)
    }

    /// Looks for the owners of these sockets anew. One that nobody holds has none. Returns the CPU time of
    /// the walk.
    pub(crate) fn refresh(
        &mut self,
        walker: &mut Walker,
        wanted: &BTreeSet<Cookie>,
        cgroups: &Cgroups,
    ) -> Result<Duration, bpf::Error> {
        let at = Instant::now();
        let pass = walker.walk(Adopt::No)?;
        let mut processes = BTreeMap::new();
        for cookie in wanted {
            self.of.insert(*cookie, Found::none(at));
        }
        for socket in &pass.sockets {
            let cookie = Cookie(socket.connection.cookie);
            if wanted.contains(&cookie) {
                let mut found = Found::hold(&socket.holders, cookie, cgroups, &mut processes, at);
                found.state = Some(TcpState::from_kernel(socket.live.state));
                self.of.insert(cookie, found);
            }
        }
        Ok(pass.cpu)
    }

    /// Forgets the owners of all sockets but these.
    pub(crate) fn keep(&mut self, wanted: impl Fn(Cookie) -> bool) {
        self.of.retain(|cookie, _| wanted(*cookie));
    }

    /// Those of which nobody has looked for owners, or not within `age`.
    pub(crate) fn older_than(
        &self,
        age: Duration,
        cookies: impl Iterator<Item = Cookie>,
    ) -> BTreeSet<Cookie> {
        cookies
            .filter(|cookie| {
                self.of
                    .get(cookie)
                    .is_none_or(|found| found.at.elapsed() > age)
            })
            .collect()
    }

    /// Every owner found of this socket; empty if there may be others, or none was found.
    pub(crate) fn of(&self, cookie: Cookie) -> &[Owner] {
        match self.of.get(&cookie) {
            Some(found) if found.complete => &found.owners,
            _ => &[],
        }
    }

    /// Those that were found, though there may be others.
    pub(crate) fn any_of(&self, cookie: Cookie) -> &[Owner] {
        self.of.get(&cookie).map_or(&[], |found| &found.owners)
    }

    /// What the socket was when it was looked for; `None` if no descriptor led to it.
    pub(crate) fn state(&self, cookie: Cookie) -> Option<TcpState> {
        self.of.get(&cookie)?.state
    }

    /// Opens the network namespace of one of these sockets.
    pub(crate) fn open_netns(
        &self,
        netns: Netns,
        cookies: impl Iterator<Item = Cookie>,
    ) -> Option<File> {
        let owners =
            cookies.flat_map(|cookie| self.any_of(cookie).iter().map(move |o| (cookie, o)));
        for (cookie, owner) in owners {
            let by_process = owner.open_netns(netns);
            let by_socket = || netns::of_socket(owner.duplicate(cookie).ok()?, netns);
            if let Some(file) = by_process.or_else(by_socket) {
                return Some(file);
            }
        }
        None
    }
}

impl Found {
    fn none(at: Instant) -> Self {
        Self {
            owners: Vec::new(),
            complete: true,
            state: None,
            at,
        }
    }

    /// Holds on to the processes that hold a socket.
    fn hold(
        holders: &[Holder],
        cookie: Cookie,
        cgroups: &Cgroups,
        processes: &mut BTreeMap<u32, Option<(Arc<Process>, Facts)>>,
        at: Instant,
    ) -> Self {
        let mut found = Self::none(at);
        for holder in holders {
            let held = processes
                .entry(holder.pid)
                .or_insert_with(|| Owner::hold(holder.pid, cgroups));
            match held {
                Some((process, facts)) => {
                    let owner = Owner {
                        process: Arc::clone(process),
                        fd: holder.fd as RawFd,
                        facts: *facts,
                    };
                    // It has let go of the socket since, or its id is another process's.
                    match owner.leads_to(cookie) {
                        Some(true) => found.owners.push(owner),
                        Some(false) => {}
                        None => found.complete = false,
                    }
                }
                // It has ended; or it cannot be looked at, and then there may be others.
                None => found.complete &= has_ended(holder.pid),
            }
        }
        found
    }
}

fn has_ended(pid: u32) -> bool {
    let found = fs::metadata(format!("/proc/{pid}"));
    pid != 0 && found.is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
}

impl Owner {
    /// Holds on to the process that has this id now.
    fn hold(pid: u32, cgroups: &Cgroups) -> Option<(Arc<Process>, Facts)> {
        let process = Process::open(Pid::from_raw(pid.try_into().ok()?)?).ok()?;
        let facts = process.facts(cgroups)?;
        Some((Arc::new(process), facts))
    }

    /// Whether the descriptor leads to this socket now; `None` if that cannot be told.
    fn leads_to(&self, cookie: Cookie) -> Option<bool> {
        match self.duplicate(cookie) {
            Ok(_) => Some(true),
            Err(Errno::SRCH | Errno::BADF | Errno::STALE) => Some(false),
            // Duplicating may be forbidden where looking is not (Yama).
            Err(_) => self.process.holds_socket(self.fd),
        }
    }

    /// A duplicate of the descriptor, certain to be the socket with this cookie. As long as it is
    /// open the server's own close sends nothing: drop it at once.
    ///
    /// EPERM: Yama, a security module or a missing CAP_SYS_PTRACE forbids it. ESRCH, EBADF,
    /// ESTALE: process or descriptor are not what they were.
    pub(crate) fn duplicate(&self, cookie: Cookie) -> Result<OwnedFd, Errno> {
        let duplicate = pidfd_getfd(self.process.pidfd(), self.fd, PidfdGetfdFlags::empty())?;
        match socket_cookie(duplicate.as_fd()) {
            Ok(found) if found == cookie.0 => Ok(duplicate),
            _ => Err(Errno::STALE),
        }
    }

    /// Reads a socket through the first of its owners who lets it be duplicated; `None` if none does, or
    /// it has no record.
    pub(crate) fn read(
        owners: &[Self],
        cookie: Cookie,
        walker: &mut Walker,
    ) -> Result<Option<Live>, bpf::Error> {
        let mut duplicates = owners.iter().flat_map(|owner| owner.duplicate(cookie));
        match duplicates.next() {
            Some(held) => walker.read_own(cookie, held.as_fd()),
            None => Ok(None),
        }
    }

    fn open_netns(&self, netns: Netns) -> Option<File> {
        self.process.proc(|path| netns::of_process(&path, netns))
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::AsRawFd as _};

    use super::*;

    fn own_pid() -> u32 {
        std::process::id()
    }

    /// What is found if a walk says that these hold the socket.
    fn hold(socket: &TcpListener, holders: &[(u32, RawFd)]) -> Found {
        let cookie = Cookie(socket_cookie(socket).unwrap());
        let holders: Vec<Holder> = holders
            .iter()
            .map(|(pid, fd)| Holder {
                pid: *pid,
                fd: *fd as u32,
            })
            .collect();
        Found::hold(
            &holders,
            cookie,
            &Cgroups::read(),
            &mut BTreeMap::new(),
            Instant::now(),
        )
    }

    #[test]
    fn every_descriptor_of_a_socket_is_held_and_leads_to_it() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let twin = socket.try_clone().unwrap();
        let cookie = Cookie(socket_cookie(&socket).unwrap());
        let both = [socket.as_raw_fd(), twin.as_raw_fd()];
        let found = hold(&socket, &both.map(|fd| (own_pid(), fd)));
        assert!(found.complete);
        assert_eq!(found.owners.iter().map(|o| o.fd).collect::<Vec<_>>(), both);
        for owner in &found.owners {
            let duplicate = owner.duplicate(cookie).unwrap();
            assert_eq!(socket_cookie(&duplicate).unwrap(), cookie.0);
        }
    }

    #[test]
    fn a_number_that_means_another_socket_by_now_is_refused() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let cookie = Cookie(socket_cookie(&socket).unwrap());
        let found = hold(&socket, &[(own_pid(), socket.as_raw_fd())]);
        let [owner] = found.owners.as_slice() else {
            panic!("one descriptor has one owner");
        };
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        // `other` takes the very number of `socket`.
        let mut number = OwnedFd::from(socket);
        rustix::io::dup2(&other, &mut number).unwrap();
        assert_eq!(owner.duplicate(cookie).unwrap_err(), Errno::STALE);
    }

    #[test]
    fn a_number_that_led_to_it_when_the_walk_came_by_is_no_owner() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let found = hold(&socket, &[(own_pid(), other.as_raw_fd())]);
        assert!(found.owners.is_empty() && found.complete);
    }

    /// It may be a sidecar of another user, or a process outside of our pid namespace.
    #[test]
    fn a_holder_who_cannot_be_looked_at_makes_all_of_them_unsure() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let cookie = Cookie(socket_cookie(&socket).unwrap());
        let own = (own_pid(), socket.as_raw_fd());
        let hidden = (0, 5);
        let mut owners = Owners::default();
        owners.of.insert(cookie, hold(&socket, &[own, hidden]));
        assert_eq!(owners.any_of(cookie).len(), 1);
        assert!(owners.of(cookie).is_empty());
        // One that has ended since is nobody's.
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let ended = (child.id(), 5);
        child.wait().unwrap();
        owners.of.insert(cookie, hold(&socket, &[own, ended]));
        assert_eq!(owners.of(cookie).len(), 1);
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
        let cookie = Cookie(socket_cookie(&socket).unwrap());
        let first = copy_with_id(None, None);
        let pid = first.as_raw_nonzero().get() as u32;
        let found = hold(&socket, &[(pid, socket.as_raw_fd())]);
        let [owner] = found.owners.as_slice() else {
            panic!("one descriptor has one owner");
        };
        drop(owner.duplicate(cookie).unwrap());
        end(first);
        let second = copy_with_id(Some(first), None);
        assert_eq!(second, first);
        assert_eq!(owner.duplicate(cookie).unwrap_err(), Errno::SRCH);
        assert_eq!(owner.process.facts(&Cgroups::read()), None);
        end(second);
    }

    /// Between the walk over descriptors, which knows ids only, and the hold.
    #[test]
    #[ignore = "needs root, to give a process the id of another: `cargo xtask test kernel` runs it"]
    fn a_process_that_takes_the_id_of_a_holder_is_not_held_for_it() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let fd = socket.as_raw_fd();
        let first = copy_with_id(None, None);
        let pid = first.as_raw_nonzero().get() as u32;
        assert_eq!(hold(&socket, &[(pid, fd)]).owners.len(), 1);
        end(first);
        assert!(hold(&socket, &[(pid, fd)]).owners.is_empty());
        let second = copy_with_id(Some(first), Some((other.as_raw_fd(), fd)));
        let link = format!("/proc/{pid}/fd/{fd}");
        let own = format!("/proc/self/fd/{fd}");
        while fs::read_link(&link).unwrap() == fs::read_link(&own).unwrap() {
            std::thread::yield_now(); // until it has its other descriptor
        }
        assert!(hold(&socket, &[(pid, fd)]).owners.is_empty());
        end(second);
    }
}
