//! Reads a dump of connections back: a snapshot of another time or node.

use std::{collections::BTreeMap, io::Read, net::SocketAddr, time::Duration};

use serde::Deserialize;

use super::{
    dump::{CONNECTIONS, ConnectionItem, EndpointItem, EndpointRef},
    envelope::{Origin, Source},
    naming::{NamingItem, is_name, who},
    parse::{ReadError, check_kind, parse, quoted, read_all},
    service_facts::{self, Fault, ServiceFacts},
};
use crate::snapshot::{
    Bytes, CgroupId, CgroupPath, Connection, Cookie, Endpoint, EndpointKey, KernelTime, Netns,
    Sends, Snapshot, TcpState, Who,
};

const NAME: &str = "a name: up to 253 of a-z, A-Z, 0-9, `-`, `_` and `.`";

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
    taken_nanoseconds: u64,
    #[serde(default)]
    names: Option<NamingItem>,
    #[serde(default)]
    services: Vec<ServiceFacts>,
    endpoints: Vec<EndpointItem>,
    items: Vec<ConnectionItem<'static>>,
}

/// Reads a dump of connections.
///
/// # Errors
/// Why it is none, with the path of the field.
pub fn read_snapshot(from: impl Read) -> Result<Dumped, ReadError> {
    let text = read_all(from)?;
    check_kind(&text, CONNECTIONS)?;
    let dump: Dump = parse(&text)?;
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
    let mut endpoints = BTreeMap::new();
    for (index, item) in dump.endpoints.iter().enumerate() {
        let (key, mut sums) = endpoint(item);
        sums.who =
            who(item.pod.as_ref(), item.pod_unknown).map_err(|(field, text)| ReadError::Value {
                path: format!("endpoints[{index}].pod.{field}"),
                value: quoted(&text),
                expected: NAME,
            })?;
        if endpoints.insert(key, sums).is_some() {
            return Err(ReadError::Value {
                path: format!("endpoints[{index}]"),
                value: format!("port {} of namespace {}", key.port, key.netns.0),
                expected: "a new endpoint: it was listed before",
            });
        }
    }
    let services = service_facts::read(dump.services).map_err(|(index, fault)| match fault {
        Fault::NoName(field, text) => ReadError::Value {
            path: format!("services[{index}].{field}"),
            value: quoted(&text),
            expected: NAME,
        },
        Fault::Again(name) => ReadError::Value {
            path: format!("services[{index}]"),
            value: name.to_string(),
            expected: "a new Service: it was listed before",
        },
    })?;
    let mut containers = BTreeMap::new();
    for (index, item) in dump.items.iter().enumerate() {
        let Some(container) = &item.container else {
            continue;
        };
        if !is_name(container) {
            return Err(ReadError::Value {
                path: format!("items[{index}].container"),
                value: quoted(container),
                expected: NAME,
            });
        }
        containers.insert(CgroupId(item.cgroup), container.clone());
    }
    let connections: Result<_, ReadError> = dump
        .items
        .iter()
        .enumerate()
        .map(|(index, item)| connection(index, item))
        .collect();
    let snapshot = Snapshot {
        taken: KernelTime(dump.taken_nanoseconds),
        connections: connections?,
        endpoints,
        naming: NamingItem::read(dump.names),
        services,
        containers,
        // One listing: there is none before it whose namespaces could be others.
        namespaces: BTreeMap::new(),
    };
    Ok(Dumped { origin, snapshot })
}

fn endpoint(item: &EndpointItem) -> (EndpointKey, Endpoint) {
    let key = EndpointKey {
        netns: Netns(item.netns),
        cgroup: item.cgroup.map(CgroupId),
        port: item.port,
    };
    let sums = Endpoint {
        who: Who::default(),
        listeners: item.listeners,
        accepted: item.accepted,
        open: item.open,
        closed: item.closed,
        closed_by_reset: item.closed_by_reset,
        closed_by_abort: item.closed_by_abort,
        closed_by_timeout: item.closed_by_timeout,
        bytes_in: Bytes(item.bytes_in),
        bytes_out: Bytes(item.bytes_out),
    };
    (key, sums)
}

fn connection(index: usize, item: &ConnectionItem<'_>) -> Result<Connection, ReadError> {
    let value = |field: &str, text: &str, expected| ReadError::Value {
        path: format!("items[{index}].{field}"),
        value: quoted(text),
        expected,
    };
    let id = || value("id", &item.id, "a socket's cookie in hexadecimal");
    let path = |text: &str| {
        CgroupPath::new(text)
            .ok_or_else(|| value("cgroupPath", text, "a path that begins with `/`"))
    };
    let state = || value("state", &item.state, "a TCP state as `ss` names it");
    let EndpointRef {
        netns,
        cgroup,
        port,
    } = item.endpoint;
    Ok(Connection {
        cookie: item.id.parse::<Cookie>().map_err(|_| id())?,
        endpoint: EndpointKey {
            netns: Netns(netns),
            cgroup: cgroup.map(CgroupId),
            port,
        },
        cgroup: CgroupId(item.cgroup),
        cgroup_path: item.cgroup_path.as_deref().map(path).transpose()?,
        local: address(item.local),
        remote: address(item.peer),
        device: item.device,
        opened: KernelTime(item.opened_nanoseconds),
        adopted: item.adopted,
        state: read_state(&item.state).ok_or_else(state)?,
        mptcp: item.mptcp,
        bytes_in: Bytes(item.bytes_in),
        bytes_out: Bytes(item.bytes_out),
        receive_queue: item.receive_queue,
        send_queue: item.send_queue,
        server_spoke_last: item.server_spoke_last,
        since_sent: Duration::from_nanos(item.since_sent_nanoseconds),
        since_received: Duration::from_nanos(item.since_received_nanoseconds),
        segments_in: item.segments_in,
        segments_out: item.segments_out,
        retransmits: item.retransmits,
        rtt: Duration::from_micros(item.rtt_microseconds),
        sends: item.sends.as_ref().map(|sends| Sends {
            messages: sends.messages,
            bytes: Bytes(sends.bytes),
        }),
    })
}

/// IPv4-mapped addresses are shown as what they are, IPv4.
fn address(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip.is_ipv4() => SocketAddr::new(ip, address.port()),
        _ => address,
    }
}

fn read_state(name: &str) -> Option<TcpState> {
    TcpState::from_name(name).or_else(|| {
        let number = name.strip_prefix("UNKNOWN-")?.parse().ok()?;
        Some(TcpState::from_kernel(number)).filter(|state| state.name() == "UNKNOWN")
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        collections::BTreeSet,
        net::{IpAddr, SocketAddrV6},
        sync::Arc,
    };

    use proptest::{
        collection::{btree_map, vec},
        option,
        prelude::*,
    };

    use super::*;
    use crate::{
        api::{Notation, Sort, write_connections},
        snapshot::{Identity, Naming, Service, ServiceAt, ServiceName, sample},
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
                addresses: Arc::new(addresses.into_iter().collect()),
                client_ip_affinity: bools[0],
                headless: bools[1],
                internal_local: bools[2],
                external_local: bools[3],
                changed,
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
        });
        let endpoints = prop::collection::btree_map(any_key(), sums, 0..5);
        let naming = prop_oneof![
            Just(Naming::Off),
            Just(Naming::Fresh),
            Just(Naming::Stale(None)),
            any::<u64>().prop_map(|n| Naming::Stale(Some(Duration::from_nanos(n)))),
        ];
        let connections = vec((any_connection(), option::of("[a-z0-9-]{1,63}")), 0..8);
        let facts = vec(option::weighted(0.9, any_service()), 0..4);
        (any::<u64>(), connections, endpoints, naming, facts).prop_map(
            |(taken, connections, endpoints, naming, facts)| {
                let named =
                    |(c, name): &(Connection, Option<String>)| Some((c.cgroup, name.clone()?));
                Snapshot {
                    taken: KernelTime(taken),
                    services: facts_of(&endpoints, &facts),
                    containers: connections.iter().filter_map(named).collect(),
                    connections: connections.into_iter().map(|(c, _)| c).collect(),
                    endpoints,
                    naming,
                    ..Snapshot::default()
                }
            },
        )
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
        let key = EndpointKey {
            netns: Netns(1),
            cgroup: None,
            port: 80,
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
                ..sample::connection(0xabc)
            }],
            endpoints: BTreeMap::from([(
                key,
                Endpoint {
                    who: Who::Pod(Arc::new(Identity {
                        namespace: "shop".to_owned(),
                        pod: "web-0".to_owned(),
                        uid: "u".to_owned(),
                        ..Identity::default()
                    })),
                    ..Endpoint::default()
                },
            )]),
            naming: Naming::Fresh,
            services: BTreeMap::from([(
                ServiceName {
                    namespace: "shop".to_owned(),
                    name: "checkout".to_owned(),
                },
                Service {
                    ready: 3,
                    addresses: Arc::new(BTreeSet::from(["10.0.0.1".parse().unwrap()])),
                    ..Service::default()
                },
            )]),
            containers: BTreeMap::from([(CgroupId(1), "nginx".to_owned())]),
        };
        let whole = written(&origin, &snapshot);
        insta::assert_snapshot!("a_dump", whole);
        let with = |from: &str, to: &str| {
            assert!(whole.contains(from), "{from}");
            whole.replacen(from, to, 1)
        };
        let cases = [
            ("nothing", String::new()),
            ("not JSON", "apiVersion: v1".into()),
            ("a list", "[]".into()),
            (
                "another kind",
                r#"{"apiVersion": "v1", "kind": "PodList", "items": []}"#.into(),
            ),
            ("endpoints only", with("ConnectionList", "EndpointList")),
            ("a later version", with("v1alpha1", "v2")),
            ("escapes", with("ConnectionList", r"\u001b[31mred")),
            ("no time", with("1970-01-01T00:00:00Z", "yesterday")),
            ("a field is missing", with("bytesIn\": 7", "bites\": 7")),
            (
                "a field twice",
                with("\"bytesIn\": 7", "\"bytesIn\": 7, \"bytesIn\": 7"),
            ),
            ("negative", with("bytesIn\": 7", "bytesIn\": -7")),
            ("a fraction", with("bytesIn\": 7", "bytesIn\": 7.5")),
            (
                "beyond 64 bits",
                with("bytesIn\": 7", "bytesIn\": 99999999999999999999"),
            ),
            ("an id", with("\"abc\"", "\"xyz\"")),
            (
                "a long id",
                with("\"abc\"", &format!("\"{}\"", "f".repeat(99))),
            ),
            ("a state", with("ESTAB", "GONE")),
            (
                "a state by number that has a name",
                with("ESTAB", "UNKNOWN-1"),
            ),
            ("an address", with("10.0.0.2:4000", "10.0.0.2")),
            ("a port", with("\"port\": 80", "\"port\": 80000")),
            (
                "deep",
                with("\"bytesIn\": 7", &format!("\"x\": {}", "[".repeat(500))),
            ),
            ("a pod's name", with("web-0", "\\u001b[31mred")),
            ("a Service's name", with("\"checkout\"", "\"\\u001b[31mred\"")),
            (
                "a Service twice",
                with(
                    "\"services\": [",
                    "\"services\": [{\"namespace\": \"shop\", \"name\": \"checkout\", \"ready\": 1,
                     \"readyHere\": 1, \"addresses\": [], \"clientIpAffinity\": false, \"headless\": false,
                     \"internalLocal\": false, \"externalLocal\": false},",
                ),
            ),
            ("an endpoint's address", with("\"10.0.0.1\"", "\"anywhere\"")),
            ("a number of endpoints", with("\"ready\": 3", "\"ready\": -3")),
            ("a container's name", with("nginx", "")),
            ("a state of names", with("fresh", "rotten")),
            ("more behind", format!("{whole}{whole}")),
            ("cut off", whole[..whole.len() / 2].to_owned()),
        ];
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
