//! Facts of Services in JSON, and from there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{envelope::nanoseconds, naming::is_name};
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

/// Back from JSON.
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
