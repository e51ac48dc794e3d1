//! From network namespaces and cgroups to kubelet's uids of pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    host::{CgroupPaths, CgroupTree, netns},
    kubernetes::cgroup::PodCgroup,
    snapshot::{CgroupId, CgroupPath, EndpointKey, Netns, Snapshot},
};

/// How often processes are looked through anew: one of another pod may have entered a namespace.
const LOOK_THROUGH: Duration = Duration::from_secs(30);
/// How soon that is done again for what was not found.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Where an endpoint was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In a pod.
    Pod(PodCgroup),
    /// In none.
    NoPod,
    /// It cannot be told.
    Unknown,
}

/// A namespace's pod, and a process that shows it.
#[derive(Debug)]
struct Found {
    place: Place,
    shown_by: u32,
}

/// What was found so far. Inodes of namespaces are used again, so each is shown anew by its
/// process whenever it is asked for; ids of cgroups are not.
#[derive(Debug)]
pub(super) struct Whereabouts {
    tree: CgroupTree,
    namespaces: BTreeMap<Netns, Found>,
    cgroups: CgroupPaths,
    looked: Option<Instant>,
}

impl Whereabouts {
    /// Of the cgroups of this hierarchy.
    pub(super) fn of_tree(tree: CgroupTree) -> Self {
        Self {
            tree,
            namespaces: BTreeMap::new(),
            cgroups: CgroupPaths::new(),
            looked: None,
        }
    }

    /// Learns where the endpoints and sockets of `snapshot` are.
    pub(super) fn learn(&mut self, snapshot: &Snapshot, now: Instant) {
        let pods = snapshot.endpoints.keys().filter(|key| key.cgroup.is_none());
        let wanted: BTreeSet<Netns> = pods.map(|key| key.netns).collect();
        self.namespaces
            .retain(|netns, found| wanted.contains(netns) && found.is_shown(*netns));
        let all_known = wanted.len() == self.namespaces.len();
        let due = if all_known { LOOK_THROUGH } else { LOOK_AGAIN };
        let is_due = |at| now.saturating_duration_since(at) >= due;
        let new = wanted
            .iter()
            .any(|netns| !self.namespaces.contains_key(netns));
        if self.looked.is_none_or(is_due) && (new || !wanted.is_empty()) {
            self.namespaces = look_through(&wanted);
            self.looked = Some(now);
        }
        let sockets = snapshot.connections.iter().map(|c| c.cgroup);
        let endpoints = snapshot.endpoints.keys().filter_map(|key| key.cgroup);
        let ids: BTreeSet<CgroupId> = sockets.chain(endpoints).collect();
        self.cgroups.retain(|id, _| ids.contains(id));
        if ids.iter().any(|id| !self.cgroups.contains_key(id)) {
            let mut paths = self.tree.read();
            let missing = ids
                .into_iter()
                .filter_map(|id| Some((id, paths.remove(&id)?)));
            self.cgroups.extend(missing);
        }
    }

    /// Where an endpoint is. `sockets` are the cgroups of its connections.
    pub(super) fn of(&self, endpoint: &EndpointKey, sockets: &BTreeSet<CgroupId>) -> Place {
        if let Some(id) = endpoint.cgroup {
            return self.of_cgroup(id);
        }
        match self.namespaces.get(&endpoint.netns) {
            Some(found) => found.place.clone(),
            // No process is left, or none can be seen: its sockets know as well.
            None => agreed(sockets.iter().map(|id| self.of_cgroup(*id))),
        }
    }

    /// Where a socket's cgroup is.
    pub(super) fn of_cgroup(&self, id: CgroupId) -> Place {
        match self.cgroups.get(&id).map(CgroupPath::as_str) {
            // At the root is also what has its cgroup in another hierarchy alone, as all pods of
            // a host with v1.
            None | Some("/") => Place::Unknown,
            Some(path) => PodCgroup::of_path(path).map_or(Place::NoPod, Place::Pod),
        }
    }
}

impl Found {
    /// Whether its process is still there, in that namespace and in that pod.
    fn is_shown(&self, netns: Netns) -> bool {
        let folder = PathBuf::from(format!("/proc/{}", self.shown_by));
        netns::inode_of(&folder) == Some(netns) && place_of(&folder).as_ref() == Some(&self.place)
    }
}

/// What they all are. Those that tell nothing are not asked.
fn agreed(places: impl Iterator<Item = Place>) -> Place {
    let known: Vec<Place> = places.filter(|place| *place != Place::Unknown).collect();
    let uid = |place: &Place| match place {
        Place::Pod(pod) => Some(pod.uid.clone()),
        Place::NoPod | Place::Unknown => None,
    };
    match &known[..] {
        [first, rest @ ..] if rest.iter().all(|place| uid(place) == uid(first)) => first.clone(),
        _ => Place::Unknown,
    }
}

/// Looks at every process of these namespaces. The node's own ones may have entered a pod's, so
/// they count only where there is no pod's.
fn look_through(wanted: &BTreeSet<Netns>) -> BTreeMap<Netns, Found> {
    let mut found: BTreeMap<Netns, Found> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let folder = entry.path();
        let Some(netns) = netns::inode_of(&folder).filter(|netns| wanted.contains(netns)) else {
            continue;
        };
        let Some(place) = place_of(&folder) else {
            continue;
        };
        let new = Found {
            place,
            shown_by: pid,
        };
        match found.get_mut(&netns) {
            None => drop(found.insert(netns, new)),
            Some(known) => match (&known.place, &new.place) {
                (Place::NoPod, Place::Pod(_)) => *known = new,
                (Place::Pod(one), Place::Pod(other)) if one.uid != other.uid => {
                    known.place = Place::Unknown;
                }
                _ => {}
            },
        }
    }
    found
}

/// `None` if the process has gone.
fn place_of(process: &Path) -> Option<Place> {
    let text = fs::read_to_string(process.join("cgroup")).ok()?;
    Some(match PodCgroup::of_process(&text) {
        Ok(Some(pod)) => Place::Pod(pod),
        Ok(None) => Place::NoPod,
        Err(_) => Place::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str) -> Place {
        Place::Pod(PodCgroup {
            uid: uid.to_owned(),
            container: None,
        })
    }

    #[test]
    fn what_disagrees_is_not_known() {
        for (places, all) in [
            (vec![], Place::Unknown),
            (vec![pod("a"), Place::Unknown, pod("a")], pod("a")),
            (vec![pod("a"), pod("b")], Place::Unknown),
            (vec![pod("a"), Place::NoPod], Place::Unknown),
            (vec![Place::NoPod, Place::NoPod], Place::NoPod),
        ] {
            assert_eq!(agreed(places.clone().into_iter()), all, "{places:?}");
        }
    }

    #[test]
    fn a_process_that_has_gone_shows_nothing() {
        let own = std::process::id();
        let folder = PathBuf::from(format!("/proc/{own}"));
        let (netns, place) = (
            netns::inode_of(&folder).unwrap(),
            place_of(&folder).unwrap(),
        );
        let found = look_through(&BTreeSet::from([netns]));
        assert!(found.contains_key(&netns));
        let shown = |netns, shown_by, place| Found { place, shown_by }.is_shown(netns);
        assert!(shown(netns, own, place.clone()));
        assert!(!shown(Netns(netns.0 ^ 1), own, place.clone()));
        assert!(!shown(netns, own, pod("another")));
        assert!(!shown(netns, u32::MAX, place));
    }
}
