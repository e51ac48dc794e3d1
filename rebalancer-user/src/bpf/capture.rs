//! The programs that copy what sniffed connections receive and send, and their copies.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::fd::AsFd as _,
    path::Path,
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError, RingBuf},
    programs::{
        CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, ProgramError, cgroup_skb::CgroupSkbLink,
    },
};
use rebalancer_common::{Direction, Segment, Sniffed, names};
use zerocopy::FromBytes as _;

use super::{
    Error, Kernel,
    maps::{Raw, check_abi, io_error},
    tracker::{failed, load_object, loader_over},
};
use crate::{
    host::{any_cgroup2, open_cgroup},
    snapshot::{CgroupId, Cookie},
};

/// Connections that can be sniffed at one time: the largest `maxInFlight`. Memory is only used for those that
/// are.
const MOST_SNIFFED: u32 = 10_000;

/// Buffer for what is copied between two looks, which are some 20 ms apart: a server that sends 1.5 Gbit/s
/// of framing fills it. Data that does not fit is lost, and its connection is not moved.
const SEGMENT_BYTES: u32 = 4 << 20;

/// Copies what sniffed connections receive and send. Dropping it detaches its programs; so does any end of
/// its process.
pub struct Capture {
    sniffed: HashMap<MapData, u64, Raw<Sniffed>>,
    segments: RingBuf<MapData>,
    /// Where the programs are attached, and for which connections.
    cgroups: BTreeMap<CgroupId, Attached>,
    /// Any folder of the hierarchy, by which the others are found.
    hierarchy: File,
    ebpf: Ebpf,
}

/// The programs on one cgroup.
struct Attached {
    #[expect(
        dead_code,
        reason = "they hold the programs there for as long as they live"
    )]
    links: [CgroupSkbLink; 2],
    connections: BTreeSet<Cookie>,
}

/// Bytes that were copied, or the number of bytes that were not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured<'a> {
    /// The connection.
    pub cookie: Cookie,
    /// Where they went.
    pub direction: Direction,
    /// Sequence number of the first.
    pub seq: u32,
    /// How many there are.
    pub length: u32,
    /// The bytes, if they were copied.
    pub bytes: Option<&'a [u8]>,
}

impl Capture {
    /// Loads the programs beside the maps pinned under `pins`. They run for nothing yet.
    pub fn open(kernel: &Kernel, pins: &Path) -> Result<Self, Error> {
        check_abi(pins)?;
        let hierarchy = any_cgroup2()?;
        let btf = kernel.btf()?;
        let mut loader = loader_over(kernel, &btf, pins)?;
        loader
            .map_max_entries(names::SNIFFED, MOST_SNIFFED)
            .map_max_entries(names::SEGMENTS, SEGMENT_BYTES);
        let mut ebpf = load_object(&mut loader)?;
        for name in names::SNIFF {
            let load = |program: &mut CgroupSkb| program.load();
            program(&mut ebpf, name)
                .and_then(load)
                .map_err(|e| failed(name)("loading", e.into()))?;
        }
        Ok(Self {
            sniffed: take_map(&mut ebpf, names::SNIFFED)?,
            segments: take_map(&mut ebpf, names::SEGMENTS)?,
            cgroups: BTreeMap::new(),
            hierarchy,
            ebpf,
        })
    }

    /// Attaches the programs to the cgroup of a connection, which is sniffed from now on; nothing is copied
    /// yet, see [`Capture::set`].
    ///
    /// # Errors
    /// ESTALE: there is no such cgroup. EPERM: a program there does not allow others beside it, or cgroups
    /// may not be opened by ID. E2BIG: the map is full.
    pub fn add(&mut self, cookie: Cookie, cgroup: CgroupId) -> io::Result<()> {
        self.set(cookie, Sniffed::default())?;
        if let Some(attached) = self.cgroups.get_mut(&cgroup) {
            attached.connections.insert(cookie);
            return Ok(());
        }
        match self.attach(cgroup) {
            Ok(links) => {
                let connections = [cookie].into();
                self.cgroups.insert(cgroup, Attached { links, connections });
                Ok(())
            }
            Err(error) => {
                self.remove(cookie);
                Err(error)
            }
        }
    }

    fn attach(&mut self, cgroup: CgroupId) -> io::Result<[CgroupSkbLink; 2]> {
        let folder = open_cgroup(self.hierarchy.as_fd(), cgroup.0)?;
        let [inward, outward] = names::SNIFF;
        let mut attach_one = |name, to| {
            let program = program(&mut self.ebpf, name).map_err(attaching)?;
            // With a link, `Single` allows others beside us; `AllowMultiple` is refused (aya 1078).
            let attached = program.attach(&folder, to, CgroupAttachMode::Single);
            let link = attached.and_then(|id| program.take_link(id));
            link.map_err(attaching)
        };
        Ok([
            attach_one(inward, CgroupSkbAttachType::Ingress)?,
            attach_one(outward, CgroupSkbAttachType::Egress)?,
        ])
    }

    /// Changes what is copied of a sniffed connection.
    pub fn set(&mut self, cookie: Cookie, wanted: Sniffed) -> io::Result<()> {
        self.sniffed
            .insert(cookie.0, Raw(wanted), 0)
            .map_err(io_error)
    }

    /// What is copied, and what the programs have found out; `None` if it is not sniffed.
    pub fn state(&self, cookie: Cookie) -> Option<Sniffed> {
        self.sniffed.get(&cookie.0, 0).ok().map(|sniffed| sniffed.0)
    }

    /// Stops sniffing it, and detaches programs that have no other connection.
    pub fn remove(&mut self, cookie: Cookie) {
        // There is no entry if it was never sniffed.
        let _absent = self.sniffed.remove(&cookie.0);
        self.cgroups.retain(|_, attached| {
            attached.connections.remove(&cookie);
            !attached.connections.is_empty()
        });
    }

    /// Takes all copies so far, in order.
    pub fn take(&mut self, mut take: impl FnMut(Captured<'_>)) {
        while let Some(item) = self.segments.next() {
            // A record shorter than its header says is invalid.
            if let Some(captured) = captured(&item) {
                take(captured);
            }
        }
    }
}

fn captured(item: &[u8]) -> Option<Captured<'_>> {
    let (head, rest) = Segment::read_from_prefix(item).ok()?;
    let bytes = match head.present {
        0 => None,
        _ => Some(rest.get(..head.length as usize)?),
    };
    Some(Captured {
        cookie: Cookie(head.cookie),
        direction: match head.direction {
            0 => Direction::In,
            _ => Direction::Out,
        },
        seq: head.seq,
        length: head.length,
        bytes,
    })
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSkb, ProgramError> {
    ebpf.program_mut(name)
        .ok_or(ProgramError::NotLoaded)?
        .try_into()
}

pub(super) fn take_map<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, Error>
where
    T: TryFrom<Map, Error = MapError>,
{
    let missing = || MapError::InvalidName { name: name.into() };
    ebpf.take_map(name)
        .ok_or_else(missing)
        .and_then(T::try_from)
        .map_err(|e| Error::call(format!("opening the map {name}"), e))
}

/// The system's own error, if it is one.
fn attaching(error: ProgramError) -> io::Error {
    match error {
        ProgramError::SyscallError(e) => e.io_error,
        other => io::Error::other(other),
    }
}
