//! From objects of the API to what is kept of them: no more than is used. Pure.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Container, ContainerStatus, Namespace as ApiNamespace, Pod as ApiPod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Resource, ResourceExt as _, core::PartialObjectMeta, runtime::watcher::Event};

use super::store::Change;
use crate::snapshot::Labels;

/// A pod of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) labels: Labels,
    pub(super) ready: bool,
    /// It is being deleted.
    pub(super) deletion: Option<Deletion>,
    pub(super) opted_out: bool,
    /// What kubelet calls a static pod, whose mirror this is.
    pub(super) mirror_of: Option<String>,
    /// Containers' names, by the runtime's id.
    pub(super) containers: BTreeMap<String, String>,
}

/// How a pod is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deletion {
    /// When that was asked for, by the API server's clock.
    pub(super) asked: Timestamp,
    /// From then until the last of its containers is asked to stop.
    pub(super) stops_after: Duration,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Namespace {
    pub(super) labels: Labels,
    pub(super) opted_out: bool,
    /// Why it pauses the agents in it, if it does.
    pub(super) paused: Option<String>,
}

/// The longest reason of a pause that is kept, in characters.
const LONGEST_PAUSE_REASON: usize = 256;

const ENABLED: &str = "rebalancer.dev/enabled";
const PAUSED: &str = "rebalancer.dev/paused";
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
        deletion: deletion(&pod),
        opted_out: opted_out(&pod.metadata),
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

/// The timestamp of a deletion is when the grace period is over. A container is asked to stop as soon as its
/// hook has ended, which only a `sleep` says before; any other hook may last until then.
fn deletion(pod: &ApiPod) -> Option<Deletion> {
    let over = pod.metadata.deletion_timestamp.as_ref()?.0;
    let seconds = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let grace = pod.metadata.deletion_grace_period_seconds;
    let grace = grace.map_or(Duration::ZERO, seconds);
    let hook = |container: &Container| {
        let hook = container.lifecycle.as_ref()?.pre_stop.as_ref()?;
        Some(match &hook.sleep {
            Some(sleep) => seconds(sleep.seconds),
            None => grace,
        })
    };
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let longest = containers.filter_map(hook).max().unwrap_or_default();
    Some(Deletion {
        asked: over.checked_sub(grace).unwrap_or(over),
        stops_after: longest.min(grace),
    })
}

/// The runtime's id, without the runtime's name in front, and the container's name.
fn container(status: ContainerStatus) -> Option<(String, String)> {
    let (_, id) = status.container_id.as_deref()?.split_once("://")?;
    Some((id.to_owned(), status.name.clone()))
}

pub(super) fn namespace(mut object: PartialObjectMeta<ApiNamespace>) -> Option<Namespace> {
    Some(Namespace {
        opted_out: opted_out(&object.metadata),
        paused: paused(&object.metadata),
        labels: object.metadata.labels.take().unwrap_or_default(),
    })
}

/// Why a namespace pauses its agents, by an annotation or a label. Any value but `"false"` does, so that
/// a reason can be given.
fn paused(meta: &ObjectMeta) -> Option<String> {
    let value = values(meta, PAUSED).find(|value| *value != "false")?;
    Some(value.chars().take(LONGEST_PAUSE_REASON).collect())
}

/// Whether an object opts out, by an annotation or a label. Any value but `"true"` does, because an author
/// of `"False"` or `"no"` means the same.
pub(super) fn opted_out(meta: &ObjectMeta) -> bool {
    values(meta, ENABLED).any(|value| value != "true")
}

/// The values of this annotation and of this label.
fn values<'a>(meta: &'a ObjectMeta, name: &'a str) -> impl Iterator<Item = &'a str> {
    let maps = [&meta.annotations, &meta.labels].into_iter().flatten();
    maps.filter_map(move |map| map.get(name).map(String::as_str))
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
                "deletionTimestamp": "2026-01-02T03:04:35Z", "deletionGracePeriodSeconds": 30
            },
            "spec": {"containers": [
                {"name": "nginx", "lifecycle": {"preStop": {"sleep": {"seconds": 15}}}}, {"name": "sidecar"}
            ], "nodeName": "n1"},
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
                deletion: Some(Deletion {
                    asked: "2026-01-02T03:04:05Z".parse().unwrap(),
                    stops_after: Duration::from_secs(15),
                }),
                opted_out: true,
                mirror_of: Some("hash".to_owned()),
                containers: map("abc", "nginx"),
            }
        );
        let bare = json!({"metadata": {"name": "a", "namespace": "b"}});
        let kept = pod(from_value(bare).unwrap()).unwrap();
        assert!(!kept.ready && kept.deletion.is_none() && !kept.opted_out);
    }

    /// A hook that does not say how long it takes may take the whole grace period; none takes no time.
    #[test]
    fn a_pod_stops_once_the_longest_hook_has_ended() {
        let stops_after = |containers: serde_json::Value| {
            let object = json!({
                "metadata": {
                    "name": "a", "namespace": "b",
                    "deletionTimestamp": "2026-01-02T03:04:35Z", "deletionGracePeriodSeconds": 30
                },
                "spec": {"containers": containers}
            });
            let pod = pod(from_value(object).unwrap()).unwrap();
            pod.deletion.unwrap().stops_after.as_secs()
        };
        let hook = |hook| json!({"name": "c", "lifecycle": {"preStop": hook}});
        let sleep = |seconds: i64| hook(json!({"sleep": {"seconds": seconds}}));
        assert_eq!(stops_after(json!([{"name": "c"}])), 0);
        assert_eq!(stops_after(json!([sleep(5), sleep(15), {"name": "d"}])), 15);
        assert_eq!(stops_after(json!([sleep(90)])), 30);
        assert_eq!(stops_after(json!([sleep(-1)])), 0);
        assert_eq!(
            stops_after(json!([hook(json!({"exec": {"command": ["drain"]}}))])),
            30
        );
    }

    #[test]
    fn all_but_the_word_true_opts_out_by_annotation_and_by_label() {
        for (value, out) in [
            ("true", false),
            ("false", true),
            ("False", true),
            ("no", true),
            ("0", true),
            ("", true),
            ("True", true),
            (" true", true),
        ] {
            for field in ["annotations", "labels"] {
                let meta = json!({"name": "a", "namespace": "b", field: {ENABLED: value}});
                let meta: ObjectMeta = from_value(meta).unwrap();
                assert_eq!(opted_out(&meta), out, "{field} {value:?}");
            }
        }
        let both = json!({"annotations": {ENABLED: "true"}, "labels": {ENABLED: "false"}});
        assert!(opted_out(&from_value(both).unwrap()));
        assert!(!opted_out(&ObjectMeta::default()));
    }

    #[test]
    fn all_but_the_word_false_pauses_by_annotation_and_by_label() {
        for (value, reason) in [
            ("true", Some("true")),
            ("an incident", Some("an incident")),
            ("", Some("")),
            ("False", Some("False")),
            ("false", None),
        ] {
            for field in ["annotations", "labels"] {
                let meta = json!({"name": "rebalancer", field: {PAUSED: value}});
                let meta: ObjectMeta = from_value(meta).unwrap();
                assert_eq!(paused(&meta).as_deref(), reason, "{field} {value:?}");
            }
        }
        let long = json!({"annotations": {PAUSED: "ö".repeat(1000)}});
        let long = paused(&from_value(long).unwrap()).unwrap();
        assert_eq!(long.chars().count(), LONGEST_PAUSE_REASON);
        assert_eq!(paused(&ObjectMeta::default()), None);
    }

    #[test]
    fn what_is_used_of_a_namespace_is_kept() {
        let object =
            json!({"metadata": {"name": "shop", "labels": {"team": "shop", ENABLED: "off"}}});
        let kept = namespace(from_value(object).unwrap()).unwrap();
        assert!(kept.opted_out && kept.labels["team"] == "shop");
        let bare = namespace(from_value(json!({"metadata": {"name": "shop"}})).unwrap());
        assert_eq!(bare, Some(Namespace::default()));
    }
}
