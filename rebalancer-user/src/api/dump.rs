//! Dumps of connections and endpoints: exact numbers, and all that a decision needs.
//!
//! Connections are read back by [`super::read_snapshot`].

use std::io::{self, Write};

use serde::Serialize;

use super::{
    envelope::{Notation, Origin, write_observed},
    order::{Sort, rate, sorted},
};
use crate::{
    snapshot::{
        Connection, Endpoint, EndpointKey, Identity, Naming, Service, ServiceName, Snapshot, Who,
    },
    views::Views,
};

pub(super) const CONNECTIONS: &str = "ConnectionList";

#[derive(Serialize)]
struct List<'a, T> {
    #[serde(skip_serializing_if = "Naming::is_off")]
    names: Naming,
    /// Those that lead to endpoints of this node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services: Vec<ServiceItem<'a>>,
    /// What is known of those that have endpoints on other nodes too.
    #[serde(skip_serializing_if = "Views::is_off")]
    views: &'a Views,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoints: Option<Vec<EndpointItem<'a>>>,
    items: Vec<T>,
}

impl<'a, T> List<'a, T> {
    fn of(snapshot: &'a Snapshot, endpoints: Option<Vec<EndpointItem<'a>>>, items: Vec<T>) -> Self {
        let services = snapshot.services.iter();
        Self {
            names: snapshot.naming,
            services: services
                .map(|(name, service)| ServiceItem { name, service })
                .collect(),
            views: &snapshot.views,
            endpoints,
            items,
        }
    }
}

#[derive(Serialize)]
struct ServiceItem<'a> {
    #[serde(flatten)]
    name: &'a ServiceName,
    #[serde(flatten)]
    service: &'a Service,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConnectionItem<'a> {
    #[serde(flatten)]
    connection: &'a Connection,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<&'a str>,
    /// For people, as all below; follows from the endpoint's `pod`.
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services: Vec<&'a str>,
    /// Follows from `openedNanoseconds`.
    age_seconds: f64,
    /// Follows from age and bytes.
    bytes_per_second: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointItem<'a> {
    #[serde(flatten)]
    key: &'a EndpointKey,
    #[serde(flatten)]
    counters: &'a Endpoint,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a Identity>,
    /// It may be a pod's, and of which is not known.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pod_unknown: bool,
}

/// Every connection, and beside them the endpoints' counters, so that a replay sees the whole node.
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
    let body = List::of(snapshot, Some(endpoints(snapshot)), items);
    write_observed(out, notation, CONNECTIONS, snapshot.taken, origin, body)
}

/// Every endpoint.
pub fn write_endpoints(
    out: &mut impl Write,
    notation: Notation,
    snapshot: &Snapshot,
    origin: &Origin,
) -> io::Result<()> {
    let body = List::of(snapshot, None, endpoints(snapshot));
    write_observed(out, notation, "EndpointList", snapshot.taken, origin, body)
}

fn connection<'a>(connection: &'a Connection, snapshot: &'a Snapshot) -> ConnectionItem<'a> {
    let pod = snapshot.who(&connection.endpoint).pod();
    ConnectionItem {
        connection,
        container: container(connection, snapshot),
        namespace: pod.map(|pod| pod.namespace.as_str()),
        pod: pod.map(|pod| pod.pod.as_str()),
        services: pod.map(service_names).unwrap_or_default(),
        age_seconds: snapshot.taken.since(connection.opened).as_secs_f64(),
        bytes_per_second: rate(connection, snapshot),
    }
}

fn endpoints(snapshot: &Snapshot) -> Vec<EndpointItem<'_>> {
    let endpoints = snapshot.endpoints.iter();
    endpoints
        .map(|(key, counters)| EndpointItem {
            key,
            counters,
            pod: counters.who.pod(),
            pod_unknown: counters.who == Who::Unknown,
        })
        .collect()
}

/// The Services that lead to this port.
pub(crate) fn service_names(pod: &Identity) -> Vec<&str> {
    let services = pod.services.iter().flatten();
    services.map(|service| service.name.as_str()).collect()
}

/// The container of a connection's socket.
pub(crate) fn container<'a>(connection: &Connection, snapshot: &'a Snapshot) -> Option<&'a str> {
    let container = snapshot.containers.get(&connection.cgroup);
    container.map(String::as_str)
}
