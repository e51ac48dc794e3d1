//! The records that the kernel half and the user half share.
//!
//! Everything here is `repr(C)` without padding (zerocopy's `IntoBytes` makes padding a compile
//! error), so that a record is the same bytes on both sides, and bpftool can show it by its BTF.
//! The crate holds no logic: who may write what is said in `rebalancer-ebpf`, what it means to an
//! operator in `rebalancer-user`.
#![no_std]
#![forbid(unsafe_code)]

pub mod names;
pub mod offsets;
mod watched;

pub use network_types::ip::IpProto;
pub use watched::{Direction, Segment, Watched, listening};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Changes whenever a record here changes its shape or its meaning.
///
/// It is stored beside the pinned maps; a reader of another version refuses them.
pub const ABI_VERSION: u32 = 6;

/// What a record in socket storage is about.
pub mod kind {
    /// An accepted connection.
    pub const CONNECTION: u8 = 0;
    /// A listening socket.
    pub const LISTENER: u8 = 1;
}

/// Bits of [`Connection::flags`].
pub mod flags {
    /// The record was made after the connection was: its age is a lower bound.
    pub const ADOPTED: u8 = 2;
    /// The callback for the close was not called yet since the accept, or was found to be cleared.
    pub const NO_CLOSE_CALLBACK: u8 = 4;
    /// Its close will not be seen: it is closed once the walk finds it no more.
    pub const WITHOUT_CLOSE: u8 = ADOPTED | NO_CLOSE_CALLBACK;
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
    /// Cookie of the network namespace (`SO_NETNS_COOKIE`), never reused; 0 where the kernel has none.
    pub netns_cookie: u64,
    /// Inode of the network namespace (as in `/proc/PID/ns/net`). The kernel gives the one of a
    /// namespace that has gone to the next.
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
    /// Bytes received that are in its endpoint's sums already: where its close will not be seen, the
    /// agent's walk adds them as they come.
    pub summed_in: u64,
    /// Bytes sent and acknowledged, likewise.
    pub summed_out: u64,
}

/// What the walk reads of a socket.
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
    /// Microseconds since data of ours was last newly acknowledged.
    pub since_delivered_us: u64,
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
    /// TCP timestamp (RFC 7323) of the last data sent that is acknowledged, without the connection's
    /// offset.
    pub sent_timestamp: u32,
    /// The latest of our timestamps that the peer has echoed with data, likewise; pure
    /// acknowledgements may raise it, never lower it. 0 without timestamps. Before `sent_timestamp`: the peer's last
    /// data was sent before it had our last data.
    pub echoed_timestamp: u32,
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
    /// 1 if the socket is a subflow of an MPTCP connection.
    pub mptcp: u8,
    /// 1 if a single segment with data was received, and data that is acknowledged was sent later.
    pub sole_request_answered: u8,
    /// 1 if the last thing that happened is that the peer acknowledged data of ours by a segment
    /// without data, after all data of its own.
    pub answer_acknowledged: u8,
    /// Zero.
    pub reserved: [u8; 4],
}

/// One byte more than this, and the kernel takes twice the memory for each connection.
const _: () = assert!(size_of::<Connection>() <= 120);

impl Connection {
    /// Nothing known yet.
    pub const ZERO: Self = zerocopy::transmute!([0u8; size_of::<Self>()]);
}

impl Live {
    /// Nothing read yet.
    pub const ZERO: Self = zerocopy::transmute!([0u8; size_of::<Self>()]);
}

/// One row of the walk: a descriptor that leads to a socket with a record.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Row {
    /// The record from socket storage.
    pub connection: Connection,
    /// What the socket said when the walk came by.
    pub live: Live,
    /// The process that has the descriptor, as seen from the agent's pid namespace; 0 if it is not
    /// seen there.
    pub pid: u32,
    /// The descriptor.
    pub fd: u32,
}

/// Head of the walk: what its reader asks, and what the pass did.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct WalkHead {
    /// Rows filled. The reader zeroes it before each portion.
    pub cursor: u64,
    /// 1 if the reader is the agent: sockets without a record get one. Set by the reader.
    pub adopt: u64,
    /// How many connections may get one. Set by the reader.
    pub room: u64,
    /// Id of the cgroup below which sockets get one: `sock_ops` sees no other, while the walk sees
    /// the whole machine's. 0: the root. Set by the reader.
    pub within: u64,
    /// How many connections got one.
    pub adopted: u64,
    /// Descriptors that were looked at, of sockets and of anything else.
    pub files: u64,
    /// Passes that came to their end.
    pub passes: u64,
    /// `CLOCK_MONOTONIC` in nanoseconds at the end of the pass.
    pub now_ns: u64,
    /// The kernel's jiffies at the end of the pass.
    pub jiffies: u64,
    /// How many pid namespaces lie between the initial one and the reader's.
    pub level: u64,
    /// How many connections of [`Self::lost_at`] the agent has found to be gone although their close
    /// was not seen. Set by the reader; the program counts them as such and zeroes it.
    pub lost: u64,
    /// Their endpoint.
    pub lost_at: EndpointKey,
    /// Where the program puts a record together: its stack has no room for one.
    pub scratch: Connection,
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
    /// See [`Connection::netns_cookie`]: what has the inode of another has sums of its own.
    pub netns_cookie: u64,
    /// Inode of the network namespace.
    pub netns: u32,
    /// Local port, host order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

/// What an endpoint's key is without its port: endpoints are counted for it, so that a process that
/// listens on one port after the other fills no more than its own share.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct Place {
    /// See [`EndpointKey::cgroup`].
    pub cgroup: u64,
    /// See [`EndpointKey::netns_cookie`].
    pub netns_cookie: u64,
    /// See [`EndpointKey::netns`].
    pub netns: u32,
    /// Zero.
    pub reserved: u32,
}

impl EndpointKey {
    /// The key without its port.
    #[inline(always)]
    pub const fn place(&self) -> Place {
        Place {
            cgroup: self.cgroup,
            netns_cookie: self.netns_cookie,
            netns: self.netns,
            reserved: 0,
        }
    }
}

/// Most endpoints of one [`Place`].
pub const ENDPOINTS_PER_PLACE: u64 = 1_024;

/// Sums of an endpoint. Bytes are those of closed connections; the live ones come from the walk.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct EndpointSums {
    /// Listening sockets recorded, less the closes that were seen. Nonzero says that connections to
    /// this port are accepted ones; how many listen now is what the walk finds.
    pub listeners: u64,
    /// Connections recorded.
    pub accepted: u64,
    /// Of those, how many are open, and their close will be seen.
    pub open: u64,
    /// Of those, how many have no close that will be seen: they are older than tracking, or another
    /// program has cleared their callback, at the accept or until the walk found them. They are closed
    /// once the walk finds them no more.
    pub without_close: u64,
    /// Connections whose close was seen.
    pub closed: u64,
    /// Of those, how many the peer reset.
    pub closed_by_reset: u64,
    /// Of those, how many were destroyed from this side (as we do).
    pub closed_by_abort: u64,
    /// Of those, how many timed out.
    pub closed_by_timeout: u64,
    /// Bytes received on closed connections, and those in [`Connection::summed_in`].
    pub bytes_in: u64,
    /// Bytes sent and acknowledged on closed connections, and those in [`Connection::summed_out`].
    pub bytes_out: u64,
}

impl EndpointSums {
    /// Nothing counted yet.
    pub const ZERO: Self = zerocopy::transmute!([0u8; size_of::<Self>()]);
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
    /// Most connections recorded on the node.
    pub max_per_node: u32,
    /// 1: sockets in a cgroup of the `excluded` map, or below one, are not recorded.
    pub excludes: u32,
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

faults! {
    /// sock_ops was called without a full socket where one was expected.
    NoSocket = 0 => "accept without a full socket",
    /// The socket's kernel structure could not be reached.
    NoTcpSock = 1 => "socket is not a TCP socket",
    /// Socket storage could not be created (memory).
    StorageFailed = 2 => "no memory for a connection's record",
    /// The endpoints map is full.
    EndpointsFull = 3 => "too many endpoints, in one namespace or on the node",
    /// The STATE callback could not be set.
    CallbackRefused = 4 => "close callback refused",
    /// An endpoint has its full number of recorded connections.
    OverCap = 5 => "connections over an endpoint's cap, not recorded",
    /// A close of a connection whose endpoint is unknown.
    EndpointGone = 6 => "close of an unknown endpoint",
    /// The settings map was not readable.
    NoSettings = 7 => "settings missing",
    /// The node has its full number of recorded connections.
    OverNodeCap = 8 => "connections over the node's cap, not recorded",
}
