//! What is known of the cluster, and how sure of it one can be. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{
    objects::{Namespace, Pod},
    services::{Gathered, Spec},
    slices::{EndpointId, Slice},
    store::{Change, Known, Pace},
};
use crate::snapshot::{Identity, Naming, Service, ServiceAt, ServiceName};

/// What is known of a cluster.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    /// How it is followed.
    pub(super) pace: Pace,
    /// Pods of this node, by uid.
    pub(super) pods: Known<Pod>,
    /// Every namespace.
    pub(super) namespaces: Known<Namespace>,
    /// Every Service, as `namespace/name`.
    pub(super) services: Known<Spec>,
    /// Slices of all nodes; changed by [`Cluster::change_slices`] alone.
    pub(super) slices: Known<Slice>,
    /// The same, by Service.
    gathered: Gathered,
}

impl Cluster {
    /// Whether everything has been listed once.
    pub(super) fn is_listed(&self) -> bool {
        self.pods.is_listed()
            && self.namespaces.is_listed()
            && self.services.is_listed()
            && self.slices.is_listed()
    }

    /// Takes in a change of slices that was heard at `at`.
    pub(super) fn change_slices(&mut self, change: Change<Slice>, at: Instant) {
        let first = !self.slices.is_listed();
        let before = |key: &String| Some(self.slices.now.as_ref()?.get(key)?.service.clone());
        let touched: Option<BTreeSet<ServiceName>> = match &change {
            Change::Begin | Change::Listed(..) => Some(BTreeSet::new()),
            Change::Done => None,
            Change::Set(key, after) => {
                let after = after.as_ref().map(|slice| slice.service.clone());
                Some(before(key).into_iter().chain(after).collect())
            }
            Change::Removed(key) => Some(before(key).into_iter().collect()),
        };
        self.slices.change(change, at);
        let at = (!first).then_some(at);
        if let Some(touched) = touched {
            for name in touched {
                let in_namespace = in_namespace(self.slices.now.as_ref(), &name.namespace);
                let of_it: Vec<&Slice> = in_namespace.filter(|s| s.service == name).collect();
                self.gathered.set(name, &of_it, at);
            }
            return;
        }
        let mut slices: BTreeMap<&ServiceName, Vec<&Slice>> = BTreeMap::new();
        for slice in self.slices.now.iter().flat_map(BTreeMap::values) {
            slices.entry(&slice.service).or_default().push(slice);
        }
        let gone: Vec<ServiceName> = self.gathered.names().cloned().collect();
        for name in gone.into_iter().filter(|name| !slices.contains_key(name)) {
            self.gathered.set(name, &[], at);
        }
        for (name, slices) in slices {
            self.gathered.set(name.clone(), &slices, at);
        }
    }

    /// Facts of the Services that lead to this node.
    pub(super) fn facts(&self, now: Instant) -> BTreeMap<ServiceName, Service> {
        let specs = self.services.now.as_ref();
        specs.map_or_else(BTreeMap::new, |specs| self.gathered.facts(specs, now))
    }

    /// How long ago the API server was last heard, of the kind of which that is longest; `None`
    /// while one was never heard.
    pub(super) fn age(&self, now: Instant) -> Option<Duration> {
        let heard = [
            self.pods.heard,
            self.namespaces.heard,
            self.services.heard,
            self.slices.heard,
        ];
        let all: Option<Vec<Instant>> = heard.into_iter().collect();
        let oldest = all?.into_iter().min()?;
        Some(now.saturating_duration_since(oldest))
    }

    /// How sure of all of it one can be.
    pub(super) fn naming(&self, now: Instant) -> Naming {
        let patience = self.pace.patience;
        let outdated = [
            self.pods.outdated(now, patience),
            self.namespaces.outdated(now, patience),
            self.services.outdated(now, patience),
            self.slices.outdated(now, patience),
        ];
        // `None`, never known, is before any time.
        match outdated.into_iter().flatten().min() {
            None => Naming::Fresh,
            Some(heard) => Naming::Stale(heard.map(|at| now.saturating_duration_since(at))),
        }
    }

    /// The pod that kubelet calls so, with its uid in the API.
    pub(super) fn pod(&self, uid: &str) -> Option<(&str, &Pod)> {
        let pods = self.pods.now.as_ref()?;
        if let Some((uid, pod)) = pods.get_key_value(uid) {
            return Some((uid, pod));
        }
        let mut mirrors = pods
            .iter()
            .filter(|(_, pod)| pod.mirror_of.as_deref() == Some(uid));
        let (of_api, pod) = mirrors.next()?;
        // Two cannot both be it, and which is forged is not known.
        mirrors.next().is_none().then_some((of_api, pod))
    }

    /// The pod that kubelet calls so, as it is seen at one of its ports.
    pub(super) fn identify(&self, uid: &str, port: u16) -> Option<Identity> {
        let (uid, pod) = self.pod(uid)?;
        let namespaces = self.namespaces.now.as_ref();
        let namespace = namespaces.and_then(|all| all.get(&pod.namespace));
        Some(Identity {
            namespace: pod.namespace.clone(),
            namespace_labels: namespace.map(|namespace| namespace.labels.clone()),
            namespace_opted_out: namespace.is_some_and(|namespace| namespace.opted_out),
            pod: pod.name.clone(),
            uid: uid.to_owned(),
            labels: pod.labels.clone(),
            services: self.services(uid, pod, port),
            ready: pod.ready,
            terminating: pod.terminating,
            opted_out: pod.opted_out,
        })
    }

    fn services(&self, uid: &str, pod: &Pod, port: u16) -> Option<Vec<ServiceAt>> {
        self.slices.now.as_ref()?;
        let specs = self.services.now.as_ref()?;
        let id = EndpointId::of(uid);
        let mut services: BTreeMap<&str, ServiceAt> = BTreeMap::new();
        let slices = in_namespace(self.slices.now.as_ref(), &pod.namespace);
        for slice in slices.filter(|slice| slice.has_port(port)) {
            let Some(endpoint) = slice.endpoint(&id) else {
                continue;
            };
            let name = &slice.service.name;
            let at = services.entry(name).or_insert_with(|| ServiceAt {
                name: name.clone(),
                opted_out: specs
                    .get(&slice.service.to_string())
                    .is_some_and(|spec| spec.opted_out),
                ..ServiceAt::default()
            });
            // One for each family of addresses.
            at.ready |= endpoint.ready;
            at.terminating |= endpoint.terminating;
        }
        Some(services.into_values().collect())
    }

    /// How many slices of a Service are known.
    #[cfg(test)]
    pub(super) fn slices_of(&self, namespace: &str, service: &str) -> usize {
        let slices = in_namespace(self.slices.now.as_ref(), namespace);
        slices.filter(|slice| slice.service.name == service).count()
    }

    /// Pods of this node, namespaces, and Services that lead to this node, for the log.
    pub(super) fn counts(&self) -> [usize; 3] {
        let pods = self.pods.now.as_ref().map_or(0, BTreeMap::len);
        let namespaces = self.namespaces.now.as_ref().map_or(0, BTreeMap::len);
        [pods, namespaces, self.gathered.lead_here().count()]
    }
}

/// Slices by `namespace/name`: those of this namespace.
fn in_namespace<'a>(
    slices: Option<&'a BTreeMap<String, Slice>>,
    namespace: &str,
) -> impl Iterator<Item = &'a Slice> + use<'a> {
    let prefix = format!("{namespace}/");
    let from = slices.map(|slices| slices.range(prefix.clone()..));
    from.into_iter()
        .flatten()
        .take_while(move |(key, _)| key.starts_with(&prefix))
        .map(|(_, slice)| slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(stabilization_window: Duration, at: Instant) -> Cluster {
        let mut cluster = Cluster {
            pace: Pace::within(stabilization_window),
            ..Cluster::default()
        };
        for change in [Change::Begin, Change::Done] {
            cluster.change_slices(change, at);
        }
        cluster.pods.change(Change::Begin, at);
        cluster.pods.change(Change::Done, at);
        cluster.namespaces.change(Change::Done, at);
        cluster.services.change(Change::Done, at);
        cluster
    }

    #[test]
    fn what_was_not_heard_of_within_settle_is_outdated() {
        let start = Instant::now();
        for (stabilization_window, fresh_for) in [(60, 60), (30, 30), (600, 60), (0, 20)] {
            let cluster = listed(Duration::from_secs(stabilization_window), start);
            let [just, later] = [0, 1].map(|more| Duration::from_secs(fresh_for + more));
            assert_eq!(
                cluster.naming(start + just),
                Naming::Fresh,
                "{stabilization_window}"
            );
            let stale = Naming::Stale(Some(later));
            assert_eq!(
                cluster.naming(start + later),
                stale,
                "{stabilization_window}"
            );
        }
    }
}
