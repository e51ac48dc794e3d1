//! What is skipped for its Services: where a move cannot help, or could leave too few.
//!
//! They are asked only where it is known which pod has accepted a connection: a plain host has no
//! Services. A connection to a port of a pod that no Service leads to is skipped too, whatever
//! matches it: its client has dialled the pod, or the node's `hostPort`, and would come back.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    SkipReason,
    drain::{Draining, removed_from},
};
use crate::{
    policy::{MissingFact, OnReconnect, Policy, Rule},
    snapshot::{Connection, EndpointKey, Identity, Service, ServiceAt, ServiceName, Snapshot},
};

/// A Service that leads to the connection's endpoint.
#[derive(Clone)]
struct Leads<'a> {
    name: Arc<ServiceName>,
    at: &'a ServiceAt,
    facts: &'a Service,
}

/// The Services that lead to an endpoint, and their guards on its connections that match a rule.
#[derive(Default)]
pub(super) struct Services<'a> {
    /// All that lead there.
    all: Vec<Leads<'a>>,
    /// Those that count.
    asked: Vec<Leads<'a>>,
    /// The skip reasons of the whole endpoint: before, between and after the guards on each connection.
    of_endpoint: [Vec<SkipReason>; 3],
}

impl<'a> Services<'a> {
    pub(super) fn of(
        policy: &Policy,
        rule: &'a Rule,
        snapshot: &'a Snapshot,
        (endpoint, draining): (&EndpointKey, Option<Draining>),
    ) -> Self {
        let Some(pod) = snapshot.who(endpoint).pod() else {
            return Self::default();
        };
        let all = match lead(pod, rule, snapshot) {
            Ok(all) => all,
            Err(unknown) => {
                return Self {
                    of_endpoint: [vec![unknown], Vec::new(), Vec::new()],
                    ..Self::default()
                };
            }
        };
        let asked = asked(rule, &all);
        // Where new connections do not come to what is drained, its Service need not tell others where to go.
        // And if the Service's endpoints change just now, that is why.
        let is_drained = draining.is_some();
        let receives = asked.iter().any(|s| s.at.ready);
        let of_living = |why: Option<SkipReason>| why.filter(|_| !is_drained);
        let before = [of_living(unready(pod, &asked)), headless(&asked)];
        let too_few = if is_drained {
            too_few(|s| 1 + drained_here(s, snapshot), &asked)
        } else {
            let min = policy.guards().min_ready_endpoints().get();
            too_few(|_| min, &asked)
        };
        let after = [
            too_few,
            of_living(stabilizing(policy, &asked)),
            http2(rule, endpoint.port, &all),
        ];
        Self {
            of_endpoint: [
                before.into_iter().flatten().collect(),
                affinity(&asked)
                    .filter(|_| !is_drained || receives)
                    .into_iter()
                    .collect(),
                after.into_iter().flatten().collect(),
            ],
            asked,
            all,
        }
    }

    /// Guards of the endpoint: before [`Services::ambiguous`], before [`Services::sibling`], and after.
    pub(super) fn of_endpoint(&self) -> [Vec<SkipReason>; 3] {
        self.of_endpoint.clone()
    }

    pub(super) fn may_be_ambiguous(&self) -> bool {
        self.asked.len() > 1
    }

    pub(super) fn may_have_siblings(&self) -> bool {
        self.all.iter().any(|s| !s.facts.addresses.is_empty())
    }

    /// Which of several was dialled is not known, nor, if they differ, where a client would go.
    pub(super) fn ambiguous(&self, connection: &Connection) -> Option<SkipReason> {
        let (first, rest) = self.asked.split_first()?;
        let at = connection.local.ip();
        let is_other = |other: &&Leads<'_>| !first.facts.has_endpoints_of(other.facts, at);
        let other = rest.iter().find(is_other)?;
        Some(SkipReason::AmbiguousService {
            one: first.name.clone(),
            other: other.name.clone(),
        })
    }

    /// Endpoints of a Service talk among themselves by their own addresses.
    pub(super) fn sibling(&self, connection: &Connection) -> Option<SkipReason> {
        let peer = connection.client();
        let mut all = self.all.iter();
        let service = all.find(|s| s.facts.addresses.contains(&peer))?;
        Some(SkipReason::SiblingPeer {
            service: service.name.clone(),
        })
    }
}

/// The Services that lead to this port of a pod; and those that do so no longer, if `rule` drains it for that.
///
/// # Errors
/// None do, or not enough is known of them.
fn lead<'a>(
    pod: &'a Identity,
    rule: &'a Rule,
    snapshot: &'a Snapshot,
) -> Result<Vec<Leads<'a>>, SkipReason> {
    let Some(services) = &pod.services else {
        return Err(SkipReason::Unnamed {
            lack: MissingFact::Services,
            rule: None,
        });
    };
    let removed = removed_from(rule, Some(pod)).map(|(from, _)| &from.service);
    let mut services = services.iter().chain(removed).peekable();
    if services.peek().is_none() {
        return Err(SkipReason::NoService);
    }
    let known = |at: &'a ServiceAt| {
        let name = ServiceName {
            namespace: pod.namespace.clone(),
            name: at.name.clone(),
        };
        match snapshot.services.get(&name) {
            Some(facts) => Ok(Leads {
                name: Arc::new(name),
                at,
                facts,
            }),
            None => Err(SkipReason::ServiceUnknown {
                service: Arc::new(name),
            }),
        }
    };
    services.map(known).collect()
}

/// How many endpoints of a Service an operator drains on this node though they are ready: nobody is to be moved
/// from one of them to another.
fn drained_here(service: &Leads<'_>, snapshot: &Snapshot) -> u32 {
    let is_ready_at = |pod: &Identity| {
        let mut all = pod.services.iter().flatten();
        pod.namespace == service.name.namespace
            && all.any(|at| at.name == service.name.name && at.ready)
    };
    let requested = snapshot.endpoints.values().filter(|at| at.drain.is_some());
    let pods = requested.filter_map(|at| at.who.pod().filter(|pod| is_ready_at(pod)));
    let pods: BTreeSet<&str> = pods.map(|pod| pod.uid.as_str()).collect();
    u32::try_from(pods.len()).unwrap_or(u32::MAX)
}

/// Those that count: the one that the rule names; else all but the headless ones, if there are
/// others.
fn asked<'a>(rule: &Rule, all: &[Leads<'a>]) -> Vec<Leads<'a>> {
    let meant = rule.matches().services();
    let is_named = |name: &ServiceName| {
        let mut meant = meant.iter();
        meant.any(|meant| meant.means(&name.namespace, &name.name))
    };
    let named = all.iter().filter(|s| is_named(&s.name)).count();
    let routed = all.iter().any(|s| !s.facts.headless);
    let counts = |s: &Leads<'_>| match named {
        1 => is_named(&s.name),
        _ => !(routed && s.facts.headless),
    };
    all.iter().filter(|s| counts(s)).cloned().collect()
}

fn unready(pod: &Identity, asked: &[Leads<'_>]) -> Option<SkipReason> {
    let service = asked.iter().find(|s| !s.at.ready)?;
    Some(SkipReason::Unready {
        pod: pod.full_name().into(),
        service: service.name.clone(),
    })
}

/// Its clients ask for all addresses and choose one of them by their own rule.
fn headless(asked: &[Leads<'_>]) -> Option<SkipReason> {
    let service = asked.iter().find(|s| s.facts.headless)?;
    Some(SkipReason::Headless {
        service: service.name.clone(),
    })
}

/// Any Service that declares it suffices: the port is the same.
fn http2(rule: &Rule, port: u16, all: &[Leads<'_>]) -> Option<SkipReason> {
    let service = all.iter().find(|s| s.facts.http2.contains(&port))?;
    let may_end = rule.gives_notice() || rule.on_reconnect() == OnReconnect::LosesState;
    (!may_end).then(|| SkipReason::Http2 {
        port,
        service: service.name.clone(),
    })
}

fn affinity(asked: &[Leads<'_>]) -> Option<SkipReason> {
    let service = asked.iter().find(|s| s.facts.client_ip_affinity)?;
    Some(SkipReason::SessionAffinity {
        service: service.name.clone(),
    })
}

/// `min`: how many ready endpoints a Service must have.
fn too_few(min: impl Fn(&Leads<'_>) -> u32, asked: &[Leads<'_>]) -> Option<SkipReason> {
    let lacks = |s: &&Leads<'_>| s.facts.comparable() < min(s);
    let least = asked
        .iter()
        .filter(lacks)
        .min_by_key(|s| s.facts.comparable())?;
    let (service, ready, min) = (least.name.clone(), least.facts.comparable(), min(least));
    Some(match least.facts.local_policy() {
        Some(policy) if least.facts.ready >= min => SkipReason::LocalTraffic {
            service,
            policy,
            ready,
            min,
        },
        _ => SkipReason::MinReadyEndpoints {
            service,
            in_zone: ready < least.facts.ready,
            ready,
            min,
        },
    })
}

/// Clients are on their way to new endpoints, or from old ones, by themselves.
fn stabilizing(policy: &Policy, asked: &[Leads<'_>]) -> Option<SkipReason> {
    let stabilization_window = policy.guards().stabilization_window();
    let changed = |s: &Leads<'_>| Some((s.facts.changed?, s.name.clone()));
    let (since, service) = asked.iter().filter_map(changed).min()?;
    (since < stabilization_window).then_some(SkipReason::Stabilizing {
        service,
        since,
        stabilization_window,
    })
}
