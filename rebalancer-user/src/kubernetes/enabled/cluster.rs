//! What is known of the cluster, and how sure of it one can be. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;

use super::{
    membership::{Membership, Services},
    objects::{Namespace, Pod},
    services::{ByService, Spec},
    slices::{EndpointId, Slice},
    store::{Change, Pace, Store},
};
use crate::snapshot::{Ending, Identity, Naming, RemovedFrom, Service, ServiceAt, ServiceName};

/// What is known of a cluster.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    /// How it is followed.
    pub(super) pace: Pace,
    /// Pods of this node, by uid; changed by [`Cluster::change_pods`] alone.
    pub(super) pods: Store<Pod>,
    /// Those of them that are being deleted, and since when.
    deleted: BTreeMap<String, Instant>,
    /// Every namespace.
    pub(super) namespaces: Store<Namespace>,
    /// Every Service, as `namespace/name`.
    pub(super) services: Store<Spec>,
    /// Slices of all nodes; changed by [`Cluster::change_slices`] alone.
    pub(super) slices: Store<Slice>,
    /// The same, by Service.
    by_service: ByService,
    /// Of the endpoints that may be on this node: the keys of their slices.
    by_endpoint: BTreeMap<EndpointId, BTreeSet<Arc<str>>>,
    /// The Services of this node's pods, and those that they were removed from.
    membership: Membership,
    /// The same of those at which they are ready.
    readiness: Membership,
}

impl Cluster {
    /// Whether everything has been listed once.
    pub(super) fn is_listed(&self) -> bool {
        self.pods.is_listed()
            && self.namespaces.is_listed()
            && self.services.is_listed()
            && self.slices.is_listed()
    }

    /// Applies a change of pods that was received at `at`. Whether connections may have to leave one of them: it
    /// is being deleted now, or no Service sends new connections to it any more.
    ///
    /// Of the first list it is not known when that began, except by the API server's clock, of which `wall` is
    /// this node's.
    pub(super) fn change_pods(
        &mut self,
        change: Change<Pod>,
        at: Instant,
        wall: Timestamp,
    ) -> bool {
        let first = !self.pods.is_listed();
        self.pods.change(change, at);
        let pods = self.pods.now.iter().flatten();
        let deleted = pods.filter_map(|(uid, pod)| Some((uid, pod.deletion?)));
        let mut is_new = false;
        let deleted = deleted.map(|(uid, deletion)| {
            let since = self.deleted.get(uid).copied().unwrap_or_else(|| {
                is_new = true;
                let before = wall.duration_since(deletion.asked);
                let before = Duration::try_from(before).unwrap_or_default();
                at.checked_sub(before).filter(|_| first).unwrap_or(at)
            });
            (uid.clone(), since)
        });
        self.deleted = deleted.collect();
        self.learn_membership(at) || is_new
    }

    /// Applies a change of slices that was received at `at`. Whether a Service does not send new connections to a
    /// pod of this node any more.
    pub(super) fn change_slices(&mut self, change: Change<Slice>, at: Instant) -> bool {
        let is_part = matches!(&change, Change::Begin | Change::Listed(..));
        self.replace_slices(change, at);
        !is_part && self.learn_membership(at)
    }

    fn replace_slices(&mut self, change: Change<Slice>, at: Instant) {
        let first = !self.slices.is_listed();
        match &change {
            Change::Set(key, _) | Change::Removed(key) => self.index(key, false),
            Change::Begin | Change::Listed(..) | Change::Done => {}
        }
        let set = match &change {
            Change::Set(key, Some(_)) => Some(key.clone()),
            _ => None,
        };
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
        if let Some(key) = set {
            self.index(&key, true);
        }
        let at = (!first).then_some(at);
        if let Some(touched) = touched {
            for name in touched {
                let in_namespace = in_namespace(self.slices.now.as_ref(), &name.namespace);
                let of_it: Vec<&Slice> = in_namespace.filter(|s| s.service == name).collect();
                self.by_service.set(name, &of_it, at);
            }
            return;
        }
        self.index_all();
        let mut slices: BTreeMap<&ServiceName, Vec<&Slice>> = BTreeMap::new();
        for slice in self.slices.now.iter().flat_map(BTreeMap::values) {
            slices.entry(&slice.service).or_default().push(slice);
        }
        let gone: Vec<ServiceName> = self.by_service.names().cloned().collect();
        for name in gone.into_iter().filter(|name| !slices.contains_key(name)) {
            self.by_service.set(name, &[], at);
        }
        for (name, slices) in slices {
            self.by_service.set(name.clone(), &slices, at);
        }
    }

    /// Which Services have the pods of this node now. Whether one of these is not ready at a Service any more, or
    /// was removed from it.
    fn learn_membership(&mut self, at: Instant) -> bool {
        let [mut all, mut ready] = [Services::new(), Services::new()];
        let slices = self.slices.now.as_ref();
        for (uid, pod) in self.pods.now.iter().flatten() {
            let id = EndpointId::of(uid);
            let [all, ready] = [&mut all, &mut ready].map(|of| of.entry(uid.clone()).or_default());
            for slice in slices
                .into_iter()
                .flat_map(|all| self.slices_with(uid, pod, all))
            {
                let is_ready = slice.endpoint(&id).is_some_and(|endpoint| endpoint.ready);
                for of in [Some(&mut *all), is_ready.then_some(&mut *ready)]
                    .into_iter()
                    .flatten()
                {
                    let ports = of.entry(slice.service.clone()).or_default();
                    ports.extend(&slice.ports);
                }
            }
        }
        let is_removed = self.membership.update(all, at);
        self.readiness.update(ready, at) || is_removed
    }

    /// The slices that have this pod. One of another namespace leads nobody to it.
    fn slices_with<'a>(
        &self,
        uid: &str,
        pod: &'a Pod,
        slices: &'a BTreeMap<String, Slice>,
    ) -> impl Iterator<Item = &'a Slice> {
        let keys = self.by_endpoint.get(&EndpointId::of(uid));
        let keys = keys.into_iter().flatten();
        let all = keys.filter_map(|key| slices.get(&**key));
        all.filter(|slice| slice.service.namespace == pod.namespace)
    }

    /// Adds the slice of this key to the index, or takes it out.
    fn index(&mut self, key: &str, is_there: bool) {
        let slices = self.slices.now.as_ref();
        let Some(slice) = slices.and_then(|slices| slices.get(key)) else {
            return;
        };
        for id in slice.may_be_here() {
            if is_there {
                let keys = self.by_endpoint.entry(id.clone()).or_default();
                keys.insert(key.into());
            } else if let Some(keys) = self.by_endpoint.get_mut(id) {
                keys.remove(key);
                if keys.is_empty() {
                    self.by_endpoint.remove(id);
                }
            }
        }
    }

    fn index_all(&mut self) {
        self.by_endpoint.clear();
        for (key, slice) in self.slices.now.iter().flatten() {
            let key: Arc<str> = key.as_str().into();
            for id in slice.may_be_here() {
                let keys = self.by_endpoint.entry(id.clone()).or_default();
                keys.insert(Arc::clone(&key));
            }
        }
    }

    /// Facts of the Services that lead to this node, and of those that have lately led to one of its pods.
    pub(super) fn facts(&self, now: Instant) -> BTreeMap<ServiceName, Service> {
        let specs = self.services.now.as_ref();
        let removed = self.membership.removed();
        specs.map_or_else(BTreeMap::new, |specs| {
            self.by_service.facts(specs, &removed, now)
        })
    }

    /// How long ago the API server last answered, about the kind of which that is longest; `None` while
    /// it has not answered about one of them.
    pub(super) fn age(&self, now: Instant) -> Option<Duration> {
        let answered = [
            self.pods.answered,
            self.namespaces.answered,
            self.services.answered,
            self.slices.answered,
        ];
        let all: Option<Vec<Instant>> = answered.into_iter().collect();
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
            Some(answered) => Naming::Stale {
                silent: answered.map(|at| now.saturating_duration_since(at)),
            },
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
    pub(super) fn identify(&self, uid: &str, port: u16, now: Instant) -> Option<Identity> {
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
            services: self.services(uid, pod, port, now),
            ready: pod.ready,
            terminating: pod.deletion.is_some(),
            ending: pod.deletion.and_then(|deletion| {
                Some(Ending {
                    since: now.saturating_duration_since(*self.deleted.get(uid)?),
                    stops_after: deletion.stops_after,
                })
            }),
            removed_from: self.removed_from(uid, pod, port, now),
            opted_out: pod.opted_out,
        })
    }

    /// The Services that a living pod was removed from.
    fn removed_from(&self, uid: &str, pod: &Pod, port: u16, now: Instant) -> Vec<RemovedFrom> {
        if pod.deletion.is_some() {
            return Vec::new();
        }
        let removed = self.membership.removed_from(uid, port, now);
        removed
            .map(|(name, since)| RemovedFrom {
                service: ServiceAt {
                    name: name.name.clone(),
                    opted_out: self.opts_out(name),
                    ..ServiceAt::default()
                },
                since,
            })
            .collect()
    }

    fn opts_out(&self, service: &ServiceName) -> bool {
        let specs = self.services.now.as_ref();
        let spec = specs.and_then(|specs| specs.get(&service.to_string()));
        spec.is_some_and(|spec| spec.opted_out)
    }

    /// Why a namespace pauses the agents in it, if it does.
    pub(super) fn paused(&self, namespace: &str) -> Option<&str> {
        let namespace = self.namespaces.now.as_ref()?.get(namespace)?;
        namespace.paused.as_deref()
    }

    fn services(&self, uid: &str, pod: &Pod, port: u16, now: Instant) -> Option<Vec<ServiceAt>> {
        let slices = self.slices.now.as_ref()?;
        self.services.now.as_ref()?;
        let id = EndpointId::of(uid);
        let mut services: BTreeMap<&str, ServiceAt> = BTreeMap::new();
        let slices = self.slices_with(uid, pod, slices);
        for slice in slices.filter(|slice| slice.has_port(port)) {
            let Some(endpoint) = slice.endpoint(&id) else {
                continue;
            };
            let name = &slice.service.name;
            let at = services.entry(name).or_insert_with(|| ServiceAt {
                name: name.clone(),
                opted_out: self.opts_out(&slice.service),
                ..ServiceAt::default()
            });
            // One for each family of addresses.
            at.ready |= endpoint.ready;
            at.terminating |= endpoint.terminating;
        }
        for (name, since) in self.readiness.removed_from(uid, port, now) {
            let at = services.get_mut(name.name.as_str());
            if let Some(at) = at.filter(|at| !at.ready) {
                at.unready = Some(since);
            }
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
        [pods, namespaces, self.by_service.lead_here().count()]
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
    use proptest::prelude::*;

    use super::{
        super::{objects::Deletion, sample},
        *,
    };

    fn listed(stabilization_window: Duration, at: Instant) -> Cluster {
        let mut cluster = Cluster {
            pace: Pace::within(stabilization_window),
            ..Cluster::default()
        };
        for change in [Change::Begin, Change::Done] {
            cluster.change_slices(change, at);
        }
        cluster.change_pods(Change::Begin, at, Timestamp::UNIX_EPOCH);
        cluster.change_pods(Change::Done, at, Timestamp::UNIX_EPOCH);
        cluster.namespaces.change(Change::Done, at);
        cluster.services.change(Change::Done, at);
        cluster
    }

    #[test]
    fn what_was_not_answered_within_the_stabilization_window_is_outdated() {
        let start = Instant::now();
        for (stabilization_window, fresh_for) in [(60, 60), (30, 30), (600, 60), (0, 20)] {
            let cluster = listed(Duration::from_secs(stabilization_window), start);
            let [just, later] = [0, 1].map(|more| Duration::from_secs(fresh_for + more));
            let silent = Some(later);
            let found = [just, later].map(|after| cluster.naming(start + after));
            let expected = [Naming::Fresh, Naming::Stale { silent }];
            assert_eq!(found, expected, "{stabilization_window}");
        }
    }

    #[test]
    fn a_deletion_begins_when_it_is_seen_and_in_the_first_list_when_it_was_asked_for() {
        let at = Instant::now();
        let wall = Timestamp::UNIX_EPOCH + Duration::from_secs(100);
        let pod = |ago: u64| Pod {
            deletion: Some(Deletion {
                asked: wall - Duration::from_secs(ago),
                stops_after: Duration::from_secs(15),
            }),
            ..Pod::default()
        };
        let mut cluster = Cluster::default();
        let mut change = |change, at| cluster.change_pods(change, at, wall);
        change(Change::Begin, at);
        change(Change::Listed("alive".to_owned(), Some(Pod::default())), at);
        change(Change::Listed("old".to_owned(), Some(pod(7))), at);
        assert!(change(Change::Done, at));
        let later = at + Duration::from_secs(3);
        // Of what is watched the other clock does not matter.
        let mut set = || change(Change::Set("alive".to_owned(), Some(pod(50))), later);
        assert_eq!([set(), set()], [true, false]);
        let since = |cluster: &Cluster, uid: &str| {
            let identity = cluster.identify(uid, 80, at + Duration::from_secs(5));
            identity.unwrap().ending.unwrap().since.as_secs()
        };
        assert_eq!([since(&cluster, "old"), since(&cluster, "alive")], [12, 2]);
        cluster.change_pods(Change::Removed("old".to_owned()), later, wall);
        assert_eq!(cluster.deleted.len(), 1);
    }

    #[test]
    fn a_pod_that_its_service_does_not_select_any_more_knows_which_one_and_since_when() {
        let at = Instant::now();
        let second = |n| at + Duration::from_secs(n);
        let mut cluster = listed(Duration::ZERO, at);
        let web = Pod {
            namespace: "shop".to_owned(),
            ..Pod::default()
        };
        let set = Change::Set("a".to_owned(), Some(web.clone()));
        assert!(!cluster.change_pods(set, at, Timestamp::UNIX_EPOCH));
        let spec = Change::Set("shop/blue".to_owned(), Some(Spec::default()));
        cluster.services.change(spec, at);
        let mut set = |uids: &[&str], at| {
            let uids = uids.iter().map(|uid| (*uid).to_owned());
            let slice = slice("blue", uids);
            let change = Change::Set("shop/blue-1".to_owned(), Some(slice));
            let is_new = cluster.change_slices(change, at);
            let identity = cluster.identify("a", 80, second(10)).unwrap();
            let removed = identity.removed_from.iter();
            let removed: Vec<(String, u64)> = removed
                .map(|from| (from.service.name.clone(), from.since.as_secs()))
                .collect();
            (is_new, removed, cluster.facts(second(10)).len())
        };
        assert_eq!(set(&["a", "b"], at), (false, vec![], 1));
        let removed = vec![("blue".to_owned(), 7)];
        assert_eq!(set(&["b"], second(3)), (true, removed.clone(), 1));
        assert_eq!(set(&["b", "c"], second(4)), (false, removed, 1));
        // A Service at which it is not ready is another matter.
        let mut unready = sample::endpoint("a", "10.0.0.1", "n1");
        unready["conditions"]["ready"] = false.into();
        let slice = sample::kept(sample::slice("x", "green", &[unready]));
        let change = Change::Set("shop/green-1".to_owned(), Some(slice));
        assert!(!cluster.change_slices(change, second(4)), "it never was");
        let at_green = |cluster: &Cluster| {
            cluster
                .identify("a", 80, second(10))
                .unwrap()
                .services
                .unwrap()
        };
        assert_eq!(at_green(&cluster)[0].unready, None);
        let endpoints = [sample::endpoint("a", "10.0.0.1", "n1")];
        let ready = sample::kept(sample::slice("x", "green", &endpoints));
        let unready = cluster.slices.now.as_ref().unwrap()["shop/green-1"].clone();
        let mut set = |slice: Slice, at| {
            let change = Change::Set("shop/green-1".to_owned(), Some(slice));
            (
                cluster.change_slices(change, at),
                at_green(&cluster)[0].unready,
            )
        };
        assert_eq!(set(ready, second(5)), (false, None));
        assert_eq!(
            set(unready, second(6)),
            (true, Some(Duration::from_secs(4)))
        );
        // Another port is not meant, and a pod that is being deleted has its own time.
        assert_eq!(
            cluster.identify("a", 81, second(10)).unwrap().removed_from,
            []
        );
        let deleted = Pod {
            deletion: Some(Deletion {
                asked: Timestamp::UNIX_EPOCH,
                stops_after: Duration::from_secs(15),
            }),
            ..web
        };
        let set = Change::Set("a".to_owned(), Some(deleted));
        assert!(cluster.change_pods(set, second(5), Timestamp::UNIX_EPOCH));
        assert_eq!(
            cluster.identify("a", 80, second(10)).unwrap().removed_from,
            []
        );
    }

    fn slice(service: &str, uids: impl IntoIterator<Item = String>) -> Slice {
        let endpoint = |uid: String| sample::endpoint(&uid, "10.0.0.1", "n1");
        let endpoints: Vec<_> = uids.into_iter().map(endpoint).collect();
        sample::kept(sample::slice("x", service, &endpoints))
    }

    fn services(cluster: &Cluster, uid: &str) -> Vec<String> {
        let pod = Pod {
            namespace: "shop".to_owned(),
            ..Pod::default()
        };
        let services = cluster.services(uid, &pod, 80, Instant::now()).unwrap();
        services.into_iter().map(|at| at.name).collect()
    }

    #[test]
    fn a_pods_services_are_found_without_reading_every_slice() {
        let time = |slices: usize| {
            let mut cluster = listed(Duration::ZERO, Instant::now());
            for n in 0..slices {
                let slice = slice(&format!("web-{n}"), [format!("u{n}")]);
                let change = Change::Listed(format!("shop/web-{n}"), Some(slice));
                cluster.change_slices(change, Instant::now());
            }
            cluster.change_slices(Change::Done, Instant::now());
            // The quickest of many rounds: others run on this machine too.
            let round = |_| {
                let began = Instant::now();
                for n in 0..50 {
                    assert_eq!(services(&cluster, &format!("u{n}")), [format!("web-{n}")]);
                }
                began.elapsed()
            };
            (0..20).map(round).min().unwrap()
        };
        let (few, many) = (time(50), time(2500));
        assert!(
            many < few * 10,
            "{few:?} with 50 slices, {many:?} with 2500"
        );
    }

    proptest! {
        #[test]
        fn a_pods_services_are_those_of_the_slices_that_have_it(
            changes in prop::collection::vec((0..6_u8, 0..4_usize, 0..3_u8, prop::collection::btree_set(0..5_u8, 0..4)), 0..30),
        ) {
            let now = Instant::now();
            let mut cluster = listed(Duration::ZERO, now);
            let mut model: BTreeMap<String, (String, BTreeSet<u8>)> = BTreeMap::new();
            for (what, key, service, uids) in changes {
                let (key, service) = (format!("shop/{key}"), format!("s{service}"));
                let value = slice(&service, uids.iter().map(|uid| format!("u{uid}")));
                match what {
                    0 => {
                        model.remove(&key);
                        cluster.change_slices(Change::Removed(key), now);
                    }
                    1 => {
                        model.clear();
                        model.insert(key.clone(), (service, uids));
                        cluster.change_slices(Change::Begin, now);
                        cluster.change_slices(Change::Listed(key, Some(value)), now);
                        cluster.change_slices(Change::Done, now);
                    }
                    _ => {
                        model.insert(key.clone(), (service, uids));
                        cluster.change_slices(Change::Set(key, Some(value)), now);
                    }
                }
                for uid in 0..5 {
                    let of_it = model.values().filter(|(_, uids)| uids.contains(&uid));
                    let expected: BTreeSet<String> = of_it.map(|(service, _)| service.clone()).collect();
                    let found = services(&cluster, &format!("u{uid}"));
                    prop_assert!(found.iter().eq(expected.iter()), "{:?} {:?}", found, expected);
                }
            }
        }
    }
}
