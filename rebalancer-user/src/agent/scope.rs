//! Which sockets are recorded, from the policy: the kernel half knows cgroups by their ids, and this
//! module resolves the policy's globs to ids.

use std::collections::BTreeSet;

use crate::{
    bpf::Tracking,
    host::CgroupPaths,
    policy::Track,
    snapshot::{CgroupId, CgroupPath},
};

/// The cgroups that the kernel half shall exclude, of those that are there; `None` if it need not
/// look.
pub(super) fn excluded(track: &Track, paths: &CgroupPaths) -> Option<BTreeSet<CgroupId>> {
    let globs = track.exclude_cgroups();
    let is_excluded = |(_, path): &(&CgroupId, &CgroupPath)| globs.matches(path);
    let excluded = || paths.iter().filter(is_excluded).map(|(id, _)| *id);
    (!globs.is_empty()).then(|| excluded().collect())
}

/// Whether the kernel half shall have a record of a socket there. Of one in an unknown cgroup it has.
pub(super) fn covers(track: &Track, cgroup: Option<&CgroupPath>) -> bool {
    !cgroup.is_some_and(|path| track.exclude_cgroups().matches(path))
}

/// The settings of the kernel half: what it records.
pub(super) fn tracking(track: &Track, paths: &CgroupPaths) -> Tracking {
    Tracking {
        loopback: track.loopback(),
        max_per_endpoint: track.max_per_endpoint().get(),
        max_per_node: track.max_per_node().get(),
        excluded: excluded(track, paths),
    }
}
