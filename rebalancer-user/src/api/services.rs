//! Endpoints by Service, with what each has.

use std::io::{self, Write};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    envelope::{Notation, write},
    parse::{ReadError, check_kind, parse},
    status::PausedStatus,
};

const SERVICES: &str = "ServiceList";

/// All Services at the last pass.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Services {
    /// The node's host name.
    pub node: String,
    /// When the pass began; none before the first.
    pub at: Option<Timestamp>,
    /// The mode in effect.
    pub mode: String,
    /// The pause of moves, if there is one.
    pub paused: Option<PausedStatus>,
    /// Moves under way.
    pub in_flight: usize,
    /// The most that may be.
    pub max_in_flight: u64,
    /// Moves that the window has left.
    pub budget_left: u64,
    /// Each Service, the one with most connections first.
    pub items: Vec<ServiceItem>,
}

/// A Service, or what takes its place where there are no names: the endpoints of a port.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceItem {
    /// `namespace/name`, or `port 80`.
    pub name: String,
    /// How the rules that balance it see it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub balances: Vec<BalanceItem>,
    /// Its endpoints on this node, the one with most connections first.
    pub endpoints: Vec<EndpointItem>,
}

impl ServiceItem {
    /// Connections of all of them.
    pub fn connections(&self) -> u64 {
        self.endpoints.iter().map(|e| e.connections).sum()
    }
}

/// What a rule balances, in its own unit: connections, or bytes or messages a second.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BalanceItem {
    /// The rule.
    pub rule: String,
    /// `Connections`, `ByteRate` or `MessageRate`.
    pub by: String,
    /// The port of its endpoints.
    pub port: u16,
    /// What each endpoint would hold; none if not all of them are seen from here.
    pub mean: Option<u64>,
    /// An endpoint that holds more begins to shed; none: whatever one holds may be chance.
    pub start: Option<u64>,
    /// And keeps so much.
    pub stop: Option<u64>,
}

/// One endpoint.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointItem {
    /// The network namespace.
    pub netns: u32,
    /// The cgroup, in the host's namespace.
    pub cgroup: Option<u64>,
    /// The port.
    pub port: u16,
    /// The pod, if it is known.
    pub pod: Option<String>,
    /// Connections open.
    pub connections: u64,
    /// Bytes both ways, of closed connections too.
    pub bytes: u64,
    /// Moves under way.
    pub in_flight: u64,
}

/// Writes it as JSON.
pub fn write_services(out: &mut impl Write, services: &Services) -> io::Result<()> {
    write(out, Notation::Json, SERVICES, services)
}

/// Reads what [`write_services`] has written.
///
/// # Errors
/// Why it is invalid, with the path of the field.
pub fn read_services(text: &[u8]) -> Result<Services, ReadError> {
    check_kind(text, SERVICES)?;
    parse(text)
}
