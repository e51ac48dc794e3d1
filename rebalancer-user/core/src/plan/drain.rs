//! Which connections of a pod that is being deleted leave it before it stops.
//!
//! A pod is deleted some time before its containers are asked to stop, if `preStop` takes some. Within that
//! time new connections go elsewhere already, and the old ones are moved, evenly spread over what is left of
//! it: some are quiet only now and then, and a server that takes all clients over at once is hot.

use std::{collections::BTreeMap, time::Duration};

use super::{Reason, SkipReason};
use crate::{
    policy::{DrainOn, Rule, RuleName},
    snapshot::{Ending, EndpointKey, Identity, Who},
};

/// Until every node sends new connections elsewhere, as a rule.
const UNTIL_KNOWN: Duration = Duration::from_secs(1);
/// What is left of the time for those that are under way: whoever has not left by then will not.
pub const DRAIN_MARGIN: Duration = Duration::from_secs(2);
/// Less than this is no time to find quiet moments in.
const LEAST: Duration = Duration::from_secs(5);
/// The time between two passes while an endpoint is drained.
pub const DRAIN_PASS: Duration = Duration::from_secs(1);

/// How the drain of an endpoint stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drained {
    /// The endpoint.
    pub endpoint: EndpointKey,
    /// Its pod, as `namespace/name`.
    pub pod: String,
    /// The rule that drains it.
    pub rule: RuleName,
    /// Until its containers are asked to stop.
    pub left: Duration,
    /// The connections that it still has, by the word of why they are skipped now; `chosen` are those that this
    /// plan moves, as far as slots are free.
    pub connections: BTreeMap<&'static str, u64>,
}

impl Drained {
    /// How many connections it still has.
    pub fn count(&self) -> u64 {
        self.connections.values().sum()
    }
}

/// An endpoint that is drained.
#[derive(Clone, Copy)]
pub(super) struct Draining {
    since: Duration,
    stops_after: Duration,
}

impl Draining {
    /// Whether `rule` drains what `who` has accepted now.
    pub(super) fn of(rule: &Rule, who: &Who) -> Option<Self> {
        let Ending { since, stops_after } = ending(rule, who.pod()?)?;
        (stops_after >= LEAST).then_some(Self { since, stops_after })
    }

    /// Until its containers are asked to stop.
    pub(super) fn left(self) -> Duration {
        self.stops_after.saturating_sub(self.since)
    }

    /// Why its connections leave.
    pub(super) fn reason(self) -> Reason {
        Reason::Drain { left: self.left() }
    }

    /// How many of this many connections may begin to leave in one pass.
    pub(super) fn quota(self, connections: usize) -> usize {
        if self.since < UNTIL_KNOWN {
            return 0;
        }
        let left = self.left().saturating_sub(DRAIN_MARGIN).max(DRAIN_PASS);
        let passes = left.as_nanos() / DRAIN_PASS.as_nanos();
        connections.div_ceil(usize::try_from(passes).unwrap_or(usize::MAX).max(1))
    }
}

/// The pod is being deleted, and its rule wants it to be empty then.
fn ending(rule: &Rule, pod: &Identity) -> Option<Ending> {
    let drains = rule.drain()?.on().contains(&DrainOn::Terminating);
    pod.ending.filter(|_| drains && pod.terminating)
}

/// Why a rule that drains leaves the connections of a pod that is being deleted.
pub(super) fn no_time(rule: &Rule, pod: &Identity) -> Option<SkipReason> {
    let Ending { stops_after, .. } = ending(rule, pod)?;
    (stops_after < LEAST).then(|| SkipReason::NoTimeToDrain {
        pod: pod.full_name().into(),
        stops_after,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_connections_are_spread_over_the_time_that_is_left() {
        let mut left = 100;
        let mut began = Vec::new();
        for second in 0..15 {
            let draining = Draining {
                since: Duration::from_secs(second),
                stops_after: Duration::from_secs(15),
            };
            let quota = draining.quota(left).min(left);
            left -= quota;
            began.push(quota);
        }
        assert_eq!(began, [0, 9, 9, 9, 9, 8, 8, 8, 8, 8, 8, 8, 8, 0, 0]);
    }

    #[test]
    fn whoever_is_left_at_the_end_may_go_at_once() {
        let late = Draining {
            since: Duration::from_secs(20),
            stops_after: Duration::from_secs(15),
        };
        assert_eq!((late.quota(7), late.left()), (7, Duration::ZERO));
    }
}
