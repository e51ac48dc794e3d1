//! What is spared for what it is, before any limit is looked at.

use std::collections::BTreeSet;

use super::{Spared, pods, ports, services};
use crate::{
    policy::{Mode, Policy, Rule, SessionState},
    snapshot::{Connection, Snapshot, TcpState},
};

/// The first guard that spares `connection`, which `rule` matches.
pub(super) fn guard(
    policy: &Policy,
    rule: &Rule,
    snapshot: &Snapshot,
    connection: &Connection,
) -> Option<Spared> {
    guards(policy, rule, snapshot, connection).next()
}

/// Every guard that spares `connection`, which `rule` matches.
pub(super) fn guards<'a>(
    policy: &'a Policy,
    rule: &'a Rule,
    snapshot: &'a Snapshot,
    connection: &'a Connection,
) -> impl Iterator<Item = Spared> + 'a {
    type Guard = fn(&Policy, &Rule, &Connection) -> Option<Spared>;
    let all: [Guard; 8] = [
        disabled,
        |_, _, c| not_established(c),
        |_, _, c| mptcp(c),
        |policy, _, c| loopback(policy, c),
        |_, _, c| same_host(c),
        |policy, _, c| host_network(policy, c),
        |policy, _, c| system_port(c.endpoint.port, policy.guards().allow_system_ports()),
        |_, rule, c| stateful_port(c.endpoint.port, rule.session_state()),
    ];
    all.into_iter()
        .filter_map(move |guard| guard(policy, rule, connection))
        .chain(pods::guards(
            policy,
            rule,
            snapshot,
            snapshot.who(&connection.endpoint),
        ))
        .chain(
            std::iter::once_with(move || services::guards(policy, rule, snapshot, connection))
                .flatten(),
        )
}

/// What it surely is: to move it cannot help.
pub(super) fn socket(connection: &Connection) -> Option<Spared> {
    not_established(connection).or_else(|| mptcp(connection))
}

/// What it may be, by its port: to move it may do harm.
pub(super) fn port(port: u16, allowed: &BTreeSet<u16>, state: SessionState) -> Option<Spared> {
    system_port(port, allowed).or_else(|| stateful_port(port, state))
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

fn mptcp(connection: &Connection) -> Option<Spared> {
    connection.mptcp.then_some(Spared::Mptcp)
}

fn system_port(port: u16, allowed: &BTreeSet<u16>) -> Option<Spared> {
    let service = ports::system(port)?;
    (!allowed.contains(&port)).then_some(Spared::SystemPort { port, service })
}

fn stateful_port(port: u16, state: SessionState) -> Option<Spared> {
    let protocol = ports::stateful(port)?;
    (state != SessionState::Loses).then_some(Spared::StatefulPort { port, protocol })
}

fn is_loopback(connection: &Connection) -> bool {
    connection.remote.ip().to_canonical().is_loopback()
}
