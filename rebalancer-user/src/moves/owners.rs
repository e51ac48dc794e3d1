//! The owners of the connections to be moved, as walks have found them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use rebalancer_common::Live;

use crate::{
    bpf::{self, Adopt, Walker},
    host::{CgroupMounts, Owner, Processes, SocketOwners, with_duplicate},
    snapshot::{Cookie, Netns, TcpState},
};

/// The owners of sockets.
#[derive(Default)]
pub(crate) struct Owners {
    of: BTreeMap<Cookie, Found>,
}

/// What a walk has found of one socket.
struct Found {
    owners: SocketOwners,
    /// Its state when the walk came by; `None` if no descriptor led to it.
    state: Option<TcpState>,
    at: Instant,
}

impl Owners {
    /// Looks for the owners of these sockets among all processes.
    pub(crate) fn find(
        walker: &mut Walker,
        wanted: &BTreeSet<Cookie>,
        mounts: &CgroupMounts,
    ) -> Result<Self, bpf::Error> {
        let mut owners = Self::default();
        owners.refresh(walker, wanted, mounts)?;
        Ok(owners)
    }

    /// Looks for the owners of these sockets again. Returns the CPU time of the walk.
    pub(super) fn refresh(
        &mut self,
        walker: &mut Walker,
        wanted: &BTreeSet<Cookie>,
        mounts: &CgroupMounts,
    ) -> Result<Duration, bpf::Error> {
        let at = Instant::now();
        let pass = walker.walk(Adopt::No)?;
        let mut processes = Processes::default();
        for cookie in wanted {
            let none = Found {
                owners: SocketOwners::none(),
                state: None,
                at,
            };
            self.of.insert(*cookie, none);
        }
        for socket in &pass.sockets {
            let cookie = Cookie(socket.connection.cookie);
            if let Some(found) = self.of.get_mut(&cookie)
                && wanted.contains(&cookie)
            {
                found.owners = processes.hold(&socket.holders, cookie, mounts);
                found.state = Some(TcpState::from_kernel(socket.live.state));
            }
        }
        Ok(pass.cpu)
    }

    /// Forgets the owners of all sockets but these.
    pub(super) fn keep(&mut self, wanted: impl Fn(Cookie) -> bool) {
        self.of.retain(|cookie, _| wanted(*cookie));
    }

    /// Those whose owners were not looked for within `age`.
    pub(super) fn older_than(
        &self,
        age: Duration,
        cookies: impl Iterator<Item = Cookie>,
    ) -> BTreeSet<Cookie> {
        let is_old = |found: &Found| found.at.elapsed() > age;
        cookies
            .filter(|cookie| self.of.get(cookie).is_none_or(is_old))
            .collect()
    }

    /// Every owner of this socket; empty if there may be unknown ones.
    pub(crate) fn of(&self, cookie: Cookie) -> &[Owner] {
        self.of.get(&cookie).map_or(&[], |found| found.owners.all())
    }

    /// The owners that were found, though there may be others.
    pub(super) fn known(&self, cookie: Cookie) -> &[Owner] {
        self.of
            .get(&cookie)
            .map_or(&[], |found| found.owners.known())
    }

    /// The socket's state when it was looked for; `None` if no descriptor led to it.
    pub(crate) fn state(&self, cookie: Cookie) -> Option<TcpState> {
        self.of.get(&cookie)?.state
    }

    /// Opens the network namespace of one of these sockets.
    pub(super) fn open_netns(
        &self,
        netns: Netns,
        mut cookies: impl Iterator<Item = Cookie>,
    ) -> Option<File> {
        cookies.find_map(|cookie| {
            let mut owners = self.known(cookie).iter();
            owners.find_map(|owner| owner.open_netns(cookie, netns))
        })
    }
}

/// Reads a socket's record through the first owner that lets it be duplicated; `None` if none does, or
/// there is no record.
pub(super) fn read_live(
    owners: &[Owner],
    cookie: Cookie,
    walker: &mut Walker,
) -> Result<Option<Live>, bpf::Error> {
    match with_duplicate(owners, cookie, Ok) {
        Ok(duplicate) => walker.read_own(cookie, duplicate.as_fd()),
        Err(_) => Ok(None),
    }
}
