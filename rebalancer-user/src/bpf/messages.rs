//! The sk_msg program, and the sockets whose sends it counts, or follows to tell the client to leave.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError, SockHash},
    programs::{ProgramError, SkMsg},
};
use aya_obj::generated::bpf_map_type;
use rebalancer_common::{Notice, names};
use rustix::fd::AsRawFd as _;

use super::{
    Error, Kernel,
    capture::take_map,
    maps::{Raw, check_abi, io_error},
    tracker::{failed, load_object, loader_over},
};
use crate::snapshot::Cookie;

/// Sockets counted at one time, at 16 bytes each and some 100 more once they are added. Further ones are
/// refused with the reason.
const MOST_SOCKETS: u32 = 65_536;

/// Connections that may be about to be notified at one time: the largest `maxInFlight`.
const MOST_NOTICES: u32 = 10_000;

/// The program for all threads of a process: loaded while one of them uses it.
pub struct Sends {
    kernel: Arc<Kernel>,
    pins: PathBuf,
    open: Mutex<Weak<MessageCounter>>,
}

impl Sends {
    /// For the records pinned under `pins`; nothing is loaded yet.
    pub fn new(kernel: Arc<Kernel>, pins: PathBuf) -> Self {
        let open = Mutex::default();
        Self { kernel, pins, open }
    }

    /// The program as others use it, or loaded now.
    pub fn open(&self) -> Result<Arc<MessageCounter>, Error> {
        let mut open = locked(&self.open);
        if let Some(counter) = open.upgrade() {
            return Ok(counter);
        }
        let counter = Arc::new(MessageCounter::open(&self.kernel, &self.pins)?);
        self.kernel.forget_types();
        *open = Arc::downgrade(&counter);
        Ok(counter)
    }
}

/// What a socket is in the map for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its sends are counted.
    Count = 1,
    /// Its client is to be asked to leave.
    Notice = 2,
}

/// By cookie, the reasons for which a socket is in the map, or about to be: bits of [`Reason`].
type Reasons = Arc<Mutex<BTreeMap<Cookie, u8>>>;

/// The sockets in its map, whose sends are counted or followed. Dropping it removes all of them,
/// unless there is a [`Joiner`].
pub struct MessageCounter {
    // Dropped in this order. None is pinned: a killed process leaves nothing.
    counted: Mutex<SockHash<MapData, u64>>,
    reasons: Reasons,
    notices: Mutex<HashMap<MapData, u64, Raw<Notice>>>,
    goaways: Mutex<HashMap<MapData, u64, u32>>,
    _ebpf: Ebpf,
}

/// Adds sockets to a [`MessageCounter`], from another thread.
pub struct Joiner {
    counted: SockHash<MapData, u64>,
    reasons: Reasons,
}

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
        let mut loader = loader_over(kernel, &btf, pins)?;
        loader
            .map_max_entries(names::NOTICES, MOST_NOTICES)
            .map_max_entries(names::GOAWAYS, MOST_NOTICES);
        let mut ebpf = load_object(&mut loader)?;
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
            counted: Mutex::new(counted),
            reasons: Reasons::default(),
            notices: Mutex::new(take_map(&mut ebpf, names::NOTICES)?),
            goaways: Mutex::new(take_map(&mut ebpf, names::GOAWAYS)?),
            _ebpf: ebpf,
        })
    }

    /// What adds sockets.
    pub fn joiner(&self) -> io::Result<Joiner> {
        let map = locked(&self.counted).fd().as_fd().try_clone_to_owned()?;
        Ok(Joiner {
            counted: MapData::from_fd(map)
                .and_then(socket_hash)
                .map_err(io_error)?,
            reasons: Arc::clone(&self.reasons),
        })
    }

    /// Follows the sends of a socket from this sequence number on, once it joins.
    pub fn follow(&self, cookie: Cookie, next: u32) -> io::Result<()> {
        let notice = Notice {
            next,
            ..Notice::default()
        };
        locked(&self.notices)
            .insert(cookie.0, Raw(notice), 0)
            .map_err(io_error)
    }

    /// What was found in the sends of a socket that is followed.
    pub fn notice(&self, cookie: Cookie) -> Option<Notice> {
        let found = locked(&self.notices).get(&cookie.0, 0);
        found.ok().map(|notice| notice.0)
    }

    /// Has the client asked to leave, at the next boundary, as long as the server answers no stream above
    /// `highest`: a client has opened none.
    pub fn allow_notice(&self, cookie: Cookie, highest: u32) -> io::Result<()> {
        locked(&self.goaways)
            .insert(cookie.0, highest, 0)
            .map_err(io_error)
    }

    /// Its client is not notified from now on.
    pub fn disallow_notice(&self, cookie: Cookie) {
        // There is none if it was not allowed.
        let _absent = locked(&self.goaways).remove(&cookie.0);
    }

    /// Follows the sends of a socket no longer. Its client is not notified from now on.
    pub fn forget(&self, cookie: Cookie) {
        self.disallow_notice(cookie);
        // There is none if it was not followed.
        let _absent = locked(&self.notices).remove(&cookie.0);
    }

    /// Removes a socket, unless it is there for another reason, too. `false`: that, or it is closed
    /// and was removed by the kernel.
    ///
    /// A server that is blocked in a receive just now keeps the program, and what it sends from
    /// another thread is counted, until that receive returns.
    pub fn leave(&self, cookie: Cookie, reason: Reason) -> io::Result<bool> {
        // Locked throughout, so that a socket that joins for another reason stays.
        let mut reasons = locked(&self.reasons);
        if !clear(&mut reasons, cookie, reason) {
            return Ok(false);
        }
        match locked(&self.counted).remove(&cookie.0) {
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
    /// Counts or follows the sends of this socket, which must have this cookie, from now on. Waits for
    /// its lock.
    ///
    /// # Errors
    /// EOPNOTSUPP: it is not established. EBUSY: another program has it. EINVAL: something else
    /// has taken it over, such as kernel TLS. E2BIG: the map is full.
    pub fn join(
        &mut self,
        cookie: Cookie,
        socket: BorrowedFd<'_>,
        reason: Reason,
    ) -> io::Result<()> {
        // Before, so that one that leaves for another reason meanwhile stays.
        *locked(&self.reasons).entry(cookie).or_default() |= reason as u8;
        let joined = self.counted.insert(cookie.0, socket.as_raw_fd(), 0);
        joined.map_err(|error| {
            clear(&mut locked(&self.reasons), cookie, reason);
            io_error(error)
        })
    }
}

/// Takes a reason away. Returns whether none is left.
fn clear(reasons: &mut BTreeMap<Cookie, u8>, cookie: Cookie, reason: Reason) -> bool {
    let left = reasons.get(&cookie).map_or(0, |of| of & !(reason as u8));
    if left == 0 {
        reasons.remove(&cookie);
    } else {
        reasons.insert(cookie, left);
    }
    left == 0
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn socket_hash(map: MapData) -> Result<SockHash<MapData, u64>, MapError> {
    Map::from_map_data(map).and_then(SockHash::try_from)
}
