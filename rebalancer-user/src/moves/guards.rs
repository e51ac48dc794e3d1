//! What is known only of the process that holds a connection, and skips it. Undetermined means skipped.
#![forbid(unsafe_code)]
#![deny(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::disallowed_macros
)]

use crate::{
    host::Facts,
    plan::Refusal,
    snapshot::{CgroupId, Netns},
};

/// The first guard that forbids to touch a socket of this network namespace and cgroup, held by
/// processes of which these are the facts. Each of them counts: any may write to it.
///
/// - `ownerUnknown`: no process was found, or none of what it is. It may be one of those below.
/// - `foreignProcess`: a process in another network namespace or cgroup than the socket's own
///   serves it on behalf of its pod (a mesh's proxy for the node, a passed descriptor), or was
///   moved to another cgroup after it had begun to listen. What its end means is not known.
/// - `sigpipe`: the process does not expect to write to a connection that has been reset, and
///   would be killed.
pub(super) fn refusal(
    owners: impl Iterator<Item = Facts> + Clone,
    netns: Netns,
    cgroup: CgroupId,
) -> Option<Refusal> {
    let mut all = owners.clone();
    stranger(owners, netns, cgroup).or_else(|| {
        all.any(|facts| facts.dies_of_sigpipe)
            .then_some(Refusal::Sigpipe)
    })
}

/// The same, without `sigpipe`: for what is done to a socket without its end.
pub(crate) fn stranger(
    owners: impl Iterator<Item = Facts> + Clone,
    netns: Netns,
    cgroup: CgroupId,
) -> Option<Refusal> {
    let mut all = owners.clone();
    if all.next().is_none() {
        return Some(Refusal::OwnerUnknown);
    }
    let mut all = owners.clone();
    if all.any(|facts| facts.netns != netns || facts.cgroup.is_some_and(|own| own != cgroup)) {
        return Some(Refusal::ForeignProcess);
    }
    let mut all = owners;
    all.any(|facts| facts.cgroup.is_none())
        .then_some(Refusal::OwnerUnknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETNS: Netns = Netns(1);
    const CGROUP: CgroupId = CgroupId(7);
    const FINE: Facts = Facts {
        netns: NETNS,
        cgroup: Some(CGROUP),
        dies_of_sigpipe: false,
    };

    fn refused(owners: &[Facts]) -> Option<Refusal> {
        refusal(owners.iter().copied(), NETNS, CGROUP)
    }

    #[test]
    fn any_owner_that_a_guard_refuses_refuses_the_move() {
        assert_eq!(refused(&[FINE]), None);
        assert_eq!(refused(&[FINE, FINE]), None);
        assert_eq!(refused(&[]), Some(Refusal::OwnerUnknown));
        type Change = fn(&mut Facts);
        let changes: [(Change, Refusal); 4] = [
            (|facts| facts.netns = Netns(2), Refusal::ForeignProcess),
            (
                |facts| facts.cgroup = Some(CgroupId(8)),
                Refusal::ForeignProcess,
            ),
            (|facts| facts.cgroup = None, Refusal::OwnerUnknown),
            (|facts| facts.dies_of_sigpipe = true, Refusal::Sigpipe),
        ];
        for (change, refusal) in changes {
            let mut other = FINE;
            change(&mut other);
            assert_eq!(refused(&[FINE, other]), Some(refusal));
        }
    }
}
