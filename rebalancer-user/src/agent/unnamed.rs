//! Pods where nobody is asked for names: what skips their connections is not known.

use std::collections::BTreeSet;

use crate::{
    kubernetes::{self, Ask},
    snapshot::{CgroupId, EndpointKey, Netns, NetnsCookie, Snapshot},
};

/// Looks out for pods on what should be a plain host.
pub(super) struct Unnamed {
    process_in_pod: fn() -> Option<String>,
    /// Where the endpoints are that were there when processes were last looked through.
    seen: BTreeSet<(Netns, Option<NetnsCookie>, Option<CgroupId>)>,
}

impl Unnamed {
    /// `None` where names are followed, and where an operator has disabled that.
    pub(super) fn unless(named: bool, ask: Ask) -> Option<Self> {
        (!named && ask == Ask::Auto).then_some(Self {
            process_in_pod: kubernetes::process_in_pod,
            seen: BTreeSet::new(),
        })
    }

    /// The cgroups of a process in a pod, if there is one now.
    pub(super) fn look(&self) -> Option<String> {
        (self.process_in_pod)()
    }

    /// The same, looked for only if `snapshot` has endpoints where there were none: a pod that
    /// came meanwhile listens there.
    pub(super) fn look_at_new(&mut self, snapshot: &Snapshot) -> Option<String> {
        let endpoints = snapshot.endpoints.keys();
        let place = |key: &EndpointKey| {
            let namespace = snapshot.namespaces.get(&key.netns).copied();
            (key.netns, namespace, key.cgroup)
        };
        let now: BTreeSet<_> = endpoints.map(place).collect();
        let is_new = !now.is_subset(&self.seen);
        self.seen = now;
        if is_new { self.look() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::sample;

    fn at(places: &[u32]) -> Snapshot {
        let of_place = |netns: &u32| (sample::endpoint(*netns, 80), Default::default());
        Snapshot {
            endpoints: places.iter().map(of_place).collect(),
            ..Snapshot::default()
        }
    }

    #[test]
    fn pods_are_searched_for_only_without_an_explicit_choice() {
        assert!(Unnamed::unless(false, Ask::Auto).is_some());
        for (named, ask) in [(true, Ask::Auto), (true, Ask::On), (false, Ask::Off)] {
            assert!(Unnamed::unless(named, ask).is_none(), "{named} {ask:?}");
        }
    }

    #[test]
    fn a_pod_that_comes_later_is_seen_by_where_it_listens() {
        let mut unnamed = Unnamed {
            process_in_pod: || Some("0::/kubepods/pod1".to_owned()),
            seen: BTreeSet::new(),
        };
        let mut looks = |places: &[u32]| unnamed.look_at_new(&at(places)).is_some();
        assert!(!looks(&[]));
        assert!(looks(&[1]));
        assert!(!looks(&[1]), "it was looked for");
        assert!(looks(&[1, 2]));
        assert!(!looks(&[2]));
        assert!(looks(&[1, 2]), "the same inode, perhaps another namespace");
        let mut another = at(&[1, 2]);
        another.namespaces.insert(Netns(2), NetnsCookie(7));
        assert!(unnamed.look_at_new(&another).is_some());
    }
}
