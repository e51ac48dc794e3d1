//! Names of pods in JSON, and from there.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::envelope::nanoseconds;
use crate::snapshot::{Connection, Identity, Labels, Naming, ServiceAt, Snapshot, Who};

/// Whether there are names, in JSON.
#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub(super) enum NamingItem {
    /// As the API server has them.
    Fresh,
    /// As it had them.
    Stale {
        #[serde(
            default,
            rename = "silentNanoseconds",
            skip_serializing_if = "Option::is_none"
        )]
        silent: Option<u64>,
    },
}

impl NamingItem {
    pub(super) fn of(naming: Naming) -> Option<Self> {
        match naming {
            Naming::Off => None,
            Naming::Fresh => Some(Self::Fresh),
            Naming::Stale(silent) => Some(Self::Stale {
                silent: silent.map(nanoseconds),
            }),
        }
    }

    pub(super) fn read(item: Option<Self>) -> Naming {
        match item {
            None => Naming::Off,
            Some(Self::Fresh) => Naming::Fresh,
            Some(Self::Stale { silent }) => Naming::Stale(silent.map(Duration::from_nanos)),
        }
    }
}

/// A pod at one of its ports, in JSON.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodItem {
    namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace_labels: Option<Labels>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    namespace_opted_out: bool,
    name: String,
    uid: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: Labels,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    services: Option<Vec<ServiceItem>>,
    ready: bool,
    terminating: bool,
    opted_out: bool,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceItem {
    name: String,
    ready: bool,
    terminating: bool,
    opted_out: bool,
}

/// Whose an endpoint is, in JSON: the pod, or that it is not known, or neither.
pub(super) fn who_item(who: &Who) -> (Option<PodItem>, bool) {
    let pod = who.pod().map(|pod| PodItem {
        namespace: pod.namespace.clone(),
        namespace_labels: pod.namespace_labels.clone(),
        namespace_opted_out: pod.namespace_opted_out,
        name: pod.pod.clone(),
        uid: pod.uid.clone(),
        labels: pod.labels.clone(),
        services: pod.services.as_ref().map(|services| {
            let item = |at: &ServiceAt| ServiceItem {
                name: at.name.clone(),
                ready: at.ready,
                terminating: at.terminating,
                opted_out: at.opted_out,
            };
            services.iter().map(item).collect()
        }),
        ready: pod.ready,
        terminating: pod.terminating,
        opted_out: pod.opted_out,
    });
    (pod, *who == Who::Unknown)
}

/// Back from JSON.
///
/// # Errors
/// The field that is no name, and what stands there: a name reaches terminals and logs.
pub(super) fn who(pod: Option<&PodItem>, unknown: bool) -> Result<Who, (&'static str, String)> {
    let Some(item) = pod else {
        return Ok(if unknown { Who::Unknown } else { Who::NoPod });
    };
    let services = item.services.iter().flatten();
    let names = [
        ("namespace", &item.namespace),
        ("name", &item.name),
        ("uid", &item.uid),
    ];
    let named = services.map(|service| ("services.name", &service.name));
    if let Some((field, text)) = names.into_iter().chain(named).find(|(_, n)| !is_name(n)) {
        return Err((field, text.clone()));
    }
    Ok(Who::Pod(Arc::new(Identity {
        namespace: item.namespace.clone(),
        namespace_labels: item.namespace_labels.clone(),
        namespace_opted_out: item.namespace_opted_out,
        pod: item.name.clone(),
        uid: item.uid.clone(),
        labels: item.labels.clone(),
        services: item.services.as_ref().map(|services| {
            let at = |item: &ServiceItem| ServiceAt {
                name: item.name.clone(),
                ready: item.ready,
                terminating: item.terminating,
                opted_out: item.opted_out,
            };
            services.iter().map(at).collect()
        }),
        ready: item.ready,
        terminating: item.terminating,
        opted_out: item.opted_out,
    })))
}

/// What an object of Kubernetes can be called.
pub(super) fn is_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=253).contains(&text.len()) && text.bytes().all(inner)
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
