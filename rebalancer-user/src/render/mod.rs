//! Writes snapshots and plans for people and for programs, into any writer, and reads a snapshot
//! back.

mod cooldowns;
mod events;
mod explain;
mod json;
mod ledger;
mod moved;
mod names;
mod plan;
mod read;
mod service_facts;
mod services;
mod status;
mod table;
mod top;

pub use cooldowns::cooldowns;
pub use events::{About, Happened, What, event, event_row, events_head, read_event};
pub use explain::{explanation, not_tracked};
pub use json::{Notation, connections, endpoints};
pub use ledger::{KeptLedger, kept_ledger, read_kept_ledger};
pub use moved::{End, Moved, moved, moved_table};
pub use plan::plan;
pub use read::{Dumped, ReadError, read_snapshot};
pub use services::{BalanceItem, EndpointItem, ServiceItem, Services, read_services, services};
pub use status::{
    BudgetStatus, CapacityStatus, InFlightStatus, ModeStatus, MoverStatus, PassStatus,
    PausedStatus, PolicyStatus, RampStatus, RefusedStatus, Status, read_status, status,
    status_table,
};
pub use table::{connections_table, connections_wide, endpoints_table};
pub use top::top;

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use crate::snapshot::{Connection, EndpointKey, Snapshot};

/// Whose records a snapshot shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// Those of the agent that runs.
    Agent,
    /// Those that go on without an agent, by its pins.
    Pins,
    /// Only those made during this call.
    ThisCall,
}

/// Where and when a snapshot was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The node's host name.
    pub node: String,
    /// When, by the node's clock.
    pub generated_at: jiff::Timestamp,
    /// Whose records it shows.
    pub source: Source,
}

impl Origin {
    /// This node, now.
    pub fn here(source: Source) -> Self {
        Self {
            node: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            generated_at: jiff::Timestamp::now(),
            source,
        }
    }
}

/// The form of an output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Form {
    /// The essentials, for people.
    #[default]
    Table,
    /// All that is known, for people.
    Wide,
    /// For programs.
    Json,
    /// The same as JSON.
    Yaml,
}

impl Form {
    /// How it is written for programs; `None` if it is for people.
    pub fn notation(self) -> Option<Notation> {
        match self {
            Self::Json => Some(Notation::Json),
            Self::Yaml => Some(Notation::Yaml),
            Self::Table | Self::Wide => None,
        }
    }
}

/// The order of connections in an output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// By endpoint, the oldest first.
    #[default]
    Endpoint,
    /// The oldest first.
    Age,
    /// The heaviest first.
    Bytes,
    /// The highest average rate first.
    Rate,
    /// By cookie.
    Id,
}

/// Connections in the order asked for. What is equal there stays in the order of endpoints.
fn sorted(snapshot: &Snapshot, sort: Sort) -> Vec<&Connection> {
    let mut connections: Vec<&Connection> = snapshot.connections.iter().collect();
    connections.sort_by_key(|c| (c.endpoint, c.opened, c.cookie));
    match sort {
        Sort::Endpoint => {}
        Sort::Age => connections.sort_by_key(|c| c.opened),
        Sort::Bytes => connections.sort_by_key(|c| Reverse(c.bytes())),
        Sort::Rate => connections.sort_by_key(|c| Reverse(rate(c, snapshot))),
        Sort::Id => connections.sort_by_key(|c| c.cookie),
    }
    connections
}

/// Bytes per second over a connection's life; none for one that has just begun, nor for an
/// adopted one, whose bytes are known from its accept and whose age is not.
fn rate(connection: &Connection, snapshot: &Snapshot) -> Option<u64> {
    let age = snapshot.taken.since(connection.opened).as_nanos();
    (age > 0 && !connection.adopted).then(|| {
        let bytes = u128::from(connection.bytes().0);
        u64::try_from(bytes * 1_000_000_000 / age).unwrap_or(u64::MAX)
    })
}

/// The cgroup of an endpoint in the host's namespace.
fn cgroup(key: &EndpointKey) -> Option<u64> {
    key.cgroup.map(|id| id.0)
}
