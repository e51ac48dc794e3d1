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
    snapshot::{CgroupId, CgroupPath, EndpointKey, Netns, NetnsCookie, Snapshot},
};

/// How often all processes are scanned again: one of another pod may have entered a namespace.
const LOOK_THROUGH: Duration = Duration::from_secs(30);
/// How soon they are scanned again for a namespace that was not found.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Scans before a namespace counts as one without processes.
const TRIES: u8 = 3;

/// Where an endpoint was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In a pod.
    Pod(PodCgroup),
    /// In none.
    NoPod,
    /// The evidence is missing or contradictory.
    Unknown,
}

/// A namespace's pod, and a process that shows it.
#[derive(Debug)]
struct Found {
    place: Place,
    shown_by: u32,
}

/// What was found so far. The kernel reuses inodes of namespaces, so each use checks the namespace of
/// the process that showed it; it does not reuse ids of cgroups.
#[derive(Debug)]
pub(super) struct PodLookup {
    tree: CgroupTree,
    namespaces: BTreeMap<Netns, Found>,
    /// Namespaces of which no process was found, and how often they were looked for.
    empty: BTreeMap<(Netns, Option<NetnsCookie>), u8>,
    cgroups: CgroupPaths,
    /// Cgroups that are not in the tree: they were removed, as ids are not used again.
    gone: BTreeSet<CgroupId>,
    looked: Option<Instant>,
}

impl PodLookup {
    /// Of the cgroups of this hierarchy.
    pub(super) fn of_tree(tree: CgroupTree) -> Self {
        Self {
            tree,
            namespaces: BTreeMap::new(),
            empty: BTreeMap::new(),
            cgroups: CgroupPaths::new(),
            gone: BTreeSet::new(),
            looked: None,
        }
    }

    /// Learns where the endpoints and sockets of `snapshot` are.
    pub(super) fn learn(&mut self, snapshot: &Snapshot, now: Instant) {
        let pods = snapshot.endpoints.keys().filter(|key| key.cgroup.is_none());
        let wanted: BTreeSet<Netns> = pods.map(|key| key.netns).collect();
        self.namespaces
            .retain(|netns, found| wanted.contains(netns) && found.is_shown(*netns));
        if self.is_due(&wanted, snapshot, now) {
            self.namespaces = look_through(&wanted);
            self.looked = Some(now);
            let missing = wanted
                .iter()
                .filter(|netns| !self.namespaces.contains_key(netns));
            let tried = |netns: &Netns| {
                let key = generation(*netns, snapshot);
                let before = self.empty.get(&key).copied().unwrap_or(0);
                (key, before.saturating_add(1))
            };
            self.empty = missing.map(tried).collect();
        }
        let sockets = snapshot.connections.iter().map(|c| c.cgroup);
        let endpoints = snapshot.endpoints.keys().filter_map(|key| key.cgroup);
        let ids: BTreeSet<CgroupId> = sockets.chain(endpoints).collect();
        self.learn_cgroups(ids, |tree| tree.read());
    }

    fn is_due(&self, wanted: &BTreeSet<Netns>, snapshot: &Snapshot, now: Instant) -> bool {
        let is_new = |netns: &Netns| {
            let tries = self.empty.get(&generation(*netns, snapshot));
            !self.namespaces.contains_key(netns) && tries.is_none_or(|tries| *tries < TRIES)
        };
        let due = if wanted.iter().any(is_new) {
            LOOK_AGAIN
        } else {
            LOOK_THROUGH
        };
        let is_due = |at| now.saturating_duration_since(at) >= due;
        !wanted.is_empty() && self.looked.is_none_or(is_due)
    }

    fn learn_cgroups(
        &mut self,
        ids: BTreeSet<CgroupId>,
        read: impl FnOnce(&CgroupTree) -> CgroupPaths,
    ) {
        self.cgroups.retain(|id, _| ids.contains(id));
        self.gone.retain(|id| ids.contains(id));
        let is_new = |id: &CgroupId| !self.cgroups.contains_key(id) && !self.gone.contains(id);
        let new: Vec<CgroupId> = ids.into_iter().filter(is_new).collect();
        if new.is_empty() {
            return;
        }
        let mut paths = read(&self.tree);
        for id in new {
            match paths.remove(&id) {
                Some(path) => drop(self.cgroups.insert(id, path)),
                None => drop(self.gone.insert(id)),
            }
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

/// A namespace, and which of those that had its inode in turn.
fn generation(netns: Netns, snapshot: &Snapshot) -> (Netns, Option<NetnsCookie>) {
    (netns, snapshot.namespaces.get(&netns).copied())
}

/// The place on which all agree. Unknown places are ignored.
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

/// `None` if the process has exited.
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
    fn a_process_that_has_exited_shows_nothing() {
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

    fn lookup() -> PodLookup {
        PodLookup::of_tree(CgroupTree::find(None).unwrap())
    }

    #[test]
    fn a_removed_cgroup_is_looked_for_once() {
        let mut lookup = lookup();
        let mut reads = 0;
        let gone = BTreeSet::from([CgroupId(u64::MAX)]);
        for _ in 0..5 {
            lookup.learn_cgroups(gone.clone(), |tree| {
                reads += 1;
                tree.read()
            });
        }
        assert_eq!(reads, 1);
        assert_eq!(lookup.of_cgroup(CgroupId(u64::MAX)), Place::Unknown);
        lookup.learn_cgroups(BTreeSet::new(), |_| unreachable!());
        assert!(lookup.gone.is_empty(), "its connections have ended");
    }

    #[test]
    fn a_namespace_without_processes_is_looked_for_often_only_at_first() {
        let mut lookup = lookup();
        let key = crate::snapshot::sample::endpoint(1, 80);
        let mut snapshot = Snapshot {
            endpoints: [(key, Default::default())].into(),
            ..Snapshot::default()
        };
        let start = Instant::now();
        let mut looks = |snapshot: &Snapshot, seconds| {
            let now = start + Duration::from_secs(seconds);
            lookup.learn(snapshot, now);
            lookup.looked == Some(now)
        };
        let at: Vec<u64> = (0..60).filter(|at| looks(&snapshot, *at)).collect();
        assert_eq!(at, [0, 5, 10, 40]);
        snapshot.namespaces.insert(Netns(1), NetnsCookie(7));
        assert!(looks(&snapshot, 60), "another one, with the same inode");
    }
}
