//! Which Services the pods of this node belonged to, and no longer do. Pure.
//!
//! The API has only what is: a pod that a Service does not select any more is just not in its slices.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::snapshot::ServiceName;

/// No rule drains for longer.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// The ports of a pod to which a Service leads; `None` is any.
pub(super) type Ports = BTreeSet<Option<u16>>;

/// The Services of each pod, by its uid.
pub(super) type Services = BTreeMap<String, BTreeMap<ServiceName, Ports>>;

/// The Services of the pods of this node, and those that they were removed from lately.
#[derive(Debug, Default)]
pub(super) struct Membership {
    services: Services,
    removed: BTreeMap<String, BTreeMap<ServiceName, Removed>>,
}

#[derive(Debug)]
struct Removed {
    ports: Ports,
    at: Instant,
}

impl Membership {
    /// Replaces the Services of all pods, as they were learnt `at` that time. Whether a pod was removed from
    /// one of them.
    pub(super) fn update(&mut self, services: Services, at: Instant) -> bool {
        let before = std::mem::replace(&mut self.services, services);
        let mut is_new = false;
        for (uid, services) in before {
            let Some(now) = self.services.get(&uid) else {
                continue;
            };
            for (name, ports) in services {
                if !now.contains_key(&name) {
                    is_new = true;
                    let removed = self.removed.entry(uid.clone()).or_default();
                    removed.insert(name, Removed { ports, at });
                }
            }
        }
        self.removed.retain(|uid, removed| {
            let now = self.services.get(uid);
            let is_in = |name: &ServiceName| now.is_some_and(|now| now.contains_key(name));
            removed.retain(|name, removed| {
                let since = at.saturating_duration_since(removed.at);
                !is_in(name) && since < REMEMBERED
            });
            now.is_some() && !removed.is_empty()
        });
        is_new
    }

    /// The Services that this port of a pod was removed from, and how long ago.
    pub(super) fn removed_from(
        &self,
        uid: &str,
        port: u16,
        now: Instant,
    ) -> impl Iterator<Item = (&ServiceName, Duration)> {
        let removed = self.removed.get(uid).into_iter().flatten();
        removed.filter_map(move |(name, removed)| {
            let leads = removed.ports.contains(&Some(port)) || removed.ports.contains(&None);
            let since = now.saturating_duration_since(removed.at);
            (leads && since < REMEMBERED).then_some((name, since))
        })
    }

    /// Every Service that a pod was removed from.
    pub(super) fn removed(&self) -> BTreeSet<&ServiceName> {
        self.removed.values().flat_map(BTreeMap::keys).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(of: &[(&str, &[&str])]) -> Services {
        let ports = || [Some(80)].into();
        let name = |name: &&str| ServiceName {
            namespace: "shop".to_owned(),
            name: (*name).to_owned(),
        };
        of.iter()
            .map(|(uid, names)| {
                let services = names.iter().map(|of| (name(of), ports()));
                ((*uid).to_owned(), services.collect())
            })
            .collect()
    }

    fn seen(membership: &Membership, uid: &str, port: u16, at: Instant) -> Vec<(String, u64)> {
        let removed = membership.removed_from(uid, port, at);
        removed
            .map(|(name, since)| (name.name.clone(), since.as_secs()))
            .collect()
    }

    #[test]
    fn a_living_pod_that_is_no_endpoint_any_more_was_removed() {
        let start = Instant::now();
        let second = |n| start + Duration::from_secs(n);
        let mut membership = Membership::default();
        let both: &[(&str, &[&str])] = &[("a", &["blue", "all"]), ("b", &["blue"])];
        assert!(!membership.update(services(both), start), "the first list");
        assert!(!membership.update(services(both), second(1)));
        // One is removed from its Service, the other is gone.
        assert!(membership.update(services(&[("a", &["all"])]), second(2)));
        let found = |membership: &Membership, at| seen(membership, "a", 80, at);
        assert_eq!(found(&membership, second(5)), [("blue".to_owned(), 3)]);
        assert_eq!(seen(&membership, "a", 81, second(5)), []);
        assert_eq!(seen(&membership, "b", 80, second(5)), []);
        assert_eq!(membership.removed().len(), 1);
        // What stays removed is not removed again, and is forgotten some time.
        assert!(!membership.update(services(&[("a", &["all"])]), second(6)));
        assert_eq!(
            found(&membership, second(3601)),
            [("blue".to_owned(), 3599)]
        );
        assert_eq!(found(&membership, second(3602)), []);
        // It is back.
        assert!(!membership.update(services(both), second(7)));
        assert_eq!(found(&membership, second(8)), []);
        assert!(membership.removed().is_empty());
    }
}
