//! Dumps of connections and endpoints: exact numbers, and all that a decision needs.
//!
//! Connections are read back by [`super::read_snapshot`].

use std::{
    io::{self, Write},
    net::SocketAddr,
};

use serde::{Deserialize, Serialize};

use super::{
    envelope::{Notation, Origin, nanoseconds, write_observed},
    naming::{NamingItem, PodItem, container, service_names, who_item},
    order::{Sort, rate, sorted},
    service_facts::{ServiceFacts, service_facts},
};
use crate::snapshot::{Connection, Endpoint, EndpointKey, Snapshot, TcpState};

pub(super) const CONNECTIONS: &str = "ConnectionList";

#[derive(Serialize)]
struct Connections<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    names: Option<NamingItem>,
    /// Those that lead to endpoints of this node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services: Vec<ServiceFacts>,
    endpoints: Vec<EndpointItem>,
    items: Vec<ConnectionItem<'a>>,
}

#[derive(Serialize)]
struct Endpoints {
    #[serde(skip_serializing_if = "Option::is_none")]
    names: Option<NamingItem>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services: Vec<ServiceFacts>,
    items: Vec<EndpointItem>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointRef {
    pub(super) netns: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cgroup: Option<u64>,
    pub(super) port: u16,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConnectionItem<'a> {
    /// The socket's cookie in hexadecimal, as `ss -e` shows it behind `sk:`.
    pub(super) id: String,
    /// For people; follows from the endpoint's `pod`.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
    #[serde(skip_deserializing, skip_serializing_if = "Vec::is_empty")]
    services: Vec<&'a str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) container: Option<String>,
    pub(super) endpoint: EndpointRef,
    pub(super) cgroup: u64,
    /// Left out where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cgroup_path: Option<String>,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) device: u32,
    pub(super) state: String,
    pub(super) mptcp: bool,
    pub(super) adopted: bool,
    pub(super) opened_nanoseconds: u64,
    /// For people; follows from `openedNanoseconds`.
    #[serde(skip_deserializing)]
    age_seconds: f64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    /// For people; follows from age and bytes.
    #[serde(skip_deserializing)]
    bytes_per_second: Option<u64>,
    pub(super) receive_queue: u32,
    pub(super) send_queue: u32,
    pub(super) server_spoke_last: bool,
    pub(super) since_sent_nanoseconds: u64,
    pub(super) since_received_nanoseconds: u64,
    pub(super) segments_in: u32,
    pub(super) segments_out: u32,
    pub(super) retransmits: u32,
    pub(super) rtt_microseconds: u64,
    /// Null on connections whose sends are not counted.
    pub(super) sends: Option<SendsItem>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SendsItem {
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointItem {
    pub(super) netns: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cgroup: Option<u64>,
    pub(super) port: u16,
    pub(super) listeners: u64,
    pub(super) accepted: u64,
    pub(super) open: u64,
    pub(super) closed: u64,
    pub(super) closed_by_reset: u64,
    pub(super) closed_by_abort: u64,
    pub(super) closed_by_timeout: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pod: Option<PodItem>,
    /// It may be a pod's, and of which is not known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) pod_unknown: bool,
}

/// Every connection, and beside them the endpoints' sums, so that a replay sees the whole node.
pub fn write_connections(
    out: &mut impl Write,
    notation: Notation,
    snapshot: &Snapshot,
    origin: &Origin,
    sort: Sort,
) -> io::Result<()> {
    let items = sorted(snapshot, sort)
        .into_iter()
        .map(|c| connection(c, snapshot))
        .collect();
    let endpoints = endpoint_items(snapshot);
    let body = Connections {
        names: NamingItem::of(snapshot.naming),
        services: service_facts(snapshot),
        endpoints,
        items,
    };
    write_observed(out, notation, CONNECTIONS, snapshot.taken, origin, body)
}

/// Every endpoint.
pub fn write_endpoints(
    out: &mut impl Write,
    notation: Notation,
    snapshot: &Snapshot,
    origin: &Origin,
) -> io::Result<()> {
    let items = endpoint_items(snapshot);
    let names = NamingItem::of(snapshot.naming);
    let services = service_facts(snapshot);
    let body = Endpoints {
        names,
        services,
        items,
    };
    write_observed(out, notation, "EndpointList", snapshot.taken, origin, body)
}

pub(super) fn endpoint_ref(key: &EndpointKey) -> EndpointRef {
    EndpointRef {
        netns: key.netns.0,
        cgroup: key.cgroup.map(|id| id.0),
        port: key.port,
    }
}

fn connection<'a>(c: &Connection, snapshot: &'a Snapshot) -> ConnectionItem<'a> {
    let pod = snapshot.who(&c.endpoint).pod();
    ConnectionItem {
        id: c.cookie.to_string(),
        namespace: pod.map(|pod| pod.namespace.as_str()),
        pod: pod.map(|pod| pod.pod.as_str()),
        services: pod.map(service_names).unwrap_or_default(),
        container: container(c, snapshot).map(str::to_owned),
        endpoint: endpoint_ref(&c.endpoint),
        cgroup: c.cgroup.0,
        cgroup_path: c.cgroup_path.as_ref().map(|path| path.as_str().to_owned()),
        local: c.local,
        peer: c.remote,
        device: c.device,
        state: state_name(c.state),
        mptcp: c.mptcp,
        adopted: c.adopted,
        opened_nanoseconds: c.opened.0,
        age_seconds: snapshot.taken.since(c.opened).as_secs_f64(),
        bytes_in: c.bytes_in.0,
        bytes_out: c.bytes_out.0,
        bytes_per_second: rate(c, snapshot),
        receive_queue: c.receive_queue,
        send_queue: c.send_queue,
        server_spoke_last: c.server_spoke_last,
        since_sent_nanoseconds: nanoseconds(c.since_sent),
        since_received_nanoseconds: nanoseconds(c.since_received),
        segments_in: c.segments_in,
        segments_out: c.segments_out,
        retransmits: c.retransmits,
        rtt_microseconds: u64::try_from(c.rtt.as_micros()).unwrap_or(u64::MAX),
        sends: c.sends.map(|sends| SendsItem {
            messages: sends.messages,
            bytes: sends.bytes.0,
        }),
    }
}

/// A state's name; one that has none by its number.
pub(crate) fn state_name(state: TcpState) -> String {
    match state {
        TcpState::Other(number) if state.name() == "UNKNOWN" => format!("UNKNOWN-{number}"),
        known => known.name().to_owned(),
    }
}

fn endpoint_items(snapshot: &Snapshot) -> Vec<EndpointItem> {
    let item = |(key, e): (&EndpointKey, &Endpoint)| {
        let (pod, pod_unknown) = who_item(&e.who);
        EndpointItem {
            netns: key.netns.0,
            cgroup: key.cgroup.map(|id| id.0),
            port: key.port,
            listeners: e.listeners,
            accepted: e.accepted,
            open: e.open,
            closed: e.closed,
            closed_by_reset: e.closed_by_reset,
            closed_by_abort: e.closed_by_abort,
            closed_by_timeout: e.closed_by_timeout,
            bytes_in: e.bytes_in.0,
            bytes_out: e.bytes_out.0,
            pod,
            pod_unknown,
        }
    };
    snapshot.endpoints.iter().map(item).collect()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}
