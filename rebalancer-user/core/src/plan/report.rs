//! What this node reports of its Services to the coordinator.

use super::{
    Charge, Ledger, cluster,
    groups::{GroupLoad, Groups},
    matches::Matches,
};
use crate::{
    policy::Policy,
    snapshot::{Naming, Snapshot},
    views::ServiceReport,
};

/// What this node reports: each Service that a rule balances, that has ready endpoints here and others
/// elsewhere. Nothing is reported of what is not certain: without every endpoint there is no view.
pub fn report(policy: &Policy, snapshot: &Snapshot, ledger: &Ledger) -> Vec<ServiceReport> {
    let balances = policy.rules().iter().any(|rule| rule.balance().is_some());
    if !balances || snapshot.naming != Naming::Fresh {
        return Vec::new();
    }
    let matches = Matches::of(policy, snapshot);
    let groups = Groups::with_empty(policy, &matches, snapshot, ledger);
    let reports = groups
        .iter()
        .filter_map(|group| of_group(group, snapshot, ledger));
    let mut reports: Vec<ServiceReport> = reports.collect();
    reports.sort_by(|a, b| a.key.cmp(&b.key));
    reports
}

fn of_group(group: &GroupLoad, snapshot: &Snapshot, ledger: &Ledger) -> Option<ServiceReport> {
    let name = (&group.rule, &*group.name);
    let (key, service) = cluster::key(name, group.balance?, snapshot)?;
    let ready = service.ready_in_zone.unwrap_or(service.ready);
    let here = || group.endpoints.values().filter(|at| at.ready);
    let mut loads: Vec<u64> = here()
        .map(|at| at.load.saturating_add(at.in_flight))
        .collect();
    if loads.is_empty() || u32::try_from(loads.len()) == Ok(ready) {
        return None;
    }
    loads.sort_unstable_by(|a, b| b.cmp(a));
    let is_of_it = |charge: &&Charge| charge.rule == group.rule && charge.group == group.name;
    Some(ServiceReport {
        key,
        generation: service.generation?,
        ready,
        loads,
        sums: group.here.into(),
        connections: group.connections,
        moving: ledger.unsettled().filter(is_of_it).count() as u64,
    })
}
