//! A move that an operator asks for: past policy and budgets, not past what must not be touched.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Group, Move, Spared, Spender, Stage,
    balance::client,
    guards::{port, socket},
};
use crate::{
    policy::{AtEnd, Mode, RuleName, SessionState, Step},
    snapshot::Connection,
};

/// Whether what spares a connection for what it may be counts.
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
/// Why it is spared.
pub fn by_hand(connection: &Connection, step: Step, guarded: Guarded) -> Result<Move, Spared> {
    if let Some(spared) = socket(connection) {
        return Err(spared);
    }
    if guarded == Guarded::Yes
        && let Some(spared) = port(
            connection.endpoint.port,
            &BTreeSet::new(),
            SessionState::Keeps,
        )
    {
        return Err(spared);
    }
    Ok(Move {
        cookie: connection.cookie,
        endpoint: connection.endpoint,
        local: connection.local,
        remote: connection.remote,
        pod: None,
        rule: RuleName::by_hand(),
        reasons: Vec::new(),
        steps: Arc::new([step]),
        at_end: AtEnd::Spare,
        mode: Mode::Enforce,
        heeds_guards: guarded == Guarded::Yes,
        // Whoever names a connection knows what it speaks.
        is_watched: false,
        spender: Box::new(Spender {
            rule: RuleName::by_hand(),
            namespace: None,
            group: Arc::new(Group {
                service: None,
                port: connection.endpoint.port,
            }),
            endpoint: connection.endpoint,
            client: client(connection),
            here: 0,
            load: 0,
            share: 0,
            siblings: 0,
            whole: false,
            stage: Stage::There,
        }),
    })
}
