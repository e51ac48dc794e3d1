//! What is reported of drains.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    policy::RuleName,
    snapshot::{EndpointKey, Who},
};

/// Until every node sends new connections elsewhere, as a rule.
pub(super) const UNTIL_KNOWN: Duration = Duration::from_secs(1);
/// What is left of the time for those that are under way: whoever has not left by then will not.
pub const DRAIN_MARGIN: Duration = Duration::from_secs(2);
/// Less than this is no time to find quiet moments in.
pub(super) const LEAST: Duration = Duration::from_secs(5);
/// The time between two passes while an endpoint is drained.
pub const DRAIN_PASS: Duration = Duration::from_secs(1);

/// Why the connections of an endpoint leave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainCause {
    /// Its pod is being deleted.
    Terminating,
    /// Its pod is no endpoint of its Service any more.
    Removed,
    /// Its pod is not ready any more.
    Unready,
    /// An operator has asked for it.
    Requested,
}

impl DrainCause {
    /// Each of them.
    pub const ALL: [Self; 4] = [
        Self::Terminating,
        Self::Removed,
        Self::Unready,
        Self::Requested,
    ];

    /// A stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Terminating => "terminating",
            Self::Removed => "removed",
            Self::Unready => "unready",
            Self::Requested => "requested",
        }
    }
}

/// How the drain of an endpoint stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drained {
    /// The endpoint.
    pub endpoint: EndpointKey,
    /// Whose it is.
    pub who: Who,
    /// The rule that drains it.
    pub rule: RuleName,
    /// Why.
    pub cause: DrainCause,
    /// Since it began.
    pub took: Duration,
    /// Until its containers are asked to stop, or the drain ends.
    pub left: Duration,
    /// The connections that have not left yet, by the word of why they are skipped now; `chosen` are those that
    /// this plan moves, as far as slots are free.
    pub connections: BTreeMap<&'static str, u64>,
}

/// Why a connection of an endpoint that is drained has not left yet, if time is all that it lacks.
const LATE: [&str; 5] = [
    "chosen",
    "drainedLater",
    "inFlight",
    "maxInFlight",
    "othersWait",
];

impl Drained {
    /// Whether a connection in this state is to leave, if it finds the time and a quiet moment.
    pub fn leaves(state: &str) -> bool {
        LATE.contains(&state)
    }

    /// How many connections have not left yet.
    pub fn count(&self) -> u64 {
        self.connections.values().sum()
    }

    /// The sleep of a `preStop` hook in which all could have left, at the pace at which others have; of so many
    /// connections in all. `None` if it was long enough, or its length does not matter.
    pub fn enough(&self, all: u64) -> Option<Duration> {
        let late: u64 = LATE
            .iter()
            .filter_map(|word| self.connections.get(word))
            .sum();
        if self.cause != DrainCause::Terminating || late == 0 {
            return None;
        }
        let moved = all.saturating_sub(self.count()).max(1);
        let within = (self.took + self.left).as_secs();
        let whole = within.saturating_mul(moved + late).div_ceil(moved);
        Some(in_fives(whole.min(within.saturating_mul(4))))
    }
}

/// An endpoint that its rule would drain, if its pod had more time until its containers are asked to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooShort {
    /// The endpoint.
    pub endpoint: EndpointKey,
    /// Whose it is.
    pub who: Who,
    /// The rule.
    pub rule: RuleName,
    /// The time that it has.
    pub stops_after: Duration,
    /// The sleep of a `preStop` hook that would be enough.
    pub enough: Duration,
    /// Its connections.
    pub connections: u64,
}

/// The sleep of a `preStop` hook in which so many connections can leave, so many at a time: each batch takes a pass
/// and, as a rule, not longer than another one to find its quiet moments.
pub(super) fn enough(connections: u64, at_once: u64) -> Duration {
    let batches = connections.div_ceil(at_once.max(1));
    let leaving = (DRAIN_PASS * 2).saturating_mul(u32::try_from(batches).unwrap_or(u32::MAX));
    let whole = UNTIL_KNOWN + DRAIN_MARGIN;
    in_fives(whole.saturating_add(leaving.max(LEAST)).as_secs())
}

/// Rounded up to 5 seconds, as people write it.
fn in_fives(seconds: u64) -> Duration {
    Duration::from_secs(seconds.div_ceil(5).saturating_mul(5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_is_long_enough_for_all_to_leave_at_the_pace_of_others() {
        let seconds = Duration::from_secs;
        for (connections, at_once, expected) in [(1, 20, 10), (100, 20, 15), (1000, 20, 105)] {
            assert_eq!(enough(connections, at_once), seconds(expected));
        }
        let left = |connections: &[(&'static str, u64)]| Drained {
            endpoint: crate::snapshot::sample::endpoint(1, 80),
            who: Who::NoPod,
            rule: RuleName::manual(),
            cause: DrainCause::Terminating,
            took: seconds(8),
            left: seconds(2),
            connections: connections.iter().copied().collect(),
        };
        for (connections, expected) in [
            (&[("drainedLater", 40), ("inFlight", 10)][..], Some(20)),
            (&[("drainedLater", 99)], Some(40)),
            (&[("inFlight", 1), ("tls", 50)], Some(15)),
            (&[("tls", 50)], None),
            (&[], None),
        ] {
            let enough = left(connections).enough(100);
            assert_eq!(enough, expected.map(seconds), "{connections:?}");
        }
        let asked = Drained {
            cause: DrainCause::Requested,
            ..left(&[("inFlight", 1)])
        };
        assert_eq!(asked.enough(100), None);
    }
}
