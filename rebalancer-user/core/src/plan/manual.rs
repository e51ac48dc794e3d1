//! A move that an operator asks for: past policy and budgets, not past what must not be touched.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Charge, Fate, Group, Move, SkipReason,
    guards::{port, socket},
};
use crate::{
    policy::{AtEnd, Mode, OnReconnect, RuleName, Step},
    snapshot::Connection,
};

/// Whether what skips a connection for what it may be counts.
///
/// What it surely is counts always: a connection that is not established or not accepted cannot
/// be moved, and a subflow of MPTCP without its connection strands the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarded {
    /// It counts.
    Yes,
    /// The operator knows better: ports of the node's own services and of protocols with state,
    /// and the process that holds the connection.
    No,
}

/// Moves `connection` by this one step.
///
/// # Errors
/// Why it is skipped.
pub fn manual(connection: &Connection, step: Step, guarded: Guarded) -> Result<Move, SkipReason> {
    if let Some(skipped) = socket(connection) {
        return Err(skipped);
    }
    if guarded == Guarded::Yes
        && let Some(skipped) = port(
            connection.endpoint.port,
            &BTreeSet::new(),
            OnReconnect::Safe,
        )
    {
        return Err(skipped);
    }
    Ok(Move {
        cookie: connection.cookie,
        endpoint: connection.endpoint,
        local: connection.local,
        remote: connection.remote,
        pod: None,
        rule: RuleName::manual(),
        reasons: Vec::new(),
        steps: Arc::new([step]),
        at_end: AtEnd::Skip,
        mode: Mode::Enforce,
        heeds_guards: guarded == Guarded::Yes,
        // Whoever names a connection knows what it speaks.
        is_sniffed: false,
        charge: Box::new(Charge {
            rule: RuleName::manual(),
            namespace: None,
            group: Arc::new(Group {
                service: None,
                port: connection.endpoint.port,
            }),
            endpoint: connection.endpoint,
            client: connection.client(),
            here: 0,
            load: 0,
            share: 0,
            siblings: 0,
            whole: false,
            drains: false,
            fate: Fate::There,
        }),
    })
}
