//! The socket filter, and what it hears on the connections that it is on.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
    programs::{ProgramError, ProgramFd, SocketFilter},
};
use rebalancer_common::{Heard, names};

use super::{
    Error, Kernel, OBJECT,
    maps::{Raw, check_abi, io_error, pinned},
    tracker::{failed, loader_over},
};
use crate::snapshot::Cookie;

/// Hears what watched connections receive. It runs for nothing until its program is put on a
/// socket, and stays there until it is taken off, or the socket has gone.
pub struct Watcher {
    watched: HashMap<MapData, u64, Raw<Heard>>,
    ebpf: Ebpf,
}

impl Watcher {
    /// Loads the program over the maps pinned under `pins`.
    pub fn open(kernel: &Kernel, pins: &Path) -> Result<Self, Error> {
        check_abi(pins)?;
        let failed = failed(names::WATCH);
        let btf = kernel.btf()?;
        let mut ebpf = loader_over(kernel, &btf, pins)?
            .load(OBJECT)
            .map_err(|e| Error::call("loading the BPF object", e))?;
        let program: &mut SocketFilter = ebpf
            .program_mut(names::WATCH)
            .ok_or_else(|| failed("finding", anyhow::anyhow!("not in the object")))?
            .try_into()
            .map_err(|e: ProgramError| failed("finding", e.into()))?;
        program.load().map_err(|e| failed("loading", e.into()))?;
        Ok(Self {
            watched: watched(pins)?,
            ebpf,
        })
    }

    /// The program, to be put on a socket after [`Watcher::watch`] was told of it.
    pub fn program(&self) -> Option<BorrowedFd<'_>> {
        let program: &SocketFilter = self.ebpf.program(names::WATCH)?.try_into().ok()?;
        program.fd().ok().map(ProgramFd::as_fd)
    }

    /// What this connection receives is heard from now on, and what was heard before forgotten.
    ///
    /// # Errors
    /// E2BIG: the map is full.
    pub fn watch(&mut self, cookie: Cookie) -> io::Result<()> {
        self.watched
            .insert(cookie.0, Raw(Heard::default()), 0)
            .map_err(io_error)
    }

    /// What was heard; `None` if it is not watched.
    pub fn heard(&self, cookie: Cookie) -> Option<Heard> {
        self.watched.get(&cookie.0, 0).ok().map(|heard| heard.0)
    }

    /// It is not heard any more.
    pub fn forget(&mut self, cookie: Cookie) {
        // It is not there if it was never watched.
        let _absent = self.watched.remove(&cookie.0);
    }
}

/// What is watched, or was when the last agent was killed.
pub fn read_watched(pins: &Path) -> Result<Vec<Cookie>, Error> {
    if !pins.join(names::WATCHED).exists() {
        return Ok(Vec::new());
    }
    let watched = watched(pins)?;
    Ok(watched.keys().flatten().map(Cookie).collect())
}

fn watched(pins: &Path) -> Result<HashMap<MapData, u64, Raw<Heard>>, Error> {
    pinned(pins, names::WATCHED)?
        .try_into()
        .map_err(|e: MapError| Error::call("opening the watched map", e))
}

/// They are not watched any more.
pub fn forget_watched(pins: &Path, gone: impl Iterator<Item = Cookie>) -> Result<(), Error> {
    let mut gone = gone.peekable();
    if gone.peek().is_none() {
        return Ok(());
    }
    let mut watched = watched(pins)?;
    for cookie in gone {
        // It is not there if it has ended meanwhile.
        let _absent = watched.remove(&cookie.0);
    }
    Ok(())
}
