//! The maps, named as in `rebalancer_common::names`.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, PerCpuArray, RingBuf, SkStorage},
    macros::btf_map,
};
use rebalancer_common::{
    Connection, EndpointKey, EndpointSums, Fault, Notice, Place, Row, Segment, Settings, Sniffed,
    WalkHead,
};

/// Maximum number of endpoints on a node; a full map is a counted fault. Memory is allocated per
/// entry.
const MAX_ENDPOINTS: usize = 65_536;

/// Maximum number of places for which endpoints are counted.
const MAX_PLACES: usize = 65_536;

/// Maximum number of excluded cgroups. Memory is allocated per entry.
const MAX_EXCLUDED: usize = 65_536;

/// Sizes of `notices`, `goaways`, `sniffed` and `segments` in the object: the agent sets its own at
/// load, and other readers do not use them.
const MAX_NOTICES: usize = 1;
const MAX_SNIFFED: usize = 1;
const SEGMENT_BYTES: usize = 4096;

/// Rows per portion of the walk in the object; each reader sets its own number at load.
const PORTION: usize = 1;

#[btf_map(name = "connections")]
pub(crate) static CONNECTIONS: SkStorage<Connection> = SkStorage::new();

#[btf_map(name = "endpoints")]
pub(crate) static ENDPOINTS: HashMap<
    EndpointKey,
    EndpointSums,
    MAX_ENDPOINTS,
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

#[btf_map(name = "places")]
pub(crate) static PLACES: HashMap<Place, u64, MAX_PLACES, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map(name = "node")]
pub(crate) static NODE: Array<u64, 2, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map(name = "settings")]
pub(crate) static SETTINGS: Array<Settings, 1> = Array::new();

#[btf_map(name = "excluded")]
pub(crate) static EXCLUDED: HashMap<u64, u32, MAX_EXCLUDED, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map(name = "sniffed")]
pub(crate) static SNIFFED: HashMap<u64, Sniffed, MAX_SNIFFED, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map(name = "segments")]
pub(crate) static SEGMENTS: RingBuf<Segment, SEGMENT_BYTES> = RingBuf::new();

#[btf_map(name = "notices")]
pub(crate) static NOTICES: HashMap<u64, Notice, MAX_NOTICES, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map(name = "goaways")]
pub(crate) static GOAWAYS: HashMap<u64, u32, MAX_NOTICES, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map(name = "faults")]
pub(crate) static FAULTS: PerCpuArray<u64, { Fault::ALL.len() }> = PerCpuArray::new();

#[btf_map(name = "rows")]
pub(crate) static ROWS: Array<Row, PORTION, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map(name = "walk_head")]
pub(crate) static WALK_HEAD: Array<WalkHead, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
