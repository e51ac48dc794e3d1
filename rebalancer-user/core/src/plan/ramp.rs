//! How the budgets of a rule grow once it is enforced.
//!
//! One edit of a ConfigMap turns a whole cluster from dry run to moving, and each node has a budget
//! of its own. So a rule that was not enforced before begins with a small part of the budgets,
//! which doubles with each window.
//!
//! A part of a small budget is less than one move. What it lacks to a whole one is given by chance:
//! one node of sixty-four has its first move in the first window. Chance follows from the moment at
//! which the node began to enforce, so that the same input gives the same plan.

use std::{fmt, time::Duration};

use serde::{Serialize, Serializer};

use super::{
    Ledger,
    limits::{hash, rounded},
};
use crate::{
    policy::{Mode, Policy, Rule},
    snapshot::{Cookie, KernelTime},
};

/// Windows until the budgets are whole; each doubles them.
const DOUBLINGS: u32 = 6;

/// A rule has only a part of its budgets yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ramp {
    since: KernelTime,
    /// Doublings that are left.
    left: u32,
    /// Until it has the whole.
    pub whole_in: Duration,
}

impl Serialize for Ramp {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(self.parts())
    }
}

impl Ramp {
    /// The ramp of a rule at `now`; none if it has the whole.
    pub fn of(policy: &Policy, rule: &Rule, ledger: &Ledger, now: KernelTime) -> Option<Self> {
        if policy.mode_of(rule) != Mode::Enforce {
            return None;
        }
        let since = ledger.enforced_since(rule.name())?;
        let (window, passed) = (policy.budget().window(), now.since(since));
        let windows = passed.as_nanos() / window.as_nanos().max(1);
        let left = DOUBLINGS.saturating_sub(u32::try_from(windows).unwrap_or(u32::MAX));
        (left > 0).then(|| Self {
            since,
            left,
            whole_in: window.saturating_mul(DOUBLINGS).saturating_sub(passed),
        })
    }

    /// That of the rule that may move most; none if one has the whole.
    pub(super) fn widest(policy: &Policy, ledger: &Ledger, now: KernelTime) -> Option<Self> {
        let enforced = |rule: &&Rule| policy.mode_of(rule) == Mode::Enforce;
        let rules = policy.rules().iter().filter(enforced);
        let ramps = rules.map(|rule| Self::of(policy, rule, ledger, now));
        // None is less than any.
        ramps
            .min_by_key(|ramp| ramp.map(|ramp| ramp.left))
            .flatten()
    }

    /// One of how many parts of each budget it has.
    pub fn parts(self) -> u64 {
        1 << self.left
    }

    /// What it has of a budget.
    pub(super) fn of_budget(self, limit: u64) -> u64 {
        let rest = limit % self.parts();
        let chance = hash(Cookie(self.since.0.wrapping_add(self.left.into()))) % self.parts();
        limit / self.parts() + u64::from(chance < rest)
    }
}

impl fmt::Display for Ramp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (parts, whole_in) = (self.parts(), rounded(self.whole_in));
        write!(
            f,
            "1/{parts} of the budgets, all of them in {whole_in} (ramp)"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(since: u64, left: u32) -> Ramp {
        Ramp {
            since: KernelTime(since),
            left,
            whole_in: Duration::from_secs(90),
        }
    }

    #[test]
    fn it_doubles() {
        let of = |limit| [6, 5, 4, 3, 2, 1, 0].map(|left| ramp(0, left).of_budget(limit));
        assert_eq!(of(64), [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(of(640), [10, 20, 40, 80, 160, 320, 640]);
        assert_eq!(of(0), [0; 7]);
        assert_eq!(
            ramp(0, 5).to_string(),
            "1/32 of the budgets, all of them in 1m30s (ramp)"
        );
    }

    #[test]
    fn of_many_nodes_a_part_has_its_one_move() {
        for (left, expected) in [(6, 156), (5, 312), (1, 5000)] {
            let nodes = (0..10_000).filter(|node| ramp(*node * 7919, left).of_budget(1) == 1);
            let nodes = nodes.count();
            assert!(nodes.abs_diff(expected) < 150, "{nodes} of {expected}");
        }
    }
}
