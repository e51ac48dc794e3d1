//! The records that the kernel half and the user half share.
//!
//! All types are `repr(C)` without padding (zerocopy's `IntoBytes` makes padding a compile error),
//! so that a record has the same bytes on both sides, and bpftool can print it by its BTF. The
//! crate has no logic but [`frames`], which both halves use: `rebalancer-ebpf` documents who writes
//! what, `rebalancer-user` what it means to an operator.
#![no_std]
#![forbid(unsafe_code)]

pub mod frames;
pub mod names;
pub mod notice;
pub mod offsets;
mod sniffed;

pub use network_types::ip::IpProto;
pub use notice::Notice;
pub use sniffed::{Direction, Segment, Sniffed, copy};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Changes whenever a record changes its layout or meaning.
///
/// It is pinned with the maps; a reader of another version rejects them.
pub const ABI_VERSION: u32 = 6;

/// Kinds of sockets with a record.
pub mod kind {
    /// An accepted connection.
    pub const CONNECTION: u8 = 0;
    /// A listening socket.
    pub const LISTENER: u8 = 1;
}

/// Bits of [`Connection::flags`].
pub mod flags {
    /// The record was created after the connection, so its age is a lower bound.
    pub const ADOPTED: u8 = 2;
    /// The STATE callback has not been called since the accept, or was found to be cleared.
    pub const NO_CLOSE_CALLBACK: u8 = 4;
    /// The close will not be seen: the connection counts as closed once the walk no longer finds
    /// it.
    pub const WITHOUT_CLOSE: u8 = ADOPTED | NO_CLOSE_CALLBACK;
    /// Sends are counted on this connection, see [`super::Connection::messages`].
    pub const COUNTED: u8 = 8;
}

/// The record of a connection or listener in its socket storage, which the kernel frees with the
/// socket.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Connection {
    /// The socket's cookie (`SO_COOKIE`), never reused.
    pub cookie: u64,
    /// Creation time of the record, `CLOCK_MONOTONIC` in nanoseconds.
    pub start_ns: u64,
    /// ID of the socket's cgroup v2, which it inherits from its listener and never changes.
    pub cgroup: u64,
    /// Cookie of the network namespace (`SO_NETNS_COOKIE`), never reused; 0 if the kernel has none.
    pub netns_cookie: u64,
    /// Inode of the network namespace (as in `/proc/PID/ns/net`). The kernel reuses the inode of a
    /// deleted namespace.
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
    /// Interface that the socket is bound to (link-local, `SO_BINDTODEVICE`), or 0. A lookup must
    /// name the interface to find a bound socket.
    pub device: u32,
    /// Number of the server's sends since a rule asked for `count: Messages`. The kernel may take a
    /// long send in parts, which count as several. Written under the socket's lock, like the whole
    /// record.
    pub messages: u64,
    /// Bytes in those sends, acknowledged or not.
    pub message_bytes: u64,
    /// Bytes received that are already in its endpoint's sums: if the close will not be seen, the
    /// agent's walk adds them in each pass.
    pub summed_in: u64,
    /// Bytes sent and acknowledged that are already in its endpoint's sums.
    pub summed_out: u64,
}

/// What the walk reads of a socket.
///
/// Byte counters include one byte for a FIN, as in `ss -ti`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Live {
    /// Bytes received in order.
    pub bytes_received: u64,
    /// Bytes sent and acknowledged.
    pub bytes_acked: u64,
    /// Bytes of data sent, including retransmissions; 0 if the server has never sent data.
    pub bytes_sent: u64,
    /// Microseconds since sent data was last newly acknowledged.
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
    /// TCP timestamp (RFC 7323) of the last acknowledged data, without the connection's offset.
    pub sent_timestamp: u32,
    /// The latest of our timestamps that the peer echoed with data, without the offset; 0 without
    /// timestamps. Pure ACKs may raise it but never lower it. If it is before `sent_timestamp`, the
    /// peer sent its last data before it received ours.
    pub echoed_timestamp: u32,
    /// Jiffies since data was last sent.
    pub since_sent: u32,
    /// Jiffies since data was last received.
    pub since_received: u32,
    /// Data segments received, an upper bound of the number of requests. Wraps.
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
    /// 1 if exactly one segment with data was received, and data sent later is acknowledged.
    pub sole_request_answered: u8,
    /// 1 if the last event is a pure ACK of sent data that follows all of the peer's data.
    pub answer_acknowledged: u8,
    /// Zero.
    pub reserved: [u8; 4],
}

/// One more byte would double the kernel memory per connection.
const _: () = assert!(size_of::<Connection>() <= 120);

impl Connection {
    /// An empty record.
    pub const ZERO: Self = zerocopy::transmute!([0u8; size_of::<Self>()]);
}

impl Live {
    /// All values zero.
    pub const ZERO: Self = zerocopy::transmute!([0u8; size_of::<Self>()]);
}

/// One row of the walk: a descriptor of a socket with a record.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Row {
    /// The record from socket storage.
    pub connection: Connection,
    /// The socket's values at the time of the walk.
    pub live: Live,
    /// PID of the process that has the descriptor, in the reader's pid namespace; 0 if it is not
    /// visible there.
    pub pid: u32,
    /// The descriptor.
    pub fd: u32,
}

/// Parameters and results of a walk.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct WalkHead {
    /// Number of rows written. The reader resets it before each portion.
    pub cursor: u64,
    /// 1 if sockets without a record get one; the agent alone sets it.
    pub adopt: u64,
    /// Maximum number of connections that get one. Set by the reader.
    pub room: u64,
    /// ID of the cgroup in and below which sockets get one, as `sock_ops` sees no others, but the
    /// walk sees the whole machine. 0: the root. Set by the reader.
    pub within: u64,
    /// Number of connections that got one.
    pub adopted: u64,
    /// Number of descriptors visited, of sockets and other files.
    pub files: u64,
    /// Number of completed passes.
    pub passes: u64,
    /// `CLOCK_MONOTONIC` in nanoseconds at the end of the pass.
    pub now_ns: u64,
    /// The kernel's jiffies at the end of the pass.
    pub jiffies: u64,
    /// Level of the reader's pid namespace; 0 is the initial one.
    pub level: u64,
    /// Number of connections of [`Self::lost_at`] that the agent found closed although their close
    /// was not seen. Set by the reader; the program accounts for them and resets it.
    pub lost: u64,
    /// Their endpoint.
    pub lost_at: EndpointKey,
    /// Buffer for a new record, which does not fit on the program's stack.
    pub scratch: Connection,
}

/// An endpoint, where connections are accepted: network namespace and port; in the host's
/// namespace, which pods with `hostNetwork` share, also the cgroup.
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
    /// Cgroup ID in the host's namespace, else 0, so that a restarted container keeps its endpoint.
    pub cgroup: u64,
    /// See [`Connection::netns_cookie`]: separates namespaces with a reused inode.
    pub netns_cookie: u64,
    /// Inode of the network namespace.
    pub netns: u32,
    /// Local port, host order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

/// An endpoint's key without the port. The number of endpoints is limited per place, so that a
/// process that listens on many ports cannot fill the map.
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

/// Maximum number of endpoints per [`Place`].
pub const ENDPOINTS_PER_PLACE: u64 = 1_024;

/// Sums of an endpoint. Bytes are of closed connections; those of open ones come from the walk.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct EndpointSums {
    /// Listening sockets recorded, minus those whose close was seen. If nonzero, connections on
    /// this port are accepted ones. The walk finds how many listen now.
    pub listeners: u64,
    /// Connections recorded.
    pub accepted: u64,
    /// Open connections whose close will be seen.
    pub open: u64,
    /// Connections whose close will not be seen: they are older than tracking, or another program
    /// has cleared their callback. They count as closed once the walk no longer finds them.
    pub without_close: u64,
    /// Connections whose close was seen.
    pub closed: u64,
    /// Of those, connections reset by the peer.
    pub closed_by_reset: u64,
    /// Of those, connections aborted locally, for example by SOCK_DESTROY.
    pub closed_by_abort: u64,
    /// Of those, connections that timed out.
    pub closed_by_timeout: u64,
    /// Bytes received on closed connections, plus [`Connection::summed_in`] of others.
    pub bytes_in: u64,
    /// Bytes sent and acknowledged on closed connections, plus [`Connection::summed_out`] of
    /// others.
    pub bytes_out: u64,
}

impl EndpointSums {
    /// All counters zero.
    pub const ZERO: Self = zerocopy::transmute!([0u8; size_of::<Self>()]);
}

/// What the kernel half records; the single element of the `settings` map.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Settings {
    /// [`ABI_VERSION`] of the agent that created the maps.
    pub abi_version: u32,
    /// 1: record connections whose peer is a loopback address.
    pub loopback: u32,
    /// Maximum number of recorded connections per endpoint.
    pub max_per_endpoint: u32,
    /// Maximum number of recorded connections on the node.
    pub max_per_node: u32,
    /// 1: sockets in or below a cgroup in the `excluded` map are not recorded.
    pub excludes: u32,
    /// The agent's PID, for messages.
    pub agent_pid: u32,
}

macro_rules! faults {
    ($($(#[doc = $doc:literal])* $name:ident = $n:literal => $text:literal,)*) => {
        /// A fault of the kernel half; the index into the per-CPU `faults` map.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Fault { $($(#[doc = $doc])* $name = $n,)* }

        impl Fault {
            /// Every fault, by index.
            pub const ALL: &'static [Fault] = &[$(Fault::$name,)*];

            /// A short text for an operator.
            pub const fn text(self) -> &'static str {
                match self { $(Fault::$name => $text,)* }
            }
        }
    };
}

faults! {
    /// sock_ops was called without a full socket where one was expected.
    NoSocket = 0 => "accept without a full socket",
    /// The socket is not a TCP socket.
    NoTcpSock = 1 => "socket is not a TCP socket",
    /// Socket storage could not be created (memory).
    StorageFailed = 2 => "no memory for a connection's record",
    /// The endpoints map is full.
    EndpointsFull = 3 => "too many endpoints, in one namespace or on the node",
    /// The STATE callback could not be set.
    CallbackRefused = 4 => "close callback refused",
    /// The endpoint has reached its maximum of recorded connections.
    OverCap = 5 => "connections over an endpoint's cap, not recorded",
    /// A connection was closed whose endpoint is unknown.
    EndpointGone = 6 => "close of an unknown endpoint",
    /// The settings map could not be read.
    NoSettings = 7 => "settings missing",
    /// The node has reached its maximum of recorded connections.
    OverNodeCap = 8 => "connections over the node's cap, not recorded",
}
