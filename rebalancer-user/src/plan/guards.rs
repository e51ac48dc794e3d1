//! What is spared for what it is, before any limit is looked at.

use std::collections::BTreeSet;

use super::{Spared, ports};
use crate::{
    policy::{Mode, Policy, Rule, SessionState},
    snapshot::{Connection, TcpState},
};

/// The first guard that spares `connection`, which `rule` matches.
pub(super) fn guard(policy: &Policy, rule: &Rule, connection: &Connection) -> Option<Spared> {
    if policy.mode_of(rule) == Mode::Disabled {
        return Some(Spared::Disabled);
    }
    let allowed = policy.guards().allow_system_ports();
    socket(connection).or_else(|| port(connection.endpoint.port, allowed, rule.session_state()))
}

/// What it surely is: to move it cannot help.
pub(super) fn socket(connection: &Connection) -> Option<Spared> {
    if connection.state != TcpState::Established {
        return Some(Spared::NotEstablished {
            state: connection.state,
        });
    }
    if !connection.owned {
        return Some(Spared::NotAccepted);
    }
    connection.mptcp.then_some(Spared::Mptcp)
}

/// What it may be, by its port: to move it may do harm.
pub(super) fn port(port: u16, allowed: &BTreeSet<u16>, state: SessionState) -> Option<Spared> {
    if let Some(service) = ports::system(port)
        && !allowed.contains(&port)
    {
        return Some(Spared::SystemPort { port, service });
    }
    if let Some(protocol) = ports::stateful(port)
        && state == SessionState::Keeps
    {
        return Some(Spared::StatefulPort { port, protocol });
    }
    None
}
