//! What is spared for what it is, before any limit is looked at.

use super::{Spared, ports};
use crate::{
    policy::{Mode, Policy, Rule, SessionState},
    snapshot::{Connection, TcpState},
};

/// The first guard that spares `connection`, which `rule` matches.
pub(super) fn guard(policy: &Policy, rule: &Rule, connection: &Connection) -> Option<Spared> {
    let port = connection.endpoint.port;
    if policy.mode_of(rule) == Mode::Disabled {
        return Some(Spared::Disabled);
    }
    if connection.state != TcpState::Established {
        return Some(Spared::NotEstablished {
            state: connection.state,
        });
    }
    if !connection.owned {
        return Some(Spared::NotAccepted);
    }
    if connection.mptcp {
        return Some(Spared::Mptcp);
    }
    if let Some(service) = ports::system(port)
        && !policy.guards().allow_system_ports().contains(&port)
    {
        return Some(Spared::SystemPort { port, service });
    }
    if let Some(protocol) = ports::stateful(port)
        && rule.session_state() == SessionState::Keeps
    {
        return Some(Spared::StatefulPort { port, protocol });
    }
    None
}
