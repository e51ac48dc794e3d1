//! Reads every connection: one exact pass over each shard.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aya::Ebpf;
use bytes::{Buf as _, Bytes, BytesMut};
use rebalancer_common::{ListHead, Listed, SHARDS, names, shard_of};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use zerocopy::FromBytes as _;

use super::{
    Error, Kernel, OBJECT,
    maps::{check_abi, pinned},
    sys::{self, PassEnd},
    tracker::{failed, load_iterator, loader_over},
};
use crate::snapshot::Cookie;

/// Slots to begin with: the largest shard of 130,000 connections. 0.6 MB.
const FIRST_SLOTS: u32 = 4_096;
/// More sockets in one shard than this are refused: 32 times as many are 33 million.
const MOST_SLOTS: u32 = 1 << 20;

/// How often the kernel's clock ticks a second: jiffies are its unit of time.
const KNOWN_HZ: [u64; 4] = [100, 250, 300, 1000];

/// Reads the connections that a [`super::Tracker`] records, here or in another process.
pub struct Lister {
    kernel: Arc<Kernel>,
    pins: PathBuf,
    loaded: Loaded,
    hz: u64,
}

/// One reading of all shards, or of one.
#[derive(Debug, Default)]
pub struct Pass {
    /// Every record, in the order of the shards.
    pub listed: Vec<Listed>,
    /// `CLOCK_MONOTONIC` in nanoseconds at its end.
    pub now_ns: u64,
    /// Sockets that were recycled while they were looked at, and so skipped.
    pub recycled: u64,
    /// The longest time that one shard held the CPU.
    pub longest: Duration,
    /// Sockets in the largest shard: as many as one read had to cover without a pause.
    pub largest: usize,
    /// Reads made: one a shard, and one more for each time that the memory had to grow.
    pub reads: u32,
}

impl Lister {
    /// Loads the iterator over the maps pinned under `pins`.
    pub fn open(kernel: Arc<Kernel>, pins: &Path) -> Result<Self, Error> {
        Self::with_slots(kernel, pins, FIRST_SLOTS)
    }

    /// The same, with memory for so many sockets a shard to begin with; it grows.
    pub fn with_slots(kernel: Arc<Kernel>, pins: &Path, slots: u32) -> Result<Self, Error> {
        check_abi(pins)?;
        let loaded = Loaded::new(&kernel, pins, slots)?;
        let mut lister = Self {
            kernel,
            pins: pins.to_owned(),
            loaded,
            hz: 0,
        };
        lister.hz = lister.measure_hz()?;
        Ok(lister)
    }

    /// Where the maps are pinned.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// The kernel that this was loaded for.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Sockets of one shard that there is memory for now.
    pub fn slots(&self) -> u32 {
        self.loaded.slots
    }

    /// Time of a number of the kernel's jiffies.
    pub fn jiffies(&self, jiffies: u32) -> Duration {
        Duration::from_nanos(u64::from(jiffies) * 1_000_000_000 / self.hz)
    }

    /// Reads every shard.
    pub fn read(&mut self) -> Result<Pass, Error> {
        let mut pass = Pass::default();
        for shard in 0..SHARDS {
            self.read_shard(shard, &mut pass)?;
        }
        Ok(pass)
    }

    /// Reads the shard of one connection; its record, if it lives.
    pub fn read_one(&mut self, cookie: Cookie) -> Result<Option<Listed>, Error> {
        let mut pass = Pass::default();
        self.read_shard(shard_of(cookie.0), &mut pass)?;
        Ok(pass
            .listed
            .into_iter()
            .find(|listed| listed.connection.cookie == cookie.0))
    }

    fn read_shard(&mut self, shard: usize, pass: &mut Pass) -> Result<(), Error> {
        loop {
            let started = std::time::Instant::now();
            let exact = self.loaded.run(shard)?;
            pass.longest = pass.longest.max(started.elapsed());
            pass.reads += 1;
            let head = self.loaded.head.read_head();
            if exact {
                pass.largest = pass.largest.max(head.cursor as usize);
                pass.now_ns = head.now_ns;
                pass.recycled += head.recycled;
                self.loaded
                    .listing
                    .read_slots(head.cursor, &mut pass.listed);
                return Ok(());
            }
            self.enlarge(shard)?;
        }
    }

    /// A pass was cut short. What is resumed is not exact, so the shard is begun anew.
    fn enlarge(&mut self, shard: usize) -> Result<(), Error> {
        let slots = self.loaded.slots.saturating_mul(2);
        if slots > MOST_SLOTS {
            return Err(Error::Call {
                call: format!("listing shard {shard}"),
                message: format!("more than {MOST_SLOTS} sockets"),
            });
        }
        self.loaded = Loaded::new(&self.kernel, &self.pins, slots)?;
        Ok(())
    }

    /// The kernel does not tell userspace its tick rate; two moments on both of its clocks do.
    fn measure_hz(&mut self) -> Result<u64, Error> {
        const SPAN: Duration = Duration::from_millis(60);
        let mut moments = [(0, 0); 2];
        for (i, moment) in moments.iter_mut().enumerate() {
            if i > 0 {
                std::thread::sleep(SPAN);
            }
            while !self.loaded.run(0)? {
                self.enlarge(0)?;
            }
            let head = self.loaded.head.read_head();
            *moment = (head.now_ns, head.jiffies);
        }
        let [(t0, j0), (t1, j1)] = moments;
        Ok(nearest_hz(t1.saturating_sub(t0), j1.saturating_sub(j0)))
    }
}

fn nearest_hz(nanoseconds: u64, jiffies: u64) -> u64 {
    let measured = jiffies.saturating_mul(1_000_000_000) / nanoseconds.max(1);
    *KNOWN_HZ
        .iter()
        .min_by_key(|hz| hz.abs_diff(measured))
        .expect("not empty")
}

/// The iterator program with its links and its shared memory, of one size.
struct Loaded {
    _ebpf: Ebpf,
    links: Vec<OwnedFd>,
    listing: Shared,
    head: Shared,
    slots: u32,
}

impl Loaded {
    fn new(kernel: &Kernel, pins: &Path, slots: u32) -> Result<Self, Error> {
        let btf = kernel.btf()?;
        let mut loader = loader_over(kernel, &btf, pins)?;
        loader.map_max_entries(names::LISTING, slots);
        let mut ebpf = loader
            .load(OBJECT)
            .map_err(|e| Error::call("loading the BPF object", e))?;
        let failed = failed(names::LIST);
        let program = load_iterator(&mut ebpf, names::LIST, "bpf_sk_storage_map", &btf)?;
        let mut links = Vec::with_capacity(SHARDS);
        for name in names::CONNECTIONS {
            let map = pinned(pins, name)?;
            links.push(
                sys::link_iterator(program.as_fd(), Some(map_fd(&map)?.as_fd()))
                    .map_err(|e| failed("linking", e.into()))?,
            );
        }
        let listing = Shared::map(&ebpf, names::LISTING, slots as usize * size_of::<Listed>())?;
        let head = Shared::map(&ebpf, names::LIST_HEAD, size_of::<ListHead>())?;
        Ok(Self {
            _ebpf: ebpf,
            links,
            listing,
            head,
            slots,
        })
    }

    /// One pass over one shard. `false`: it was cut short, and is not exact.
    fn run(&mut self, shard: usize) -> Result<bool, Error> {
        let failed = |e: io::Error| Error::call(format!("listing shard {shard}"), e);
        self.head.zero();
        let end = sys::start_iterator(self.links[shard].as_fd())
            .and_then(|pass| pass.run())
            .map_err(failed)?;
        Ok(end == PassEnd::Whole && self.head.read_head().passes == 1)
    }
}

fn map_fd(map: &aya::maps::Map) -> Result<&aya::maps::MapFd, Error> {
    match map {
        aya::maps::Map::SkStorage(data) | aya::maps::Map::Array(data) => Ok(data.fd()),
        other => Err(Error::Call {
            call: "opening a map".to_owned(),
            message: format!("unexpected type {other:?}"),
        }),
    }
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
        let map = ebpf
            .map(name)
            .ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let mapped = bytes.next_multiple_of(rustix::param::page_size());
        // SAFETY: a fresh mapping of a map of at least this size.
        let memory = unsafe {
            mmap(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map_fd(map)?.as_fd(),
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

    fn zero(&self) {
        for word in self.words() {
            word.store(0, Ordering::Relaxed);
        }
    }

    fn copy(&self, words: usize) -> Bytes {
        let mut bytes = BytesMut::with_capacity(words * size_of::<u64>());
        for word in self.words().iter().take(words) {
            bytes.extend_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        bytes.freeze()
    }

    fn read_head(&self) -> ListHead {
        ListHead::read_from_bytes(&self.copy(self.len)).expect("mapped with its size")
    }

    fn read_slots(&self, count: u64, into: &mut Vec<Listed>) {
        const WORDS: usize = size_of::<Listed>() / size_of::<u64>();
        let count = (count as usize).min(self.len / WORDS);
        let mut bytes = self.copy(count * WORDS);
        into.reserve(count);
        while bytes.has_remaining() {
            let slot = bytes.split_to(size_of::<Listed>());
            into.push(Listed::read_from_bytes(&slot).expect("split at its size"));
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length; nothing borrows it any more.
        let _fails_only_on_wrong_arguments =
            unsafe { munmap(self.words.cast_mut().cast(), self.mapped) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tick_rate_is_the_nearest_known_one() {
        let span = 60_000_000;
        for hz in KNOWN_HZ {
            let jiffies = span * hz / 1_000_000_000;
            assert_eq!(nearest_hz(span, jiffies), hz);
            assert_eq!(nearest_hz(span, jiffies + 1), hz);
        }
        assert_eq!(nearest_hz(0, 0), 100);
    }
}
