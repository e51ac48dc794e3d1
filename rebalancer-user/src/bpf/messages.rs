//! The sk_msg program, and the sockets whose sends it counts.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError, SockHash},
    programs::{ProgramError, SkMsg},
};
use aya_obj::generated::bpf_map_type;
use rebalancer_common::names;
use rustix::fd::AsRawFd as _;

use super::{
    Error, Kernel,
    maps::{check_abi, io_error},
    tracker::{failed, load_object, loader_over},
};
use crate::snapshot::Cookie;

/// Sockets counted at one time, at 16 bytes each and some 100 more once they are added. Further ones are
/// refused with the reason.
const MOST_SOCKETS: u32 = 65_536;

/// Counts the sends of the sockets in its map. Dropping it removes all of them, unless there is a
/// [`Joiner`].
pub struct MessageCounter {
    // Dropped in this order. Neither is pinned: a killed process leaves nothing.
    counted: SockHash<MapData, u64>,
    _ebpf: Ebpf,
}

/// Adds sockets to a [`MessageCounter`], from another thread.
pub struct Joiner(SockHash<MapData, u64>);

impl MessageCounter {
    /// Loads the program over the maps pinned under `pins`. It runs for nothing yet.
    ///
    /// # Errors
    /// Among others, that the kernel has no socket hash (CONFIG_NET_SOCK_MSG).
    pub fn open(kernel: &Kernel, pins: &Path) -> Result<Self, Error> {
        check_abi(pins)?;
        let failed = failed(names::MESSAGES);
        let making =
            |e: anyhow::Error| Error::call(format!("making the map {}", names::COUNTED), e);
        // Not in the object, because each loader would then create one, and fail on kernels without it.
        let map = aya_obj::Map::new_from_params(
            bpf_map_type::BPF_MAP_TYPE_SOCKHASH as u32,
            size_of::<u64>() as u32,
            size_of::<u32>() as u32,
            MOST_SOCKETS,
            0,
        );
        let counted = MapData::create(map, names::COUNTED, None)
            .and_then(socket_hash)
            .map_err(|e| making(e.into()))?;
        let btf = kernel.btf()?;
        let mut ebpf = load_object(&mut loader_over(kernel, &btf, pins)?)?;
        let program: &mut SkMsg = ebpf
            .program_mut(names::MESSAGES)
            .ok_or_else(|| failed("finding", anyhow::anyhow!("not in the object")))?
            .try_into()
            .map_err(|e: ProgramError| failed("finding", e.into()))?;
        program.load().map_err(|e| failed("loading", e.into()))?;
        // Before any socket is added: each gets the program that is attached at that moment.
        program
            .attach(counted.fd())
            .map_err(|e| failed("attaching", e.into()))?;
        Ok(Self {
            counted,
            _ebpf: ebpf,
        })
    }

    /// What adds sockets.
    pub fn joiner(&self) -> io::Result<Joiner> {
        let map = self.counted.fd().as_fd().try_clone_to_owned()?;
        MapData::from_fd(map)
            .and_then(socket_hash)
            .map(Joiner)
            .map_err(io_error)
    }

    /// Removes a socket. `false`: it is closed, and was removed by the kernel.
    ///
    /// A server that is blocked in a receive just now keeps the program, and what it sends from
    /// another thread is counted, until that receive returns.
    pub fn leave(&mut self, cookie: Cookie) -> io::Result<bool> {
        match self.counted.remove(&cookie.0) {
            Ok(()) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(e) => match io_error(e) {
                // EINVAL: what kernels before 5.17 say of a key that is not there.
                e if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(false),
                e => Err(e),
            },
        }
    }
}

impl Joiner {
    /// Counts the sends of this socket, which must have this cookie, from now on. Waits for its lock.
    ///
    /// # Errors
    /// EOPNOTSUPP: it is not established. EBUSY: another program has it. EINVAL: something else
    /// has taken it over, such as kernel TLS. E2BIG: the map is full.
    pub fn join(&mut self, cookie: Cookie, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.0
            .insert(cookie.0, socket.as_raw_fd(), 0)
            .map_err(io_error)
    }
}

fn socket_hash(map: MapData) -> Result<SockHash<MapData, u64>, MapError> {
    Map::from_map_data(map).and_then(SockHash::try_from)
}
