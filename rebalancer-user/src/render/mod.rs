//! Writes a snapshot for people and for programs, into any writer.

mod json;
mod table;

pub use json::{Source, connections_json, endpoints_json};
pub use table::{connections_table, endpoints_table};

use crate::snapshot::{Connection, EndpointKey, Snapshot};

/// Connections in the order of every output: by endpoint, the oldest first.
fn ordered(snapshot: &Snapshot) -> Vec<&Connection> {
    let mut connections: Vec<&Connection> = snapshot.connections.iter().collect();
    connections.sort_by_key(|c| (c.endpoint, c.opened, c.cookie));
    connections
}

/// Bytes per second over a connection's life; none for one that has just begun.
fn rate(connection: &Connection, snapshot: &Snapshot) -> Option<u64> {
    let age = snapshot.taken.since(connection.opened).as_nanos();
    (age > 0).then(|| {
        let bytes = u128::from(connection.bytes().0);
        u64::try_from(bytes * 1_000_000_000 / age).unwrap_or(u64::MAX)
    })
}

/// The cgroup of an endpoint in the host's namespace.
fn cgroup(key: &EndpointKey) -> Option<u64> {
    key.cgroup.map(|id| id.0)
}
