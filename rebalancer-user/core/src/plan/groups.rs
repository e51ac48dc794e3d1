//! What the groups of a snapshot hold, each under each rule.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    FillFailure, Group, Ledger, NoClusterView, NoView, ServiceFacts, Sum,
    cluster::{self, ClusterShare},
    matches::{Found, Matches, Pair},
};
use crate::{
    policy::{Balance, By, Policy, Rule, RuleName},
    snapshot::{Connection, EndpointKey, Naming, Snapshot, TcpState, Who},
};

/// What one endpoint holds of a group under one rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct EndpointLoad {
    /// New connections are sent there.
    pub(super) ready: bool,
    /// What its connections count for, those that are being moved left out.
    pub(super) load: u64,
    /// The most that one of those counts for.
    pub(super) largest: u64,
    /// What those that are being moved count for.
    pub(super) in_flight: u64,
    /// It has begun to shed and not come down to its stop.
    pub(super) sheds: bool,
}

/// A group under one rule.
#[derive(Clone, Debug)]
pub(super) struct GroupLoad {
    pub(super) rule: RuleName,
    pub(super) name: Arc<Group>,
    pub(super) balance: Option<Balance>,
    pub(super) facts: Result<ServiceFacts, NoView>,
    /// This node's part of the Service's budget, if its facts are of the cluster.
    pub(super) cluster: Option<ClusterShare>,
    /// The failed fill test of a group on cooldown, and for how long it still is.
    pub(super) held: Option<(FillFailure, Duration)>,
    /// Connections, whatever they count for.
    pub(super) connections: u64,
    /// What is there now.
    pub(super) here: Sum,
    /// The same, and what was moved and has not been seen again; once its facts are known, on all nodes.
    pub(super) sum: Sum,
    pub(super) endpoints: BTreeMap<EndpointKey, EndpointLoad>,
}

impl GroupLoad {
    fn new(rule: &Rule, name: Group) -> Self {
        Self {
            rule: rule.name().clone(),
            name: Arc::new(name),
            balance: rule.balance(),
            facts: Err(NoView {
                here: 0,
                all: None,
                cause: NoClusterView::Off,
            }),
            cluster: None,
            held: None,
            connections: 0,
            here: Sum::default(),
            sum: Sum::default(),
            endpoints: BTreeMap::new(),
        }
    }

    /// Whether a moved client is seen wherever it comes: its facts are this node's own.
    pub(super) fn is_seen_whole(&self) -> bool {
        let ready = self.endpoints.values().filter(|at| at.ready).count();
        let endpoints = |facts: ServiceFacts| u32::try_from(ready) == Ok(facts.endpoints);
        self.facts.is_ok_and(endpoints)
    }

    /// Endpoints that a moved connection may come to; 0 if that is not known.
    pub(super) fn siblings(&self) -> u32 {
        match self.facts {
            Ok(facts) => facts.endpoints,
            Err(view) => view.all.unwrap_or(0),
        }
    }
}

/// All groups of a snapshot, each under each rule.
#[derive(Default)]
pub(super) struct Groups {
    all: Vec<GroupLoad>,
    /// By a pair's index.
    of_pair: Vec<usize>,
}

impl Groups {
    pub(super) fn of(
        policy: &Policy,
        matches: &Matches<'_>,
        snapshot: &Snapshot,
        ledger: &Ledger,
    ) -> Self {
        Self::with(policy, matches, (snapshot, ledger), false)
    }

    /// The same, and each group that a rule balances and that has endpoints here but no connection.
    pub(super) fn with_empty(
        policy: &Policy,
        matches: &Matches<'_>,
        snapshot: &Snapshot,
        ledger: &Ledger,
    ) -> Self {
        Self::with(policy, matches, (snapshot, ledger), true)
    }

    fn with(
        policy: &Policy,
        matches: &Matches<'_>,
        (snapshot, ledger): (&Snapshot, &Ledger),
        with_empty: bool,
    ) -> Self {
        let mut groups = Self::default();
        let mut indexes = BTreeMap::new();
        let mut loads = Vec::with_capacity(matches.pairs.len());
        for Pair {
            rule,
            endpoint,
            who,
            ..
        } in &matches.pairs
        {
            let name = Group::of(rule, snapshot, endpoint);
            loads.push(empty(rule, &name, (endpoint, who), ledger));
            let index = *indexes
                .entry((rule.name(), name))
                .or_insert_with_key(|(_, name)| {
                    groups.all.push(GroupLoad::new(rule, name.clone()));
                    groups.all.len() - 1
                });
            groups.of_pair.push(index);
        }
        for matched in &matches.all {
            if let Found::Pair(pair) = matched.found {
                let pair = pair as usize;
                let group = &mut groups.all[groups.of_pair[pair]];
                count(
                    group,
                    &mut loads[pair],
                    matched.connection,
                    (snapshot, ledger),
                );
            }
        }
        for ((pair, load), index) in matches.pairs.iter().zip(loads).zip(&groups.of_pair) {
            groups.all[*index].endpoints.insert(pair.endpoint, load);
        }
        groups.add_empty(
            policy,
            matches,
            (snapshot, ledger),
            &mut indexes,
            with_empty,
        );
        for group in &mut groups.all {
            group.sum = group.here;
            for load in ledger.awaited(&group.rule, &group.name) {
                group.sum.add(load);
            }
            (group.facts, group.cluster) = facts(group, snapshot);
            if let Ok(facts) = &mut group.facts {
                group.sum = facts.sum;
                // Clients that are about to reconnect may be in no report and no listing: the mean would be too low.
                let before = ledger.sums(&group.rule, &group.name);
                let largest = before.chain([facts.sum]).max_by_key(|sum| sum.total);
                facts.sum = largest.unwrap_or(facts.sum);
            }
            group.held = group
                .balance
                .zip(group.facts.ok())
                .and_then(|(balance, facts)| {
                    let key = (&group.rule, &group.name);
                    ledger.failed_fill(key, balance.by(), &facts, snapshot.taken)
                });
        }
        groups
    }

    /// The group of the pair with this index.
    pub(super) fn of_pair(&self, pair: usize) -> &GroupLoad {
        &self.all[self.of_pair[pair]]
    }

    /// That group's index, by that of the pair.
    pub(super) fn indexes(&self) -> &[usize] {
        &self.of_pair
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &GroupLoad> {
        self.all.iter()
    }

    /// Endpoints that listen and have no connection that a rule is for.
    fn add_empty<'a>(
        &mut self,
        policy: &'a Policy,
        matches: &Matches<'_>,
        (snapshot, ledger): (&Snapshot, &Ledger),
        indexes: &mut BTreeMap<(&'a RuleName, Group), usize>,
        also_groups: bool,
    ) {
        let pairs = matches.pairs.iter();
        let pairs: BTreeSet<_> = pairs
            .map(|pair| (pair.endpoint, pair.rule.name()))
            .collect();
        let listening = snapshot.endpoints.iter().filter(|(_, e)| e.listeners > 0);
        for (key, endpoint) in listening {
            for rule in policy.rules() {
                if pairs.contains(&(*key, rule.name()))
                    || !rule.matches().may_be_at(key.port, &endpoint.who)
                {
                    continue;
                }
                let name = Group::of(rule, snapshot, key);
                let load = empty(rule, &name, (key, &endpoint.who), ledger);
                // Of a group that has no connection nothing else is asked.
                if also_groups && rule.balance().is_some() && name.service.is_some() {
                    let index =
                        indexes
                            .entry((rule.name(), name))
                            .or_insert_with_key(|(_, name)| {
                                self.all.push(GroupLoad::new(rule, name.clone()));
                                self.all.len() - 1
                            });
                    self.all[*index].endpoints.insert(*key, load);
                } else if let Some(index) = indexes.get(&(rule.name(), name)) {
                    self.all[*index].endpoints.insert(*key, load);
                }
            }
        }
    }
}

fn empty(
    rule: &Rule,
    group: &Group,
    (endpoint, who): (&EndpointKey, &Who),
    ledger: &Ledger,
) -> EndpointLoad {
    EndpointLoad {
        ready: group.is_ready(who),
        sheds: ledger.is_shedding(rule.name(), *endpoint),
        ..EndpointLoad::default()
    }
}

/// A client that always comes back to its endpoint is no part of what chance placed: it is left out,
/// and so it makes no endpoint hot for the others.
fn count(
    group: &mut GroupLoad,
    at: &mut EndpointLoad,
    connection: &Connection,
    (snapshot, ledger): (&Snapshot, &Ledger),
) {
    group.connections += 1;
    let by = group
        .balance
        .map_or(By::Connections, |balance| balance.by());
    let Some(load) = load(connection, by, ledger) else {
        return;
    };
    if !at.ready || ledger.always_returns(connection, snapshot.taken) {
        return;
    }
    group.here.add(load);
    if ledger.is_in_flight(connection.cookie) {
        at.in_flight = at.in_flight.saturating_add(load);
    } else {
        at.load = at.load.saturating_add(load);
        at.largest = at.largest.max(load);
    }
}

/// What a connection counts for; `None` if it does not count, or is not known.
pub(super) fn load(connection: &Connection, by: By, ledger: &Ledger) -> Option<u64> {
    if connection.state != TcpState::Established {
        return None;
    }
    match by {
        By::Connections => Some(1),
        By::ByteRate | By::MessageRate => ledger.flow(connection.cookie),
    }
}

/// What is known of a Service, and this node's part of its budget if that is what all nodes have reported.
type Known = (Result<ServiceFacts, NoView>, Option<ClusterShare>);

/// What this node sees of a Service, which is everything if all ready endpoints are here; otherwise
/// what other nodes have reported.
fn facts(group: &GroupLoad, snapshot: &Snapshot) -> Known {
    let ready = || group.endpoints.values().filter(|at| at.ready);
    let here = u32::try_from(ready().count()).unwrap_or(u32::MAX);
    let all = match &group.name.service {
        Some(service) => snapshot
            .services
            .get(service)
            // Traffic that keeps to its zone is shared by the endpoints of that zone.
            .map(|service| service.ready_in_zone.unwrap_or(service.ready)),
        None => (snapshot.naming == Naming::Off).then_some(here),
    };
    if all != Some(here) || here == 0 {
        let name = (&group.rule, &*group.name);
        let view = match group.balance {
            Some(balance) => cluster::view(name, balance, snapshot, (group.sum, all)),
            None => Err(NoClusterView::Off),
        };
        return match view {
            Ok((facts, share)) => (Ok(facts), Some(share)),
            Err(cause) => (Err(NoView { here, all, cause }), None),
        };
    }
    // One from which much is being moved is not empty: it is there still.
    let with_those = |at: &EndpointLoad| at.load.saturating_add(at.in_flight);
    let facts = ServiceFacts {
        endpoints: here,
        sum: group.sum,
        least: ready().map(with_those).min().unwrap_or(0),
        most: ready().map(|at| at.load).max().unwrap_or(0),
    };
    (Ok(facts), None)
}
