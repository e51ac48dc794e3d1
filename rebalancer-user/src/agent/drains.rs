//! Drains: those that an operator asks for, and what is reported of all.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{Agent, fact::Fact};
use crate::{
    api::{DrainEndpoint, DrainTarget},
    http::{DrainAnswer, DrainRequest},
    plan::{DRAIN_MARGIN, DRAIN_PASS, DrainCause, Drained, Plan, decide},
    policy::Mode,
    snapshot::{EndpointKey, Identity, RequestedDrain, ServiceAt, Snapshot},
};

/// An operator's request to empty an endpoint. It ends with the agent.
#[derive(Clone, Debug)]
pub(super) struct Requested {
    target: DrainTarget,
    at: Instant,
    within: Duration,
}

/// The drain of an endpoint.
pub(super) struct Drain {
    last: Drained,
    /// The most connections that it had.
    all: u64,
    /// Its end was reported.
    has_ended: bool,
}

/// What is reported of drains, and those that operators have asked for.
#[derive(Default)]
pub(super) struct Drains {
    requested: BTreeMap<EndpointKey, Requested>,
    under_way: BTreeMap<EndpointKey, Drain>,
    /// Pods that stop too soon, which was reported.
    too_short: BTreeSet<EndpointKey>,
    /// When the next pass is due at which an endpoint is drained.
    pub(super) pass: Option<Instant>,
}

/// Why a drain is not begun.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotDrained {
    /// Nothing here is meant.
    NoEndpoint(String),
    /// Nothing may be moved now.
    Forbidden(String),
}

impl Drains {
    /// Adds to a snapshot what operators have asked for.
    pub(super) fn add_to(&mut self, snapshot: &mut Snapshot) {
        self.requested.retain(|key, request| {
            let since = request.at.elapsed();
            let within = request.within;
            if let Some(endpoint) = snapshot.endpoints.get_mut(key) {
                endpoint.drain = Some(RequestedDrain { since, within });
            }
            since < within
        });
    }

    /// Forgets what operators have asked for.
    pub(super) fn forget_requests(&mut self) {
        self.requested.clear();
    }
}

impl Agent {
    /// Connections may have to leave a pod: if a rule drains, their time counts from now on.
    pub(super) fn pod_leaves(&mut self) {
        let mut rules = self.policy.rules().iter();
        if rules.any(|rule| rule.drain().is_some()) {
            self.drains.pass = Some(self.next_pass);
        }
    }

    /// The next pass of a drain is due.
    pub(super) fn drain(&mut self) {
        self.drains.pass = None;
        self.tick();
    }

    /// Begins a drain, or says what it would do.
    pub(super) fn request_drain(
        &mut self,
        DrainRequest {
            target,
            milliseconds,
            dry_run,
        }: DrainRequest,
        snapshot: &Snapshot,
    ) -> Result<DrainAnswer, NotDrained> {
        if !dry_run {
            self.may_drain()?;
        }
        let endpoints = find(&target, snapshot);
        if endpoints.is_empty() {
            let what = format!("{target}: no endpoint of this node that has or had connections");
            return Err(NotDrained::NoEndpoint(what));
        }
        let within = Duration::from_millis(milliseconds);
        let (run, after) = self.journal.newest_event();
        let answer = DrainAnswer {
            run,
            after,
            endpoints: self.forecast(&endpoints, snapshot.clone(), within),
        };
        if !dry_run {
            let request = Requested {
                target,
                at: Instant::now(),
                within,
            };
            let leaving = endpoints.into_iter().zip(&answer.endpoints);
            for (endpoint, _) in leaving.filter(|(_, forecast)| forecast.leaving > 0) {
                self.drains.requested.insert(endpoint, request.clone());
                self.drains.under_way.remove(&endpoint);
            }
            self.drains.pass = Some(self.next_pass);
        }
        Ok(answer)
    }

    fn may_drain(&self) -> Result<(), NotDrained> {
        if let Some(paused) = self.pause.now() {
            let ends_by = paused.by.ends_by();
            return Err(NotDrained::Forbidden(format!(
                "moves are paused; {ends_by} ends that"
            )));
        }
        if self.mode != Mode::Enforce {
            let mode = self.mode.as_str();
            return Err(NotDrained::Forbidden(format!(
                "this agent may not move anything: its mode is {mode} at most, by --mode, or because there are \
                 pods whose names are not known"
            )));
        }
        if self.mover.is_none() {
            return Err(NotDrained::Forbidden(
                "this agent cannot move anything on this node; `rebalancer doctor` has more"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    /// What would become of the connections of these endpoints, in their order.
    fn forecast(
        &self,
        endpoints: &BTreeSet<EndpointKey>,
        mut snapshot: Snapshot,
        within: Duration,
    ) -> Vec<DrainEndpoint> {
        for (key, endpoint) in &mut snapshot.endpoints {
            let since = DRAIN_PASS; // a pass from now
            let request = RequestedDrain { since, within };
            if endpoints.contains(key) {
                endpoint.drain = Some(request);
            }
        }
        let plan = decide(&self.policy, &snapshot, &self.ledger, snapshot.taken);
        let mut states: BTreeMap<EndpointKey, BTreeMap<&str, u64>> = BTreeMap::new();
        for drained in plan.drained() {
            let of_endpoint = states.entry(drained.endpoint).or_default();
            for (state, count) in &drained.connections {
                *of_endpoint.entry(*state).or_default() += count;
            }
        }
        let mut forecast = |key: &EndpointKey| {
            let pod = snapshot.who(key).pod();
            let services = pod
                .into_iter()
                .flat_map(|pod| pod.services.iter().flatten());
            let ready = services.filter(|at| at.ready);
            let in_namespace = |at: &ServiceAt| {
                let namespace = pod.map_or("", |pod| &pod.namespace);
                format!("{namespace}/{}", at.name)
            };
            let states = states.remove(key).unwrap_or_default();
            let (leaving, staying): (BTreeMap<_, _>, BTreeMap<_, _>) = states
                .into_iter()
                .partition(|(state, _)| Drained::leaves(state));
            DrainEndpoint {
                pod: pod.map(Identity::full_name),
                netns: key.netns.0,
                port: key.port,
                leaving: leaving.values().sum(),
                staying: staying
                    .into_iter()
                    .map(|(why, count)| (why.to_owned(), count))
                    .collect(),
                ready_in: ready.map(in_namespace).collect(),
            }
        };
        endpoints.iter().map(&mut forecast).collect()
    }

    /// Ends the drains that an operator has asked for by this target; how many endpoints they are of.
    pub(super) fn cancel_drain(&mut self, target: &DrainTarget) -> usize {
        let requested = &mut self.drains.requested;
        let cancelled = requested.extract_if(.., |_, request| request.target == *target);
        let cancelled: Vec<EndpointKey> = cancelled.map(|(endpoint, _)| endpoint).collect();
        for endpoint in &cancelled {
            if let Some(drain) = self.drains.under_way.remove(endpoint)
                && !drain.has_ended
            {
                let (drained, all) = (&drain.last, drain.all);
                self.journal.record(Fact::DrainEnded { drained, all });
            }
        }
        // Moves that wait are recalled at once.
        self.drains.pass = Some(self.next_pass);
        cancelled.len()
    }

    /// Reports when drains begin and end, and sees to the next pass in time.
    pub(super) fn follow_drains(&mut self, plan: &Plan, snapshot: &Snapshot, began: Instant) {
        let now: BTreeMap<EndpointKey, &Drained> = plan
            .drained()
            .iter()
            .map(|one| (one.endpoint, one))
            .collect();
        if !now.is_empty() {
            self.drains.pass = Some(self.next_pass.max(began + DRAIN_PASS));
        }
        let gone = |endpoint: &EndpointKey| !now.contains_key(endpoint);
        let under_way = &mut self.drains.under_way;
        for (endpoint, mut drain) in under_way.extract_if(.., |endpoint, _| gone(endpoint)) {
            self.drains.requested.remove(&endpoint);
            if drain.has_ended {
                continue;
            }
            // Else its pod is back in its Service.
            if !snapshot.connections.iter().any(|c| c.endpoint == endpoint) {
                drain.last.connections.clear();
            }
            let (drained, all) = (&drain.last, drain.all);
            self.journal.record(Fact::DrainEnded { drained, all });
        }
        for (endpoint, drained) in now {
            let drain = self.drains.under_way.entry(endpoint).or_insert_with(|| {
                self.journal.record(Fact::DrainBegan(drained));
                Drain {
                    last: drained.clone(),
                    all: 0,
                    has_ended: false,
                }
            });
            drain.last.clone_from(drained);
            drain.all = drain.all.max(drained.count());
            // A pod that is deleted may still get connections from nodes that do not know it yet.
            let is_empty = drained.count() == 0 && drained.cause != DrainCause::Terminating;
            if !drain.has_ended && (is_empty || drained.left <= DRAIN_MARGIN) {
                drain.has_ended = true;
                let all = drain.all;
                self.journal.record(Fact::DrainEnded { drained, all });
                if is_empty {
                    self.drains.requested.remove(&endpoint);
                }
            }
        }
        let short = plan.too_short().iter();
        let before = std::mem::replace(
            &mut self.drains.too_short,
            short.clone().map(|short| short.endpoint).collect(),
        );
        for short in short.filter(|short| !before.contains(&short.endpoint)) {
            self.journal.record(Fact::DrainTooShort(short));
        }
    }
}

/// The endpoints that are meant.
fn find(target: &DrainTarget, snapshot: &Snapshot) -> BTreeSet<EndpointKey> {
    let is_pod = |pod: &Identity| match target {
        DrainTarget::Pod { namespace, name } => pod.namespace == *namespace && pod.pod == *name,
        DrainTarget::Service { namespace, name } => {
            let now = pod.services.iter().flatten();
            let before = pod.removed_from.iter().map(|from| &from.service);
            pod.namespace == *namespace && now.chain(before).any(|at| at.name == *name)
        }
        DrainTarget::Address(_) | DrainTarget::Port(_) => false,
    };
    if let DrainTarget::Address(address) = target {
        let at = (address.ip().to_canonical(), address.port());
        let connections = snapshot.connections.iter();
        let there = connections.filter(|c| (c.local.ip().to_canonical(), c.local.port()) == at);
        return there.map(|connection| connection.endpoint).collect();
    }
    let endpoints = snapshot.endpoints.iter();
    let meant = endpoints.filter(|(key, endpoint)| match target {
        DrainTarget::Port(port) => key.port == *port,
        _ => endpoint.who.pod().is_some_and(is_pod),
    });
    meant.map(|(key, _)| *key).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::snapshot::{
        Connection, Endpoint, Who,
        sample::{connection, endpoint, service_at, snapshot},
    };

    #[test]
    fn a_target_is_what_has_its_name_or_address() {
        let pod = |name: &str, service: &str| {
            Who::Pod(Arc::new(Identity {
                namespace: "shop".to_owned(),
                pod: name.to_owned(),
                services: Some(vec![service_at(service)]),
                ..Identity::default()
            }))
        };
        let at = |who| Endpoint {
            who,
            ..Endpoint::default()
        };
        let mut listed = snapshot(0, Vec::new());
        listed.endpoints = [
            (endpoint(1, 80), at(pod("web-0", "web"))),
            (endpoint(1, 81), at(pod("web-0", "admin"))),
            (endpoint(2, 80), at(pod("web-1", "web"))),
            (endpoint(3, 80), at(Who::NoPod)),
        ]
        .into();
        listed.connections = vec![Connection {
            endpoint: endpoint(3, 80),
            local: "[::ffff:10.0.0.3]:80".parse().unwrap(),
            ..connection(1)
        }];
        for (target, expected) in [
            ("pod/shop/web-0", &[(1, 80), (1, 81)][..]),
            ("pod/other/web-0", &[]),
            ("service/shop/web", &[(1, 80), (2, 80)]),
            ("10.0.0.3:80", &[(3, 80)]),
            ("10.0.0.3:81", &[]),
            (":80", &[(1, 80), (2, 80), (3, 80)]),
        ] {
            let found = find(&target.parse().unwrap(), &listed);
            let found: Vec<(u32, u16)> = found.iter().map(|key| (key.netns.0, key.port)).collect();
            assert_eq!(found, expected, "{target}");
        }
    }
}
