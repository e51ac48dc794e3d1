//! Puts names to the endpoints of a snapshot.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use super::{
    cluster::Cluster,
    pod_lookup::{Place, PodLookup},
};
use crate::snapshot::{CgroupId, EndpointKey, Snapshot, Who};

/// Puts names to the endpoints of `snapshot`.
pub(super) fn name(snapshot: &mut Snapshot, cluster: &Cluster, at: &mut PodLookup, now: Instant) {
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
                let identity = cluster.identify(&pod.uid, key.port, now);
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
