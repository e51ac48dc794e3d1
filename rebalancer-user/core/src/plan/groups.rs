//! Which endpoints share clients, and what they hold.
//!
//! A [`Group`] is a Service at one port, or, where there are no Services, all endpoints at one
//! port. What balance must know of one is a value, [`ServiceFacts`]: whoever knows more of a Service
//! than this node does can give a better one.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Futile, Ledger, balance::client, chance::Chance, fill::MEAN, matches::Matches, returns::Subject,
};
use crate::{
    policy::{Balance, By, Percent, Policy, Rule, RuleName},
    snapshot::{
        Connection, EndpointKey, Identity, KernelTime, Naming, ServiceName, Snapshot, TcpState, Who,
    },
};

/// Endpoints that share clients.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// The Service that leads to them; none on a host without Kubernetes.
    pub service: Option<ServiceName>,
    /// Their own port.
    pub port: u16,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.service {
            Some(service) => write!(f, "{service}:{}", self.port),
            None => write!(f, "port {}", self.port),
        }
    }
}

impl Group {
    /// The endpoints that share clients with the one at `key` under `rule`: of the Services that
    /// lead there the first that the rule names, or the first at all. A headless one only where
    /// there is no other, as the guards see it: who asks it shares no clients by chance.
    pub(super) fn of(rule: &Rule, snapshot: &Snapshot, key: &EndpointKey) -> Self {
        let service = snapshot.who(key).pod().and_then(|pod| {
            let all = pod.services.iter().flatten().map(|at| at.name.as_str());
            let full = |name: &str| ServiceName {
                namespace: pod.namespace.clone(),
                name: name.to_owned(),
            };
            all.filter(|name| names(rule, pod, name))
                .map(full)
                .min_by_key(|name| {
                    let facts = snapshot.services.get(name);
                    (facts.is_some_and(|facts| facts.headless), name.clone())
                })
        });
        Self {
            service,
            port: key.port,
        }
    }

    /// Whether the endpoint at `key` is one of them.
    pub(super) fn has(&self, key: &EndpointKey, who: &Who) -> bool {
        let leads = |service: &ServiceName| {
            who.pod().is_some_and(|pod| {
                let mut at = pod.services.iter().flatten();
                pod.namespace == service.namespace && at.any(|at| at.name == service.name)
            })
        };
        self.port == key.port && self.service.as_ref().is_none_or(leads)
    }

    /// Whether new connections are sent to the endpoint at `key`, which is one of them.
    fn is_ready(&self, who: &Who) -> bool {
        let (Some(service), Some(pod)) = (&self.service, who.pod()) else {
            return true;
        };
        let mut at = pod.services.iter().flatten();
        !pod.terminating && at.any(|at| at.name == service.name && at.ready && !at.terminating)
    }
}

fn names(rule: &Rule, pod: &Identity, service: &str) -> bool {
    let meant = rule.matches().services();
    let mut all = meant.iter();
    meant.is_empty() || all.any(|meant| meant.means(&pod.namespace, service))
}

/// What the endpoints of a group hold together. The unit is what is balanced by: connections, or
/// bytes or sends per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sum {
    /// What all connections count for.
    pub total: u64,
    /// The sum of the squares of what each counts for.
    pub squares: u128,
    /// The most that one counts for.
    pub largest: u64,
}

impl Sum {
    pub(super) fn add(&mut self, load: u64) {
        self.total = self.total.saturating_add(load);
        let square = u128::from(load) * u128::from(load);
        self.squares = self.squares.saturating_add(square);
        self.largest = self.largest.max(load);
    }
}

/// What must be known of a Service to tell which of its endpoints holds too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceFacts {
    /// Ready endpoints; one or more.
    pub endpoints: u32,
    /// What they hold together. The largest of the last three listings, and what was moved and
    /// has not been seen again is in it: while clients wait to reconnect the mean would be too low.
    pub sum: Sum,
    /// The least that one of them holds.
    pub least: u64,
    /// The most that one of them holds.
    pub most: u64,
}

impl ServiceFacts {
    /// What each would hold, rounded down.
    pub fn mean(&self) -> u64 {
        self.sum.total / u64::from(self.endpoints.max(1))
    }

    /// What an endpoint that sheds keeps: the mean and the tolerance, rounded up, so that all
    /// together can keep everything.
    pub fn stop(&self, tolerance: Percent) -> u64 {
        self.above_mean(u128::from(tolerance.get()))
    }

    /// The mean rounded up.
    fn fair(&self) -> u64 {
        self.above_mean(0)
    }

    fn above_mean(&self, percent: u128) -> u64 {
        let whole = u128::from(self.sum.total) * (100 + percent);
        let above = whole.div_ceil(100 * u128::from(self.endpoints.max(1)));
        u64::try_from(above).unwrap_or(u64::MAX)
    }

    /// The least load that is beyond tolerance and chance; none if all of the Service on one
    /// endpoint were not.
    pub fn start(&self, tolerance: Percent) -> Option<u64> {
        let chance = self.chance()?;
        let beyond = |load: u64| chance.is_above(load as f64);
        let (mut low, mut high) = (self.mean(), self.sum.total);
        if !beyond(high) {
            return None;
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if beyond(middle) {
                high = middle;
            } else {
                low = middle;
            }
        }
        Some(high.max(self.stop(tolerance).saturating_add(1)))
    }

    /// What the emptiest lacks, in millionths of the mean.
    pub(super) fn missing(&self) -> u64 {
        MEAN.saturating_sub(self.share(self.least))
    }

    /// How much a load is, in millionths of the mean.
    pub(super) fn share(&self, load: u64) -> u64 {
        let load = u128::from(load) * u128::from(self.endpoints) * u128::from(MEAN);
        u64::try_from(load / u128::from(self.sum.total.max(1))).unwrap_or(u64::MAX)
    }

    /// Whether an endpoint holds less than chance explains, as one that was just added.
    pub fn one_is_empty(&self) -> bool {
        self.chance()
            .is_some_and(|chance| chance.is_below(self.least as f64))
    }

    /// What an endpoint that holds `load` would keep, if it holds too much. `sheds`: it has begun
    /// to shed before, and goes on until it holds no more than the stop.
    pub fn keeps(&self, load: u64, tolerance: Percent, sheds: bool) -> Option<u64> {
        if self.endpoints < 2 {
            return None;
        }
        let (stop, fair) = (self.stop(tolerance), self.fair());
        if load > stop {
            let start = || self.start(tolerance).is_some_and(|start| load >= start);
            return (sheds || start() || self.one_is_empty()).then_some(stop);
        }
        // A replica that was just added to many leaves each of them within the tolerance. What is
        // moved from one of those is spread over all, so that only what is above the mean can go.
        (self.most <= stop && load > fair && self.one_is_empty()).then_some(fair)
    }

    /// What an endpoint that sheds and holds `load` has too much still, those that are being moved
    /// counted in. Less makes it stop than made it begin, so that no move is given up for its own
    /// sake: the mean is enough where one is empty, and by rates, which change from one interval to
    /// the next.
    pub(super) fn still_beyond(&self, load: u64, balance: Balance) -> u64 {
        if self.endpoints < 2 {
            return 0;
        }
        let to_the_mean = balance.by() != By::Connections || self.one_is_empty();
        let keeps = if to_the_mean {
            self.fair()
        } else {
            self.stop(balance.tolerance())
        };
        load.saturating_sub(keeps)
    }

    fn chance(&self) -> Option<Chance> {
        let sensible = self.endpoints >= 2 && self.sum.total > 0 && self.sum.largest > 0;
        sensible.then(|| Chance {
            endpoints: self.endpoints.into(),
            total: self.sum.total as f64,
            squares: self.sum.squares as f64,
            largest: self.sum.largest as f64,
        })
    }
}

/// Why a Service's facts are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoView {
    /// Of its ready endpoints, those that are seen here.
    pub here: u32,
    /// How many there are; none if that is not known.
    pub all: Option<u32>,
}

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
    pub(super) group: Arc<Group>,
    pub(super) balance: Option<Balance>,
    pub(super) facts: Result<ServiceFacts, NoView>,
    /// Moves that did not help, and for how long none is made.
    pub(super) held: Option<(Futile, Duration)>,
    /// Connections, whatever they count for.
    pub(super) connections: u64,
    /// What is there now, and what was moved and has not been seen again.
    pub(super) sum: Sum,
    pub(super) endpoints: BTreeMap<EndpointKey, EndpointLoad>,
}

impl GroupLoad {
    /// Whether a moved client is seen wherever it comes: its facts are this node's own.
    pub(super) fn is_seen_whole(&self) -> bool {
        let ready = self.endpoints.values().filter(|held| held.ready).count();
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
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    all: Vec<GroupLoad>,
    /// By a rule's name and an endpoint.
    of: BTreeMap<(RuleName, EndpointKey), usize>,
    /// By a connection's index in the snapshot.
    by_connection: Vec<Option<usize>>,
}

impl Groups {
    pub(super) fn of(
        policy: &Policy,
        matches: &Matches<'_>,
        snapshot: &Snapshot,
        ledger: &Ledger,
    ) -> Self {
        let mut groups = Self::default();
        let mut indexes: BTreeMap<(RuleName, Group), usize> = BTreeMap::new();
        // Of each endpoint by the rule's index: there are few.
        let mut known: Vec<Vec<(usize, usize)>> = vec![Vec::new(); matches.endpoints];
        for matched in &matches.all {
            let Ok(Some((number, rule))) = matched.found else {
                groups.by_connection.push(None);
                continue;
            };
            let (connection, of_endpoint) = (matched.connection, &mut known[matched.endpoint]);
            let before = of_endpoint.iter().find(|(of, _)| *of == number);
            let index = match before {
                Some((_, index)) => *index,
                None => {
                    let endpoint = connection.endpoint;
                    let index = groups.index(rule, &endpoint, (snapshot, ledger), &mut indexes);
                    groups.of.insert((rule.name().clone(), endpoint), index);
                    of_endpoint.push((number, index));
                    index
                }
            };
            groups.by_connection.push(Some(index));
            groups.count(index, connection, ledger, snapshot.taken);
        }
        groups.add_empty(policy, (snapshot, ledger), &mut indexes);
        for shared in &mut groups.all {
            for load in ledger.awaited(&shared.rule, &shared.group) {
                shared.sum.add(load);
            }
            shared.facts = facts(shared, snapshot, ledger);
            shared.held = ledger.futile(shared, snapshot.taken);
        }
        groups
    }

    /// The group of the connection at this index of the snapshot.
    pub(super) fn of_connection(&self, index: usize) -> Option<&GroupLoad> {
        let index = *self.by_connection.get(index)?;
        self.all.get(index?)
    }

    pub(super) fn get(&self, rule: &Rule, endpoint: EndpointKey) -> Option<&GroupLoad> {
        let index = self.of.get(&(rule.name().clone(), endpoint))?;
        self.all.get(*index)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &GroupLoad> {
        self.all.iter()
    }

    fn index(
        &mut self,
        rule: &Rule,
        endpoint: &EndpointKey,
        (snapshot, ledger): (&Snapshot, &Ledger),
        indexes: &mut BTreeMap<(RuleName, Group), usize>,
    ) -> usize {
        let group = Group::of(rule, snapshot, endpoint);
        let all = &mut self.all;
        let index = *indexes
            .entry((rule.name().clone(), group.clone()))
            .or_insert_with(|| {
                all.push(GroupLoad {
                    rule: rule.name().clone(),
                    group: Arc::new(group),
                    balance: rule.balance(),
                    facts: Err(NoView { here: 0, all: None }),
                    held: None,
                    connections: 0,
                    sum: Sum::default(),
                    endpoints: BTreeMap::new(),
                });
                all.len() - 1
            });
        let shared = &mut self.all[index];
        let held = shared.endpoints.entry(*endpoint).or_default();
        held.ready = shared.group.is_ready(snapshot.who(endpoint));
        held.sheds = ledger.is_shedding(rule.name(), *endpoint);
        index
    }

    fn count(&mut self, index: usize, connection: &Connection, ledger: &Ledger, taken: KernelTime) {
        let shared = &mut self.all[index];
        shared.connections += 1;
        let by = shared
            .balance
            .map_or(By::Connections, |balance| balance.by());
        let (Some(held), Some(load)) = (
            shared.endpoints.get_mut(&connection.endpoint),
            load(connection, by, ledger),
        ) else {
            return;
        };
        if !held.ready || comes_back(connection, ledger, taken) {
            return;
        }
        shared.sum.add(load);
        if ledger.is_in_flight(connection.cookie) {
            held.in_flight = held.in_flight.saturating_add(load);
        } else {
            held.load = held.load.saturating_add(load);
            held.largest = held.largest.max(load);
        }
    }

    /// Endpoints that listen and have no connection that a rule is for.
    fn add_empty(
        &mut self,
        policy: &Policy,
        (snapshot, ledger): (&Snapshot, &Ledger),
        indexes: &mut BTreeMap<(RuleName, Group), usize>,
    ) {
        let listening = snapshot.endpoints.iter().filter(|(_, e)| e.listeners > 0);
        for (key, endpoint) in listening {
            for rule in policy.rules() {
                let of = (rule.name().clone(), *key);
                if self.of.contains_key(&of) || !rule.matches().may_be_at(key.port, &endpoint.who) {
                    continue;
                }
                let group = (of.0.clone(), Group::of(rule, snapshot, key));
                // Of a group that has no connection nothing is asked.
                if indexes.contains_key(&group) {
                    let index = self.index(rule, key, (snapshot, ledger), indexes);
                    self.of.insert(of, index);
                }
            }
        }
    }
}

/// Whether its client always comes back to its endpoint. That is no part of what chance placed: it is
/// left out, and so it makes no endpoint hot for the others.
pub(super) fn comes_back(connection: &Connection, ledger: &Ledger, now: KernelTime) -> bool {
    let returns = ledger.returns(Subject::Client(client(connection)), connection.endpoint);
    returns.is_some_and(|test| test.hold.left(now).is_some())
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

/// What this node knows of a Service by itself, which is everything if all its ready endpoints are
/// here; else what it was told.
fn facts(shared: &GroupLoad, snapshot: &Snapshot, ledger: &Ledger) -> Result<ServiceFacts, NoView> {
    let ready = || shared.endpoints.values().filter(|held| held.ready);
    let here = u32::try_from(ready().count()).unwrap_or(u32::MAX);
    let all = match &shared.group.service {
        Some(service) => snapshot
            .services
            .get(service)
            // Traffic that keeps to its zone is shared by the endpoints of that zone.
            .map(|service| service.ready_in_zone.unwrap_or(service.ready)),
        None => (snapshot.naming == Naming::Off).then_some(here),
    };
    if all != Some(here) || here == 0 {
        let view = ledger.view(&shared.rule, &shared.group, snapshot.taken);
        return view.ok_or(NoView { here, all });
    }
    let before = ledger.sums(&shared.rule, &shared.group);
    let sum = before.chain([shared.sum]).max_by_key(|sum| sum.total);
    // One from which much is being moved is not empty: it is there still.
    let with_those = |held: &EndpointLoad| held.load.saturating_add(held.in_flight);
    Ok(ServiceFacts {
        endpoints: here,
        sum: sum.unwrap_or_default(),
        least: ready().map(with_those).min().unwrap_or(0),
        most: ready().map(|held| held.load).max().unwrap_or(0),
    })
}
