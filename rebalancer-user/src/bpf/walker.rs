//! Reads every connection: one pass over the open descriptors of all processes.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aya::{
    Ebpf,
    programs::{Iter, ProgramError},
};
use bytes::{Buf as _, Bytes, BytesMut};
use rebalancer_common::{Connection, EndpointKey, Live, Row, WalkHead, names};
use rustix::{
    mm::{MapFlags, ProtFlags, mmap, munmap},
    time::{ClockId, Timespec, clock_getres, clock_gettime},
};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{
    Error, Kernel,
    maps::check_abi,
    sys::{self, PassEnd},
    tracker::{failed, load_iterator, load_object, loader_over},
};
use crate::{
    host::Holder,
    snapshot::{CgroupId, Cookie},
};

/// Rows of one portion: 0.5 MB. Passes are also exact with 64.
const PORTION: u32 = 2_048;

/// Reads the connections that a [`super::Tracker`] records, here or in another process.
pub struct Walker {
    kernel: Arc<Kernel>,
    pins: PathBuf,
    ebpf: Ebpf,
    /// The link over all processes.
    all: OwnedFd,
    /// The link over this process alone; `None` before Linux 6.1.
    own: Option<OwnedFd>,
    rows: Shared,
    head: Shared,
    node: Shared,
    tick: Duration,
    lost: Option<(EndpointKey, u64)>,
}

/// A socket with a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walked {
    /// The record from socket storage.
    pub connection: Connection,
    /// The values of the socket when the walk visited it.
    pub live: Live,
    /// Every descriptor that leads to it, of any process.
    pub holders: Vec<Holder>,
}

/// One pass.
#[derive(Debug, Default)]
pub struct Pass {
    /// Every socket with a record and a descriptor, once.
    pub sockets: Vec<Walked>,
    /// `CLOCK_MONOTONIC` in nanoseconds at its end.
    pub now_ns: u64,
    /// Descriptors looked at, of sockets and of anything else.
    pub files: u64,
    /// Connections that got a record in this pass, being older than tracking.
    pub adopted: u64,
    /// Portions read.
    pub portions: u32,
    /// CPU time that it took, in the kernel and here.
    pub cpu: Duration,
}

/// Whether a pass creates records for sockets that are older than tracking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adopt {
    /// No.
    No,
    /// Yes.
    Below {
        /// Of sockets in this cgroup and below it; 0: in any.
        cgroup: CgroupId,
        /// At most this many connections.
        room: u64,
    },
}

impl Adopt {
    /// The same, after this many connections got a record.
    #[must_use]
    pub fn less(self, adopted: u64) -> Self {
        match self {
            Self::No => Self::No,
            Self::Below { cgroup, room } => Self::Below {
                cgroup,
                room: room.saturating_sub(adopted),
            },
        }
    }
}

impl Walker {
    /// Loads the program over the maps pinned under `pins`.
    pub fn open(kernel: Arc<Kernel>, pins: &Path) -> Result<Self, Error> {
        Self::with_portions(kernel, pins, PORTION)
    }

    /// The same, with portions of this many rows.
    pub fn with_portions(kernel: Arc<Kernel>, pins: &Path, rows: u32) -> Result<Self, Error> {
        check_abi(pins)?;
        let mut walker = Self::load(Arc::clone(&kernel), pins, rows, 0)?;
        // Only the kernel says for sure how deep this process's pid namespace is: /proc does not
        // show what is above the one that it was mounted for.
        match walker.level()? {
            0 => Ok(walker),
            level => Self::load(kernel, pins, rows, level),
        }
    }

    fn load(kernel: Arc<Kernel>, pins: &Path, rows: u32, level: u32) -> Result<Self, Error> {
        let btf = kernel.btf()?;
        let mut loader = loader_over(&kernel, &btf, pins)?;
        loader.map_max_entries(names::ROWS, rows);
        loader.override_global(names::PID_LEVEL, &level, true);
        let mut ebpf = load_object(&mut loader)?;
        let failed = failed(names::WALK);
        let program =
            load_iterator(&mut ebpf, names::WALK, "task_file", &btf).map_err(|e| match e {
                Error::Refused { .. } => e,
                other => Error::NoWalk {
                    message: other.to_string(),
                },
            })?;
        let all =
            sys::link_iterator(program.as_fd(), None).map_err(|e| failed("linking", e.into()))?;
        let own = link_to(&ebpf, std::process::id()).ok();
        let rows = Shared::map(&ebpf, names::ROWS, rows as usize * size_of::<Row>())?;
        let head = Shared::map(&ebpf, names::WALK_HEAD, size_of::<WalkHead>())?;
        let node = Shared::map(&ebpf, names::NODE, 2 * size_of::<u64>())?;
        Ok(Self {
            kernel,
            pins: pins.to_owned(),
            ebpf,
            all,
            own,
            rows,
            head,
            node,
            tick: tick(),
            lost: None,
        })
    }

    /// Where the maps are pinned.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// The kernel that this was loaded for.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Time of a number of the kernel's jiffies.
    pub fn jiffies(&self, jiffies: u32) -> Duration {
        self.tick.saturating_mul(jiffies)
    }

    /// Whether the kernel can walk over one process alone.
    pub fn walks_one_process(&self) -> bool {
        self.own.is_some()
    }

    /// Walks over all processes.
    pub fn walk(&mut self, adopt: Adopt) -> Result<Pass, Error> {
        let started = cpu_time();
        let mut pass = Pass::default();
        let mut at = BTreeMap::new();
        self.run(None, adopt, &mut pass, &mut |pass, row| {
            merge(&mut pass.sockets, &mut at, row);
        })?;
        pass.cpu = cpu_time().saturating_sub(started);
        self.kernel.has_walked(pass.cpu);
        Ok(pass)
    }

    /// Walks over these processes alone; `None` where the kernel cannot (before 6.1).
    pub fn walk_over(
        &mut self,
        processes: &BTreeSet<u32>,
        adopt: Adopt,
    ) -> Result<Option<Pass>, Error> {
        if self.own.is_none() {
            return Ok(None);
        }
        let started = cpu_time();
        let mut pass = Pass::default();
        let mut at = BTreeMap::new();
        for process in processes {
            let link = match link_to(&self.ebpf, *process) {
                Ok(link) => link,
                // It has ended.
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => continue,
                Err(e) => return Err(failed(names::WALK)("linking", e.into())),
            };
            let adopt = adopt.less(pass.adopted);
            self.run(Some(&link), adopt, &mut pass, &mut |pass, row| {
                merge(&mut pass.sockets, &mut at, row);
            })?;
        }
        if processes.is_empty() {
            pass.now_ns = duration(clock_gettime(ClockId::Monotonic)).as_nanos() as u64;
        }
        pass.cpu = cpu_time().saturating_sub(started);
        self.kernel.has_walked(pass.cpu);
        Ok(Some(pass))
    }

    /// Creates records for the connections and listeners that are older than tracking, in this cgroup and
    /// below it (0: in any); their age counts from now. Returns the number of connections.
    pub fn adopt(&mut self, cgroup: CgroupId, room: u64) -> Result<u64, Error> {
        // A connection is known to be an accepted one by its listener, which may come after it.
        let adopt = Adopt::Below { cgroup, room };
        let first = self.walk(adopt)?.adopted;
        Ok(first + self.walk(adopt.less(first))?.adopted)
    }

    /// How many connections the kernel half counts on the node, those among them whose close it will
    /// not see.
    pub fn counted(&self) -> i64 {
        let word = self.node.words().first();
        word.map_or(0, |word| word.load(Ordering::Relaxed).cast_signed())
    }

    /// Corrects the kernel half's count of connections, for the limit of the node: the kernel half does not
    /// see every close. Only the agent does this.
    pub fn set_correction(&self, count: i64) {
        if let Some(word) = self.node.words().get(1) {
            word.store(count.cast_unsigned(), Ordering::Relaxed);
        }
    }

    /// Has the kernel half count these connections of an endpoint as some whose close it will not see,
    /// at the next pass that adopts. Only the agent does this.
    pub fn set_lost(&mut self, endpoint: EndpointKey, count: u64) {
        self.lost = Some((endpoint, count));
    }

    /// Walks until a socket is found: its values, and its holders.
    pub fn find(&mut self, cookie: Cookie) -> Result<Option<Walked>, Error> {
        let pass = self.walk(Adopt::No)?;
        let is_it = |socket: &Walked| socket.connection.cookie == cookie.0;
        Ok(pass.sockets.into_iter().find(is_it))
    }

    /// Reads a socket that this process holds a descriptor of, by walking over this process alone
    /// where the kernel can; `None` if it has no record.
    pub fn read_own(
        &mut self,
        cookie: Cookie,
        _held: BorrowedFd<'_>,
    ) -> Result<Option<Live>, Error> {
        let own = self.own.take();
        let mut live = None;
        let ran = self.run(
            own.as_ref(),
            Adopt::No,
            &mut Pass::default(),
            &mut |_, row| {
                if row.connection.cookie == cookie.0 {
                    live = Some(row.live);
                }
            },
        );
        self.own = own;
        ran.map(|()| live)
    }

    /// How many pid namespaces lie between the initial one and this process's.
    fn level(&mut self) -> Result<u32, Error> {
        let own = self.own.take();
        let ran = self.run(
            own.as_ref(),
            Adopt::No,
            &mut Pass::default(),
            &mut |_, _| {},
        );
        self.own = own;
        ran.map(|()| self.head().level as u32)
    }

    fn run(
        &mut self,
        link: Option<&OwnedFd>,
        adopt: Adopt,
        pass: &mut Pass,
        take: &mut dyn FnMut(&mut Pass, Row),
    ) -> Result<(), Error> {
        let failed = |e: io::Error| Error::call("walking over open sockets", e);
        let mut head = WalkHead::default();
        if let Adopt::Below { cgroup, room } = adopt {
            (head.adopt, head.within, head.room) = (1, cgroup.0, room);
            if let Some((endpoint, count)) = self.lost.take() {
                (head.lost_at, head.lost) = (endpoint, count);
            }
        }
        self.head.write(head.as_bytes());
        let link = link.unwrap_or(&self.all);
        let walk = sys::start_iterator(link.as_fd()).map_err(failed)?;
        loop {
            let end = walk.run().map_err(failed)?;
            let mut head = self.head();
            pass.portions += 1;
            self.rows.rows(head.cursor, &mut |row| take(pass, row));
            if end == PassEnd::Whole {
                pass.now_ns = head.now_ns;
                pass.files += head.files;
                pass.adopted += head.adopted;
                if head.passes != 1 {
                    return Err(failed(io::Error::other("the pass came to no end")));
                }
                return Ok(());
            }
            head.cursor = 0;
            self.head.write(head.as_bytes());
        }
    }

    fn head(&self) -> WalkHead {
        WalkHead::read_from_bytes(&self.head.copy(self.head.len)).expect("mapped with its size")
    }
}

/// Links the program to one process.
fn link_to(ebpf: &Ebpf, process: u32) -> io::Result<OwnedFd> {
    let program: Result<&Iter, _> = ebpf.program(names::WALK).map_or_else(
        || Err(ProgramError::NotLoaded),
        |program| program.try_into(),
    );
    let program = program.and_then(Iter::fd).map_err(io::Error::other)?;
    sys::link_iterator(program.as_fd(), Some(process))
}

/// The iterator returns a socket once for each of its descriptors.
fn merge(sockets: &mut Vec<Walked>, at: &mut BTreeMap<u64, usize>, row: Row) {
    let holder = Holder {
        pid: row.pid,
        fd: row.fd,
    };
    match at.entry(row.connection.cookie) {
        Entry::Occupied(at) => sockets[*at.get()].holders.push(holder),
        Entry::Vacant(free) => {
            free.insert(sockets.len());
            sockets.push(Walked {
                connection: row.connection,
                live: row.live,
                holders: vec![holder],
            });
        }
    }
}

/// The length of the kernel's tick: its coarse clocks advance by it.
fn tick() -> Duration {
    duration(clock_getres(ClockId::MonotonicCoarse))
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    duration(clock_gettime(ClockId::ThreadCPUTime))
}

fn duration(time: Timespec) -> Duration {
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Memory of a map, shared with the kernel.
struct Shared {
    words: *const AtomicU64,
    len: usize,
    mapped: usize,
}

// SAFETY: the memory belongs to this value alone on our side, and is only touched by atomics.
unsafe impl Send for Shared {}

impl Shared {
    fn map(ebpf: &Ebpf, name: &str, bytes: usize) -> Result<Self, Error> {
        let failed = |e: io::Error| Error::call(format!("mmap of the map {name}"), e);
        let map = match ebpf.map(name) {
            Some(aya::maps::Map::Array(map)) => map,
            _ => return Err(failed(io::ErrorKind::NotFound.into())),
        };
        let mapped = bytes.next_multiple_of(rustix::param::page_size());
        // SAFETY: a fresh mapping of a map of at least this size.
        let memory = unsafe {
            mmap(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map.fd().as_fd(),
                0,
            )
        }
        .map_err(|e| failed(e.into()))?;
        Ok(Self {
            words: memory.cast(),
            len: bytes / size_of::<u64>(),
            mapped,
        })
    }

    /// The memory, word by word: the kernel writes it, so plain reads could be folded away.
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped, aligned, of this length, for as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.words, self.len) }
    }

    fn write(&self, bytes: &[u8]) {
        for (word, bytes) in self
            .words()
            .iter()
            .zip(bytes.chunks_exact(size_of::<u64>()))
        {
            let value = u64::from_ne_bytes(bytes.try_into().expect("chunks of this size"));
            word.store(value, Ordering::Relaxed);
        }
    }

    fn copy(&self, words: usize) -> Bytes {
        let mut bytes = BytesMut::with_capacity(words * size_of::<u64>());
        for word in self.words().iter().take(words) {
            bytes.extend_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        bytes.freeze()
    }

    fn rows(&self, count: u64, take: &mut dyn FnMut(Row)) {
        const WORDS: usize = size_of::<Row>() / size_of::<u64>();
        let count = (count as usize).min(self.len / WORDS);
        let mut bytes = self.copy(count * WORDS);
        while bytes.has_remaining() {
            let row = bytes.split_to(size_of::<Row>());
            take(Row::read_from_bytes(&row).expect("split at its size"));
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length; nothing borrows it.
        let _fails_only_on_wrong_arguments =
            unsafe { munmap(self.words.cast_mut().cast(), self.mapped) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tick_is_one_of_a_kernel() {
        let hertz = (1.0 / tick().as_secs_f64()).round() as u32;
        assert!([100, 250, 300, 1000].contains(&hertz), "{hertz}");
    }

    #[test]
    fn a_socket_with_several_descriptors_is_one_socket() {
        let row = |cookie, pid, fd| Row {
            connection: Connection {
                cookie,
                ..Connection::default()
            },
            pid,
            fd,
            ..Row::default()
        };
        let (mut sockets, mut at) = (Vec::new(), BTreeMap::new());
        for row in [row(7, 1, 3), row(8, 1, 4), row(7, 1, 5), row(7, 2, 3)] {
            merge(&mut sockets, &mut at, row);
        }
        let holders = |socket: &Walked| -> Vec<(u32, u32)> {
            socket.holders.iter().map(|h| (h.pid, h.fd)).collect()
        };
        assert_eq!(sockets.len(), 2);
        assert_eq!(holders(&sockets[0]), [(1, 3), (1, 5), (2, 3)]);
        assert_eq!(holders(&sockets[1]), [(1, 4)]);
    }
}
