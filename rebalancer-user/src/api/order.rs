//! The order of connections in a document or a table.

use std::cmp::Reverse;

use clap::ValueEnum;

use crate::snapshot::{Connection, Snapshot};

/// The order of connections in an output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// By endpoint, the oldest first.
    #[default]
    #[value(skip)]
    Endpoint,
    /// Oldest first.
    Age,
    /// Most bytes first.
    Bytes,
    /// Highest average rate first.
    Rate,
    /// By ID.
    Id,
}

/// Connections in the order asked for. What is equal there stays in the order of endpoints.
pub(crate) fn sorted(snapshot: &Snapshot, sort: Sort) -> Vec<&Connection> {
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

/// Bytes per second over a connection's life; `None` if it has just begun, or was adopted: then its bytes
/// count from its accept, and its age is unknown.
pub(crate) fn rate(connection: &Connection, snapshot: &Snapshot) -> Option<u64> {
    let age = snapshot.taken.since(connection.opened).as_nanos();
    (age > 0 && !connection.adopted).then(|| {
        let bytes = u128::from(connection.bytes().0);
        u64::try_from(bytes * 1_000_000_000 / age).unwrap_or(u64::MAX)
    })
}
