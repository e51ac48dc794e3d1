//! Facts of Services: for people, and in JSON, from where they are read back.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{json::nanoseconds, names::is_name, table::age};
use crate::snapshot::{Service, ServiceName, Snapshot};

/// A Service, in JSON.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceFacts {
    namespace: String,
    name: String,
    ready: u32,
    ready_here: u32,
    /// Left out unless the Service keeps traffic to zones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ready_in_zone: Option<u32>,
    addresses: Vec<IpAddr>,
    client_ip_affinity: bool,
    headless: bool,
    internal_local: bool,
    external_local: bool,
    /// Left out if its ready endpoints were never seen to change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since_changed_nanoseconds: Option<u64>,
    /// Ports of its pods.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    http2: BTreeSet<u16>,
}

/// All of a snapshot, by name.
pub(super) fn service_facts(snapshot: &Snapshot) -> Vec<ServiceFacts> {
    let item = |(name, service): (&ServiceName, &Service)| ServiceFacts {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        ready: service.ready,
        ready_here: service.ready_here,
        ready_in_zone: service.ready_in_zone,
        addresses: service.addresses.iter().copied().collect(),
        client_ip_affinity: service.client_ip_affinity,
        headless: service.headless,
        internal_local: service.internal_local,
        external_local: service.external_local,
        since_changed_nanoseconds: service.changed.map(nanoseconds),
        http2: service.http2.clone(),
    };
    snapshot.services.iter().map(item).collect()
}

/// Reappearance from JSON.
///
/// # Errors
/// The index and the field that is no name, or that names a Service again; and what stands there.
pub(super) fn read(
    items: Vec<ServiceFacts>,
) -> Result<BTreeMap<ServiceName, Service>, (usize, Fault)> {
    let mut services = BTreeMap::new();
    for (index, item) in items.into_iter().enumerate() {
        let names = [("namespace", &item.namespace), ("name", &item.name)];
        if let Some((field, text)) = names.into_iter().find(|(_, text)| !is_name(text)) {
            return Err((index, Fault::NoName(field, text.clone())));
        }
        let name = ServiceName {
            namespace: item.namespace,
            name: item.name,
        };
        let addresses = item.addresses.iter().map(IpAddr::to_canonical).collect();
        let service = Service {
            ready: item.ready,
            ready_here: item.ready_here,
            ready_in_zone: item.ready_in_zone,
            addresses: Arc::new(addresses),
            client_ip_affinity: item.client_ip_affinity,
            headless: item.headless,
            internal_local: item.internal_local,
            external_local: item.external_local,
            changed: item.since_changed_nanoseconds.map(Duration::from_nanos),
            http2: item.http2,
        };
        if services.contains_key(&name) {
            return Err((index, Fault::Again(name)));
        }
        services.insert(name, service);
    }
    Ok(services)
}

/// What is wrong with a Service in JSON.
pub(super) enum Fault {
    /// This field has this text.
    NoName(&'static str, String),
    /// It was listed before.
    Again(ServiceName),
}

/// What is known of a Service, as a phrase.
pub(super) fn described(service: &Service) -> String {
    let plural = |n: u32| if n == 1 { "endpoint" } else { "endpoints" };
    let mut parts = vec![format!(
        "{} ready {}, {} on this node",
        service.ready,
        plural(service.ready),
        service.ready_here
    )];
    parts.extend(service.ready_in_zone.map(|n| format!("{n} near it")));
    for (holds, words) in [
        (service.headless, "headless"),
        (service.client_ip_affinity, "sessionAffinity ClientIP"),
        (service.internal_local, "internalTrafficPolicy Local"),
        (service.external_local, "externalTrafficPolicy Local"),
    ] {
        parts.extend(holds.then(|| words.to_owned()));
    }
    let changed = service
        .changed
        .map(|since| format!("changed {} ago", age(since)));
    parts.extend(changed);
    if !service.http2.is_empty() {
        let ports: Vec<String> = service.http2.iter().map(u16::to_string).collect();
        parts.push(format!("HTTP/2 on {}", ports.join(" and ")));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_reads_as_a_phrase() {
        let plain = Service {
            ready: 1,
            ready_here: 1,
            ..Service::default()
        };
        assert_eq!(described(&plain), "1 ready endpoint, 1 on this node");
        let all = Service {
            ready: 9,
            ready_in_zone: Some(3),
            client_ip_affinity: true,
            headless: true,
            internal_local: true,
            external_local: true,
            changed: Some(Duration::from_secs(90)),
            http2: BTreeSet::from([80, 8080]),
            ..plain
        };
        assert_eq!(
            described(&all),
            "9 ready endpoints, 1 on this node, 3 near it, headless, sessionAffinity ClientIP, \
             internalTrafficPolicy Local, externalTrafficPolicy Local, changed 90s ago, HTTP/2 on \
             80 and 8080"
        );
    }
}
