//! What is skipped for what it is, before any limit is looked at.

use std::{collections::BTreeSet, net::IpAddr};

use super::{SkipReason, drain::Draining, pods, ports, services::Services};
use crate::{
    policy::{Mode, OnReconnect, Policy, Rule},
    snapshot::{Connection, EndpointKey, Snapshot, TcpState},
};

/// The guards of a rule's connections at one endpoint; those that depend on the endpoint alone are
/// evaluated once.
pub(super) struct Guards<'a> {
    policy: &'a Policy,
    services: Services<'a>,
    /// In their order; of the endpoint only those that skip it.
    all: Vec<Guard<'a>>,
}

enum Guard<'a> {
    /// Of the endpoint.
    Endpoint(SkipReason),
    /// Asked of each connection.
    Connection(fn(&Guards<'a>, &Connection) -> Option<SkipReason>),
}

impl<'a> Guards<'a> {
    pub(super) fn of(
        policy: &'a Policy,
        rule: &'a Rule,
        snapshot: &'a Snapshot,
        endpoint: &EndpointKey,
    ) -> Self {
        use Guard::Connection as EachConnection;
        let draining = Draining::of(rule, snapshot, endpoint);
        let services = Services::of(policy, rule, snapshot, (endpoint, draining));
        let mut all = Vec::new();
        let of_endpoint = |why: Option<SkipReason>| why.map(Guard::Endpoint);
        let is_requested = draining.is_some_and(Draining::is_requested);
        all.extend(of_endpoint(disabled(policy, rule)).filter(|_| !is_requested));
        all.push(EachConnection(|_, connection| not_established(connection)));
        all.push(EachConnection(|_, connection| mptcp(connection)));
        all.push(EachConnection(|at, connection| {
            loopback(at.policy, connection)
        }));
        all.push(EachConnection(|_, connection| same_host(connection)));
        all.extend(of_endpoint(host_network(policy, endpoint)));
        let allowed = policy.guards().allow_system_ports();
        all.extend(of_endpoint(system_port(endpoint.port, allowed)));
        let stateful = stateful_port(endpoint.port, rule.on_reconnect());
        let has_step = rule.gives_notice() && ports::is_http2(endpoint.port);
        all.extend(of_endpoint(stateful.filter(|_| !has_step)));
        let of_pod = pods::guards(policy, rule, snapshot, (endpoint, draining));
        all.extend(of_pod.map(Guard::Endpoint));
        let [first, second, third] = services.of_endpoint();
        all.extend(first.into_iter().map(Guard::Endpoint));
        if services.may_be_ambiguous() {
            all.push(EachConnection(|at, connection| {
                at.services.ambiguous(connection)
            }));
        }
        all.extend(second.into_iter().map(Guard::Endpoint));
        if services.may_have_siblings() {
            all.push(EachConnection(|at, connection| {
                at.services.sibling(connection)
            }));
        }
        all.extend(third.into_iter().map(Guard::Endpoint));
        Self {
            policy,
            services,
            all,
        }
    }

    /// Every guard that skips `connection`, which is at this endpoint and which the rule matches, in
    /// their order.
    pub(super) fn all(&self, connection: &Connection) -> impl Iterator<Item = SkipReason> {
        self.all.iter().filter_map(move |guard| match guard {
            Guard::Endpoint(why) => Some(why.clone()),
            Guard::Connection(guard) => guard(self, connection),
        })
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

fn disabled(policy: &Policy, rule: &Rule) -> Option<SkipReason> {
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
    let (local, remote) = (connection.local.ip(), connection.remote.ip());
    let is_same = match (local, remote) {
        // Nearly all, and compared fast.
        (IpAddr::V4(local), IpAddr::V4(remote)) => local == remote,
        _ => local.to_canonical() == remote.to_canonical(),
    };
    (is_same && !is_loopback(connection)).then_some(SkipReason::SameHost)
}

/// Only connections of the host's own namespace have a cgroup in their endpoint.
fn host_network(policy: &Policy, endpoint: &EndpointKey) -> Option<SkipReason> {
    let forbidden = policy.guards().allow_host_network() == Some(false);
    (forbidden && endpoint.cgroup.is_some()).then_some(SkipReason::HostNetwork)
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
    match connection.remote.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        ip => ip.to_canonical().is_loopback(),
    }
}
