//! From objects of the API to what is kept of them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerStatus, Namespace, Pod as ApiPod};
use kube::{Resource, ResourceExt as _, core::PartialObjectMeta, runtime::watcher::Event};

use super::cluster::{Change, Pod};
use crate::snapshot::Labels;

const ENABLED: &str = "rebalancer.dev/enabled";
const MIRROR: &str = "kubernetes.io/config.mirror";

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

/// Whether an object asks to be left alone.
pub(super) fn opted_out(annotations: &BTreeMap<String, String>) -> bool {
    annotations
        .get(ENABLED)
        .is_some_and(|value| value == "false")
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
}
