//! What is skipped for its Services: where a move cannot help, or could leave too few.
//!
//! They are asked only where it is known which pod has accepted a connection: a plain host has no
//! Services. A connection to a port of a pod that no Service leads to is skipped too, whatever
//! matches it: its client has dialled the pod, or the node's `hostPort`, and would come back.

use crate::{
    plan::SkipReason,
    policy::{MissingFact, OnReconnect, Policy, Rule},
    snapshot::{Connection, EndpointKey, Identity, Service, ServiceAt, ServiceName, Snapshot},
};

/// A Service that leads to the connection's endpoint.
#[derive(Clone)]
struct Leads<'a> {
    name: ServiceName,
    at: &'a ServiceAt,
    facts: &'a Service,
}

/// What the Services that lead to an endpoint say of its connections that a rule is for.
#[derive(Default)]
pub(super) struct Services<'a> {
    /// All that lead there.
    all: Vec<Leads<'a>>,
    /// Those that count.
    asked: Vec<Leads<'a>>,
    /// None do, or not enough is known of them.
    unknown: Option<SkipReason>,
    unready: Option<SkipReason>,
    headless: Option<SkipReason>,
    affinity: Option<SkipReason>,
    too_few: Option<SkipReason>,
    stabilizing: Option<SkipReason>,
    http2: Option<SkipReason>,
}

impl<'a> Services<'a> {
    pub(super) fn of(
        policy: &Policy,
        rule: &Rule,
        snapshot: &'a Snapshot,
        endpoint: &EndpointKey,
    ) -> Self {
        let Some(pod) = snapshot.who(endpoint).pod() else {
            return Self::default();
        };
        let all = match lead(pod, snapshot) {
            Ok(all) => all,
            Err(unknown) => {
                return Self {
                    unknown: Some(unknown),
                    ..Self::default()
                };
            }
        };
        let asked = asked(rule, &all);
        Self {
            unready: unready(pod, &asked),
            headless: headless(&asked),
            affinity: affinity(&asked),
            too_few: too_few(policy, &asked),
            stabilizing: stabilizing(policy, &asked),
            http2: http2(rule, endpoint.port, &all),
            unknown: None,
            asked,
            all,
        }
    }

    /// Every guard that skips `connection`, in their order; each is asked when it is its turn.
    pub(super) fn guards(&self, connection: &Connection) -> impl Iterator<Item = SkipReason> {
        type Guard = fn(&Services<'_>, &Connection) -> Option<SkipReason>;
        const ALL: [Guard; 9] = [
            |at, _| at.unknown.clone(),
            |at, _| at.unready.clone(),
            |at, _| at.headless.clone(),
            |at, c| ambiguous(c, &at.asked),
            |at, _| at.affinity.clone(),
            |at, c| sibling(c, &at.all),
            |at, _| at.too_few.clone(),
            |at, _| at.stabilizing.clone(),
            |at, _| at.http2.clone(),
        ];
        ALL.into_iter()
            .filter_map(move |guard| guard(self, connection))
    }
}

/// The Services that lead to this port of a pod.
///
/// # Errors
/// None do, or not enough is known of them.
fn lead<'a>(pod: &'a Identity, snapshot: &'a Snapshot) -> Result<Vec<Leads<'a>>, SkipReason> {
    let Some(services) = &pod.services else {
        return Err(SkipReason::Unnamed {
            lack: MissingFact::Services,
            rule: None,
        });
    };
    if services.is_empty() {
        return Err(SkipReason::NoService);
    }
    let known = |at: &'a ServiceAt| {
        let name = ServiceName {
            namespace: pod.namespace.clone(),
            name: at.name.clone(),
        };
        match snapshot.services.get(&name) {
            Some(facts) => Ok(Leads { name, at, facts }),
            None => Err(SkipReason::ServiceUnknown { service: name }),
        }
    };
    services.iter().map(known).collect()
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
        pod: format!("{}/{}", pod.namespace, pod.pod),
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

/// Which of several was dialled is not known, nor, if they differ, where a client would go.
fn ambiguous(connection: &Connection, asked: &[Leads<'_>]) -> Option<SkipReason> {
    let (first, rest) = asked.split_first()?;
    let at = connection.local.ip();
    let other = rest
        .iter()
        .find(|other| !first.facts.has_endpoints_of(other.facts, at))?;
    Some(SkipReason::AmbiguousService {
        one: first.name.clone(),
        other: other.name.clone(),
    })
}

/// Endpoints of a Service talk among themselves by their own addresses.
fn sibling(connection: &Connection, all: &[Leads<'_>]) -> Option<SkipReason> {
    let peer = connection.remote.ip().to_canonical();
    let service = all.iter().find(|s| s.facts.addresses.contains(&peer))?;
    Some(SkipReason::SiblingPeer {
        service: service.name.clone(),
    })
}

/// Whichever Service says it: the port is the same.
fn http2(rule: &Rule, port: u16, all: &[Leads<'_>]) -> Option<SkipReason> {
    let service = all.iter().find(|s| s.facts.http2.contains(&port))?;
    (rule.on_reconnect() != OnReconnect::LosesState).then(|| SkipReason::Http2 {
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

fn too_few(policy: &Policy, asked: &[Leads<'_>]) -> Option<SkipReason> {
    let min = policy.guards().min_ready_endpoints().get();
    let least = asked.iter().min_by_key(|s| s.facts.comparable())?;
    let (service, ready) = (least.name.clone(), least.facts.comparable());
    if ready >= min {
        return None;
    }
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
