//! What was moved, and when, where its clients came, and how fast connections were: what the next
//! decision must know of those before.

mod observe;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    Charge, Cooldown, CooldownOf, Fate, FillTest, Futile, Group, Hold, Move, Outcome, Refusal,
    ServiceFacts, Subject, Sum,
    fill::Efforts,
    flows::{Flow, Flows},
    rates::{History, Rates},
    returns::{PendingReturn, ReturnCounts, Returns, Test},
};
use crate::{
    policy::{By, Mode, Policy, Rule, RuleName},
    snapshot::{Connection, Cookie, EndpointKey, KernelTime, Netns, NetnsCookie, Snapshot},
};

/// What was moved and told so far. A value: the agent keeps one and tells it what it does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    in_flight: BTreeMap<Cookie, (KernelTime, Charge)>,
    ended: BTreeMap<Cookie, Ended>,
    said: BTreeSet<Cookie>,
    made: Spent,
    told: Spent,
    rates: Rates,
    flows: Flows,
    returns: Returns,
    sums: BTreeMap<(RuleName, Arc<Group>), VecDeque<Sum>>,
    shedding: BTreeSet<(RuleName, EndpointKey)>,
    efforts: Efforts,
    views: BTreeMap<(RuleName, Arc<Group>), (ServiceFacts, KernelTime)>,
    enforced: BTreeMap<RuleName, KernelTime>,
    attempts: BTreeMap<(KernelTime, Cookie), Turn>,
    /// As many as there were at one time: the kernel gives the lowest inode that is free.
    namespaces: BTreeMap<Netns, NetnsCookie>,
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
    Futile {
        /// Whose moves.
        rule: RuleName,
        /// Among which endpoints.
        group: Group,
        /// The evidence.
        futile: Futile,
        /// For how long nothing is moved.
        lasts: Duration,
    },
}

/// Moves that count against a budget, by when they began.
type Spent = BTreeMap<(KernelTime, Cookie), Charge>;

/// Listings of which the largest sum counts: clients that are about to reconnect are in none of
/// the last.
const SUMS: usize = 3;

/// All that a [`Ledger`] holds, to be written and read: a decision made with what was read back
/// is the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entries {
    /// Moves under way, and when they began.
    pub in_flight: Vec<(Cookie, KernelTime, Charge)>,
    /// Connections of which moves ended, and how the last did.
    pub ended: Vec<(Cookie, Ended)>,
    /// Connections told in dry run.
    pub said: Vec<Cookie>,
    /// Moves that count against the budget, by when they began.
    pub made: Vec<(KernelTime, Cookie, Charge)>,
    /// What was told in dry run, likewise.
    pub told: Vec<(KernelTime, Cookie, Charge)>,
    /// The rates of connections whose rules ask for them.
    pub rates: Vec<(Cookie, History)>,
    /// The rates of connections whose rules balance by them.
    pub flows: Vec<(Cookie, Flow)>,
    /// Moves that ended, and whose clients are looked for.
    pub awaited: Vec<PendingReturn>,
    /// Those that have not been seen for a while.
    pub late: Vec<PendingReturn>,
    /// Connections that were taken for such a client.
    pub taken: Vec<Cookie>,
    /// What is known of returns.
    pub returns: Vec<(Subject, EndpointKey, Test)>,
    /// What groups held under rules, the latest last.
    pub sums: Vec<(RuleName, Group, Vec<Sum>)>,
    /// Endpoints that have begun to shed.
    pub shedding: Vec<(RuleName, EndpointKey)>,
    /// What was moved to fill what is empty, and whether it did.
    pub efforts: Vec<(RuleName, Group, FillTest)>,
    /// Since when rules are enforced; of one that is not here it does not matter.
    pub enforced: Vec<(RuleName, KernelTime)>,
    /// Moves that were begun, whatever became of them: when, and whose turn it was.
    pub attempts: Vec<(KernelTime, Cookie, RuleName, Option<String>)>,
    /// The network namespaces that had these inodes last.
    pub namespaces: Vec<(Netns, NetnsCookie)>,
}

impl Entries {
    /// Whether it may be what was known `at` this time: nothing of it is of later, and no hold is longer
    /// than any. What was read from a file may be anything.
    pub fn is_of(&self, at: KernelTime) -> bool {
        let Self {
            in_flight,
            ended,
            said: _,
            made,
            told,
            rates,
            flows: _,
            awaited,
            late,
            taken: _,
            returns,
            sums: _,
            shedding: _,
            efforts,
            enforced,
            attempts,
            namespaces: _,
        } = self;
        let began = made.iter().chain(told).map(|(began, ..)| *began);
        let moves = awaited.iter().chain(late);
        let times = (in_flight.iter().map(|(_, began, _)| *began))
            .chain(began)
            .chain(moves.flat_map(|one| [one.began, one.ended]))
            .chain(returns.iter().map(|(.., test)| test.last))
            .chain(
                efforts
                    .iter()
                    .flat_map(|(.., effort)| [effort.last, effort.lacked, effort.since]),
            )
            .chain(enforced.iter().map(|(_, since)| *since))
            .chain(attempts.iter().map(|(began, ..)| *began));
        let holds = returns.iter().map(|(.., test)| test.hold);
        let mut holds = holds
            .chain(efforts.iter().map(|(.., effort)| effort.hold))
            .chain(ended.iter().map(|(_, ended)| ended.hold));
        { times }.all(|time| time <= at)
            && holds.all(|hold| hold.is_of(at))
            && rates.iter().all(|(_, history)| history.makes_sense())
    }
}

impl Ledger {
    /// All that it holds, in order.
    pub fn entries(&self) -> Entries {
        let attempt = |((at, cookie), (rule, namespace)): (&(KernelTime, Cookie), &Turn)| {
            (*at, *cookie, rule.clone(), namespace.clone())
        };
        let spent = |spent: &Spent| {
            let entry =
                |((at, cookie), by): (&(KernelTime, Cookie), &Charge)| (*at, *cookie, by.clone());
            spent.iter().map(entry).collect()
        };
        let flying =
            |(cookie, (at, by)): (&Cookie, &(KernelTime, Charge))| (*cookie, *at, by.clone());
        let sums = |((rule, group), sums): (&(RuleName, Arc<Group>), &VecDeque<Sum>)| {
            let sums = sums.iter().copied().collect();
            (rule.clone(), Group::clone(group), sums)
        };
        let (awaited, late, taken, returns) = self.returns.entries();
        Entries {
            in_flight: self.in_flight.iter().map(flying).collect(),
            ended: self.ended.clone().into_iter().collect(),
            said: self.said.iter().copied().collect(),
            made: spent(&self.made),
            told: spent(&self.told),
            rates: self.rates.entries(),
            flows: self.flows.entries(),
            awaited,
            late,
            taken,
            returns,
            sums: self.sums.iter().map(sums).collect(),
            shedding: self.shedding.iter().cloned().collect(),
            efforts: self.efforts.entries(),
            enforced: self.enforced.clone().into_iter().collect(),
            attempts: self.attempts.iter().map(attempt).collect(),
            namespaces: self.namespaces.clone().into_iter().collect(),
        }
    }

    /// A ledger that holds `entries`.
    pub fn from_entries(entries: Entries) -> Self {
        let attempt = |(at, cookie, rule, namespace)| ((at, cookie), (rule, namespace));
        let flying = |(cookie, at, by)| (cookie, (at, by));
        let spent = |all: Vec<(KernelTime, Cookie, Charge)>| {
            let entry = |(at, cookie, by)| ((at, cookie), by);
            all.into_iter().map(entry).collect()
        };
        let sums = |(rule, group, sums): (RuleName, Group, Vec<Sum>)| {
            (
                (rule, Arc::new(group)),
                sums.into_iter().take(SUMS).collect(),
            )
        };
        Self {
            in_flight: entries.in_flight.into_iter().map(flying).collect(),
            ended: entries.ended.into_iter().collect(),
            said: entries.said.into_iter().collect(),
            made: spent(entries.made),
            told: spent(entries.told),
            rates: Rates::from_entries(entries.rates),
            flows: Flows::from_entries(entries.flows),
            returns: Returns::from_entries(
                entries.awaited,
                entries.late,
                entries.taken,
                entries.returns,
            ),
            sums: entries.sums.into_iter().map(sums).collect(),
            shedding: entries.shedding.into_iter().collect(),
            efforts: Efforts::from_entries(entries.efforts),
            views: BTreeMap::new(),
            enforced: entries.enforced.into_iter().collect(),
            attempts: entries.attempts.into_iter().map(attempt).collect(),
            namespaces: entries.namespaces.into_iter().collect(),
        }
    }

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

    /// Since when a rule is enforced, if that is told.
    pub(super) fn enforced_since(&self, rule: &RuleName) -> Option<KernelTime> {
        self.enforced.get(rule).copied()
    }

    /// What the next agent must know. What follows from two listings it finds out by itself. What is in
    /// flight ends with this one, and nobody tells how: it counts as moved.
    pub fn to_keep(&self) -> Self {
        Self {
            ended: self.ended.clone(),
            said: self.said.clone(),
            made: self.made.clone(),
            told: self.told.clone(),
            returns: self.returns.clone(),
            sums: self.sums.clone(),
            shedding: self.shedding.clone(),
            efforts: self.efforts.clone(),
            enforced: self.enforced.clone(),
            attempts: self.attempts.clone(),
            namespaces: self.namespaces.clone(),
            ..Self::default()
        }
    }

    /// Forgets what was told in dry run, as another policy would tell it.
    pub fn forget_told(&mut self) {
        self.said.clear();
    }

    /// Takes in what is known elsewhere of a group whose endpoints are not all on this node: all
    /// that its nodes hold under `rule`. It counts until it is told anew, and no longer than
    /// `until`. It is not among the entries.
    pub fn know(&mut self, rule: RuleName, group: Group, facts: ServiceFacts, until: KernelTime) {
        let key = (rule, Arc::new(group));
        self.views.insert(key, (facts, until));
    }

    /// Whether moves of a rule from an endpoint are under way, or their clients.
    fn is_unsettled(&self, (rule, endpoint): &(RuleName, EndpointKey)) -> bool {
        self.unsettled()
            .any(|by| by.rule == *rule && by.endpoint == *endpoint)
    }

    /// Moves that have not ended, and those whose clients have not been seen again.
    pub(super) fn unsettled(&self) -> impl Iterator<Item = &Charge> {
        let flying = self.in_flight.values().map(|(_, by)| by);
        let awaited = self.returns.awaited().iter();
        flying.chain(awaited.map(|one| &one.charge))
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

    /// What is known elsewhere.
    pub(super) fn view(
        &self,
        rule: &RuleName,
        group: &Arc<Group>,
        now: KernelTime,
    ) -> Option<ServiceFacts> {
        let key = (rule.clone(), Arc::clone(group));
        let (facts, until) = self.views.get(&key)?;
        (now < *until).then_some(*facts)
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
    pub(super) fn effort(&self, rule: &RuleName, group: &Arc<Group>) -> Option<&FillTest> {
        self.efforts.get(rule, group)
    }

    /// Moves in a group that did not help, and for how long none is made.
    pub(super) fn futile(
        &self,
        group: (&RuleName, &Arc<Group>),
        by: By,
        facts: &ServiceFacts,
        now: KernelTime,
    ) -> Option<(Futile, Duration)> {
        self.efforts.held(group, by, facts, now)
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
        let futile = self.efforts.take_new_holds().into_iter();
        let futile = futile.map(|((rule, group), futile, lasts)| NewHold::Futile {
            rule,
            group: Group::clone(&group),
            futile,
            lasts,
        });
        returns.chain(futile).collect()
    }

    pub(super) fn rates(&self) -> &Rates {
        &self.rates
    }

    /// Records that `chosen` was started.
    pub fn started(&mut self, chosen: &Move, now: KernelTime) {
        let turn = (chosen.charge.rule.clone(), chosen.charge.namespace.clone());
        self.attempts.insert((now, chosen.cookie()), turn);
        let charge = Charge::clone(&chosen.charge);
        self.in_flight
            .insert(chosen.cookie(), (now, charge.clone()));
        self.made.insert((now, chosen.cookie()), charge);
    }

    /// Records how the move of `cookie` ended, which is heard of `now` and was so long after its order:
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
                self.has_gone(cookie, began, charge, &outcome, now);
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
    fn has_gone(
        &mut self,
        cookie: Cookie,
        began: KernelTime,
        charge: Charge,
        outcome: &Outcome,
        ended: KernelTime,
    ) {
        if !matches!(outcome, Outcome::Closed | Outcome::Reset) {
            return;
        }
        if let Some(made) = self.made.get_mut(&(began, cookie)) {
            made.stage = Fate::Away;
        }
        if charge.share > 0 {
            self.efforts
                .count(&charge.rule, &charge.group, charge.share, ended);
        }
        self.returns.awaits(PendingReturn {
            ended,
            cookie,
            began,
            charge,
            seen: None,
        });
    }

    /// Records that `chosen` was told in dry run. It counts against the budget of dry runs, so
    /// that they show the pace of the real ones.
    pub fn reported(&mut self, chosen: &Move, now: KernelTime) {
        self.said.insert(chosen.cookie());
        self.told
            .insert((now, chosen.cookie()), Charge::clone(&chosen.charge));
    }

    /// Forgets what can no longer matter: connections that are gone, and moves older than
    /// `window`. Call it after each plan; the ledger then stays as small as the snapshot.
    /// Moves in flight stay until they have ended.
    pub fn prune(&mut self, snapshot: &Snapshot, window: Duration, now: KernelTime) {
        let mut live: Vec<Cookie> = snapshot.connections.iter().map(|c| c.cookie).collect();
        live.sort_unstable();
        let lives = |cookie: &Cookie| live.binary_search(cookie).is_ok();
        self.said.retain(lives);
        self.ended.retain(|cookie, _| lives(cookie));
        self.attempts
            .retain(|(began, _), _| now.since(*began) < window);
        for spent in [&mut self.made, &mut self.told] {
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

    pub(super) fn is_in_flight(&self, cookie: Cookie) -> bool {
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
            .chain(self.efforts.cooldowns(now))
            .collect()
    }

    /// Ends those of `rule`, or all, before their time; returns them. Of a client they are of each
    /// rule that has moved any at the same endpoint. A connection begins anew; where clients come back
    /// or an endpoint stays empty, it is as if their time had passed.
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
                CooldownOf::Returns(whom, endpoint) => self.returns.hold(whom, *endpoint),
                CooldownOf::Fill(rule, group) => self.efforts.hold(rule, group),
            };
            if let Some(hold) = hold {
                hold.end(now);
            }
        }
        cleared
    }

    pub(super) fn is_reported(&self, cookie: Cookie) -> bool {
        self.said.contains(&cookie)
    }

    /// Moves of `mode` that began within `window`. Dry runs and real moves are apart: what is
    /// only told must not hold up what is to be done.
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
            &self.told
        } else {
            &self.made
        };
        let all = spent.iter().map(|((began, _), by)| (*began, by));
        all.filter(move |(began, _)| now.since(*began) < window)
    }

    /// Whose turns moves were that began within `window`, whatever became of them. Who is told in dry
    /// run has had its turn.
    pub(super) fn turns(
        &self,
        mode: Mode,
        window: Duration,
        now: KernelTime,
    ) -> impl Iterator<Item = (&RuleName, Option<&str>)> {
        let told = self.recent(Mode::DryRun, window, now);
        let told = told.map(|(_, by)| (&by.rule, by.namespace.as_deref()));
        let made = self.attempts.iter();
        let made = made.filter(move |((began, _), _)| now.since(*began) < window);
        let made = made.map(|(_, (rule, namespace))| (rule, namespace.as_deref()));
        let is_told = mode == Mode::DryRun;
        told.filter(move |_| is_told)
            .chain(made.filter(move |_| !is_told))
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
