//! Names: from the API server's objects to whose each endpoint of a snapshot is, and facts of the
//! Services that lead there.
//!
//! An endpoint's network namespace leads to a process, its cgroup to the pod's uid, and that, if
//! the API server has such a pod on this node, to its names. Whatever is not certain stays
//! [`Who::Unknown`](crate::snapshot::Who::Unknown). Nothing else needs names: a plain host has none,
//! and every decision is made from a [`Snapshot`] however it was named. Whether this is a plain host
//! is asked here too, of the cgroups of its processes.

mod cgroup;
#[cfg(feature = "kubernetes")]
mod cluster;
#[cfg(feature = "kubernetes")]
mod connect;
#[cfg(feature = "kubernetes")]
mod event_recorder;
mod node;
#[cfg(feature = "kubernetes")]
mod objects;
#[cfg(feature = "kubernetes")]
mod pod_lookup;
#[cfg(feature = "kubernetes")]
mod services;
#[cfg(feature = "kubernetes")]
mod slices;
#[cfg(all(test, feature = "kubernetes"))]
mod tests;
#[cfg(feature = "kubernetes")]
mod watch;

use std::path::PathBuf;
#[cfg(feature = "kubernetes")]
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

#[cfg(feature = "kubernetes")]
use self::{
    cluster::Cluster,
    pod_lookup::{Place, Whereabouts},
};
use crate::snapshot::Snapshot;
#[cfg(feature = "kubernetes")]
use crate::snapshot::{CgroupId, EndpointKey, Who};

#[cfg(feature = "kubernetes")]
pub use connect::Names;
#[cfg(feature = "kubernetes")]
pub use event_recorder::{Announcer, announce_once};
pub use node::process_in_pod;

/// Whether the API server is asked for names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ask {
    /// If a kubeconfig is given, or this is a pod with a token.
    #[default]
    Auto,
    /// Yes, and it is an error if that is not possible.
    On,
    /// No.
    Off,
}

/// How to ask the API server.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Whether to.
    pub ask: Ask,
    /// Instead of a pod's own token.
    pub kubeconfig: Option<PathBuf>,
    /// What the API server calls this node.
    pub node: Option<String>,
}

#[cfg(feature = "kubernetes")]
/// Puts names to the endpoints of `snapshot`.
fn name(snapshot: &mut Snapshot, cluster: &Cluster, at: &mut Whereabouts, now: Instant) {
    at.learn(snapshot, now);
    snapshot.naming = cluster.naming(now);
    snapshot.services = cluster.facts(now);
    let mut sockets: BTreeMap<EndpointKey, BTreeSet<CgroupId>> = BTreeMap::new();
    for connection in &snapshot.connections {
        let of_endpoint = sockets.entry(connection.endpoint).or_default();
        of_endpoint.insert(connection.cgroup);
    }
    let none = BTreeSet::new();
    for (key, endpoint) in &mut snapshot.endpoints {
        endpoint.who = match at.of(key, sockets.get(key).unwrap_or(&none)) {
            Place::NoPod => Who::NoPod,
            Place::Unknown => Who::Unknown,
            Place::Pod(pod) => {
                let identity = cluster.identify(&pod.uid, key.port);
                identity.map_or(Who::Unknown, |identity| Who::Pod(Arc::new(identity)))
            }
        };
    }
    let all: BTreeSet<CgroupId> = sockets.into_values().flatten().collect();
    let container = |id: &CgroupId| match at.of_cgroup(*id) {
        Place::Pod(pod) => {
            let (_, of_api) = cluster.pod(&pod.uid)?;
            of_api.containers.get(&pod.container?).cloned()
        }
        Place::NoPod | Place::Unknown => None,
    };
    snapshot.containers = all
        .into_iter()
        .filter_map(|id| Some((id, container(&id)?)))
        .collect();
}

/// A pod, as an Event names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodAt {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, if it is known: without it `kubectl describe` does not show the Event.
    pub uid: Option<String>,
}

/// What an Event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The pod that it is about; the agent's own, if `None`.
    pub about: Option<PodAt>,
    /// A word, as Kubernetes writes it.
    pub reason: &'static str,
    /// What was done, or tried.
    pub action: &'static str,
    /// For people.
    pub note: String,
    /// Whether somebody should look.
    pub warning: bool,
}

/// Events that nobody can write: this program was built without Kubernetes.
#[cfg(not(feature = "kubernetes"))]
#[derive(Debug)]
pub enum Announcer {}

#[cfg(not(feature = "kubernetes"))]
impl Announcer {
    /// As the other: nobody to tell.
    ///
    /// # Errors
    /// Never.
    pub async fn connect(_: &Access, _: Option<PodAt>) -> anyhow::Result<Option<Self>> {
        Ok(None)
    }

    /// Never called.
    pub fn event_recorder(&self, _: Notice) {
        match *self {}
    }
}

/// As the other: nobody to tell.
///
/// # Errors
/// Never.
#[cfg(not(feature = "kubernetes"))]
pub async fn announce_once(_: &Access, _: PodAt, _: Notice) -> anyhow::Result<()> {
    Ok(())
}

/// Names that nobody can know: this program was built without Kubernetes.
#[cfg(not(feature = "kubernetes"))]
#[derive(Debug)]
pub enum Names {}

#[cfg(not(feature = "kubernetes"))]
impl Names {
    /// As the other: nothing to ask.
    ///
    /// # Errors
    /// If it must be asked.
    pub async fn connect(
        access: &Access,
        _: Option<&std::path::Path>,
        _: std::time::Duration,
    ) -> anyhow::Result<Option<Self>> {
        if access.ask == Ask::On || access.kubeconfig.is_some() {
            anyhow::bail!("this program was built without Kubernetes (feature `kubernetes`)");
        }
        Ok(None)
    }

    /// Never called.
    ///
    /// # Errors
    /// Never.
    pub fn stabilization_window(&mut self, _: std::time::Duration) -> anyhow::Result<()> {
        match *self {}
    }

    /// Never called.
    pub async fn listed(&self, _: std::time::Duration) -> bool {
        match *self {}
    }

    /// Never called.
    pub fn name(&mut self, _: &mut Snapshot) {
        match *self {}
    }

    /// Never called.
    pub fn age(&self) -> Option<std::time::Duration> {
        match *self {}
    }

    /// Never called.
    pub fn counts(&self) -> [usize; 3] {
        match *self {}
    }
}
