//! What is spared for what it is, before any limit is looked at.

use super::{Spared, ports};
use crate::{
    policy::{Mode, Policy, Rule, SessionState},
    snapshot::{Connection, TcpState},
};

/// The first guard that spares `connection`, which `rule` matches.
pub(super) fn guard(policy: &Policy, rule: &Rule, connection: &Connection) -> Option<Spared> {
    guards(policy, rule, connection).next()
}

/// Every guard that spares `connection`, which `rule` matches.
pub(super) fn guards<'a>(
    policy: &'a Policy,
    rule: &'a Rule,
    connection: &'a Connection,
) -> impl Iterator<Item = Spared> + 'a {
    type Guard = fn(&Policy, &Rule, &Connection) -> Option<Spared>;
    let all: [Guard; 9] = [
        disabled,
        |_, _, c| not_established(c),
        |_, _, c| (!c.owned).then_some(Spared::NotAccepted),
        |_, _, c| c.mptcp.then_some(Spared::Mptcp),
        |policy, _, c| loopback(policy, c),
        |_, _, c| same_host(c),
        |policy, _, c| host_network(policy, c),
        |policy, _, c| system_port(policy, c),
        |_, rule, c| stateful_port(rule, c),
    ];
    all.into_iter()
        .filter_map(move |guard| guard(policy, rule, connection))
}

fn disabled(policy: &Policy, rule: &Rule, _: &Connection) -> Option<Spared> {
    (policy.mode_of(rule) == Mode::Disabled).then_some(Spared::Disabled)
}

fn not_established(connection: &Connection) -> Option<Spared> {
    let state = connection.state;
    (state != TcpState::Established).then_some(Spared::NotEstablished { state })
}

/// What never leaves the host does not go through kube-proxy.
fn loopback(policy: &Policy, connection: &Connection) -> Option<Spared> {
    let spared = is_loopback(connection) && !policy.track().loopback();
    spared.then_some(Spared::Loopback)
}

/// A hop to itself, as from a sidecar: the reconnect would be to the same server. Not asked of
/// loopback addresses, which are their own peers.
fn same_host(connection: &Connection) -> Option<Spared> {
    let [local, remote] = [connection.local, connection.remote].map(|a| a.ip().to_canonical());
    (local == remote && !is_loopback(connection)).then_some(Spared::SameHost)
}

/// Only connections of the host's own namespace have a cgroup in their endpoint.
fn host_network(policy: &Policy, connection: &Connection) -> Option<Spared> {
    let forbidden = policy.guards().allow_host_network() == Some(false);
    (forbidden && connection.endpoint.cgroup.is_some()).then_some(Spared::HostNetwork)
}

fn system_port(policy: &Policy, connection: &Connection) -> Option<Spared> {
    let port = connection.endpoint.port;
    let service = ports::system(port)?;
    let allowed = policy.guards().allow_system_ports().contains(&port);
    (!allowed).then_some(Spared::SystemPort { port, service })
}

fn stateful_port(rule: &Rule, connection: &Connection) -> Option<Spared> {
    let port = connection.endpoint.port;
    let protocol = ports::stateful(port)?;
    let keeps = rule.session_state() == SessionState::Keeps;
    keeps.then_some(Spared::StatefulPort { port, protocol })
}

fn is_loopback(connection: &Connection) -> bool {
    connection.remote.ip().to_canonical().is_loopback()
}
