//! A connection of a pod, for tests of decisions by name.
#![allow(dead_code, reason = "each test uses some")]

use std::{collections::BTreeMap, sync::Arc};

use rebalancer_core::{
    plan::{Ledger, SkipReason, Verdict, decide},
    policy::{self, Policy},
    snapshot::{
        Endpoint, Identity, Labels, Naming, Service, ServiceName, Snapshot, Who,
        sample::{self, connection, service_at, snapshot as listed},
    },
};

const HOUR: u64 = 3_600_000_000_000;

/// An old connection of `who`, in a snapshot with this naming.
pub(crate) fn snapshot(who: Who, naming: Naming) -> Snapshot {
    let services = facts(&who);
    let endpoint = Endpoint {
        who,
        ..Endpoint::default()
    };
    Snapshot {
        endpoints: [(connection(1).endpoint, endpoint)].into(),
        naming,
        services,
        ..listed(10 * HOUR, vec![connection(1)])
    }
}

/// Facts about each Service that targets a pod: no guard skips it.
fn facts(who: &Who) -> BTreeMap<ServiceName, Service> {
    let usual = Service {
        ready: 3,
        ready_here: 1,
        ..Service::default()
    };
    let Some(pod) = who.pod() else {
        return BTreeMap::new();
    };
    let name = |name| ServiceName {
        namespace: pod.namespace.clone(),
        ..sample::service(name)
    };
    let services = pod.services.iter().flatten();
    let facts = services.map(|at| (name(&at.name), usual.clone()));
    facts.collect()
}

pub(crate) fn policy(guards: &str, matches: &[&str]) -> Policy {
    let rule = |(number, matches)| {
        format!("- {{name: rule-{number}, match: {{{matches}}}, limits: {{maxAge: 1h}}}}\n")
    };
    let rules: String = matches.iter().enumerate().map(rule).collect();
    policy::sample::policy(&format!(
        "mode: Enforce\nguards: {{{guards}}}\nrules:\n{rules}"
    ))
}

pub(crate) fn labels(of: &[(&str, &str)]) -> Labels {
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    of.iter().map(own).collect()
}

pub(crate) fn web() -> Identity {
    Identity {
        namespace: "shop".to_owned(),
        namespace_labels: Some(labels(&[("team", "shop")])),
        pod: "web-0".to_owned(),
        uid: "u".to_owned(),
        labels: labels(&[("app", "web"), ("tier", "front")]),
        services: Some(vec![service_at("checkout"), service_at("web")]),
        ready: true,
        ..Identity::default()
    }
}

/// The same behind these Services.
pub(crate) fn behind(services: &[&str]) -> Identity {
    let services = services.iter().map(|name| service_at(name));
    Identity {
        services: Some(services.collect()),
        ..web()
    }
}

pub(crate) fn named(identity: Identity) -> Who {
    Who::Pod(Arc::new(identity))
}

/// `moved by RULE`, or the word of the reason to skip it.
pub(crate) fn verdict(policy: &Policy, snapshot: &Snapshot) -> String {
    let plan = decide(policy, snapshot, &Ledger::default(), snapshot.taken);
    match plan.decisions().next().unwrap().verdict {
        Verdict::Move(chosen) => format!("moved by {}", chosen.rule()),
        Verdict::Skipped(skipped) => skipped.as_str().to_owned(),
    }
}

pub(crate) fn why(policy: &Policy, snapshot: &Snapshot) -> SkipReason {
    let plan = decide(policy, snapshot, &Ledger::default(), snapshot.taken);
    match plan.decisions().next().unwrap().verdict {
        Verdict::Skipped(skipped) => skipped.clone(),
        Verdict::Move(_) => panic!("moved"),
    }
}
