//! What is skipped for whose it is, or because that is not known well enough.

use super::{
    DrainCause, SkipReason,
    drain::{Draining, no_time, removed_from},
};
use crate::{
    policy::{MissingFact, Policy, Rule},
    snapshot::{EndpointKey, Naming, Snapshot, Who},
};

/// Every guard that skips a connection at `endpoint`, which `rule` matches; and how that is drained.
pub(super) fn guards<'a>(
    policy: &'a Policy,
    rule: &'a Rule,
    snapshot: &'a Snapshot,
    (endpoint, draining): (&EndpointKey, Option<Draining>),
) -> impl Iterator<Item = SkipReason> + 'a {
    let who = snapshot.who(endpoint);
    let terminating = || no_time(policy, rule, snapshot, endpoint).or_else(|| terminating(who));
    let guards = [
        opted_out(rule, who),
        draining.map_or_else(terminating, |_| None),
        excluded(policy, who),
        stale(rule, who, snapshot.naming, draining),
        of_unknown_namespace(who),
    ];
    guards.into_iter().flatten()
}

fn opted_out(rule: &Rule, who: &Who) -> Option<SkipReason> {
    let pod = who.pod()?;
    let out = |kind, name: String| {
        let name = name.into();
        Some(SkipReason::OptedOut { kind, name })
    };
    let inside = |name: &str| format!("{}/{name}", pod.namespace);
    if pod.opted_out {
        return out("pod", inside(&pod.pod));
    }
    let removed = removed_from(rule, Some(pod)).map(|(from, _)| &from.service);
    let mut services = pod.services.iter().flatten().chain(removed);
    if let Some(service) = services.find(|service| service.opted_out) {
        return out("Service", inside(&service.name));
    }
    if pod.namespace_opted_out {
        return out("namespace", pod.namespace.clone());
    }
    None
}

/// In a namespace that the API server has not listed yet, so that its opt-out is unknown.
fn of_unknown_namespace(who: &Who) -> Option<SkipReason> {
    who.pod()?
        .namespace_labels
        .is_none()
        .then_some(SkipReason::Unnamed {
            lack: MissingFact::NamespaceLabels,
            rule: None,
        })
}

/// It ends its connections itself, as well as it can.
fn terminating(who: &Who) -> Option<SkipReason> {
    let pod = who.pod()?;
    let mut services = pod.services.iter().flatten();
    let ends = pod.terminating || services.any(|service| service.terminating);
    ends.then(|| SkipReason::Terminating {
        pod: pod.full_name().into(),
    })
}

fn excluded(policy: &Policy, who: &Who) -> Option<SkipReason> {
    let excluded = policy.guards().exclude_namespaces()?;
    match who {
        Who::NoPod => None,
        Who::Unknown if excluded.is_empty() => None,
        Who::Unknown => Some(SkipReason::Unnamed {
            lack: MissingFact::Pod,
            rule: None,
        }),
        Who::Pod(pod) => excluded
            .contains(&pod.namespace)
            .then(|| SkipReason::ExcludedNamespace {
                namespace: pod.namespace.as_str().into(),
            }),
    }
}

/// What a rule asks of names may have changed meanwhile, and so may a pod's Services. But no deletion is undone: what
/// does not leave a pod in time breaks off.
fn stale(rule: &Rule, who: &Who, naming: Naming, draining: Option<Draining>) -> Option<SkipReason> {
    let needs_names = rule.matches().names_pods() || who.pod().is_some();
    let stops = draining.is_some_and(|draining| draining.cause() == DrainCause::Terminating);
    match naming {
        Naming::Stale { silent } if needs_names && !(stops && silent.is_some()) => {
            Some(SkipReason::StaleFacts { silent })
        }
        _ => None,
    }
}
