//! Endpoints of Services on all nodes: what is kept of EndpointSlices. Pure.
//!
//! Every endpoint of the cluster is kept, because an endpoint of any Service may come to this node at
//! any time, and the API server does not send unchanged slices again. So each is small: no names, and a
//! zone's text once per slice.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, EndpointPort, EndpointSlice};
use kube::ResourceExt as _;

use crate::{snapshot::ServiceName, views::Generation};

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A part of a Service's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) service: ServiceName,
    /// TCP ports of the endpoints; `None` is any.
    pub(super) ports: Vec<Option<u16>>,
    /// Of these, those declared as HTTP/2.
    pub(super) http2: Vec<u16>,
    /// Ascending, each once.
    endpoints: Box<[SliceEndpoint]>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SliceEndpoint {
    id: EndpointId,
    /// The first, as kube-proxy uses no other.
    address: Option<IpAddr>,
    /// Whether it is on this node; `None` if the slice does not name its node.
    here: Option<bool>,
    zone: Option<Arc<str>>,
    /// Zones whose clients are meant to use it.
    for_zones: Box<[Arc<str>]>,
    /// Clients of its own node are meant to use it.
    for_nodes: bool,
    pub(super) ready: bool,
    pub(super) terminating: bool,
}

/// Which endpoint it is: a pod has one in the slices of each family of addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum EndpointId {
    /// A pod's uid, as the API server makes them.
    Uuid([u8; 16]),
    /// Another uid, or the address of what is no pod.
    Other(Box<str>),
}

impl EndpointId {
    /// The same on every node.
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Uuid(bytes) => bytes,
            Self::Other(text) => text.as_bytes(),
        }
    }

    /// Of the pod with this uid.
    pub(super) fn of(text: &str) -> Self {
        // Only what reads back the same: two texts must not be one id.
        let uuid = || {
            let dashes = |at| text.as_bytes().get(at) == Some(&b'-');
            let digits: String = text.split('-').collect();
            let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            let shaped = text.len() == 36 && digits.len() == 32 && digits.bytes().all(hex);
            if !(shaped && [8, 13, 18, 23].into_iter().all(dashes)) {
                return None;
            }
            u128::from_str_radix(&digits, 16).ok()
        };
        uuid().map_or_else(
            || Self::Other(text.into()),
            |uuid| Self::Uuid(uuid.to_be_bytes()),
        )
    }
}

impl Slice {
    /// What is used of a slice, seen from `node`; `None` if it is of no Service.
    pub(super) fn of(node: &str, slice: EndpointSlice) -> Option<Self> {
        let service = ServiceName {
            namespace: slice.namespace()?,
            name: slice.labels().get(SERVICE_NAME)?.clone(),
        };
        let tcp = |port: &EndpointPort| port.protocol.as_deref().is_none_or(|p| p == "TCP");
        let number = |port: &EndpointPort| port.port.and_then(|port| u16::try_from(port).ok());
        let ports: Vec<EndpointPort> = slice.ports.into_iter().flatten().filter(tcp).collect();
        let mut zones = BTreeSet::new();
        let mut endpoints: Vec<SliceEndpoint> = slice
            .endpoints
            .into_iter()
            .flatten()
            .filter_map(|endpoint| SliceEndpoint::of(node, endpoint, &mut zones))
            .collect();
        endpoints.sort_by(|a, b| a.id.cmp(&b.id));
        endpoints.dedup_by(|a, b| a.id == b.id);
        Some(Self {
            service,
            http2: ports
                .iter()
                .filter(|p| says_http2(p))
                .filter_map(number)
                .collect(),
            ports: ports.iter().map(number).collect(),
            endpoints: endpoints.into(),
        })
    }

    /// Whether it leads to this port of its endpoints.
    pub(super) fn has_port(&self, port: u16) -> bool {
        self.ports.iter().any(|p| p.is_none_or(|p| p == port))
    }

    /// Its endpoints, except those that it places on other nodes.
    pub(super) fn may_be_here(&self) -> impl Iterator<Item = &EndpointId> {
        let here = |endpoint: &&SliceEndpoint| endpoint.here != Some(false);
        self.endpoints.iter().filter(here).map(|e| &e.id)
    }

    /// This endpoint, if it is one of the slice's.
    pub(super) fn endpoint(&self, id: &EndpointId) -> Option<&SliceEndpoint> {
        let at = self.endpoints.binary_search_by(|e| e.id.cmp(id)).ok()?;
        Some(&self.endpoints[at])
    }
}

impl SliceEndpoint {
    fn of(node: &str, endpoint: Endpoint, zones: &mut BTreeSet<Arc<str>>) -> Option<Self> {
        let first = endpoint.addresses.first();
        let uid = endpoint.target_ref.and_then(|target| target.uid);
        let id = EndpointId::of(uid.as_ref().or(first)?);
        let conditions = endpoint.conditions.unwrap_or_default();
        let EndpointHints {
            for_zones,
            for_nodes,
        } = endpoint.hints.unwrap_or_default();
        let for_zones = for_zones.into_iter().flatten();
        Some(Self {
            id,
            address: first.and_then(|a| Some(a.parse::<IpAddr>().ok()?.to_canonical())),
            here: endpoint.node_name.map(|name| name == node),
            for_zones: for_zones.map(|zone| shared(zones, zone.name)).collect(),
            for_nodes: for_nodes.is_some_and(|nodes| !nodes.is_empty()),
            zone: endpoint.zone.map(|zone| shared(zones, zone)),
            ready: conditions.ready.unwrap_or(true), // as the API documents it
            terminating: conditions.terminating.unwrap_or(false),
        })
    }
}

fn shared(zones: &mut BTreeSet<Arc<str>>, zone: String) -> Arc<str> {
    if let Some(known) = zones.get(zone.as_str()) {
        return Arc::clone(known);
    }
    let new: Arc<str> = zone.into();
    zones.insert(Arc::clone(&new));
    new
}

/// By its `appProtocol`, or by its name as meshes read it: `grpc`, `http2-web`.
fn says_http2(port: &EndpointPort) -> bool {
    let protocol = port.app_protocol.as_deref().unwrap_or_default();
    let protocol = protocol.to_ascii_lowercase();
    let protocol = protocol.strip_prefix("kubernetes.io/").unwrap_or(&protocol);
    let name = port.name.as_deref().unwrap_or_default();
    ["h2", "grpc", "http2", "http/2"]
        .into_iter()
        .any(|known| protocol.starts_with(known))
        || ["h2", "grpc", "http2"]
            .into_iter()
            .any(|known| name.starts_with(known))
}

/// Some of the ready endpoints: how many, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) number: u32,
    pub(super) generation: Generation,
}

impl Counted {
    fn of(endpoints: &[&EndpointId]) -> Self {
        Self {
            number: u32::try_from(endpoints.len()).unwrap_or(u32::MAX),
            generation: Generation::of(endpoints.iter().map(|id| id.as_bytes())),
        }
    }
}

/// A Service's slices together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Endpoints {
    /// Which are ready: a hash of each, sorted.
    pub(super) ready_set: Box<[u64]>,
    /// Ready, each once.
    pub(super) ready: u32,
    /// Which those are, the same on every node.
    pub(super) generation: Generation,
    /// Of the ready, on this node.
    pub(super) ready_here: u32,
    /// This node's zone, if that is known.
    pub(super) zone: Option<Arc<str>>,
    /// Of the ready, in this node's zone; `None` if that is not known.
    pub(super) ready_in_zone: Option<Counted>,
    /// Ready and hinted to this node's zone; `None` if not all have hints, or none for it.
    pub(super) hinted_to_zone: Option<Counted>,
    /// Hints keep clients on their own node.
    pub(super) hinted_to_nodes: bool,
    /// Of all that lead to this node; `None` if none does.
    pub(super) addresses: Option<Arc<BTreeSet<IpAddr>>>,
    /// Ports declared as HTTP/2.
    pub(super) http2: BTreeSet<u16>,
}

impl Endpoints {
    /// Counts what the slices of one Service have.
    pub(super) fn of(slices: &[&Slice]) -> Self {
        let mut all: Vec<&SliceEndpoint> =
            slices.iter().flat_map(|slice| &slice.endpoints).collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        let leads_here = all.iter().any(|e| e.here.unwrap_or(true));
        let zone = all
            .iter()
            .find_map(|e| e.zone.as_ref().filter(|_| e.here == Some(true)));
        let mut ready_set = Vec::new();
        let [mut ready, mut in_zone, mut hinted] = [const { Vec::new() }; 3];
        let [mut here, mut unhinted] = [0_u32; 2];
        let mut for_nodes = false;
        // A pod once: it has an endpoint of each family of addresses.
        for pod in all.chunk_by(|a, b| a.id == b.id) {
            let up: Vec<&&SliceEndpoint> = pod.iter().filter(|e| e.ready).collect();
            let Some(first) = up.first() else {
                continue;
            };
            let mut hash = DefaultHasher::new();
            first.id.hash(&mut hash);
            ready_set.push(hash.finish());
            let any = |of: &dyn Fn(&SliceEndpoint) -> bool| up.iter().any(|e| of(e));
            ready.push(&first.id);
            here += u32::from(any(&|e| e.here == Some(true)));
            if any(&|e| e.zone.as_ref() == zone) {
                in_zone.push(&first.id);
            }
            if any(&|e| zone.is_some_and(|zone| e.for_zones.contains(zone))) {
                hinted.push(&first.id);
            }
            unhinted += u32::from(any(&|e| e.for_zones.is_empty()));
            for_nodes |= up.iter().any(|e| e.for_nodes);
        }
        ready_set.sort_unstable();
        let Counted {
            number: ready,
            generation,
        } = Counted::of(&ready);
        Self {
            ready_set: ready_set.into(),
            ready,
            generation,
            ready_here: here,
            zone: zone.cloned(),
            ready_in_zone: zone.map(|_| Counted::of(&in_zone)),
            hinted_to_zone: (unhinted == 0 && !hinted.is_empty()).then(|| Counted::of(&hinted)),
            hinted_to_nodes: for_nodes,
            addresses: leads_here.then(|| Arc::new(all.iter().filter_map(|e| e.address).collect())),
            http2: slices
                .iter()
                .flat_map(|slice| slice.http2.iter().copied())
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::{
        super::sample::{self, endpoint, kept, with},
        *,
    };

    fn slice(endpoints: &[Value]) -> Slice {
        kept(sample::slice("web-x", "web", endpoints))
    }

    fn slice_on(ports: Value, endpoints: &[Value]) -> Slice {
        kept(with(
            sample::slice("web-x", "web", endpoints),
            "ports",
            ports,
        ))
    }

    /// One whose address does not matter.
    fn at(uid: &str, node: &str) -> Value {
        endpoint(uid, "10.0.0.1", node)
    }

    fn unready(endpoint: Value) -> Value {
        with(endpoint, "conditions", json!({"ready": false}))
    }

    #[test]
    fn what_is_used_of_a_slice_is_kept() {
        let terminating = json!({"ready": false, "terminating": true});
        let kept = slice_on(
            json!([{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}, {"port": 81}]),
            &[
                at("a", "n1"),
                at("b", "n2"),
                with(at("c", "n1"), "conditions", terminating),
                with(at("d", "n1"), "conditions", json!({})),
                json!({"addresses": ["10.0.0.9"]}),
            ],
        );
        assert_eq!(kept.service.to_string(), "shop/web");
        assert_eq!(kept.ports, [Some(80), Some(81)]);
        assert!(kept.has_port(81) && !kept.has_port(53));
        for (uid, expected) in [
            ("a", Some((Some(true), true, false))),
            ("b", Some((Some(false), true, false))),
            ("c", Some((Some(true), false, true))),
            ("d", Some((Some(true), true, false))),
            ("e", None),
        ] {
            let found = kept.endpoint(&EndpointId::of(uid));
            let found = found.map(|at| (at.here, at.ready, at.terminating));
            assert_eq!(found, expected, "{uid}");
        }
        let of_none = json!({"metadata": {"name": "x", "namespace": "shop"}, "addressType": "IPv4", "endpoints": []});
        assert_eq!(Slice::of("n1", from_value(of_none).unwrap()), None);
    }

    #[test]
    fn any_port_is_any() {
        assert!(slice_on(json!([{}]), &[]).has_port(7));
        assert!(!slice_on(json!([]), &[]).has_port(7));
    }

    #[test]
    fn a_uuid_is_kept_small_and_anything_else_whole() {
        let uuid = "0f4c2a1e-7b1d-4c58-9c8e-2d4f7a6b1c33";
        assert!(matches!(EndpointId::of(uuid), EndpointId::Uuid(_)));
        for other in [
            "",
            "u0",
            "10.0.0.1",
            "0F4C2A1E-7B1D-4C58-9C8E-2D4F7A6B1C33",
            "0f4c2a1e7b1d4c589c8e2d4f7a6b1c33----",
            "0f4c2a1e-7b1d-4c58-9c8e-+d4f7a6b1c33",
        ] {
            assert_eq!(EndpointId::of(other), EndpointId::Other(other.into()));
        }
    }

    #[test]
    fn each_pod_counts_once_on_all_nodes() {
        let four = slice(&[
            endpoint("a", "10.0.0.1", "n1"),
            endpoint("b", "10.0.0.2", "n2"),
            unready(endpoint("c", "10.0.0.3", "n2")),
            json!({"addresses": ["192.0.2.1"]}),
        ]);
        let six = slice(&[
            endpoint("a", "2001:db8::1", "n1"),
            endpoint("b", "2001:db8::2", "n2"),
        ]);
        let all = Endpoints::of(&[&four, &six]);
        assert_eq!((all.ready, all.ready_here, all.ready_in_zone), (3, 1, None));
        assert_eq!(all.addresses.unwrap().len(), 6);
        assert_eq!(all.ready_set, Endpoints::of(&[&four]).ready_set);
        // One becomes unready; of another Service, nothing but the set is of use.
        let fewer = slice(&[endpoint("b", "10.0.0.2", "n2")]);
        let elsewhere = Endpoints::of(&[&fewer]);
        assert_ne!(elsewhere.ready_set, all.ready_set);
        assert_eq!(elsewhere.addresses, None);
    }

    #[test]
    fn every_node_names_the_same_set_of_ready_endpoints_alike() {
        let of = |slices: &[Slice]| {
            let slices: Vec<&Slice> = slices.iter().collect();
            Endpoints::of(&slices).generation
        };
        let seen_from = |node: &str, endpoints: &[Value]| {
            let object = sample::slice("x", "web", endpoints);
            Slice::of(node, from_value(object).unwrap()).unwrap()
        };
        let both = [at("a", "n1"), at("b", "n2"), unready(at("c", "n1"))];
        let one = of(&[seen_from("n1", &both)]);
        assert_eq!(one, of(&[seen_from("n2", &both)]));
        // However they are divided into slices.
        let [a, b, c] = both;
        let apart = [
            seen_from("n3", &[b, c.clone()]),
            seen_from("n3", std::slice::from_ref(&a)),
        ];
        assert_eq!(one, of(&apart));
        assert_ne!(one, of(&[seen_from("n1", &[a.clone(), at("d", "n2")])]));
        assert_ne!(one, of(&[seen_from("n1", &[a, c])]));
    }

    #[test]
    fn zones_count_as_kube_proxy_looks_at_hints() {
        let to = |zones: &[&str]| {
            let zones: Vec<Value> = zones.iter().map(|zone| json!({"name": zone})).collect();
            json!({"forZones": zones})
        };
        let to_node = json!({"forZones": [{"name": "x"}], "forNodes": [{"name": "n1"}]});
        let in_zone = |uid, node, zone: &str| with(at(uid, node), "zone", json!(zone));
        let hinted = |endpoint: &Value, hints: Value| with(endpoint.clone(), "hints", hints);
        let [a, b, c] = [("a", "n1", "x"), ("b", "n2", "x"), ("c", "n3", "y")]
            .map(|(uid, node, zone)| in_zone(uid, node, zone));
        let [a_to_x, b_to_x] = [&a, &b].map(|endpoint| hinted(endpoint, to(&["x"])));
        let both = |third: Value| vec![a_to_x.clone(), b_to_x.clone(), third];
        let c_to = |zones: &[&str]| hinted(&c, to(zones));
        let none = vec![a.clone(), b.clone(), c.clone()];
        // An unready one neither counts nor lacks hints.
        let and_unready = both(unready(c.clone()));
        let elsewhere = vec![hinted(&a, to(&["y"])), c_to(&["y"])];
        for (case, endpoints, own, to_zone, to_nodes) in [
            ("no hints", none, 2, None, false),
            ("hints that not all have", both(c.clone()), 2, None, false),
            ("each to its zone", both(c_to(&["y"])), 2, Some(2), false),
            ("one to both", both(c_to(&["x", "y"])), 2, Some(3), false),
            ("and an unready one", and_unready, 2, Some(2), false),
            ("none to this zone", elsewhere, 1, None, false),
            ("to a node", vec![hinted(&a, to_node)], 1, Some(1), true),
        ] {
            let all = Endpoints::of(&[&slice(&endpoints)]);
            let number = |of: Option<Counted>| of.map(|counted| counted.number);
            let found = (number(all.ready_in_zone), number(all.hinted_to_zone));
            assert_eq!(found, (Some(own), to_zone), "{case}");
            assert_eq!(all.hinted_to_nodes, to_nodes, "{case}");
        }
    }

    #[test]
    fn ports_say_http2_by_protocol_or_name() {
        let says = |port: Value| slice_on(json!([port]), &[]).http2;
        for port in [
            json!({"port": 9, "appProtocol": "kubernetes.io/h2c"}),
            json!({"port": 9, "appProtocol": "GRPC"}),
            json!({"port": 9, "appProtocol": "http2"}),
            json!({"port": 9, "name": "grpc"}),
            json!({"port": 9, "name": "http2-web"}),
            json!({"port": 9, "name": "h2c", "appProtocol": "http"}),
        ] {
            assert_eq!(says(port.clone()), [9], "{port}");
        }
        for port in [
            json!({"port": 9}),
            json!({"port": 9, "name": "http", "appProtocol": "http"}),
            json!({"port": 9, "name": "web-grpc"}),
            json!({"port": 9, "appProtocol": "kubernetes.io/ws"}),
            json!({"name": "grpc"}),
            json!({"port": 9, "name": "grpc", "protocol": "UDP"}),
        ] {
            assert!(says(port.clone()).is_empty(), "{port}");
        }
    }

    /// What one of many endpoints on other nodes costs.
    #[test]
    fn an_endpoint_is_small() {
        let size = size_of::<SliceEndpoint>();
        assert!(size <= 80, "{size}");
    }
}
