//! A connection of a pod, for tests of decisions by name.
#![allow(dead_code, reason = "each test uses some")]

use std::{collections::BTreeMap, sync::Arc};

use rebalancer_core::{
    plan::{Ledger, SkipReason, Verdict, decide},
    policy::{Policy, parse},
    snapshot::{
        Endpoint, Identity, KernelTime, Labels, Naming, Service, ServiceAt, ServiceName, Snapshot,
        Who, sample::connection,
    },
};

pub(crate) const HOUR: u64 = 3_600_000_000_000;

/// An old connection of `who`, in a snapshot with this naming.
pub(crate) fn snapshot(who: Who, naming: Naming) -> Snapshot {
    let connection = connection(1);
    let key = connection.endpoint;
    let services = facts(&who);
    let endpoint = Endpoint {
        who,
        ..Endpoint::default()
    };
    Snapshot {
        taken: KernelTime(10 * HOUR),
        connections: vec![connection],
        endpoints: [(key, endpoint)].into(),
        naming,
        services,
        ..Snapshot::default()
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
    let services = pod.services.iter().flatten();
    services
        .map(|at| (service(&pod.namespace, &at.name), usual.clone()))
        .collect()
}

pub(crate) fn service(namespace: &str, name: &str) -> ServiceName {
    ServiceName {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

pub(crate) fn policy(guards: &str, matches: &[&str]) -> Policy {
    let mut text = format!(
        "apiVersion: rebalancer.dev/v1alpha1\nkind: RebalancePolicy\nmode: Enforce\nguards: {{{guards}}}\nrules:\n"
    );
    for (number, matches) in matches.iter().enumerate() {
        text +=
            &format!("- {{name: rule-{number}, match: {{{matches}}}, limits: {{maxAge: 1h}}}}\n");
    }
    parse("p", &text).unwrap_or_else(|errors| panic!("{errors}"))
}

pub(crate) fn labels(of: &[(&str, &str)]) -> Labels {
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    of.iter().map(own).collect()
}

pub(crate) fn web() -> Identity {
    let service = |name: &str| ServiceAt {
        name: name.to_owned(),
        ready: true,
        ..ServiceAt::default()
    };
    Identity {
        namespace: "shop".to_owned(),
        namespace_labels: Some(labels(&[("team", "shop")])),
        pod: "web-0".to_owned(),
        uid: "u".to_owned(),
        labels: labels(&[("app", "web"), ("tier", "front")]),
        services: Some(vec![service("checkout"), service("web")]),
        ready: true,
        ..Identity::default()
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
