//! From objects of the API to what is kept of them.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    core::v1::{ContainerStatus, Namespace, Pod as ApiPod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Resource, ResourceExt as _, core::PartialObjectMeta, runtime::watcher::Event};

use super::cluster::{Change, Pod, Slice, SliceEndpoint};
use crate::snapshot::Labels;

const ENABLED: &str = "rebalancer.dev/enabled";
const MIRROR: &str = "kubernetes.io/config.mirror";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// An event, with what is kept of its object instead of it.
pub(super) fn change<K, T>(
    event: Event<K>,
    key: impl Fn(&K) -> Option<String>,
    keep: impl Fn(K) -> Option<T>,
) -> Option<Change<T>> {
    Some(match event {
        Event::Init => Change::Begin,
        Event::InitApply(object) => Change::Listed(key(&object)?, keep(object)),
        Event::InitDone => Change::Done,
        Event::Apply(object) => Change::Set(key(&object)?, keep(object)),
        Event::Delete(object) => Change::Removed(key(&object)?),
    })
}

/// An object's name and, if it has one, its namespace.
pub(super) fn name<K: Resource>(object: &K) -> Option<String> {
    let meta = object.meta();
    let name = meta.name.as_deref()?;
    Some(match meta.namespace.as_deref() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    })
}

/// A pod's uid: another of the same name is another pod.
pub(super) fn uid(pod: &ApiPod) -> Option<String> {
    pod.uid()
}

pub(super) fn pod(mut pod: ApiPod) -> Option<Pod> {
    let status = pod.status.take().unwrap_or_default();
    let conditions = status.conditions.iter().flatten();
    let statuses = [
        status.container_statuses,
        status.init_container_statuses,
        status.ephemeral_container_statuses,
    ];
    Some(Pod {
        namespace: pod.namespace()?,
        name: pod.metadata.name.clone()?,
        ready: conditions
            .into_iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        opted_out: opted_out(pod.annotations()),
        mirror_of: pod.annotations().get(MIRROR).cloned(),
        containers: statuses
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(container)
            .collect(),
        labels: pod.metadata.labels.take().unwrap_or_default(),
    })
}

/// The runtime's id, without the runtime's name in front, and the container's name.
fn container(status: ContainerStatus) -> Option<(String, String)> {
    let (_, id) = status.container_id.as_deref()?.split_once("://")?;
    Some((id.to_owned(), status.name.clone()))
}

pub(super) fn labels(mut namespace: PartialObjectMeta<Namespace>) -> Option<Labels> {
    Some(namespace.metadata.labels.take().unwrap_or_default())
}

/// A Service is kept only if it asks to be left alone.
pub(super) fn opt_out(service: PartialObjectMeta<Service>) -> Option<()> {
    opted_out(service.annotations()).then_some(())
}

fn opted_out(annotations: &BTreeMap<String, String>) -> bool {
    annotations
        .get(ENABLED)
        .is_some_and(|value| value == "false")
}

/// A slice is kept only if it has endpoints of this node.
pub(super) fn slice(node: &str, slice: EndpointSlice) -> Option<Slice> {
    let service = slice.labels().get(SERVICE_NAME)?.clone();
    let namespace = slice.namespace()?;
    let of_node = |name: &Option<String>| name.as_deref().is_none_or(|name| name == node);
    let mut endpoints = BTreeMap::new();
    for endpoint in slice.endpoints.into_iter().flatten() {
        let Some(uid) = endpoint.target_ref.and_then(|target| target.uid) else {
            continue; // not a pod
        };
        if of_node(&endpoint.node_name) {
            let conditions = endpoint.conditions.unwrap_or_default();
            let at = SliceEndpoint {
                ready: conditions.ready.unwrap_or(true), // as the API documents it
                terminating: conditions.terminating.unwrap_or(false),
            };
            endpoints.insert(uid, at);
        }
    }
    let tcp = |protocol: &Option<String>| protocol.as_deref().is_none_or(|p| p == "TCP");
    let ports = slice.ports.into_iter().flatten();
    (!endpoints.is_empty()).then(|| Slice {
        namespace,
        service,
        ports: ports
            .filter(|port| tcp(&port.protocol))
            .map(|port| port.port.and_then(|port| u16::try_from(port).ok()))
            .collect(),
        endpoints,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn what_is_used_of_a_pod_is_kept() {
        let object = json!({
            "metadata": {
                "name": "web-0", "namespace": "shop", "uid": "u1",
                "labels": {"app": "web"},
                "annotations": {"rebalancer.dev/enabled": "false", "kubernetes.io/config.mirror": "hash"},
                "deletionTimestamp": "2026-01-02T03:04:05Z"
            },
            "spec": {"containers": [{"name": "nginx"}], "nodeName": "n1"},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "False"}],
                "containerStatuses": [{"name": "nginx", "containerID": "containerd://abc", "image": "", "imageID": "",
                                       "ready": true, "restartCount": 0}],
                "initContainerStatuses": [{"name": "init", "image": "", "imageID": "", "ready": true, "restartCount": 0}]
            }
        });
        let object: ApiPod = from_value(object).unwrap();
        assert_eq!(uid(&object).as_deref(), Some("u1"));
        let kept = pod(object).unwrap();
        let map = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        assert_eq!(
            kept,
            Pod {
                namespace: "shop".to_owned(),
                name: "web-0".to_owned(),
                labels: map("app", "web"),
                ready: true,
                terminating: true,
                opted_out: true,
                mirror_of: Some("hash".to_owned()),
                containers: map("abc", "nginx"),
            }
        );
        let bare = json!({"metadata": {"name": "a", "namespace": "b"}});
        let kept = pod(from_value(bare).unwrap()).unwrap();
        assert!(!kept.ready && !kept.terminating && !kept.opted_out);
    }

    #[test]
    fn only_the_word_false_opts_out() {
        for (value, out) in [
            ("false", true),
            ("False", false),
            ("no", false),
            ("true", false),
        ] {
            let annotations = BTreeMap::from([(ENABLED.to_owned(), value.to_owned())]);
            assert_eq!(opted_out(&annotations), out, "{value}");
        }
    }

    #[test]
    fn of_a_slice_this_nodes_endpoints_are_kept() {
        let at = |node: &str, uid: &str, conditions: serde_json::Value| {
            json!({"addresses": ["10.0.0.1"], "nodeName": node, "conditions": conditions,
                   "targetRef": {"kind": "Pod", "uid": uid}})
        };
        let object = json!({
            "metadata": {"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "endpoints": [
                at("n1", "a", json!({"ready": true})), at("n2", "b", json!({"ready": true})),
                at("n1", "c", json!({"ready": false, "terminating": true})), at("n1", "d", json!({})),
                {"addresses": ["10.0.0.9"]}
            ],
            "ports": [{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}, {"port": 81}]
        });
        let object: EndpointSlice = from_value(object).unwrap();
        let kept = slice("n1", object.clone()).unwrap();
        assert_eq!(kept.ports, [Some(80), Some(81)]);
        let found: Vec<_> = kept
            .endpoints
            .iter()
            .map(|(uid, at)| (uid.as_str(), at.ready, at.terminating))
            .collect();
        assert_eq!(
            found,
            [("a", true, false), ("c", false, true), ("d", true, false)]
        );
        assert_eq!(slice("n3", object), None);
    }
}
