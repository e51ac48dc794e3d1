//! What is skipped for what it is, before any limit is looked at.

use std::collections::BTreeSet;

use super::{SkipReason, pods, ports, services::Services};
use crate::{
    policy::{Mode, OnReconnect, Policy, Rule},
    snapshot::{Connection, EndpointKey, Snapshot, TcpState},
};

/// The guards of a rule's connections at one endpoint: what they say of the endpoint is found once.
pub(super) struct Guards<'a> {
    policy: &'a Policy,
    rule: &'a Rule,
    pods: Vec<SkipReason>,
    services: Services<'a>,
}

impl<'a> Guards<'a> {
    pub(super) fn of(
        policy: &'a Policy,
        rule: &'a Rule,
        snapshot: &'a Snapshot,
        endpoint: &EndpointKey,
    ) -> Self {
        let who = snapshot.who(endpoint);
        Self {
            policy,
            rule,
            pods: pods::guards(policy, rule, snapshot, who).collect(),
            services: Services::of(policy, rule, snapshot, endpoint),
        }
    }

    /// Every guard that skips `connection`, which is at this endpoint and which the rule matches, in
    /// their order.
    pub(super) fn all(&self, connection: &Connection) -> impl Iterator<Item = SkipReason> {
        type Guard = fn(&Policy, &Rule, &Connection) -> Option<SkipReason>;
        const ALL: [Guard; 8] = [
            disabled,
            |_, _, c| not_established(c),
            |_, _, c| mptcp(c),
            |policy, _, c| loopback(policy, c),
            |_, _, c| same_host(c),
            |policy, _, c| host_network(policy, c),
            |policy, _, c| system_port(c.endpoint.port, policy.guards().allow_system_ports()),
            |_, rule, c| stateful_port(c.endpoint.port, rule.on_reconnect()),
        ];
        ALL.into_iter()
            .filter_map(|guard| guard(self.policy, self.rule, connection))
            .chain(self.pods.iter().cloned())
            .chain(self.services.guards(connection))
    }

    /// The first of them.
    pub(super) fn first(&self, connection: &Connection) -> Option<SkipReason> {
        self.all(connection).next()
    }
}

/// What it surely is: to move it cannot help.
pub(super) fn socket(connection: &Connection) -> Option<SkipReason> {
    not_established(connection).or_else(|| mptcp(connection))
}

/// What it may be, by its port: to move it may do harm.
pub(super) fn port(port: u16, allowed: &BTreeSet<u16>, state: OnReconnect) -> Option<SkipReason> {
    system_port(port, allowed).or_else(|| stateful_port(port, state))
}

fn disabled(policy: &Policy, rule: &Rule, _: &Connection) -> Option<SkipReason> {
    (policy.mode_of(rule) == Mode::Disabled).then_some(SkipReason::Disabled)
}

fn not_established(connection: &Connection) -> Option<SkipReason> {
    let state = connection.state;
    (state != TcpState::Established).then_some(SkipReason::NotEstablished { state })
}

/// What never leaves the host does not go through kube-proxy.
fn loopback(policy: &Policy, connection: &Connection) -> Option<SkipReason> {
    let skipped = is_loopback(connection) && !policy.track().loopback();
    skipped.then_some(SkipReason::Loopback)
}

/// A hop to itself, as from a sidecar: the reconnect would be to the same server. Not asked of
/// loopback addresses, which are their own peers.
fn same_host(connection: &Connection) -> Option<SkipReason> {
    let [local, remote] = [connection.local, connection.remote].map(|a| a.ip().to_canonical());
    (local == remote && !is_loopback(connection)).then_some(SkipReason::SameHost)
}

/// Only connections of the host's own namespace have a cgroup in their endpoint.
fn host_network(policy: &Policy, connection: &Connection) -> Option<SkipReason> {
    let forbidden = policy.guards().allow_host_network() == Some(false);
    (forbidden && connection.endpoint.cgroup.is_some()).then_some(SkipReason::HostNetwork)
}

fn mptcp(connection: &Connection) -> Option<SkipReason> {
    connection.mptcp.then_some(SkipReason::Mptcp)
}

fn system_port(port: u16, allowed: &BTreeSet<u16>) -> Option<SkipReason> {
    let service = ports::system(port)?;
    (!allowed.contains(&port)).then_some(SkipReason::SystemPort { port, service })
}

fn stateful_port(port: u16, state: OnReconnect) -> Option<SkipReason> {
    let protocol = ports::stateful(port)?;
    (state != OnReconnect::LosesState).then_some(SkipReason::StatefulPort { port, protocol })
}

fn is_loopback(connection: &Connection) -> bool {
    connection.remote.ip().to_canonical().is_loopback()
}
