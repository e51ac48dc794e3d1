//! Whether moves fill what is empty.
//!
//! A replica that is ready and ends every connection, or that nobody reaches, stays empty: its
//! siblings would shed without end, and because their clients do reconnect elsewhere, the test of
//! returns finds nothing. So for each group under each rule a test records how much the emptiest
//! endpoint lacks of the mean, and what has been moved since. Chance brings it 1/N of that. When it
//! has gained half of what it lacked, the test starts again. When three times as much was moved as
//! chance needs for that, and [`SLACK`] more, and the endpoint has not gained it, the test has failed
//! and the group is on cooldown, for as long as after returns.
//!
//! A cure never comes near: what all others have too much is at most N−1 times what the emptiest
//! lacks, so that N times that is the whole cure, and the bound is half as much again. After a hold
//! an eighth must be gained, by three times what that takes.
//!
//! All this outlives a change of the endpoints: one that becomes ready and unready again and again, or
//! is replaced by another that keeps nothing either, is no other situation. While endpoints other than
//! those of which one lacked are ready, nothing is taken for filled until that has lasted for
//! [`FLAPS`]. An endpoint that was not there before is another try, once: it ends the first hold, and
//! none that follows.
//!
//! All is counted in millionths of the mean, as it was when it was moved, so that a Service that
//! carries more, or less, than before changes nothing. By rates a connection is taken to carry at
//! its new endpoint what it did before. One whose rate falls with its move is counted for more than
//! it brings; it is the factor three that allows for that.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Cooldown, CooldownOf, Group, Hold, Load, ServiceFacts, load::MEAN};
use crate::{
    policy::{By, RuleName},
    snapshot::{EndpointKey, KernelTime},
};

/// An endpoint that has been away for so long does not come back.
const FLAPS: Duration = Duration::from_secs(600);

/// Moves, each as large as the largest, that may miss the emptiest endpoint by chance alone.
const SLACK: u64 = 20;

/// What was moved to fill the emptiest endpoint of a group, and whether it did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FillTest {
    /// The ready endpoints seen here when one of all lacked last.
    pub endpoints: BTreeSet<EndpointKey>,
    /// How many there were of all.
    pub siblings: u32,
    /// When one of them lacked last.
    pub lacked: KernelTime,
    /// What the emptiest lacked at the start, or later if that was more; in millionths of the mean.
    pub missing: u64,
    /// When that start was.
    pub since: KernelTime,
    /// Moves since then.
    pub moves: u64,
    /// What they counted for, in millionths of the mean.
    pub moved: u64,
    /// The most that one of them did.
    pub largest: u64,
    /// It is the first since a hold.
    pub again: bool,
    /// How often moves were found not to help, and until when none is made.
    pub hold: Hold,
    /// When an endpoint last held too much.
    pub last: KernelTime,
}

/// The evidence of a failed fill test: moves have not filled the emptiest endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillFailure {
    /// How many moves.
    pub moves: u64,
    /// What is balanced.
    pub by: By,
    /// The number of endpoints.
    pub endpoints: u32,
    /// What the emptiest holds now.
    pub least: u64,
    /// What each would hold on average.
    pub mean: u64,
    /// What chance would have brought to the emptiest.
    pub brought: u64,
}

impl fmt::Display for FillFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [self.least, self.mean, self.brought];
        let [least, mean, brought] = all.map(|load| Load(self.by, load));
        write!(
            f,
            "{} moves have not filled what is empty: the emptiest of {} endpoints holds {least} of \
             mean {mean}, where chance would have brought it {brought}",
            self.moves, self.endpoints
        )
    }
}

/// How a group stands now.
struct Ready {
    endpoints: BTreeSet<EndpointKey>,
    siblings: u32,
    missing: u64,
}

/// A group that a rule balances, as it is listed.
pub(super) struct Listed {
    pub(super) by: By,
    pub(super) facts: ServiceFacts,
    /// Those that are seen here.
    pub(super) ready: BTreeSet<EndpointKey>,
    /// Whether one of its endpoints holds too much.
    pub(super) sheds: bool,
}

/// A test that has just failed, and how long its group is on cooldown.
pub(super) type NewFailure = (Key, FillFailure, Duration);

impl FillTest {
    fn new(ready: &Ready, now: KernelTime) -> Self {
        Self {
            endpoints: ready.endpoints.clone(),
            siblings: ready.siblings,
            lacked: now,
            since: now,
            missing: ready.missing,
            last: now,
            ..Self::default()
        }
    }

    /// Takes in how it stands now; for how long it holds from now, if it begins to.
    fn observe(&mut self, ready: &Ready, now: KernelTime) -> Option<Duration> {
        let missing = ready.missing;
        let is_held = self.hold.until != KernelTime::default();
        let is_new = ready.siblings > self.siblings || !ready.endpoints.is_subset(&self.endpoints);
        if is_held && is_new && self.hold.times == 1 && !self.again {
            self.start(missing, now);
        }
        let same = ready.siblings == self.siblings && ready.endpoints == self.endpoints;
        let tells = same || now.since(self.lacked) >= FLAPS;
        let halved = tells && missing <= self.missing / 2;
        let eighth = tells && missing <= self.missing - self.missing / 8;
        if halved || missing > self.missing / 2 {
            self.endpoints.clone_from(&ready.endpoints);
            (self.siblings, self.lacked) = (ready.siblings, now);
        }
        if halved {
            self.start(missing, now);
            (self.again, self.hold.times) = (false, 0);
        } else if is_held && now >= self.hold.until {
            self.start(missing, now);
            self.again = true;
        } else if is_held {
            return None;
        } else if self.again && self.moves > 0 && eighth {
            self.start(missing, now);
            self.again = false;
        }
        self.missing = self.missing.max(missing);
        if u128::from(self.moved) <= self.allowed() {
            return None;
        }
        Some(self.hold.begin(now))
    }

    fn start(&mut self, missing: u64, now: KernelTime) {
        self.since = now;
        (self.moves, self.moved, self.largest) = (0, 0, 0);
        self.hold.until = KernelTime::default();
        self.missing = missing;
    }

    /// What may be moved until it must have helped.
    fn allowed(&self) -> u128 {
        let gain = u128::from(self.missing) / if self.again { 8 } else { 2 };
        3 * gain * u128::from(self.siblings) + u128::from(SLACK) * u128::from(self.largest)
    }

    /// What the emptiest lacked at the start.
    pub fn missing_percent(&self) -> u64 {
        self.missing / (MEAN / 100)
    }

    /// A move that had ended before the start has its part in how it stood then.
    fn count(&mut self, share: u64, ended: KernelTime) {
        if ended < self.since {
            return;
        }
        self.moves = self.moves.saturating_add(1);
        self.moved = self.moved.saturating_add(share);
        self.largest = self.largest.max(share);
    }

    fn failure(&self, by: By, facts: &ServiceFacts) -> FillFailure {
        let n = u128::from(facts.endpoints.max(1));
        let brought = u128::from(self.moved) * u128::from(facts.sum.total);
        let brought = brought / (u128::from(MEAN) * n * n);
        FillFailure {
            moves: self.moves,
            by,
            endpoints: facts.endpoints,
            least: facts.least,
            mean: facts.mean(),
            brought: u64::try_from(brought).unwrap_or(u64::MAX),
        }
    }
}

/// Whose a test is.
pub(super) type Key = (RuleName, Arc<Group>);

/// All tests, of groups in which an endpoint holds too much, or did not long ago.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FillTests {
    all: BTreeMap<Key, FillTest>,
    new_holds: Vec<NewFailure>,
}

impl FillTests {
    pub(super) fn entries(&self) -> Vec<(RuleName, Group, FillTest)> {
        let entry = |((rule, group), test): (&Key, &FillTest)| {
            (rule.clone(), Group::clone(group), test.clone())
        };
        self.all.iter().map(entry).collect()
    }

    pub(super) fn from_entries(entries: Vec<(RuleName, Group, FillTest)>) -> Self {
        let entry = |(rule, group, test)| ((rule, Arc::new(group)), test);
        Self {
            all: entries.into_iter().map(entry).collect(),
            new_holds: Vec::new(),
        }
    }

    /// Those of which nothing is moved.
    pub(super) fn cooldowns(&self, now: KernelTime) -> impl Iterator<Item = Cooldown> {
        self.all.iter().filter_map(move |((rule, group), test)| {
            test.hold.left(now).map(|_| Cooldown {
                of: CooldownOf::Fill(rule.clone(), Group::clone(group)),
                cause: "fillFailed",
                why: format!("{} moves have not filled what is empty", test.moves),
                until: Some(test.hold.until),
                times: test.hold.times,
            })
        })
    }

    pub(super) fn hold(&mut self, rule: &RuleName, group: &Group) -> Option<&mut Hold> {
        let test = self.all.get_mut(&(rule.clone(), Arc::new(group.clone())))?;
        Some(&mut test.hold)
    }

    pub(super) fn get(&self, rule: &RuleName, group: &Arc<Group>) -> Option<&FillTest> {
        // Most of the time there is none.
        if self.all.is_empty() {
            return None;
        }
        self.all.get(&(rule.clone(), Arc::clone(group)))
    }

    /// If moves in a group are on cooldown: the evidence, and for how long still.
    pub(super) fn held(
        &self,
        (rule, group): (&RuleName, &Arc<Group>),
        by: By,
        facts: &ServiceFacts,
        now: KernelTime,
    ) -> Option<(FillFailure, Duration)> {
        let test = self.get(rule, group)?;
        let left = test.hold.left(now)?;
        Some((test.failure(by, facts), left))
    }

    /// A move that balance chose has ended a connection of this share of the mean.
    pub(super) fn count(
        &mut self,
        rule: &RuleName,
        group: &Arc<Group>,
        share: u64,
        ended: KernelTime,
    ) {
        if let Some(test) = self.all.get_mut(&(rule.clone(), Arc::clone(group))) {
            test.count(share, ended);
        }
    }

    /// Takes in the groups of a snapshot taken `now`; none of a group of which not all is known.
    pub(super) fn observe(
        &mut self,
        groups: impl Iterator<Item = (Key, Option<Listed>)>,
        now: KernelTime,
    ) {
        let mut before = std::mem::take(&mut self.all);
        for (key, listed) in groups {
            let known = before.remove(&key);
            let Some(Listed {
                by,
                facts,
                ready,
                sheds,
            }) = listed
            else {
                // It may be known again soon.
                self.all.extend(known.map(|test| (key, test)));
                continue;
            };
            let ready = Ready {
                endpoints: ready,
                siblings: facts.endpoints,
                missing: facts.missing(),
            };
            let known = known.filter(|test| !test.hold.is_stale(test.last, now));
            let Some(mut test) = known.or_else(|| sheds.then(|| FillTest::new(&ready, now))) else {
                continue;
            };
            if sheds {
                test.last = now;
            }
            if let Some(lasts) = test.observe(&ready, now) {
                let failure = test.failure(by, &facts);
                self.new_holds.push((key.clone(), failure, lasts));
            }
            self.all.insert(key, test);
        }
        // They may be there again soon.
        let gone = before
            .into_iter()
            .filter(|(_, test)| !test.hold.is_stale(test.last, now));
        self.all.extend(gone);
    }

    pub(super) fn take_new_holds(&mut self) -> Vec<NewFailure> {
        std::mem::take(&mut self.new_holds)
    }

    /// Forgets endpoints: one that is like them is another one.
    pub(super) fn forget(&mut self, is_gone: impl Fn(&EndpointKey) -> bool) {
        for test in self.all.values_mut() {
            test.endpoints.retain(|endpoint| !is_gone(endpoint));
        }
    }

    pub(super) fn clear(&mut self) {
        self.all.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000_000_000;
    const LATER: KernelTime = KernelTime(u64::MAX);

    fn test() -> FillTest {
        FillTest {
            siblings: 3,
            missing: MEAN,
            ..FillTest::default()
        }
    }

    /// Three endpoints of which one lacks so much.
    fn ready(missing: u64) -> Ready {
        Ready {
            endpoints: BTreeSet::new(),
            siblings: 3,
            missing,
        }
    }

    /// Moves of a hundredth of the mean each until it holds, and for how many minutes.
    fn held_after(test: &mut FillTest, missing: u64, now: KernelTime) -> (u64, u64) {
        for _ in 0..10_000 {
            test.count(MEAN / 100, LATER);
            if let Some(lasts) = test.observe(&ready(missing), now) {
                return (test.moves, lasts.as_secs() / 60);
            }
        }
        panic!("{test:?}")
    }

    #[test]
    fn an_endpoint_that_comes_and_goes_keeps_its_hold() {
        let mut test = test();
        let two = Ready {
            siblings: 2,
            ..ready(0)
        };
        for minute in 0..471 {
            test.count(MEAN / 100, LATER);
            let flaps = if minute % 4 == 3 { &two } else { &ready(MEAN) };
            let held = test.observe(flaps, KernelTime(minute * MINUTE));
            assert_eq!(held.is_some(), minute == 470, "{minute}");
        }
        let at = |minute| KernelTime(minute * MINUTE);
        assert_eq!(test.observe(&two, at(471)), None);
        assert!(test.hold.left(at(471)).is_some());
        // It stays away.
        assert_eq!(test.observe(&two, at(480)), None);
        assert_eq!((test.hold.left(at(480)), test.hold.times), (None, 0));
    }

    #[test]
    fn a_new_endpoint_is_another_try_once() {
        let mut test = test();
        let now = KernelTime(MINUTE);
        held_after(&mut test, MEAN, now);
        let more = |siblings| Ready {
            siblings,
            ..ready(MEAN)
        };
        assert_eq!(test.observe(&more(4), now), None);
        assert_eq!(test.hold.left(now), None);
        let lasts = (0..1000).find_map(|_| {
            test.count(MEAN / 100, LATER);
            test.observe(&more(4), now)
        });
        assert_eq!(lasts, Some(Duration::from_secs(1200)));
        assert_eq!(test.observe(&more(5), now), None);
        assert!(test.hold.left(now).is_some());
    }

    #[test]
    fn what_stays_empty_is_held_for_longer_each_time_after_fewer_moves() {
        let (mut test, mut now) = (test(), KernelTime(MINUTE));
        // Half of 100 takes 150; three times that, and 20.
        assert_eq!(held_after(&mut test, MEAN, now), (471, 10));
        let mut held = Vec::new();
        for _ in 0..9 {
            assert_eq!(test.observe(&ready(MEAN), now), None);
            now = test.hold.until;
            assert_eq!(test.hold.left(now), None);
            assert_eq!(test.observe(&ready(MEAN), now), None);
            let (moves, minutes) = held_after(&mut test, MEAN, now);
            // An eighth takes 37.5.
            assert_eq!(moves, 133);
            held.push(minutes);
        }
        assert_eq!(held, [20, 40, 80, 160, 320, 640, 1280, 1440, 1440]);
    }

    #[test]
    fn a_test_starts_again_once_the_endpoint_fills() {
        let mut test = test();
        for _ in 0..200 {
            test.count(MEAN / 100, LATER);
        }
        assert_eq!(test.observe(&ready(MEAN / 2 + 1), KernelTime(MINUTE)), None);
        assert_eq!(test.moves, 200);
        assert_eq!(test.observe(&ready(MEAN / 2), KernelTime(MINUTE)), None);
        assert_eq!((test.moves, test.missing), (0, MEAN / 2));
        // What is found to be worse later is what is to be filled.
        assert_eq!(test.observe(&ready(MEAN), KernelTime(MINUTE)), None);
        assert_eq!(test.missing, MEAN);
    }

    #[test]
    fn a_hold_ends_when_what_was_empty_is_filled() {
        let mut test = test();
        held_after(&mut test, MEAN, KernelTime(MINUTE));
        let now = KernelTime(2 * MINUTE);
        assert_eq!(test.observe(&ready(MEAN / 8 * 7), now), None);
        assert!(test.hold.left(now).is_some());
        assert_eq!(test.observe(&ready(MEAN / 2), now), None);
        assert_eq!((test.hold.left(now), test.hold.times), (None, 0));
    }
}
