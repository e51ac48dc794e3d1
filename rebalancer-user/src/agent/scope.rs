//! Which sockets are recorded, from the policy: the kernel half is told cgroups by their ids, and
//! what the policy's globs mean by them is found out here.

use std::collections::BTreeSet;

use crate::{
    bpf::{CgroupPaths, Tracking},
    policy::{CgroupGlobs, Policy},
    snapshot::{CgroupId, CgroupPath},
};

/// What a policy wants recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Scope {
    excludes: CgroupGlobs,
}

impl Scope {
    pub(super) fn of(policy: &Policy) -> Self {
        let excludes = policy.track().exclude_cgroups().clone();
        Self { excludes }
    }

    /// The cgroups that the kernel half shall exclude, of those that are there; `None` if it need
    /// not look.
    pub(super) fn excluded(&self, paths: &CgroupPaths) -> Option<BTreeSet<CgroupId>> {
        let is_excluded = |(_, path): &(&CgroupId, &CgroupPath)| self.excludes.name(path);
        let excluded = || paths.iter().filter(is_excluded).map(|(id, _)| *id);
        (!self.excludes.is_empty()).then(|| excluded().collect())
    }

    /// Whether the kernel half shall have a record of a socket there. Of one in an unknown cgroup it
    /// has.
    pub(super) fn covers(&self, cgroup: Option<&CgroupPath>) -> bool {
        !cgroup.is_some_and(|path| self.excludes.name(path))
    }

    /// This scope as the kernel half is told it.
    pub(super) fn tracking(&self, policy: &Policy, paths: &CgroupPaths) -> Tracking {
        let track = policy.track();
        Tracking {
            loopback: track.loopback(),
            max_per_endpoint: track.max_per_endpoint().get(),
            max_per_node: track.max_per_node().get(),
            excluded: self.excluded(paths),
        }
    }
}
