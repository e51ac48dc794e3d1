//! The pod behind an endpoint, as the API server describes it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::wire;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Whether names of pods and Services are known, and how recent they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum Naming {
    /// Names are not read: a plain host. A dump leaves this out.
    #[default]
    #[serde(skip)]
    Off,
    /// The API server's current state.
    Fresh,
    /// The last known state.
    Stale {
        /// The API server has not answered for this long; `None`: it never has.
        #[serde(
            default,
            rename = "silentNanoseconds",
            skip_serializing_if = "Option::is_none",
            with = "wire::optional_nanoseconds"
        )]
        silent: Option<Duration>,
    },
}

impl Naming {
    /// Whether names are not read.
    pub fn is_off(&self) -> bool {
        *self == Self::Off
    }
}

/// The pod that an endpoint belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Who {
    /// No pod, or names are not read.
    #[default]
    NoPod,
    /// Unknown: a pod that the API server does not list on this node, or none was found.
    Unknown,
    /// This pod.
    Pod(Arc<Identity>),
}

impl Who {
    /// The pod, if it is known.
    pub fn pod(&self) -> Option<&Identity> {
        match self {
            Self::Pod(identity) => Some(identity),
            Self::NoPod | Self::Unknown => None,
        }
    }
}

/// A pod at one of its ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// The pod's namespace.
    #[serde(deserialize_with = "wire::name")]
    pub namespace: String,
    /// The namespace's labels; `None` if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_labels: Option<Labels>,
    /// The namespace is known to opt out.
    #[serde(default, skip_serializing_if = "wire::is_default")]
    pub namespace_opted_out: bool,
    /// The pod's name.
    #[serde(rename = "name", deserialize_with = "wire::name")]
    pub pod: String,
    /// The pod's uid.
    #[serde(deserialize_with = "wire::name")]
    pub uid: String,
    /// The pod's labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The Services that target this port, all in the pod's namespace; `None` if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<Vec<ServiceAt>>,
    /// The pod is ready.
    pub ready: bool,
    /// The pod is being deleted.
    pub terminating: bool,
    /// How much time it has then, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<Ending>,
    /// The Services that targeted this port until lately and do so no longer, though the pod lives.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed_from: Vec<RemovedFrom>,
    /// The pod opts out.
    pub opted_out: bool,
}

impl Identity {
    /// The pod as `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.pod)
    }
}

/// How a pod that is being deleted comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ending {
    /// The time since it was deleted.
    #[serde(rename = "sinceNanoseconds", with = "wire::nanoseconds")]
    pub since: Duration,
    /// The time from then until the last of its containers is asked to stop, as far as its spec says: what
    /// `preStop` takes.
    #[serde(rename = "stopsAfterNanoseconds", with = "wire::nanoseconds")]
    pub stops_after: Duration,
}

/// A Service of which a pod is no endpoint any more.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RemovedFrom {
    /// The Service; the pod is not ready there.
    #[serde(flatten)]
    pub service: ServiceAt,
    /// The time since it was removed.
    #[serde(rename = "sinceNanoseconds", with = "wire::nanoseconds")]
    pub since: Duration,
}

/// A Service at one of its endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAt {
    /// Its name.
    #[serde(deserialize_with = "wire::name")]
    pub name: String,
    /// Whether this endpoint receives new connections.
    pub ready: bool,
    /// The time since it does so no longer; `None` if it does, or was never seen to.
    #[serde(
        default,
        rename = "sinceReadyNanoseconds",
        skip_serializing_if = "Option::is_none",
        with = "wire::optional_nanoseconds"
    )]
    pub unready: Option<Duration>,
    /// Whether this endpoint is being removed.
    pub terminating: bool,
    /// The Service opts out.
    pub opted_out: bool,
}
