//! The sk_msg program, and the sockets whose sends it counts, or follows to tell the client to leave.

use std::{
    collections::{BTreeMap, BTreeSet},
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
use aya_obj::generated::{BPF_F_NO_PREALLOC, bpf_map_type};
use rebalancer_common::{Notice, names};
use rustix::fd::AsRawFd as _;

use super::{
    Error, Kernel,
    capture::take_map,
    maps::{Raw, check_abi, io_error, pinned},
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

    /// Takes this reason away from all sockets, for a thread that cannot. Returns those that have left the map, whose
    /// readers are still to be woken.
    pub fn leave_all(&self, reason: Reason) -> BTreeSet<Cookie> {
        let Some(counter) = locked(&self.open).upgrade() else {
            return BTreeSet::new();
        };
        let reasons = locked(&counter.reasons).clone();
        let of_reason = reasons.into_iter().filter(|(_, of)| of & reason as u8 != 0);
        of_reason
            .map(|(cookie, _)| cookie)
            // One that fails is removed with the map, at the latest.
            .filter(|cookie| counter.leave(*cookie, reason).unwrap_or(false))
            .collect()
    }

    /// The readers of a socket that has left were woken.
    pub fn woken(&self, cookie: Cookie) {
        if let Some(counter) = locked(&self.open).upgrade() {
            counter.woken(cookie);
        }
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

/// The sockets in the map, as the next agent finds them if this process is killed.
type Pinned = Arc<Mutex<HashMap<MapData, u64, u32>>>;

/// The sockets in its map, whose sends are counted or followed. Dropping it removes all of them,
/// unless there is a [`Joiner`].
pub struct MessageCounter {
    // Dropped in this order. It is not pinned: the sockets of a killed process leave it.
    counted: Mutex<SockHash<MapData, u64>>,
    reasons: Reasons,
    pinned: Pinned,
    notices: Mutex<HashMap<MapData, u64, Raw<Notice>>>,
    goaways: Mutex<HashMap<MapData, u64, u32>>,
    _ebpf: Ebpf,
}

/// Adds sockets to a [`MessageCounter`], from another thread.
pub struct Joiner {
    counted: SockHash<MapData, u64>,
    reasons: Reasons,
    pinned: Pinned,
}

impl MessageCounter {
    /// Loads the program over the maps pinned under `pins`. It runs for nothing yet.
    ///
    /// # Errors
    /// Among others, that the kernel has no socket hash (CONFIG_NET_SOCK_MSG).
    pub fn open(kernel: &Kernel, pins: &Path) -> Result<Self, Error> {
        check_abi(pins)?;
        let failed = failed(names::MESSAGES);
        // Not in the object, because each loader would then create one, and fail on kernels without it.
        let counted = create(names::COUNTED, bpf_map_type::BPF_MAP_TYPE_SOCKHASH, 0)
            .and_then(socket_hash)
            .map_err(|e| making(names::COUNTED, e.into()))?;
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
            pinned: Arc::new(Mutex::new(joined(pins)?)),
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
            pinned: Arc::clone(&self.pinned),
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
    /// `highest`: a client cannot have opened one.
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
    /// and was removed by the kernel. Else call [`Self::woken`] once its readers were woken.
    ///
    /// A server that is blocked in a receive just now keeps the program, and what it sends from
    /// another thread is counted, until that receive returns.
    pub fn leave(&self, cookie: Cookie, reason: Reason) -> io::Result<bool> {
        // Locked throughout, so that a socket that joins for another reason stays.
        let mut reasons = locked(&self.reasons);
        if !clear(&mut reasons, cookie, reason) {
            return Ok(false);
        }
        let removed = match locked(&self.counted).remove(&cookie.0) {
            Ok(()) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(e) => match io_error(e) {
                // EINVAL: what kernels before 5.17 say of a key that is not there.
                e if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(false),
                e => Err(e),
            },
        };
        if !matches!(removed, Ok(true)) {
            forget(&reasons, &self.pinned, cookie);
        }
        removed
    }

    /// The readers of a socket that has left need not be woken by the next agent.
    pub fn woken(&self, cookie: Cookie) {
        forget(&locked(&self.reasons), &self.pinned, cookie);
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
        let mut reasons = locked(&self.reasons);
        let of = reasons.entry(cookie).or_default();
        let is_in = *of != 0;
        *of |= reason as u8;
        drop(reasons);
        if is_in {
            return Ok(()); // the kernel adds none twice
        }
        let remembered = locked(&self.pinned).insert(cookie.0, 1, 0);
        let joined = remembered.and_then(|()| self.counted.insert(cookie.0, socket.as_raw_fd(), 0));
        joined.map_err(|error| {
            let mut reasons = locked(&self.reasons);
            clear(&mut reasons, cookie, reason);
            forget(&reasons, &self.pinned, cookie);
            io_error(error)
        })
    }
}

/// Removes a socket from the pinned map, unless it is in the socket hash for some reason.
fn forget(reasons: &BTreeMap<Cookie, u8>, pinned: &Pinned, cookie: Cookie) {
    if !reasons.contains_key(&cookie) {
        // It may have been removed.
        let _absent = locked(pinned).remove(&cookie.0);
    }
}

/// The sockets that a killed agent has left, whose readers may still wait for what has arrived.
pub fn left_joined(pins: &Path) -> Result<BTreeSet<Cookie>, Error> {
    if !pins.join(names::JOINED).exists() {
        return Ok(BTreeSet::new());
    }
    let joined = joined(pins)?;
    let cookies = joined.keys().map(|cookie| cookie.map(Cookie));
    cookies
        .collect::<Result<_, _>>()
        .map_err(|e| Error::call("reading the joined map", e))
}

/// Forgets them.
pub fn forget_joined(pins: &Path, cookies: &BTreeSet<Cookie>) -> Result<(), Error> {
    let mut joined = joined(pins)?;
    for cookie in cookies {
        // It may have been removed.
        let _absent = joined.remove(&cookie.0);
    }
    Ok(())
}

/// The pinned map, made if it is not there.
fn joined(pins: &Path) -> Result<HashMap<MapData, u64, u32>, Error> {
    let failed = |e: anyhow::Error| making(names::JOINED, e);
    let path = pins.join(names::JOINED);
    if !path.exists() {
        let map = create(
            names::JOINED,
            bpf_map_type::BPF_MAP_TYPE_HASH,
            BPF_F_NO_PREALLOC,
        );
        let map = map.map_err(|e| failed(e.into()))?;
        map.pin(&path).map_err(|e| failed(e.into()))?;
    }
    let map = pinned(pins, names::JOINED)?;
    map.try_into().map_err(|e: MapError| failed(e.into()))
}

/// A map from cookies to a number or a socket.
fn create(name: &str, of: bpf_map_type, flags: u32) -> Result<MapData, MapError> {
    let (key, value) = (size_of::<u64>() as u32, size_of::<u32>() as u32);
    let map = aya_obj::Map::new_from_params(of as u32, key, value, MOST_SOCKETS, flags);
    MapData::create(map, name, None)
}

fn making(name: &str, error: anyhow::Error) -> Error {
    Error::call(format!("making the map {name}"), error)
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
