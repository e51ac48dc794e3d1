//! The records that the kernel half and the user half share.
//!
//! Everything here is `repr(C)` without padding (zerocopy's `IntoBytes` makes padding a compile
//! error), so that a record is the same bytes on both sides, and bpftool can show it by its BTF.
//! The crate holds no logic but [`beginning`], which the kernel half needs and which is tested here:
//! who may write what is said in `rebalancer-ebpf`, what it means to an operator in `rebalancer-user`.
#![no_std]
#![forbid(unsafe_code)]

mod heard;
pub mod names;
pub mod offsets;

pub use heard::{Beginning, HEAD, Heard, beginning};
pub use network_types::ip::IpProto;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Changes whenever a record here changes its shape or its meaning.
///
/// It is stored beside the pinned maps; a reader of another version refuses them.
pub const ABI_VERSION: u32 = 3;

/// How many socket-storage maps the connections are spread over, by cookie.
///
/// One map must be read in one `read(2)`, as a resumed read misses sockets under churn, and that
/// read is not preempted. With 32 maps, 120,000 connections hold a CPU for about 3 ms at a time.
pub const SHARDS: usize = 32;

/// The shard of a connection.
#[inline(always)]
pub const fn shard_of(cookie: u64) -> usize {
    (cookie % SHARDS as u64) as usize
}

/// What a record in socket storage is about.
pub mod kind {
    /// An accepted connection.
    pub const CONNECTION: u8 = 0;
    /// A listening socket.
    pub const LISTENER: u8 = 1;
}

/// Bits of [`Connection::flags`].
pub mod flags {
    /// The close was seen and added to the endpoint's sums: never count it twice.
    pub const CLOSED: u8 = 1;
    /// The record was made after the connection was: its age is a lower bound.
    pub const ADOPTED: u8 = 2;
    /// The callback for the close could not be asked for.
    pub const NO_CLOSE_CALLBACK: u8 = 4;
    /// Sends were counted on this connection: see [`super::Connection::messages`].
    pub const COUNTED: u8 = 8;
}

/// What the kernel remembers of a socket, in its socket storage, from accept to its end.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Connection {
    /// The kernel's own name of the socket (`SO_COOKIE`), never reused.
    pub cookie: u64,
    /// When the record was made, `CLOCK_MONOTONIC` in nanoseconds.
    pub start_ns: u64,
    /// Id of the cgroup v2 that the socket belongs to (its listener's), for life.
    pub cgroup: u64,
    /// Inode of the network namespace (as in `/proc/PID/ns/net`).
    pub netns: u32,
    /// Local port, host order.
    pub local_port: u16,
    /// Remote port, host order; 0 for a listener.
    pub remote_port: u16,
    /// Local address; IPv4 as IPv4-mapped IPv6.
    pub local_addr: [u8; 16],
    /// Remote address; IPv4 as IPv4-mapped IPv6.
    pub remote_addr: [u8; 16],
    /// The socket's own family: 2 (`AF_INET`) or 10 (`AF_INET6`).
    pub family: u8,
    /// One of [`kind`].
    pub kind: u8,
    /// Bits of [`flags`].
    pub flags: u8,
    /// Protocol number; [`IpProto::Tcp`].
    pub protocol: u8,
    /// Interface that the socket is bound to (link-local, `SO_BINDTODEVICE`), or 0. A socket bound
    /// to one is not found by a lookup that does not name it.
    pub device: u32,
    /// Sends of the server since a rule asked to count them. A long one counts as several: it is
    /// what the kernel takes at a time. Written under the socket's lock, as all here is.
    pub messages: u64,
    /// Bytes in those sends, whether acknowledged yet or not.
    pub message_bytes: u64,
}

/// What the iterator reads of a socket at the moment of the listing.
///
/// Byte counters count one more for a FIN, as `ss -ti` does.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Live {
    /// Bytes received in order.
    pub bytes_received: u64,
    /// Bytes sent and acknowledged.
    pub bytes_acked: u64,
    /// Bytes of data sent, retransmissions included. Zero says that the server never spoke.
    pub bytes_sent: u64,
    /// Next sequence number that the application will write.
    pub write_seq: u32,
    /// First unacknowledged sequence number.
    pub snd_una: u32,
    /// Next sequence number to send.
    pub snd_nxt: u32,
    /// Next sequence number expected from the peer.
    pub rcv_nxt: u32,
    /// Next sequence number that the application will read.
    pub copied_seq: u32,
    /// Sequence number of the peer's last segment that acknowledged or brought something new.
    /// Equal to `rcv_nxt` only when that segment brought no data of its own: the peer has
    /// acknowledged something of ours after all that it had said, so we spoke last.
    pub snd_wl1: u32,
    /// Jiffies since data was last sent.
    pub since_sent: u32,
    /// Jiffies since data was last received.
    pub since_received: u32,
    /// Data segments received: an upper bound of requests. Wraps.
    pub data_segs_in: u32,
    /// Data segments sent. Wraps.
    pub data_segs_out: u32,
    /// Retransmitted segments. Wraps.
    pub total_retrans: u32,
    /// Smoothed round-trip time, in units of 1/8 microsecond.
    pub srtt_us8: u32,
    /// Backlog of a listener's accept queue; 0 for a connection.
    pub backlog: u32,
    /// The TCP state, as in `linux/tcp_states.h`.
    pub state: u8,
    /// 1 if a process has accepted the socket and still holds it.
    pub owned: u8,
    /// 1 if the socket is a subflow of an MPTCP connection.
    pub mptcp: u8,
    /// Zero.
    pub reserved: u8,
}

/// One slot of the listing: a record and the live values of its socket.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Listed {
    /// The record from socket storage.
    pub connection: Connection,
    /// What the socket said when it was listed.
    pub live: Live,
}

/// Head of the listing: what the last pass over a shard did.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ListHead {
    /// Slots filled. The reader zeroes it before a pass.
    pub cursor: u64,
    /// Sockets that were recycled under the iterator's eyes, and so skipped.
    pub recycled: u64,
    /// Passes that ended; a pass that did not end is not exact.
    pub passes: u64,
    /// `CLOCK_MONOTONIC` in nanoseconds at the end of the pass.
    pub now_ns: u64,
    /// The kernel's jiffies at the end of the pass.
    pub jiffies: u64,
}

/// Where connections are accepted: a network namespace and a port; in the host's namespace, where
/// pods with `hostNetwork` live side by side, also the cgroup.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct EndpointKey {
    /// Cgroup id in the host's namespace, else 0: a restarted container keeps its endpoint.
    pub cgroup: u64,
    /// Inode of the network namespace.
    pub netns: u32,
    /// Local port, host order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

/// Sums of an endpoint. Bytes are those of closed connections; the live ones come from the listing.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct EndpointSums {
    /// Sockets that listen here now.
    pub listeners: u64,
    /// Connections accepted since tracking began, and those adopted then.
    pub accepted: u64,
    /// Connections with a record, not closed yet.
    pub open: u64,
    /// Connections whose close was seen.
    pub closed: u64,
    /// Of those, how many the peer reset.
    pub closed_by_reset: u64,
    /// Of those, how many were destroyed from this side (as we do).
    pub closed_by_abort: u64,
    /// Of those, how many timed out.
    pub closed_by_timeout: u64,
    /// Bytes received on closed connections.
    pub bytes_in: u64,
    /// Bytes sent and acknowledged on closed connections.
    pub bytes_out: u64,
}

impl EndpointSums {
    /// Nothing counted yet.
    pub const ZERO: Self = zerocopy::transmute!([0u8; size_of::<Self>()]);
}

/// Groups of rules that the kernel half tells apart: those of a group name the same cgroups, those
/// of the first name none.
pub const GROUPS: usize = 8;

/// What the kernel half is told of a cgroup, in the `cgroups` map: the groups of rules that name it,
/// a bit for each, and whether it is excluded.
pub mod class {
    /// Every group.
    pub const ALL_GROUPS: u32 = (1 << super::GROUPS) - 1;
    /// The group of rules that name no cgroups: theirs is every cgroup.
    pub const ANY_CGROUP: u32 = 1;
    /// Its sockets are not recorded.
    pub const EXCLUDED: u32 = 1 << super::GROUPS;
}

/// Words of the `wanted` map: a bit for each group and port.
pub const WANTED_WORDS: usize = (1 << 16) * GROUPS / 64;

/// Where a port's groups are in the `wanted` map: the word, and the first bit in it.
#[inline(always)]
pub const fn wanted_bits(port: u16) -> (u32, u32) {
    let bit = port as u32 * GROUPS as u32;
    (bit / 64, bit % 64)
}

/// What the agent tells the kernel half to record; the one slot of the `settings` map.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Settings {
    /// [`ABI_VERSION`] of the agent that made the maps.
    pub abi_version: u32,
    /// 1: record connections whose peer is a loopback address.
    pub loopback: u32,
    /// Most connections recorded per endpoint.
    pub max_per_endpoint: u32,
    /// 1: record only sockets whose local port is in the `wanted` map.
    pub matched: u32,
    /// 1: look their cgroup up in the `cgroups` map.
    pub cgroups: u32,
    /// The agent's process id, for messages.
    pub agent_pid: u32,
}

macro_rules! faults {
    ($($(#[doc = $doc:literal])* $name:ident = $n:literal => $text:literal,)*) => {
        /// What can go wrong in the kernel half; the index into the per-CPU `faults` map.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Fault { $($(#[doc = $doc])* $name = $n,)* }

        impl Fault {
            /// Every fault, in the order of its index.
            pub const ALL: &'static [Fault] = &[$(Fault::$name,)*];

            /// A few words for an operator.
            pub const fn text(self) -> &'static str {
                match self { $(Fault::$name => $text,)* }
            }
        }
    };
}

impl Fault {
    /// Whether it means that a connection or listener has no record that should have one, so that
    /// adopting again can help.
    pub const fn leaves_unrecorded(self) -> bool {
        matches!(
            self,
            Fault::NoSocket | Fault::NoTcpSock | Fault::StorageFailed | Fault::NoSettings
        )
    }
}

faults! {
    /// sock_ops was called without a full socket where one was expected.
    NoSocket = 0 => "accept without a full socket",
    /// The socket's kernel structure could not be reached.
    NoTcpSock = 1 => "socket is not a TCP socket",
    /// Socket storage could not be created (memory).
    StorageFailed = 2 => "no memory for a connection's record",
    /// The endpoints map is full.
    EndpointsFull = 3 => "endpoints map is full",
    /// The STATE callback could not be set.
    CallbackRefused = 4 => "close callback refused",
    /// An endpoint has its full number of recorded connections.
    OverCap = 5 => "connections over an endpoint's cap, not recorded",
    /// A close of a connection whose endpoint is unknown.
    EndpointGone = 6 => "close of an unknown endpoint",
    /// The settings map was not readable.
    NoSettings = 7 => "settings missing",
}
