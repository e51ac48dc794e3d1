//! What was moved, and when, where its clients came, and how fast connections were: what the next
//! decision must know of those before.

mod entries;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    Charge, Cooldown, CooldownOf, Fate, FillFailure, FillTest, Group, Hold, Move, Outcome, Refusal,
    ServiceFacts, Subject, Sum,
    fill::FillTests,
    flows::Flows,
    rates::Rates,
    returns::{PendingReturn, ReturnCounts, Returns, Test},
};
use crate::{
    policy::{By, Mode, Policy, Rule, RuleName},
    snapshot::{Connection, Cookie, EndpointKey, KernelTime, Netns, NetnsCookie, Snapshot},
};

pub use entries::Entries;

/// What was moved and reported so far. A value: the agent keeps one and records in it what it does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    in_flight: BTreeMap<Cookie, (KernelTime, Charge)>,
    ended: BTreeMap<Cookie, Ended>,
    reported: BTreeSet<Cookie>,
    pub(super) made: Spent,
    dry_runs: Spent,
    pub(super) rates: Rates,
    pub(super) flows: Flows,
    pub(super) returns: Returns,
    pub(super) sums: BTreeMap<(RuleName, Arc<Group>), VecDeque<Sum>>,
    pub(super) shedding: BTreeSet<(RuleName, EndpointKey)>,
    pub(super) fills: FillTests,
    enforced: BTreeMap<RuleName, KernelTime>,
    attempts: BTreeMap<(KernelTime, Cookie), Turn>,
    /// As many as there were at one time: the kernel gives the lowest inode that is free.
    pub(super) namespaces: BTreeMap<Netns, NetnsCookie>,
}

/// Whose turn a move was: a rule's, and there a namespace's.
type Turn = (RuleName, Option<String>);

/// How the last move of a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// So.
    pub outcome: Outcome,
    /// The rule that had asked for it, if that is known.
    pub rule: Option<RuleName>,
    /// How many had ended by then, and until when no other is made.
    pub hold: Hold,
}

impl Ended {
    /// Whether another move would end the same way for as long as the connection lives.
    fn lasts(&self) -> bool {
        self.outcome.refusal().is_some_and(Refusal::lasts)
    }

    /// None if it has ended, or the connection has.
    fn cooldown(&self, cookie: Cookie, now: KernelTime) -> Option<Cooldown> {
        let refusal = self.outcome.refusal();
        let is_held = self.lasts() || self.hold.left(now).is_some();
        (is_held && self.outcome.leaves_it()).then(|| Cooldown {
            of: CooldownOf::Connection(cookie, self.rule.clone()),
            cause: refusal.map_or(self.outcome.as_str(), Refusal::as_str),
            why: refusal.map_or_else(
                || format!("the move {}", self.outcome),
                |refusal| refusal.sentence().to_owned(),
            ),
            until: (!self.lasts()).then_some(self.hold.until),
            times: self.hold.times,
        })
    }
}

/// Evidence that has just become enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewHold {
    /// That clients come back.
    Returns {
        /// Whose moves.
        subject: Subject,
        /// From which endpoint.
        endpoint: EndpointKey,
        /// The evidence.
        test: Test,
        /// For how long nothing is moved.
        lasts: Duration,
    },
    /// That an endpoint stays empty.
    FillFailed {
        /// Whose moves.
        rule: RuleName,
        /// Among which endpoints.
        group: Group,
        /// The evidence.
        failure: FillFailure,
        /// For how long nothing is moved.
        lasts: Duration,
    },
}

/// Moves that count against a budget, by when they began.
type Spent = BTreeMap<(KernelTime, Cookie), Charge>;

/// Listings of which the largest sum counts: clients that are about to reconnect are in none of
/// the last.
pub(super) const SUMS: usize = 3;

impl Ledger {
    /// Takes in which rules are enforced. Those that were not before have a small part of their
    /// budgets from now on, and more with each window; without a call of this all have the whole.
    pub fn enforce(&mut self, policy: &Policy, now: KernelTime) {
        let is_enforced = |rule: &&Rule| policy.mode_of(rule) == Mode::Enforce;
        let rules = policy.rules().iter().filter(is_enforced);
        let since = |name: &RuleName| self.enforced.get(name).copied().unwrap_or(now);
        self.enforced = rules
            .map(|rule| (rule.name().clone(), since(rule.name())))
            .collect();
    }

    /// From now on every rule has its whole budgets, also one whose ramp was kept by another agent.
    pub fn end_ramps(&mut self) {
        self.enforced.clear();
    }

    /// Since when a rule is enforced, if that is known.
    pub(super) fn enforced_since(&self, rule: &RuleName) -> Option<KernelTime> {
        self.enforced.get(rule).copied()
    }

    /// What the next agent must know. What follows from two listings it finds out by itself. What is in
    /// flight ends with this one, and how is not learned: it counts as moved.
    pub fn to_keep(&self) -> Self {
        Self {
            ended: self.ended.clone(),
            reported: self.reported.clone(),
            made: self.made.clone(),
            dry_runs: self.dry_runs.clone(),
            returns: self.returns.clone(),
            sums: self.sums.clone(),
            shedding: self.shedding.clone(),
            fills: self.fills.clone(),
            enforced: self.enforced.clone(),
            attempts: self.attempts.clone(),
            namespaces: self.namespaces.clone(),
            ..Self::default()
        }
    }

    /// Forgets what was reported in dry run, as another policy would report it.
    pub fn forget_reported(&mut self) {
        self.reported.clear();
    }

    /// Whether moves of a rule from an endpoint are under way, or their clients.
    pub(super) fn is_unsettled(&self, (rule, endpoint): &(RuleName, EndpointKey)) -> bool {
        self.unsettled()
            .any(|by| by.rule == *rule && by.endpoint == *endpoint)
    }

    /// Moves that have not ended, and those whose clients have not been seen again.
    pub(super) fn unsettled(&self) -> impl Iterator<Item = &Charge> {
        let in_flight = self.in_flight.values().map(|(_, by)| by);
        let awaited = self.returns.awaited().iter();
        in_flight.chain(awaited.map(|one| &one.charge))
    }

    /// Moves whose clients have not been seen for a while and are still looked for.
    pub(super) fn late(&self) -> impl Iterator<Item = &Charge> {
        self.returns.late().iter().map(|one| &one.charge)
    }

    /// What clients that have not been seen again counted for in a group.
    pub(super) fn awaited<'a>(
        &'a self,
        rule: &'a RuleName,
        group: &'a Group,
    ) -> impl Iterator<Item = u64> + 'a {
        let all = self.returns.awaited().iter();
        all.filter(|one| one.seen.is_none())
            .map(|one| &one.charge)
            .filter(move |by| by.rule == *rule && *by.group == *group)
            .map(|by| by.load)
    }

    /// What a group held under a rule at the last listings.
    pub(super) fn sums(&self, rule: &RuleName, group: &Arc<Group>) -> impl Iterator<Item = Sum> {
        let key = (rule.clone(), Arc::clone(group));
        self.sums.get(&key).into_iter().flatten().copied()
    }

    pub(super) fn is_shedding(&self, rule: &RuleName, endpoint: EndpointKey) -> bool {
        // Most of the time none is.
        !self.shedding.is_empty() && self.shedding.contains(&(rule.clone(), endpoint))
    }

    /// What a connection carries, in the unit of its rule's balance, per second.
    pub(super) fn flow(&self, cookie: Cookie) -> Option<u64> {
        self.flows.rate(cookie)
    }

    /// What is known of returns to an endpoint, if anything.
    pub(super) fn returns(&self, endpoint: EndpointKey) -> Option<&BTreeMap<Subject, Test>> {
        self.returns.at(endpoint)
    }

    /// Whether the client of a connection always comes back to its endpoint.
    pub(super) fn always_returns(&self, connection: &Connection, now: KernelTime) -> bool {
        let test = || {
            let tests = self.returns.at(connection.endpoint)?;
            tests.get(&Subject::Client(connection.client()))
        };
        test().is_some_and(|test| test.hold.left(now).is_some())
    }

    /// What was moved to fill what is empty in a group.
    pub(super) fn fill(&self, rule: &RuleName, group: &Arc<Group>) -> Option<&FillTest> {
        self.fills.get(rule, group)
    }

    /// The failed fill test of a group on cooldown, and for how long it still is.
    pub(super) fn failed_fill(
        &self,
        group: (&RuleName, &Arc<Group>),
        by: By,
        facts: &ServiceFacts,
        now: KernelTime,
    ) -> Option<(FillFailure, Duration)> {
        self.fills.held(group, by, facts, now)
    }

    /// How many moves were followed by what, since this ledger began.
    pub fn return_counts(&self) -> ReturnCounts {
        self.returns.counts()
    }

    /// Evidence that has become enough since this was last asked: nothing more is moved there for
    /// a time, and the operator should know.
    pub fn take_new_holds(&mut self) -> Vec<NewHold> {
        let returns = self.returns.take_new_holds().into_iter();
        let returns = returns.map(|((subject, endpoint, test), lasts)| NewHold::Returns {
            subject,
            endpoint,
            test,
            lasts,
        });
        let fills = self.fills.take_new_holds().into_iter();
        let fills = fills.map(|((rule, group), failure, lasts)| NewHold::FillFailed {
            rule,
            group: Group::clone(&group),
            failure,
            lasts,
        });
        returns.chain(fills).collect()
    }

    pub(super) fn rates(&self) -> &Rates {
        &self.rates
    }

    /// Records that `chosen` was started.
    pub fn started(&mut self, chosen: &Move, now: KernelTime) {
        let charge = Charge::clone(&chosen.charge);
        if !charge.drains {
            let turn = (charge.rule.clone(), charge.namespace.clone());
            self.attempts.insert((now, chosen.cookie()), turn);
            self.made.insert((now, chosen.cookie()), charge.clone());
        }
        self.in_flight.insert(chosen.cookie(), (now, charge));
    }

    /// Records how the move of `cookie` ended, which is learned `now` and was so long after its order:
    /// a listing in between may have its client already.
    pub fn ended_after(
        &mut self,
        cookie: Cookie,
        outcome: Outcome,
        waited: Duration,
        now: KernelTime,
    ) {
        // The order came some time after the listing from which a move counts.
        let at = |(began, _): (KernelTime, &Charge)| began.after(waited).min(now);
        let at = self.in_flight_since(cookie).map_or(now, at);
        self.ended(cookie, outcome, at);
    }

    /// Records how the move of `cookie` ended; gives the budget back if it did no harm. One that
    /// was recalled may be chosen again at once.
    pub fn ended(&mut self, cookie: Cookie, outcome: Outcome, now: KernelTime) {
        let mut rule = None;
        if let Some((began, charge)) = self.in_flight.remove(&cookie) {
            rule = Some(charge.rule.clone());
            if outcome.harmless() {
                self.made.remove(&(began, cookie));
            } else {
                self.await_return(cookie, began, charge, &outcome, now);
            }
        }
        if !matches!(outcome, Outcome::Recalled(_)) {
            let before = self.ended.get(&cookie);
            let mut hold = before.map_or(Hold::default(), |before| before.hold);
            hold.begin(now);
            let ended = Ended {
                outcome,
                rule,
                hold,
            };
            self.ended.insert(cookie, ended);
        }
    }

    /// A move that failed leaves its connection; one that left by itself was not moved.
    fn await_return(
        &mut self,
        cookie: Cookie,
        began: KernelTime,
        charge: Charge,
        outcome: &Outcome,
        ended: KernelTime,
    ) {
        if !outcome.is_made() || charge.drains {
            return;
        }
        if let Some(made) = self.made.get_mut(&(began, cookie)) {
            made.fate = Fate::Away;
        }
        if charge.share > 0 {
            self.fills
                .count(&charge.rule, &charge.group, charge.share, ended);
        }
        self.returns.awaits(PendingReturn {
            ended,
            cookie,
            began,
            charge,
            seen: None,
            seen_at: KernelTime::default(),
            has_arrived: false,
            is_doubtful: false,
        });
    }

    /// Records that `chosen` was reported in dry run. It counts against the budget of dry runs, so
    /// that they show the pace of the real ones.
    pub fn reported(&mut self, chosen: &Move, now: KernelTime) {
        self.reported.insert(chosen.cookie());
        if chosen.charge.drains {
            return;
        }
        self.dry_runs
            .insert((now, chosen.cookie()), Charge::clone(&chosen.charge));
    }

    /// Forgets what can no longer matter: connections that are gone, and moves older than
    /// `window`. Call it after each plan; the ledger then stays as small as the snapshot.
    /// Moves in flight stay until they have ended.
    pub fn prune(&mut self, snapshot: &Snapshot, window: Duration, now: KernelTime) {
        let mut live: Vec<Cookie> = snapshot.connections.iter().map(|c| c.cookie).collect();
        live.sort_unstable();
        let lives = |cookie: &Cookie| live.binary_search(cookie).is_ok();
        self.reported.retain(lives);
        self.ended.retain(|cookie, _| lives(cookie));
        self.attempts
            .retain(|(began, _), _| now.since(*began) < window);
        for spent in [&mut self.made, &mut self.dry_runs] {
            spent.retain(|(began, _), _| now.since(*began) < window);
        }
        self.returns.prune(snapshot, lives, now);
    }

    /// Moves started and not ended.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Moves under way, when they began, and whose they are.
    pub fn moves_in_flight(&self) -> impl Iterator<Item = (Cookie, KernelTime, &Charge)> {
        self.in_flight
            .iter()
            .map(|(cookie, (began, of))| (*cookie, *began, of))
    }

    pub fn is_in_flight(&self, cookie: Cookie) -> bool {
        self.in_flight.contains_key(&cookie)
    }

    /// When the move of `cookie` began, and whose it is, if it is under way.
    pub(super) fn in_flight_since(&self, cookie: Cookie) -> Option<(KernelTime, &Charge)> {
        let (began, charge) = self.in_flight.get(&cookie)?;
        Some((*began, charge))
    }

    /// The outcome that keeps `cookie` from being chosen again, and for how long still; without it,
    /// for as long as it lives.
    pub(super) fn held(
        &self,
        cookie: Cookie,
        now: KernelTime,
    ) -> Option<(&Outcome, Option<Duration>)> {
        let ended = self.ended.get(&cookie)?;
        if ended.lasts() {
            return Some((&ended.outcome, None));
        }
        let left = ended.hold.left(now)?;
        Some((&ended.outcome, Some(left)))
    }

    /// What is not tried `now`, and why.
    pub fn cooldowns(&self, now: KernelTime) -> Vec<Cooldown> {
        let ended = self.ended.iter();
        ended
            .filter_map(|(cookie, ended)| ended.cooldown(*cookie, now))
            .chain(self.returns.cooldowns(now))
            .chain(self.fills.cooldowns(now))
            .collect()
    }

    /// Ends the cooldowns of `rule`, or all, early and returns them. A client's cooldown belongs to each
    /// rule that has moved connections at the same endpoint. A connection's history is forgotten;
    /// cooldowns of returns and of fill tests end as if their time had passed.
    pub fn clear_cooldowns(&mut self, rule: Option<&RuleName>, now: KernelTime) -> Vec<Cooldown> {
        let mut cleared = self.cooldowns(now);
        if let Some(rule) = rule {
            cleared.retain(|one| match &one.of {
                CooldownOf::Connection(_, of) => of.as_ref() == Some(rule),
                CooldownOf::Returns(Subject::Client(_), endpoint) => {
                    let of_rule = Subject::Rule(rule.clone());
                    let tests = self.returns.at(*endpoint);
                    tests.is_some_and(|tests| tests.contains_key(&of_rule))
                }
                CooldownOf::Returns(Subject::Rule(of), _) | CooldownOf::Fill(of, _) => of == rule,
            });
        }
        for one in &cleared {
            let hold = match &one.of {
                CooldownOf::Connection(cookie, _) => {
                    self.ended.remove(cookie);
                    None
                }
                CooldownOf::Returns(subject, endpoint) => self.returns.hold(subject, *endpoint),
                CooldownOf::Fill(rule, group) => self.fills.hold(rule, group),
            };
            if let Some(hold) = hold {
                hold.end(now);
            }
        }
        cleared
    }

    pub(super) fn is_reported(&self, cookie: Cookie) -> bool {
        self.reported.contains(&cookie)
    }

    /// Moves of `mode` that began within `window`. Dry runs and real moves are apart: what is
    /// only reported must not hold up what is to be done.
    pub fn spent(&self, mode: Mode, window: Duration, now: KernelTime) -> u64 {
        u64::try_from(self.recent(mode, window, now).count()).unwrap_or(u64::MAX)
    }

    /// Until the window forgets the first of [`Ledger::spent`]; none if there is none.
    pub fn refills_in(&self, mode: Mode, window: Duration, now: KernelTime) -> Option<Duration> {
        let (began, _) = self.recent(mode, window, now).next()?;
        Some(window.saturating_sub(now.since(began)))
    }

    /// When those began, the earliest first, and whose they are.
    fn recent(
        &self,
        mode: Mode,
        window: Duration,
        now: KernelTime,
    ) -> impl Iterator<Item = (KernelTime, &Charge)> {
        let spent = if mode == Mode::DryRun {
            &self.dry_runs
        } else {
            &self.made
        };
        let all = spent.iter().map(|((began, _), by)| (*began, by));
        all.filter(move |(began, _)| now.since(*began) < window)
    }

    /// Whose turns moves were that began within `window`, whatever became of them. Who is reported in dry
    /// run has had its turn.
    pub(super) fn turns(
        &self,
        mode: Mode,
        window: Duration,
        now: KernelTime,
    ) -> impl Iterator<Item = (&RuleName, Option<&str>)> {
        let dry_runs = self.recent(Mode::DryRun, window, now);
        let dry_runs = dry_runs.map(|(_, by)| (&by.rule, by.namespace.as_deref()));
        let made = self.attempts.iter();
        let made = made.filter(move |((began, _), _)| now.since(*began) < window);
        let made = made.map(|(_, (rule, namespace))| (rule, namespace.as_deref()));
        let is_dry_run = mode == Mode::DryRun;
        dry_runs
            .filter(move |_| is_dry_run)
            .chain(made.filter(move |_| !is_dry_run))
    }

    /// Whose those are.
    pub(super) fn charges(
        &self,
        mode: Mode,
        window: Duration,
        now: KernelTime,
    ) -> impl Iterator<Item = &Charge> {
        self.recent(mode, window, now).map(|(_, by)| by)
    }
}
