//! A node's connections and endpoints at one moment: the input of every decision.
//!
//! Pure: values only. Times come from the kernel's monotonic clock and are carried, not read.

mod identity;
pub mod sample;
mod service;
pub(crate) mod wire;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::views::Views;

pub use identity::{Ending, Identity, Labels, Naming, RemovedFrom, ServiceAt, Who};
pub use service::{Service, ServiceName};
pub use wire::{Name, in_nanoseconds};

/// A socket's cookie (`SO_COOKIE`), never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct Cookie(pub u64);

impl std::str::FromStr for Cookie {
    type Err = std::num::ParseIntError;

    /// Reads what is shown: hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

impl fmt::Display for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A moment on the kernel's `CLOCK_MONOTONIC`, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct KernelTime(pub u64);

impl KernelTime {
    /// Time from `earlier` to `self`, zero if `earlier` is later.
    pub fn since(self, earlier: KernelTime) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The moment this long after `self`.
    pub fn after(self, time: Duration) -> KernelTime {
        KernelTime(self.0.saturating_add(in_nanoseconds(time)))
    }
}

/// Inode of a network namespace, as `stat` on `/proc/PID/ns/net` shows it. The kernel reuses inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct Netns(pub u32);

/// A network namespace's cookie (`SO_NETNS_COOKIE`), never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct NetnsCookie(pub u64);

/// Id of a cgroup v2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct CgroupId(pub u64);

/// Path of a cgroup v2 below the hierarchy's root, as `/proc/PID/cgroup` shows it; it begins with `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupPath(Arc<str>);

impl CgroupPath {
    /// From its text; `None` if that does not begin with `/`.
    pub fn new(text: &str) -> Option<Self> {
        text.starts_with('/').then(|| Self(text.into()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Identifies an endpoint: what accepts connections on one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointKey {
    /// The network namespace.
    pub netns: Netns,
    /// The cgroup, in the host's namespace only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<CgroupId>,
    /// The local port.
    pub port: u16,
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Bytes(pub u64);

/// TCP states that a listed socket can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TcpState {
    /// Both directions open.
    Established,
    /// The client has closed its direction.
    CloseWait,
    /// Any other state, by its number in `linux/tcp_states.h`.
    Other(u8),
}

impl TcpState {
    /// From the kernel's number.
    pub fn from_kernel(state: u8) -> Self {
        match state {
            1 => Self::Established,
            8 => Self::CloseWait,
            other => Self::Other(other),
        }
    }

    /// The name that `ss` uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Established => "ESTAB",
            Self::CloseWait => "CLOSE-WAIT",
            Self::Other(2) => "SYN-SENT",
            Self::Other(3) => "SYN-RECV",
            Self::Other(4) => "FIN-WAIT-1",
            Self::Other(5) => "FIN-WAIT-2",
            Self::Other(6) => "TIME-WAIT",
            Self::Other(7) => "CLOSED",
            Self::Other(9) => "LAST-ACK",
            Self::Other(10) => "LISTEN",
            Self::Other(11) => "CLOSING",
            Self::Other(_) => "UNKNOWN",
        }
    }

    /// The state that is shown like this.
    fn from_shown(text: &str) -> Option<Self> {
        let named = (1..=11)
            .map(Self::from_kernel)
            .find(|state| state.name() == text);
        named.or_else(|| {
            let number = text.strip_prefix("UNKNOWN-")?.parse().ok()?;
            Some(Self::from_kernel(number)).filter(|state| state.name() == "UNKNOWN")
        })
    }
}

impl fmt::Display for TcpState {
    /// Its name; a state that has none by its number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(number) if self.name() == "UNKNOWN" => write!(f, "UNKNOWN-{number}"),
            _ => f.write_str(self.name()),
        }
    }
}

/// One accepted connection, as it was when listed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Its cookie.
    #[serde(rename = "id", with = "wire::hexadecimal")]
    pub cookie: Cookie,
    /// The endpoint that accepted it.
    pub endpoint: EndpointKey,
    /// The cgroup of its socket.
    pub cgroup: CgroupId,
    /// The path of that cgroup; `None` if it is gone or was not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_path: Option<CgroupPath>,
    /// The server's address; IPv4 shown as IPv4 also on a dual-stack listener.
    #[serde(deserialize_with = "wire::address")]
    pub local: SocketAddr,
    /// The client's address, likewise.
    #[serde(rename = "peer", deserialize_with = "wire::address")]
    pub remote: SocketAddr,
    /// Index of the interface that the socket is bound to, or 0; a look-up of the socket must name it.
    #[serde(default, skip_serializing_if = "wire::is_default")]
    pub device: u32,
    /// When it was accepted, or first seen if `adopted`.
    #[serde(rename = "openedNanoseconds")]
    pub opened: KernelTime,
    /// Older than tracking: its age is a lower bound.
    pub adopted: bool,
    /// Its TCP state.
    pub state: TcpState,
    /// A subflow of an MPTCP connection.
    pub mptcp: bool,
    /// Bytes received from the client (a FIN counts as one).
    pub bytes_in: Bytes,
    /// Bytes sent to the client and acknowledged (a FIN counts as one).
    pub bytes_out: Bytes,
    /// Bytes received and not read by the server yet.
    pub receive_queue: u32,
    /// Bytes written by the server and not acknowledged yet.
    pub send_queue: u32,
    /// The server has sent data, and received none since: see `Live::snd_wl1`.
    pub server_spoke_last: bool,
    /// Time since the server last sent data.
    #[serde(rename = "sinceSentNanoseconds", with = "wire::nanoseconds")]
    pub since_sent: Duration,
    /// Time since data last came from the client.
    #[serde(rename = "sinceReceivedNanoseconds", with = "wire::nanoseconds")]
    pub since_received: Duration,
    /// Data segments received: an upper bound of requests.
    pub segments_in: u32,
    /// Data segments sent.
    pub segments_out: u32,
    /// Segments retransmitted.
    pub retransmits: u32,
    /// Smoothed round-trip time.
    #[serde(rename = "rttMicroseconds", with = "wire::microseconds")]
    pub rtt: Duration,
    /// Sends of the server since a rule counts them; `None` if none does, or before the first.
    pub sends: Option<Sends>,
}

/// Sends of a server as the kernel splits them: a long one counts as several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Sends {
    /// Their number.
    pub messages: u64,
    /// Their bytes, acknowledged or not.
    pub bytes: Bytes,
}

impl Connection {
    /// Bytes in both directions.
    pub fn bytes(&self) -> Bytes {
        Bytes(self.bytes_in.0.saturating_add(self.bytes_out.0))
    }

    /// The client's IP address; IPv4-mapped IPv6 as IPv4.
    pub fn client(&self) -> IpAddr {
        self.remote.ip().to_canonical()
    }
}

/// Counters of an endpoint, over open and closed connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The pod that it belongs to; a dump has it beside these counters.
    #[serde(skip)]
    pub who: Who,
    /// Listening sockets.
    pub listeners: u64,
    /// Connections accepted since tracking began.
    pub accepted: u64,
    /// Connections open.
    pub open: u64,
    /// Connections closed.
    pub closed: u64,
    /// Of those closed, how many the client reset.
    pub closed_by_reset: u64,
    /// Of those closed, how many were destroyed from this side.
    pub closed_by_abort: u64,
    /// Of those closed, how many timed out.
    pub closed_by_timeout: u64,
    /// Bytes received.
    pub bytes_in: Bytes,
    /// Bytes sent and acknowledged.
    pub bytes_out: Bytes,
    /// An operator has asked for its connections to leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<RequestedDrain>,
}

/// An operator's request that the connections of an endpoint leave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestedDrain {
    /// The time since it was made: connections that were opened later stay.
    #[serde(rename = "sinceNanoseconds", with = "wire::nanoseconds")]
    pub since: Duration,
    /// The time from then until it ends.
    #[serde(rename = "withinNanoseconds", with = "wire::nanoseconds")]
    pub within: Duration,
}

/// The state of a node at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// When it was taken.
    pub taken: KernelTime,
    /// Every tracked connection, each once, in no particular order.
    pub connections: Vec<Connection>,
    /// Every known endpoint.
    pub endpoints: BTreeMap<EndpointKey, Endpoint>,
    /// Cookies of the network namespaces, where known.
    pub namespaces: BTreeMap<Netns, NetnsCookie>,
    /// Whether names of pods and Services are known, and how recent they are.
    pub naming: Naming,
    /// The Services that target endpoints of this node, where known.
    pub services: BTreeMap<ServiceName, Service>,
    /// Names of containers by the cgroup of their sockets, where known.
    pub containers: BTreeMap<CgroupId, String>,
    /// What is known of Services that have endpoints on other nodes too.
    pub views: Views,
}

impl Snapshot {
    /// The pod that an endpoint belongs to.
    pub fn who(&self, endpoint: &EndpointKey) -> &Who {
        static NOBODY: Who = Who::NoPod;
        self.endpoints.get(endpoint).map_or(&NOBODY, |e| &e.who)
    }

    /// Whether an operator has asked for the connections of an endpoint to leave it.
    pub fn is_drain_requested(&self, endpoint: &EndpointKey) -> bool {
        let endpoint = self.endpoints.get(endpoint);
        endpoint.is_some_and(|endpoint| endpoint.drain.is_some())
    }
}
