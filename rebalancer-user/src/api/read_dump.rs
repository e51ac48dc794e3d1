//! Reads a dump of connections back: a snapshot of another time or node.

use std::{collections::BTreeMap, io::Read, sync::Arc};

use serde::Deserialize;

use super::{
    dump::CONNECTIONS,
    envelope::{Origin, Source},
    parse::{ReadError, check_kind, parse, read_all},
};
use crate::{
    snapshot::{
        CgroupId, Connection, Endpoint, EndpointKey, Identity, KernelTime, Name, Naming, Netns,
        Service, ServiceName, Snapshot, Who,
    },
    text::quoted,
    views::Views,
};

/// A dump read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dumped {
    /// Where and when it was made.
    pub origin: Origin,
    /// The node.
    pub snapshot: Snapshot,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a dump")]
struct Dump {
    node: String,
    generated_at: String,
    source: Source,
    taken_nanoseconds: KernelTime,
    #[serde(default)]
    names: Naming,
    #[serde(default)]
    services: Vec<Service>,
    #[serde(default)]
    views: Views,
    endpoints: Vec<Endpoint>,
    items: Vec<Connection>,
}

/// What stands beside the fields of a [`Dump`]'s lists. It is read on its own: with `flatten`, serde
/// would lose the paths and lines of errors.
#[derive(Deserialize)]
#[serde(expecting = "a dump")]
struct Beside {
    #[serde(default)]
    services: Vec<ServiceName>,
    endpoints: Vec<OfEndpoint>,
    items: Vec<OfConnection>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfEndpoint {
    netns: Netns,
    cgroup: Option<CgroupId>,
    port: u16,
    pod: Option<Identity>,
    #[serde(default)]
    pod_unknown: bool,
}

#[derive(Deserialize)]
struct OfConnection {
    cgroup: CgroupId,
    container: Option<Name>,
}

/// Reads a dump of connections.
///
/// # Errors
/// Why it is invalid, with the path of the field.
pub fn read_snapshot(from: impl Read) -> Result<Dumped, ReadError> {
    let text = read_all(from)?;
    check_kind(&text, CONNECTIONS)?;
    let dump: Dump = parse(&text)?;
    let beside: Beside = parse(&text)?;
    drop(text);
    let generated_at = dump.generated_at.parse().map_err(|_| ReadError::Value {
        path: "generatedAt".to_owned(),
        value: quoted(&dump.generated_at),
        expected: "a time as RFC 3339 has it",
    })?;
    let origin = Origin {
        node: dump.node,
        generated_at,
        source: dump.source,
    };
    let endpoints = beside.endpoints.into_iter().zip(dump.endpoints);
    let services = beside.services.into_iter().zip(dump.services);
    let containers = beside.items.into_iter();
    let snapshot = Snapshot {
        taken: dump.taken_nanoseconds,
        connections: dump.items,
        endpoints: unique(
            "endpoints",
            endpoints.map(endpoint),
            |key| format!("port {} of namespace {}", key.port, key.netns.0),
            "a new endpoint: it was listed before",
        )?,
        naming: dump.names,
        services: unique(
            "services",
            services,
            ToString::to_string,
            "a new Service: it was listed before",
        )?,
        containers: containers
            .filter_map(|of| Some((of.cgroup, of.container?.0)))
            .collect(),
        // One listing: there is none before it whose namespaces could be others.
        namespaces: BTreeMap::new(),
        views: dump.views,
    };
    Ok(Dumped { origin, snapshot })
}

fn endpoint((of, counters): (OfEndpoint, Endpoint)) -> (EndpointKey, Endpoint) {
    let key = EndpointKey {
        netns: of.netns,
        cgroup: of.cgroup,
        port: of.port,
    };
    let who = match of.pod {
        Some(pod) => Who::Pod(Arc::new(pod)),
        None if of.pod_unknown => Who::Unknown,
        None => Who::NoPod,
    };
    (key, Endpoint { who, ..counters })
}

/// A map of what `list` has, which lists no key again.
fn unique<K: Ord, V>(
    list: &str,
    entries: impl Iterator<Item = (K, V)>,
    shown: impl Fn(&K) -> String,
    expected: &'static str,
) -> Result<BTreeMap<K, V>, ReadError> {
    let mut map = BTreeMap::new();
    for (index, (key, value)) in entries.enumerate() {
        if map.contains_key(&key) {
            return Err(ReadError::Value {
                path: format!("{list}[{index}]"),
                value: shown(&key),
                expected,
            });
        }
        map.insert(key, value);
    }
    Ok(map)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        collections::BTreeSet,
        net::{IpAddr, SocketAddr, SocketAddrV6},
        time::Duration,
    };

    use proptest::{
        collection::{btree_map, vec},
        option,
        prelude::*,
    };

    use super::*;
    use crate::{
        api::{Notation, Sort, write_connections},
        snapshot::{
            Bytes, CgroupPath, Cookie, Ending, RemovedFrom, RequestedDrain, Sends, ServiceAt,
            TcpState, sample,
        },
        views::{Generation, Key, Share, Sums, View},
    };

    fn written(origin: &Origin, snapshot: &Snapshot) -> String {
        let mut out = Vec::new();
        write_connections(&mut out, Notation::Json, snapshot, origin, Sort::Endpoint).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn any_address() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), any::<u16>(), prop::bool::weighted(0.1)).prop_map(
            |(ip, port, link_local)| match ip.to_canonical() {
                IpAddr::V6(ip) if link_local => SocketAddrV6::new(ip, port, 0, 3).into(),
                ip => SocketAddr::new(ip, port),
            },
        )
    }

    pub(in crate::api) fn any_key() -> impl Strategy<Value = EndpointKey> {
        (any::<u32>(), option::of(any::<u64>()), any::<u16>()).prop_map(|(netns, cgroup, port)| {
            EndpointKey {
                netns: Netns(netns),
                cgroup: cgroup.map(CgroupId),
                port,
            }
        })
    }

    fn any_connection() -> impl Strategy<Value = Connection> {
        let path = option::of("/[a-z\\\\/é\u{1b}]{0,12}");
        let who = (any::<u64>(), any_key(), any_address(), any_address(), path);
        let what = (
            any::<u8>(),
            any::<[bool; 3]>(),
            any::<[u32; 6]>(),
            any::<[u64; 6]>(),
        );
        (who, what).prop_map(
            |((cookie, endpoint, local, remote, path), (state, bools, smalls, numbers))| {
                Connection {
                    cookie: Cookie(cookie),
                    endpoint,
                    cgroup: CgroupId(numbers[0]),
                    cgroup_path: path.as_deref().and_then(CgroupPath::new),
                    local,
                    remote,
                    device: smalls[0],
                    opened: KernelTime(numbers[1]),
                    adopted: bools[0],
                    state: TcpState::from_kernel(state),
                    mptcp: bools[1],
                    bytes_in: Bytes(numbers[2]),
                    bytes_out: Bytes(numbers[3]),
                    receive_queue: smalls[1],
                    send_queue: smalls[2],
                    server_spoke_last: bools[2],
                    since_sent: Duration::from_nanos(numbers[4]),
                    since_received: Duration::from_nanos(numbers[5]),
                    segments_in: smalls[3],
                    segments_out: smalls[4],
                    retransmits: smalls[5],
                    rtt: Duration::from_micros(numbers[4] >> 32),
                    sends: bools[2].then_some(Sends {
                        messages: numbers[0],
                        bytes: Bytes(numbers[1]),
                    }),
                }
            },
        )
    }

    fn any_who() -> impl Strategy<Value = Who> {
        let labels = || btree_map("\\PC{0,8}", "\\PC{0,8}", 0..3);
        let name = "[a-z0-9][a-z0-9.-]{0,20}";
        let service = (name, any::<[bool; 3]>()).prop_map(|(name, bools)| ServiceAt {
            name,
            ready: bools[0],
            unready: (!bools[0]).then_some(Duration::from_secs(7)),
            terminating: bools[1],
            opted_out: bools[2],
        });
        let names = (name, name, name, option::of(labels()), labels());
        let pod = (names, option::of(vec(service, 0..3)), any::<[bool; 4]>());
        let pod = pod.prop_map(
            |((namespace, pod, uid, namespace_labels, labels), services, bools)| {
                Who::Pod(Arc::new(Identity {
                    namespace,
                    namespace_labels,
                    namespace_opted_out: bools[3],
                    pod,
                    uid,
                    labels,
                    services,
                    ready: bools[0],
                    terminating: bools[1],
                    ending: bools[1].then_some(Ending {
                        since: Duration::from_secs(3),
                        stops_after: Duration::from_secs(15),
                    }),
                    removed_from: bools[0]
                        .then(|| RemovedFrom {
                            service: sample::service_at("web"),
                            since: Duration::from_secs(5),
                        })
                        .into_iter()
                        .collect(),
                    opted_out: bools[2],
                }))
            },
        );
        prop_oneof![Just(Who::NoPod), Just(Who::Unknown), pod]
    }

    fn any_service() -> impl Strategy<Value = Service> {
        let addresses = vec(any::<IpAddr>().prop_map(|ip| ip.to_canonical()), 0..4);
        let numbers = (0..4_u32, 0..4_u32, option::of(0..4_u32));
        let changed = option::of(any::<u64>().prop_map(Duration::from_nanos));
        let http2 = vec(any::<u16>(), 0..3);
        // Seldom each: most of what is generated should pass its guards.
        let bools = [(); 4].map(|()| prop::bool::weighted(0.1));
        (numbers, addresses, bools, changed, http2).prop_map(
            |((ready, here, ready_in_zone), addresses, bools, changed, http2)| Service {
                ready,
                ready_here: here,
                ready_in_zone,
                generation: (ready > 0).then_some(Generation(ready.into())),
                zone: ready_in_zone.map(|zone| format!("zone-{zone}")),
                addresses: Arc::new(addresses.into_iter().collect()),
                client_ip_affinity: bools[0],
                headless: bools[1],
                internal_local: bools[2],
                external_local: bools[3],
                changed,
                lost: changed.map(|changed| changed / 2),
                http2: http2.into_iter().collect(),
            },
        )
    }

    /// Facts of the Services that lead to `endpoints`, of all or some.
    fn facts_of(
        endpoints: &BTreeMap<EndpointKey, Endpoint>,
        facts: &[Option<Service>],
    ) -> BTreeMap<ServiceName, Service> {
        let pods = endpoints.values().filter_map(|endpoint| endpoint.who.pod());
        let names: BTreeSet<ServiceName> = pods
            .flat_map(|pod| {
                let services = pod.services.iter().flatten();
                services.map(|at| ServiceName {
                    namespace: pod.namespace.clone(),
                    name: at.name.clone(),
                })
            })
            .collect();
        let given = names.into_iter().zip(facts.iter().cycle());
        given
            .filter_map(|(name, facts)| Some((name, facts.clone()?)))
            .collect()
    }

    fn any_views() -> impl Strategy<Value = Views> {
        let view = (
            any::<[u64; 6]>(),
            any::<u128>(),
            any::<[u32; 3]>(),
            "[a-z]{1,9}",
        );
        let view = view.prop_map(|(n, squares, [endpoints, from, to], rule)| View {
            key: Key {
                service: "shop/checkout".to_owned(),
                port: 80,
                zone: (endpoints % 2 == 0).then(|| "z".to_owned()),
                rule,
                by: "Connections".to_owned(),
            },
            generation: Generation(n[0]),
            endpoints,
            sums: Sums {
                total: n[1],
                squares,
                largest: n[2],
            },
            others: (to % 2 == 0).then(|| Sums {
                total: n[5],
                ..Sums::default()
            }),
            mean: n[3],
            least: n[4],
            most: n[5],
            connections: n[0],
            elsewhere: n[2],
            moving: n[1],
            filled: n[4],
            full: to,
            excess: n[1],
            share: Share { from, to },
        });
        let left = any::<u64>().prop_map(Duration::from_nanos);
        prop_oneof![
            Just(Views::Off),
            Just(Views::Awaited),
            Just(Views::Expired),
            (vec(view, 0..3), left).prop_map(|(views, left)| Views::valid(views, left)),
        ]
    }

    pub(crate) fn any_snapshot() -> impl Strategy<Value = Snapshot> {
        let sums = (any_who(), any::<[u64; 9]>()).prop_map(|(who, n)| Endpoint {
            who,
            listeners: n[0],
            accepted: n[1],
            open: n[2],
            closed: n[3],
            closed_by_reset: n[4],
            closed_by_abort: n[5],
            closed_by_timeout: n[6],
            bytes_in: Bytes(n[7]),
            bytes_out: Bytes(n[8]),
            drain: n[0].is_multiple_of(2).then_some(RequestedDrain {
                since: Duration::from_secs(1),
                within: Duration::from_secs(60),
            }),
        });
        let endpoints = prop::collection::btree_map(any_key(), sums, 0..5);
        let naming = prop_oneof![
            Just(Naming::Off),
            Just(Naming::Fresh),
            Just(Naming::Stale { silent: None }),
            any::<u64>().prop_map(|n| Naming::Stale {
                silent: Some(Duration::from_nanos(n))
            }),
        ];
        let connections = vec((any_connection(), option::of("[a-z0-9-]{1,63}")), 0..8);
        let facts = vec(option::weighted(0.9, any_service()), 0..4);
        (
            any::<u64>(),
            connections,
            endpoints,
            naming,
            facts,
            any_views(),
        )
            .prop_map(|(taken, connections, endpoints, naming, facts, views)| {
                let named =
                    |(c, name): &(Connection, Option<String>)| Some((c.cgroup, name.clone()?));
                Snapshot {
                    taken: KernelTime(taken),
                    services: facts_of(&endpoints, &facts),
                    containers: connections.iter().filter_map(named).collect(),
                    connections: connections.into_iter().map(|(c, _)| c).collect(),
                    endpoints,
                    naming,
                    views,
                    ..Snapshot::default()
                }
            })
    }

    pub(crate) fn any_origin() -> impl Strategy<Value = Origin> {
        (
            "\\PC{0,12}",
            0..4_000_000_000_000_000_000_i128,
            any::<bool>(),
        )
            .prop_map(|(node, at, own)| Origin {
                node,
                generated_at: jiff::Timestamp::from_nanosecond(at).unwrap(),
                source: if own { Source::ThisCall } else { Source::Agent },
            })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(origin in any_origin(), mut snapshot in any_snapshot()) {
            let text = written(&origin, &snapshot);
            let read = read_snapshot(text.as_bytes()).unwrap();
            prop_assert_eq!(&text, &written(&read.origin, &read.snapshot));
            prop_assert_eq!(read.origin, origin);
            snapshot.connections.sort_by_key(|c| (c.endpoint, c.opened, c.cookie));
            prop_assert_eq!(read.snapshot, snapshot);
        }

        #[test]
        fn yaml_says_the_same_as_json(origin in any_origin(), snapshot in any_snapshot()) {
            let mut yaml = Vec::new();
            write_connections(&mut yaml, Notation::Yaml, &snapshot, &origin, Sort::Endpoint).unwrap();
            let yaml: serde_json::Value = serde_saphyr::from_slice(&yaml).unwrap();
            let json: serde_json::Value = serde_json::from_str(&written(&origin, &snapshot)).unwrap();
            prop_assert_eq!(yaml, json);
        }

        #[test]
        fn no_text_makes_it_panic(
            origin in any_origin(), snapshot in any_snapshot(),
            at: prop::sample::Index, length in 0..20usize, new in "[\\PC\n]{0,8}|[{}\\[\\],:\"0-9e.-]{1,6}",
        ) {
            let text = written(&origin, &snapshot);
            let at = at.index(text.len());
            let bytes = [&text.as_bytes()[..at], new.as_bytes(), &text.as_bytes()[(at + length).min(text.len())..]].concat();
            if let Err(error) = read_snapshot(&bytes[..]) {
                let message = error.to_string();
                prop_assert!(!message.is_empty() && !message.contains(|c: char| c.is_control() && c != '\n'), "{:?}", message);
            }
        }
    }

    #[test]
    fn what_is_no_dump_is_refused_with_the_path_of_the_field() {
        let origin = Origin {
            node: "n".to_owned(),
            generated_at: jiff::Timestamp::UNIX_EPOCH,
            source: Source::Agent,
        };
        let key = sample::endpoint(1, 80);
        let in_cgroup = EndpointKey {
            cgroup: Some(CgroupId(5)),
            ..key
        };
        let labels = || BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let pod = Who::Pod(Arc::new(Identity {
            namespace: "shop".to_owned(),
            namespace_labels: Some(labels()),
            namespace_opted_out: true,
            pod: "web-0".to_owned(),
            uid: "u".to_owned(),
            labels: labels(),
            services: Some(vec![ServiceAt {
                ready: false,
                ..sample::service_at("checkout")
            }]),
            ..Identity::default()
        }));
        let of = |who| Endpoint {
            who,
            ..Endpoint::default()
        };
        let snapshot = Snapshot {
            taken: KernelTime(9),
            namespaces: BTreeMap::new(),
            connections: vec![Connection {
                endpoint: key,
                cgroup_path: CgroupPath::new("/a"),
                local: "10.0.0.1:80".parse().unwrap(),
                remote: "10.0.0.2:4000".parse().unwrap(),
                opened: KernelTime(1),
                bytes_in: Bytes(7),
                bytes_out: Bytes(8),
                device: 3,
                sends: Some(Sends {
                    messages: 2,
                    bytes: Bytes(8),
                }),
                ..sample::connection(0xabc)
            }],
            endpoints: BTreeMap::from([(key, of(pod)), (in_cgroup, of(Who::Unknown))]),
            naming: Naming::Fresh,
            services: BTreeMap::from([(
                sample::service("checkout"),
                Service {
                    ready: 3,
                    ready_in_zone: Some(2),
                    generation: Some(Generation(0xab)),
                    zone: Some("eu-1a".to_owned()),
                    changed: Some(Duration::from_nanos(5)),
                    lost: Some(Duration::from_nanos(7)),
                    http2: BTreeSet::from([443]),
                    addresses: Arc::new(BTreeSet::from(["10.0.0.1".parse().unwrap()])),
                    ..Service::default()
                },
            )]),
            containers: BTreeMap::from([(CgroupId(1), "nginx".to_owned())]),
            views: Views::valid(
                vec![View {
                    generation: Generation(0xab),
                    endpoints: 2,
                    share: Share::ALL,
                    ..View::default()
                }],
                Duration::from_nanos(6),
            ),
        };
        let whole = written(&origin, &snapshot);
        insta::assert_snapshot!("a_dump", whole);
        let with = |from: &str, to: &str| {
            assert!(whole.contains(from), "{from}");
            whole.replacen(from, to, 1)
        };
        let service = r#"{"namespace": "shop", "name": "checkout", "ready": 1,
            "readyHere": 1, "addresses": [], "clientIpAffinity": false, "headless": false,
            "internalLocal": false, "externalLocal": false}"#;
        let replaced = [
            ("endpoints only", "ConnectionList", "EndpointList"),
            ("a later version", "v1alpha1", "v2"),
            ("escapes", "ConnectionList", r"\u001b[31mred"),
            ("no time", "1970-01-01T00:00:00Z", "yesterday"),
            ("a field is missing", "bytesIn\": 7", "bites\": 7"),
            (
                "a field twice",
                "\"bytesIn\": 7",
                "\"bytesIn\": 7, \"bytesIn\": 7",
            ),
            ("negative", "bytesIn\": 7", "bytesIn\": -7"),
            ("a fraction", "bytesIn\": 7", "bytesIn\": 7.5"),
            (
                "beyond 64 bits",
                "bytesIn\": 7",
                "bytesIn\": 99999999999999999999",
            ),
            ("an id", "\"abc\"", "\"xyz\""),
            ("a long id", "\"abc\"", &format!("\"{}\"", "f".repeat(99))),
            ("a state", "ESTAB", "GONE"),
            ("a state by number that has a name", "ESTAB", "UNKNOWN-1"),
            ("an address", "10.0.0.2:4000", "10.0.0.2"),
            ("a port", "\"port\": 80", "\"port\": 80000"),
            (
                "deep",
                "\"bytesIn\": 7",
                &format!("\"x\": {}", "[".repeat(500)),
            ),
            ("a pod's name", "web-0", "\\u001b[31mred"),
            ("a Service's name", "\"checkout\"", "\"\\u001b[31mred\""),
            (
                "a Service twice",
                "\"services\": [",
                &format!("\"services\": [{service},"),
            ),
            ("an endpoint's address", "\"10.0.0.1\"", "\"anywhere\""),
            ("a number of endpoints", "\"ready\": 3", "\"ready\": -3"),
            ("a container's name", "nginx", ""),
            ("a state of names", "fresh", "rotten"),
        ];
        let another_kind = r#"{"apiVersion": "v1", "kind": "PodList", "items": []}"#;
        let mut cases = vec![
            ("nothing", String::new()),
            ("not JSON", "apiVersion: v1".into()),
            ("a list", "[]".into()),
            ("another kind", another_kind.into()),
        ];
        cases.extend(replaced.map(|(case, from, to)| (case, with(from, to))));
        cases.push(("more behind", format!("{whole}{whole}")));
        cases.push(("cut off", whole[..whole.len() / 2].to_owned()));
        let errors: String = cases
            .iter()
            .map(|(case, text)| match read_snapshot(text.as_bytes()) {
                Err(error) => format!("# {case}\n{error}\n\n"),
                Ok(_) => panic!("{case} was accepted"),
            })
            .collect();
        insta::assert_snapshot!(errors);
        let more = with("\"bytesIn\": 7", "\"bytesIn\": 7, \"ofLater\": [{}]");
        let read = read_snapshot(more.as_bytes()).unwrap();
        assert_eq!((read.origin, read.snapshot), (origin, snapshot));
    }
}
