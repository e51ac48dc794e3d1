//! What was moved, and when, and how fast connections were: what the next decision must know of
//! those before.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    Move, Outcome,
    rates::{History, Rates},
};
use crate::{
    policy::{Mode, Policy},
    snapshot::{Cookie, KernelTime, Snapshot},
};

/// For so long a connection is not chosen again once a move of it has ended: one that lives on
/// was refused, failed or never became quiet, and would be so again at once; one that does not
/// may still stand in a snapshot taken before its end.
pub const HOLD: Duration = Duration::from_secs(600);

/// What was moved and told so far. A value: the agent keeps one and tells it what it does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    in_flight: BTreeMap<Cookie, KernelTime>,
    ended: BTreeMap<Cookie, (Outcome, KernelTime)>,
    said: BTreeSet<Cookie>,
    made: Spent,
    told: Spent,
    rates: Rates,
}

/// Moves that count against a budget, by when they began.
type Spent = BTreeSet<(KernelTime, Cookie)>;

/// All that a [`Ledger`] holds, to be written and read: a decision made with what was read back
/// is the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Moves under way, and when they began.
    pub in_flight: Vec<(Cookie, KernelTime)>,
    /// Moves that ended, how and when.
    pub ended: Vec<(Cookie, Outcome, KernelTime)>,
    /// Connections told in dry run.
    pub said: Vec<Cookie>,
    /// Moves that count against the budget, by when they began.
    pub made: Vec<(KernelTime, Cookie)>,
    /// What was told in dry run, likewise.
    pub told: Vec<(KernelTime, Cookie)>,
    /// The rates of connections whose rules ask for them.
    pub rates: Vec<(Cookie, History)>,
}

impl Ledger {
    /// All that it holds, in order.
    pub fn entries(&self) -> Entries {
        let ended = |(cookie, (outcome, at)): (&Cookie, &(Outcome, KernelTime))| {
            (*cookie, outcome.clone(), *at)
        };
        Entries {
            in_flight: self.in_flight.iter().map(|(c, at)| (*c, *at)).collect(),
            ended: self.ended.iter().map(ended).collect(),
            said: self.said.iter().copied().collect(),
            made: self.made.iter().copied().collect(),
            told: self.told.iter().copied().collect(),
            rates: self.rates.entries(),
        }
    }

    /// A ledger that holds `entries`.
    pub fn from_entries(entries: Entries) -> Self {
        let ended = |(cookie, outcome, at)| (cookie, (outcome, at));
        Self {
            in_flight: entries.in_flight.into_iter().collect(),
            ended: entries.ended.into_iter().map(ended).collect(),
            said: entries.said.into_iter().collect(),
            made: entries.made.into_iter().collect(),
            told: entries.told.into_iter().collect(),
            rates: Rates::from_entries(entries.rates),
        }
    }

    /// Takes in what connections have carried so far. Call it with each snapshot, before its
    /// plan: rates need two listings at least.
    pub fn observe(&mut self, policy: &Policy, snapshot: &Snapshot) {
        self.rates.observe(policy, snapshot);
    }

    pub(super) fn rates(&self) -> &Rates {
        &self.rates
    }

    /// Records that `chosen` was started.
    pub fn started(&mut self, chosen: &Move, now: KernelTime) {
        self.ended.remove(&chosen.cookie());
        self.in_flight.insert(chosen.cookie(), now);
        self.made.insert((now, chosen.cookie()));
    }

    /// Records how the move of `cookie` ended; gives the budget back if it did no harm. One that
    /// was recalled may be chosen again at once.
    pub fn ended(&mut self, cookie: Cookie, outcome: Outcome, now: KernelTime) {
        if let Some(began) = self.in_flight.remove(&cookie)
            && outcome.harmless()
        {
            self.made.remove(&(began, cookie));
        }
        if outcome != Outcome::Recalled {
            self.ended.insert(cookie, (outcome, now));
        }
    }

    /// Records that `chosen` was told in dry run. It counts against the budget of dry runs, so
    /// that they show the pace of the real ones.
    pub fn said(&mut self, chosen: &Move, now: KernelTime) {
        self.said.insert(chosen.cookie());
        self.told.insert((now, chosen.cookie()));
    }

    /// Forgets what can no longer matter: connections that are gone, and moves older than
    /// `window`. Call it after each plan; the ledger then stays as small as the snapshot.
    /// Moves in flight stay until they have ended.
    pub fn prune(&mut self, snapshot: &Snapshot, window: Duration, now: KernelTime) {
        let mut live: Vec<Cookie> = snapshot.connections.iter().map(|c| c.cookie).collect();
        live.sort_unstable();
        let lives = |cookie: &Cookie| live.binary_search(cookie).is_ok();
        self.said.retain(lives);
        self.ended
            .retain(|cookie, (_, ended)| lives(cookie) && now.since(*ended) < HOLD);
        for spent in [&mut self.made, &mut self.told] {
            spent.retain(|(began, _)| now.since(*began) < window);
        }
    }

    /// Moves started and not ended.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Moves under way, and when they began.
    pub fn moves_in_flight(&self) -> impl Iterator<Item = (Cookie, KernelTime)> {
        self.in_flight
            .iter()
            .map(|(cookie, began)| (*cookie, *began))
    }

    pub(super) fn is_in_flight(&self, cookie: Cookie) -> bool {
        self.in_flight.contains_key(&cookie)
    }

    /// The outcome that keeps `cookie` from being chosen again, and for how long still.
    pub(super) fn held(&self, cookie: Cookie, now: KernelTime) -> Option<(&Outcome, Duration)> {
        let (outcome, ended) = self.ended.get(&cookie)?;
        let left = HOLD.saturating_sub(now.since(*ended));
        (!left.is_zero()).then_some((outcome, left))
    }

    pub(super) fn was_said(&self, cookie: Cookie) -> bool {
        self.said.contains(&cookie)
    }

    /// Moves of `mode` that began within `window`. Dry runs and real moves are apart: what is
    /// only told must not hold up what is to be done.
    pub fn spent(&self, mode: Mode, window: Duration, now: KernelTime) -> u64 {
        u64::try_from(self.recent(mode, window, now).count()).unwrap_or(u64::MAX)
    }

    /// Until the window forgets the first of [`Ledger::spent`]; none if there is none.
    pub fn refills_in(&self, mode: Mode, window: Duration, now: KernelTime) -> Option<Duration> {
        let began = self.recent(mode, window, now).next()?;
        Some(window.saturating_sub(now.since(began)))
    }

    /// When those began, the earliest first.
    fn recent(
        &self,
        mode: Mode,
        window: Duration,
        now: KernelTime,
    ) -> impl Iterator<Item = KernelTime> {
        let spent = if mode == Mode::DryRun {
            &self.told
        } else {
            &self.made
        };
        let began = spent.iter().map(|(began, _)| *began);
        began.filter(move |began| now.since(*began) < window)
    }
}
