//! How fast each connection has been, and for how long without a pause.
//!
//! A listing shows how many bytes a connection has carried so far; a rate needs two listings. Each
//! connection's *sustained* rate over a time is the lowest that it had between any two listings
//! in a row within that time: one burst, however large, is not sustained, as the listings after
//! it show a pause. Pauses shorter than the interval of the listings are not seen.

use std::{collections::BTreeMap, num::NonZeroUsize, time::Duration};

use serde::{Deserialize, Serialize};

use super::matches::Matches;
use crate::{
    policy::Policy,
    snapshot::{Bytes, Connection, Cookie, KernelTime},
};

/// Levels kept for a connection. Further levels are merged into the lower of two neighbours, so that a
/// rate is never overstated.
const LEVELS: NonZeroUsize = NonZeroUsize::new(32).unwrap();

/// The rates of the connections whose rules ask for them. A value, fed with each snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rates {
    known: BTreeMap<Cookie, History>,
}

/// What is known of one connection's rate.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct History {
    listed: KernelTime,
    bytes: Bytes,
    /// Intervals between listings so far.
    intervals: u64,
    /// From `since` on, its rate has not been below `rate`. Both rise, so the first holds for
    /// longest and the last is the rate of the last interval.
    levels: Vec<Level>,
}

/// A rate that has been held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Level {
    /// Bytes per second.
    pub rate: u64,
    /// From when on.
    pub since: KernelTime,
    /// The number of the interval that began then.
    pub interval: u64,
}

impl Rates {
    pub(super) fn entries(&self) -> Vec<(Cookie, History)> {
        self.known.iter().map(|(c, h)| (*c, h.clone())).collect()
    }

    pub(super) fn from_entries(entries: Vec<(Cookie, History)>) -> Self {
        Self {
            known: entries.into_iter().collect(),
        }
    }

    /// Takes in a snapshot. What is not in it, or of no rule that limits rates, is forgotten.
    pub(super) fn observe(&mut self, policy: &Policy, matches: &Matches<'_>, taken: KernelTime) {
        if !policy
            .rules()
            .iter()
            .any(|rule| rule.limits().max_rate().is_some())
        {
            self.known.clear();
            return;
        }
        let mut before = std::mem::take(&mut self.known);
        for (connection, rule) in matches.with_rules() {
            let asks = rule.limits().max_rate().is_some();
            if !asks || self.known.contains_key(&connection.cookie) {
                continue;
            }
            let history = match before.remove(&connection.cookie) {
                Some(history) => history.then(connection, taken),
                None => History::new(connection, taken),
            };
            self.known.insert(connection.cookie, history);
        }
    }

    /// The rate below which the connection has not been for `time`, in bytes per second; `None`
    /// while that is not known. It takes two intervals at least.
    pub(super) fn sustained(&self, cookie: Cookie, time: Duration) -> Option<Bytes> {
        let history = self.known.get(&cookie)?;
        let held = |level: &&Level| {
            history.listed.since(level.since) >= time && history.intervals - level.interval >= 2
        };
        let level = history.levels.iter().rev().find(held)?;
        Some(Bytes(level.rate))
    }
}

impl History {
    /// Whether it may have been listed so: its levels rise.
    pub(super) fn makes_sense(&self) -> bool {
        let rises =
            |a: &Level, b: &Level| a.rate < b.rate && a.since <= b.since && a.interval < b.interval;
        let is_before =
            |level: &Level| level.interval < self.intervals && level.since <= self.listed;
        self.levels.len() <= LEVELS.get()
            && self.levels.is_sorted_by(rises)
            && self.levels.iter().all(is_before)
    }

    fn new(connection: &Connection, listed: KernelTime) -> Self {
        Self {
            listed,
            bytes: connection.bytes(),
            intervals: 0,
            levels: Vec::new(),
        }
    }

    fn then(mut self, connection: &Connection, listed: KernelTime) -> Self {
        let (Some(bytes), time @ 1..) = (
            connection.bytes().0.checked_sub(self.bytes.0),
            listed.since(self.listed).as_nanos(),
        ) else {
            // The same listing again. A clock or counter that runs backwards makes no sense and starts
            // the history again.
            let same = listed == self.listed && connection.bytes() == self.bytes;
            return if same {
                self
            } else {
                Self::new(connection, listed)
            };
        };
        let rate = u128::from(bytes) * 1_000_000_000 / time;
        let mut level = Level {
            rate: u64::try_from(rate).unwrap_or(u64::MAX),
            since: self.listed,
            interval: self.intervals,
        };
        // Higher rates before have ended now; what was held since then is the new one.
        while let Some(higher) = self.levels.pop_if(|before| before.rate >= level.rate) {
            (level.since, level.interval) = (higher.since, higher.interval);
        }
        self.levels.push(level);
        if self.levels.len() > LEVELS.get() {
            self.merge();
        }
        self.listed = listed;
        self.bytes = connection.bytes();
        self.intervals += 1;
        self
    }

    /// Gives up the level that is nearest to the one below it.
    fn merge(&mut self) {
        let step = |pair: &[Level]| pair[1].rate - pair[0].rate;
        let nearest = self
            .levels
            .windows(2)
            .enumerate()
            .min_by_key(|(_, pair)| step(pair));
        if let Some((below, _)) = nearest {
            self.levels.remove(below + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{
        policy,
        snapshot::{Snapshot, sample, sample::snapshot},
    };

    const SECOND: u64 = 1_000_000_000;

    fn connection(cookie: u64, port: u16, bytes: u64) -> Connection {
        Connection {
            endpoint: sample::endpoint(1, port),
            bytes_in: Bytes(bytes / 3),
            bytes_out: Bytes(bytes - bytes / 3),
            ..sample::connection(cookie)
        }
    }

    impl Rates {
        fn take_in(&mut self, listed: &Snapshot) {
            self.observe(&POLICY, &Matches::of(&POLICY, listed), listed.taken);
        }
    }

    static POLICY: LazyLock<Policy> = LazyLock::new(|| {
        policy::sample::policy(
            "\
rules:
- {name: fast, match: {ports: [{port: 80}]}, limits: {maxRate: {bytesPerSecond: 1Mi, for: 30s}}}
- {name: old, match: {ports: [{port: 81}]}, limits: {maxAge: 1h}}
",
        )
    });

    /// What a connection's bytes grow by, between listings so far apart (in seconds).
    fn fed(intervals: &[(u64, u64)]) -> Rates {
        let mut rates = Rates::default();
        let (mut now, mut bytes) = (5 * SECOND, 7);
        rates.take_in(&snapshot(now, vec![connection(1, 80, bytes)]));
        for (time, more) in intervals {
            now += time * SECOND;
            bytes += more;
            rates.take_in(&snapshot(now, vec![connection(1, 80, bytes)]));
        }
        rates
    }

    fn sustained(intervals: &[(u64, u64)], seconds: u64) -> Option<u64> {
        let rates = fed(intervals);
        rates
            .sustained(Cookie(1), Duration::from_secs(seconds))
            .map(|rate| rate.0)
    }

    /// The same by its definition: the lowest rate of the fewest last intervals, two or more,
    /// that are as long as asked for.
    fn by_definition(intervals: &[(u64, u64)], seconds: u64) -> Option<u64> {
        let rate = |(time, bytes): &(u64, u64)| bytes / time;
        (2..=intervals.len())
            .map(|count| &intervals[intervals.len() - count..])
            .find(|last| last.iter().map(|(time, _)| time).sum::<u64>() >= seconds)
            .and_then(|last| last.iter().map(rate).min())
    }

    #[test]
    fn a_rate_counts_only_when_it_is_held() {
        let steady = [(5, 500); 6];
        assert_eq!(sustained(&steady, 30), Some(100));
        assert_eq!(sustained(&steady[1..], 30), None);
        let paused = [(5, 500), (5, 500), (5, 0), (5, 500), (5, 900), (5, 900)];
        assert_eq!(sustained(&paused, 30), Some(0));
        assert_eq!(sustained(&paused, 15), Some(100));
        assert_eq!(sustained(&paused, 10), Some(180));
    }

    #[test]
    fn what_is_gone_or_of_another_rule_is_not_kept() {
        let mut rates = fed(&[(5, 500); 6]);
        rates.take_in(&snapshot(40 * SECOND, vec![connection(2, 81, 9)]));
        assert_eq!(rates, Rates::default());
        let mut rates = fed(&[(5, 500); 6]);
        let other = policy::sample::policy("rules: []\n");
        let listed = snapshot(40 * SECOND, vec![connection(1, 80, 9000)]);
        rates.observe(&other, &Matches::of(&other, &listed), listed.taken);
        assert_eq!(rates, Rates::default());
    }

    #[test]
    fn a_clock_or_counter_that_runs_backwards_starts_the_history_again() {
        for (taken, bytes) in [(34, 90_000), (40, 10)] {
            let mut rates = fed(&[(5, 500); 6]);
            rates.take_in(&snapshot(taken * SECOND, vec![connection(1, 80, bytes)]));
            assert_eq!(rates.sustained(Cookie(1), Duration::ZERO), None);
        }
        let mut twice = fed(&[(5, 500); 6]);
        twice.take_in(&snapshot(35 * SECOND, vec![connection(1, 80, 3007)]));
        assert_eq!(twice, fed(&[(5, 500); 6]));
    }

    proptest! {
        #[test]
        fn the_sustained_rate_is_the_lowest_of_the_time(
            intervals in vec((1..10u64, 0..50u64), 0..40), seconds in 0..120u64,
        ) {
            prop_assert_eq!(sustained(&intervals, seconds), by_definition(&intervals, seconds));
        }

        /// However long, and however it rises: little is kept, and nothing is exaggerated.
        #[test]
        fn a_rate_is_never_reported_higher_than_it_was(
            intervals in vec((1..10u64, any::<u32>()), 0..200), rising: bool, seconds in 0..600u64,
        ) {
            let mut intervals: Vec<(u64, u64)> = intervals.into_iter().map(|(t, b)| (t, u64::from(b))).collect();
            if rising {
                intervals.sort_by_key(|(time, bytes)| bytes / time);
            }
            let rate = sustained(&intervals, seconds);
            prop_assert!(rate.unwrap_or(0) <= by_definition(&intervals, seconds).unwrap_or(0));
            prop_assert_eq!(rate.is_some(), by_definition(&intervals, seconds).is_some());
            prop_assert!(fed(&intervals).known[&Cookie(1)].levels.len() <= LEVELS.get());
        }

        #[test]
        fn a_single_burst_is_never_sustained(
            before in vec(1..10u64, 0..10), burst in (1..100u64, 1..u64::MAX / 2), after in vec(1..10u64, 0..10),
            seconds in 0..600u64,
        ) {
            prop_assume!(!before.is_empty() || !after.is_empty());
            let quiet = |times: Vec<u64>| times.into_iter().map(|time| (time, 0));
            let all: Vec<_> = quiet(before).chain([burst]).chain(quiet(after)).collect();
            prop_assert_eq!(sustained(&all, seconds).unwrap_or(0), 0);
        }

        #[test]
        fn the_order_of_the_snapshot_does_not_matter(bytes in vec(0..1000u64, 1..8)) {
            let rounds = |reverse: bool| {
                let mut rates = Rates::default();
                for round in 1..5 {
                    let mut listed: Vec<_> = (0..).zip(&bytes).map(|(id, b)| connection(id, 80, b * round)).collect();
                    if reverse {
                        listed.reverse();
                    }
                    rates.take_in(&snapshot(round * SECOND, listed));
                }
                rates
            };
            prop_assert_eq!(rounds(false), rounds(true));
        }
    }
}
