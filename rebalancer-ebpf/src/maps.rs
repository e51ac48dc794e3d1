//! The maps, under the names of `rebalancer_common::names`.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, PerCpuArray, SkStorage},
    macros::btf_map,
};
use rebalancer_common::{
    Connection, EndpointKey, EndpointSums, Fault, Heard, ListHead, Listed, Settings, WANTED_WORDS,
};

/// Endpoints that a node can have at one time; a full map is a counted fault.
const MAX_ENDPOINTS: usize = 16_384;

/// Cgroups that the agent can tell of; memory is taken only for those that are there.
const MAX_CGROUPS: usize = 65_536;

/// Connections that can be watched at one time: as many as `maxInFlight` may let be about to be
/// moved. Memory is taken only for those that are.
const MAX_WATCHED: usize = 10_000;

/// Slots of the listing in the object; each reader sets its own number at load.
const LISTING_SLOTS: usize = 1;

#[btf_map(name = "endpoints")]
pub(crate) static ENDPOINTS: HashMap<EndpointKey, EndpointSums, MAX_ENDPOINTS> = HashMap::new();

#[btf_map(name = "settings")]
pub(crate) static SETTINGS: Array<Settings, 1> = Array::new();

#[btf_map(name = "wanted")]
pub(crate) static WANTED: Array<u64, WANTED_WORDS> = Array::new();

#[btf_map(name = "cgroups")]
pub(crate) static CGROUPS: HashMap<u64, u32, MAX_CGROUPS, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map(name = "watched")]
pub(crate) static WATCHED: HashMap<u64, Heard, MAX_WATCHED, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map(name = "faults")]
pub(crate) static FAULTS: PerCpuArray<u64, { Fault::ALL.len() }> = PerCpuArray::new();

#[btf_map(name = "listing")]
pub(crate) static LISTING: Array<Listed, LISTING_SLOTS, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map(name = "list_head")]
pub(crate) static LIST_HEAD: Array<ListHead, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Declares the shards and the function that chooses one. There is no map of maps for socket
/// storage, so the choice is a `match` over static maps.
macro_rules! shards {
    ($($n:literal $ident:ident $name:literal,)*) => {
        $(
            #[btf_map(name = $name)]
            static $ident: SkStorage<Connection> = SkStorage::new();
        )*

        /// The storage map that holds the record of a cookie.
        #[inline(always)]
        pub(crate) fn shard(cookie: u64) -> *mut aya_ebpf::cty::c_void {
            match rebalancer_common::shard_of(cookie) {
                $($n => core::ptr::addr_of!($ident).cast_mut().cast(),)*
                _ => core::ptr::addr_of!(CONNECTIONS_00).cast_mut().cast(),
            }
        }
    };
}

shards! {
    0 CONNECTIONS_00 "connections_00", 1 CONNECTIONS_01 "connections_01",
    2 CONNECTIONS_02 "connections_02", 3 CONNECTIONS_03 "connections_03",
    4 CONNECTIONS_04 "connections_04", 5 CONNECTIONS_05 "connections_05",
    6 CONNECTIONS_06 "connections_06", 7 CONNECTIONS_07 "connections_07",
    8 CONNECTIONS_08 "connections_08", 9 CONNECTIONS_09 "connections_09",
    10 CONNECTIONS_10 "connections_10", 11 CONNECTIONS_11 "connections_11",
    12 CONNECTIONS_12 "connections_12", 13 CONNECTIONS_13 "connections_13",
    14 CONNECTIONS_14 "connections_14", 15 CONNECTIONS_15 "connections_15",
    16 CONNECTIONS_16 "connections_16", 17 CONNECTIONS_17 "connections_17",
    18 CONNECTIONS_18 "connections_18", 19 CONNECTIONS_19 "connections_19",
    20 CONNECTIONS_20 "connections_20", 21 CONNECTIONS_21 "connections_21",
    22 CONNECTIONS_22 "connections_22", 23 CONNECTIONS_23 "connections_23",
    24 CONNECTIONS_24 "connections_24", 25 CONNECTIONS_25 "connections_25",
    26 CONNECTIONS_26 "connections_26", 27 CONNECTIONS_27 "connections_27",
    28 CONNECTIONS_28 "connections_28", 29 CONNECTIONS_29 "connections_29",
    30 CONNECTIONS_30 "connections_30", 31 CONNECTIONS_31 "connections_31",
}
