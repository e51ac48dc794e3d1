//! Services: what is kept of their specs, and facts of those that lead to this node. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Service as ApiService;

use super::{
    objects::opted_out,
    slices::{Endpoints, Slice},
};
use crate::snapshot::{Service, ServiceName};

/// What is kept of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spec {
    pub(super) opted_out: bool,
    client_ip_affinity: bool,
    headless: bool,
    internal_local: bool,
    external_local: bool,
    prefers: Option<Prefers>,
}

/// `trafficDistribution`: where traffic is kept if it can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prefers {
    Zone,
    Node,
}

impl Spec {
    pub(super) fn of(service: ApiService) -> Option<Self> {
        let opted_out = opted_out(&service.metadata);
        let spec = service.spec.unwrap_or_default();
        let is = |field: &Option<String>, word: &str| field.as_deref() == Some(word);
        Some(Self {
            opted_out,
            client_ip_affinity: is(&spec.session_affinity, "ClientIP"),
            headless: is(&spec.cluster_ip, "None"),
            internal_local: is(&spec.internal_traffic_policy, "Local"),
            external_local: is(&spec.external_traffic_policy, "Local"),
            prefers: spec.traffic_distribution.map(|word| match &*word {
                "PreferSameNode" => Prefers::Node,
                // PreferClose and PreferSameZone; a later word is no reason to look farther.
                _ => Prefers::Zone,
            }),
        })
    }
}

/// Slices by Service.
#[derive(Debug, Default)]
pub(super) struct ByService(BTreeMap<ServiceName, Since>);

/// A pod is flapping if its readiness changes again within this time. All those changes count as one.
const FLAPPING: Duration = Duration::from_secs(10 * 60);

/// Up to one in this many pods may change without the ready set counting as changed, because the pods of a
/// large Service change all the time.
const TOLERATED: usize = 20;

/// A Service's endpoints, and when their ready set last changed.
#[derive(Debug)]
struct Since {
    endpoints: Endpoints,
    /// The latest time since which more than the tolerated number of pods have changed; `None` if that
    /// was never the case since the first list.
    changed: Option<Instant>,
    /// When it last lost more than the tolerated number of pods at once.
    lost: Option<Instant>,
    /// Pods that changed recently, with the times of their first and last change.
    recent: BTreeMap<u64, (Instant, Instant)>,
    /// The addresses of all its endpoints, as of when it last led to this node.
    last_addresses: Option<Arc<BTreeSet<IpAddr>>>,
}

impl Since {
    /// Replaces the endpoints, and notes at `at` which pods have become ready or unready.
    fn update(&mut self, endpoints: Endpoints, at: Option<Instant>) {
        let addresses = endpoints.addresses.clone();
        self.last_addresses = addresses.or_else(|| self.last_addresses.take());
        let before = std::mem::replace(&mut self.endpoints, endpoints).ready_set;
        let now = &self.endpoints.ready_set;
        let (Some(at), true) = (at, before != *now) else {
            return;
        };
        let lately =
            |(_, last): &(Instant, Instant)| at.saturating_duration_since(*last) < FLAPPING;
        self.recent.retain(|_, times| lately(times));
        let only_in = |these: &[u64], those: &[u64]| -> Vec<u64> {
            let is_new = |pod: &&u64| those.binary_search(pod).is_err();
            these.iter().filter(is_new).copied().collect()
        };
        let lost = only_in(&before, now);
        let tolerated = before.len().max(now.len()) / TOLERATED;
        if lost.len() > tolerated {
            self.lost = Some(at);
        }
        for pod in [lost, only_in(now, &before)].concat() {
            self.recent.entry(pod).or_insert((at, at)).1 = at;
        }
        let mut changes: Vec<Instant> = self.recent.values().map(|(first, _)| *first).collect();
        changes.sort_unstable_by(|a, b| b.cmp(a));
        self.changed = self.changed.max(changes.get(tolerated).copied());
    }
}

impl ByService {
    /// Sets the Service's slices, as reported by the API server `at` that time; `None` for the first
    /// list.
    pub(super) fn set(&mut self, name: ServiceName, slices: &[&Slice], at: Option<Instant>) {
        if slices.is_empty() {
            self.0.remove(&name);
            return;
        }
        let mut endpoints = Endpoints::of(slices);
        if let Some(addresses) = &mut endpoints.addresses {
            self.share(&name, addresses);
        }
        match self.0.entry(name) {
            Entry::Occupied(mut known) => known.get_mut().update(endpoints, at),
            Entry::Vacant(new) => {
                new.insert(Since {
                    last_addresses: endpoints.addresses.clone(),
                    endpoints,
                    changed: at,
                    lost: None,
                    recent: BTreeMap::new(),
                });
            }
        }
    }

    /// Two Services in front of the same pods, as a headless one beside another, need no two sets.
    fn share(&self, name: &ServiceName, addresses: &mut Arc<BTreeSet<IpAddr>>) {
        let from = ServiceName {
            namespace: name.namespace.clone(),
            name: String::new(),
        };
        let beside = self
            .0
            .range(from..)
            .take_while(|(other, _)| other.namespace == name.namespace);
        let same = beside
            .filter_map(|(_, since)| since.endpoints.addresses.as_ref())
            .find(|other| *other == addresses);
        if let Some(same) = same {
            *addresses = Arc::clone(same);
        }
    }

    /// Those that lead to this node.
    pub(super) fn lead_here(&self) -> impl Iterator<Item = &ServiceName> {
        let here = |since: &Since| since.endpoints.addresses.is_some();
        self.0
            .iter()
            .filter(move |(_, since)| here(since))
            .map(|(name, _)| name)
    }

    /// Every Service that has slices.
    pub(super) fn names(&self) -> impl Iterator<Item = &ServiceName> {
        self.0.keys()
    }

    /// Facts of the Services that lead to this node, and of these others. Of a Service without its spec there
    /// are none.
    pub(super) fn facts(
        &self,
        specs: &BTreeMap<String, Spec>,
        others: &BTreeSet<&ServiceName>,
        now: Instant,
    ) -> BTreeMap<ServiceName, Service> {
        let ago = |at| now.saturating_duration_since(at);
        let fact = |(name, since): (&ServiceName, &Since)| {
            let endpoints = &since.endpoints;
            let is_other = others.contains(name);
            let last = since.last_addresses.as_ref().filter(|_| is_other);
            let addresses = Arc::clone(endpoints.addresses.as_ref().or(last)?);
            let spec = specs.get(&name.to_string())?;
            let in_zone = match spec.prefers {
                Some(Prefers::Zone) => endpoints.hinted_to_zone.or(endpoints.ready_in_zone),
                Some(Prefers::Node) | None => endpoints.hinted_to_zone,
            };
            let is_of_node = spec.prefers == Some(Prefers::Node) || endpoints.hinted_to_nodes;
            let (ready_in_zone, generation) = match in_zone {
                // All of these are here: nobody else is asked.
                _ if is_of_node => (Some(endpoints.ready_here), None),
                Some(in_zone) => (Some(in_zone.number), Some(in_zone.generation)),
                None => (None, Some(endpoints.generation)),
            };
            let zone = endpoints.zone.as_deref();
            let service = Service {
                ready: endpoints.ready,
                ready_here: endpoints.ready_here,
                ready_in_zone,
                generation,
                zone: zone.filter(|_| ready_in_zone.is_some()).map(str::to_owned),
                addresses,
                client_ip_affinity: spec.client_ip_affinity,
                headless: spec.headless,
                internal_local: spec.internal_local,
                external_local: spec.external_local,
                changed: since.changed.map(ago),
                lost: since.lost.map(ago),
                http2: endpoints.http2.clone(),
            };
            Some((name.clone(), service))
        };
        self.0.iter().filter_map(fact).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::{
        super::sample::{self, endpoint, kept, with},
        *,
    };
    use crate::snapshot::sample::service as name;

    fn spec(spec: Value) -> Spec {
        let object = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec});
        Spec::of(from_value(object).unwrap()).unwrap()
    }

    fn slice(service: &str, pods: &[(&str, &str)]) -> Slice {
        let endpoint = |(node, uid): &(&str, &str)| {
            let endpoint = endpoint(uid, &format!("10.0.0.{}", uid.len()), node);
            with(endpoint, "zone", json!("z"))
        };
        let endpoints: Vec<Value> = pods.iter().map(endpoint).collect();
        let slice = sample::slice("x", service, &endpoints);
        kept(with(slice, "ports", json!([{"port": 80, "name": "grpc"}])))
    }

    #[test]
    fn a_spec_decides_where_its_clients_go() {
        let bare = spec(json!({}));
        assert_eq!(bare, Spec::default());
        let all = spec(json!({
            "clusterIP": "None", "sessionAffinity": "ClientIP", "internalTrafficPolicy": "Local",
            "externalTrafficPolicy": "Local", "trafficDistribution": "PreferClose"
        }));
        let expected = Spec {
            opted_out: false,
            client_ip_affinity: true,
            headless: true,
            internal_local: true,
            external_local: true,
            prefers: Some(Prefers::Zone),
        };
        assert_eq!(all, expected);
        let usual = spec(json!({
            "clusterIP": "10.96.0.1", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "externalTrafficPolicy": "Cluster"
        }));
        assert_eq!(usual, bare);
        let out = json!({"metadata": {"name": "web", "annotations": {"rebalancer.dev/enabled": "false"}}});
        assert!(Spec::of(from_value(out).unwrap()).unwrap().opted_out);
    }

    #[test]
    fn facts_are_of_services_that_lead_here_and_are_known() {
        let now = Instant::now();
        let mut all = ByService::default();
        let here = slice("web", &[("n1", "a"), ("n2", "bb"), ("n2", "ccc")]);
        all.set(name("web"), &[&here], None);
        all.set(name("beside"), &[&here], None);
        all.set(name("unknown"), &[&here], None);
        let elsewhere = slice("elsewhere", &[("n2", "bb")]);
        all.set(name("elsewhere"), &[&elsewhere], None);
        let affinity = json!({"sessionAffinity": "ClientIP"});
        let near = json!({"trafficDistribution": "PreferSameNode"});
        let specs = BTreeMap::from([
            ("shop/web".to_owned(), spec(affinity)),
            ("shop/beside".to_owned(), spec(near)),
            ("shop/elsewhere".to_owned(), spec(json!({}))),
        ]);
        let facts = all.facts(&specs, &BTreeSet::new(), now);
        let names: Vec<String> = facts.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["shop/beside", "shop/web"]);
        let [beside, web] = ["beside", "web"].map(|n| &facts[&name(n)]);
        assert_eq!((web.ready, web.ready_here, web.ready_in_zone), (3, 1, None));
        assert_eq!((web.comparable(), beside.comparable()), (3, 1));
        assert_eq!(web.addresses.len(), 3);
        assert!(web.client_ip_affinity && web.http2 == BTreeSet::from([80]));
        assert!(Arc::ptr_eq(&web.addresses, &beside.addresses), "kept twice");
        assert_eq!(all.lead_here().count(), 3);
        // Its last pod here was removed from it: it is asked for still, and its endpoints as they were then.
        let gone = slice("web", &[("n2", "bb"), ("n2", "ccc")]);
        all.set(name("web"), &[&gone], Some(now));
        let web = name("web");
        assert!(!all.facts(&specs, &BTreeSet::new(), now).contains_key(&web));
        let facts = &all.facts(&specs, &[&web].into(), now)[&web];
        assert_eq!((facts.ready, facts.ready_here), (2, 0));
        assert_eq!(facts.addresses.len(), 3);
    }

    #[test]
    fn a_preferred_zone_counts_without_hints_too() {
        let mut all = ByService::default();
        let endpoints = [("x", "a", "n1"), ("x", "b", "n2"), ("y", "c", "n3")]
            .map(|(zone, uid, node)| with(endpoint(uid, "10.0.0.1", node), "zone", json!(zone)));
        let slice = kept(sample::slice("x", "web", &endpoints));
        all.set(name("web"), &[&slice], None);
        for (distribution, in_zone) in [
            (json!({}), None),
            (json!({"trafficDistribution": "PreferClose"}), Some(2)),
            (json!({"trafficDistribution": "PreferSameZone"}), Some(2)),
            (json!({"trafficDistribution": "PreferSameNode"}), Some(1)),
        ] {
            let specs = BTreeMap::from([("shop/web".to_owned(), spec(distribution.clone()))]);
            let facts = all.facts(&specs, &BTreeSet::new(), Instant::now());
            assert_eq!(facts[&name("web")].ready_in_zone, in_zone, "{distribution}");
        }
    }

    #[test]
    fn only_a_change_of_the_ready_ones_is_one() {
        let start = Instant::now();
        let second = |n| start + Duration::from_secs(n);
        let specs = BTreeMap::from([("shop/web".to_owned(), Spec::default())]);
        let mut all = ByService::default();
        let mut since = |pods: &[(&str, &str)], at: Option<Instant>| {
            let slice = slice("web", pods);
            let slices = [&slice];
            all.set(name("web"), if pods.is_empty() { &[] } else { &slices }, at);
            let mut facts = all.facts(&specs, &BTreeSet::new(), second(100));
            let facts = facts.remove(&name("web"));
            facts.map(|facts| facts.changed.map(|d| d.as_secs()))
        };
        let (one, two, three) = (("n1", "a"), ("n2", "bb"), ("n3", "ccc"));
        for (case, pods, at, changed) in [
            ("the first list", &[one][..], None, Some(None)),
            ("the same", &[one], Some(second(10)), Some(None)),
            ("one more", &[one, two], Some(second(20)), Some(Some(80))),
            (
                "another order",
                &[two, one],
                Some(second(30)),
                Some(Some(80)),
            ),
            (
                "three",
                &[one, two, three],
                Some(second(40)),
                Some(Some(60)),
            ),
            ("it is gone", &[], Some(second(50)), None),
            ("it is new", &[one], Some(second(60)), Some(Some(40))),
        ] {
            assert_eq!(since(pods, at), changed, "{case}");
        }
    }

    /// Changes of ready sets, by the minute.
    struct Minutes {
        start: Instant,
        since: Since,
    }

    impl Minutes {
        fn from(set: impl IntoIterator<Item = u64>) -> Self {
            let since = Since {
                endpoints: endpoints(set),
                changed: None,
                lost: None,
                recent: BTreeMap::new(),
                last_addresses: None,
            };
            let start = Instant::now();
            Self { start, since }
        }

        /// When it has changed and when some were lost, after this set.
        fn update(
            &mut self,
            minute: u32,
            set: impl IntoIterator<Item = u64>,
        ) -> (Option<u64>, Option<u64>) {
            let now = self.start + Duration::from_secs(60) * minute;
            self.since.update(endpoints(set), Some(now));
            let minutes = |at: Instant| (at - self.start).as_secs() / 60;
            (
                self.since.changed.map(minutes),
                self.since.lost.map(minutes),
            )
        }
    }

    fn endpoints(set: impl IntoIterator<Item = u64>) -> Endpoints {
        Endpoints {
            ready_set: set.into_iter().collect(),
            ..Endpoints::default()
        }
    }

    /// `changed` after these ready sets, one each minute.
    fn changed(sets: &[BTreeSet<u64>]) -> Option<u64> {
        let mut sets = sets.iter().cloned();
        let mut minutes = Minutes::from(sets.next().unwrap());
        let changed = (1..)
            .zip(sets)
            .map(|(minute, set)| minutes.update(minute, set).0);
        changed.last().flatten()
    }

    /// One that comes and soon goes is flapping, which is no change; but its clients go elsewhere.
    #[test]
    fn pods_that_were_lost_are_known_though_they_had_come_just_before() {
        let mut minutes = Minutes::from([]);
        let mut set = |minute, pods: std::ops::Range<u64>| minutes.update(minute, pods);
        assert_eq!(set(1, 0..3), (Some(1), None));
        assert_eq!(set(2, 0..6), (Some(2), None));
        assert_eq!(set(3, 0..3), (Some(2), Some(3)));
        assert_eq!(set(4, 0..100), (Some(4), Some(3)));
        assert_eq!(set(20, 4..100).1, Some(3), "few of many");
        assert_eq!(set(21, 20..100).1, Some(21));
    }

    #[test]
    fn a_pod_that_flaps_changes_its_service_once() {
        let all = BTreeSet::from([1, 2, 3]);
        let less = BTreeSet::from([1, 2]);
        let flaps = vec![[all, less]; 15].concat();
        assert_eq!(changed(&flaps), Some(1));
        let mut then_another = flaps;
        then_another.push(BTreeSet::from([1, 3]));
        assert_eq!(changed(&then_another), Some(30));
    }

    #[test]
    fn a_large_service_has_changed_once_a_twentieth_of_its_pods_have() {
        // One pod a minute is replaced.
        let sets = |pods: u64| -> Vec<BTreeSet<u64>> {
            let set = |minute| (minute..minute + pods).collect();
            (0..30).map(set).collect()
        };
        assert_eq!(changed(&sets(10)), Some(29), "of ten each counts");
        // Ten minutes' changes are of twenty pods, one that goes and one that comes each minute; of 400
        // pods twenty are tolerated.
        assert_eq!(changed(&sets(400)), None);
        assert_eq!(changed(&sets(100)), Some(27), "the sixth last of those");
    }
}
