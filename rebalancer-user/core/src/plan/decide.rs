//! The decision: judge each connection by itself and its endpoint beside its siblings, then let
//! the budgets have them in turn.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Charge, Decision, Fate, Forecast, Group, Ledger, Move, Plan, Ramp, Reason, SILENT, SkipReason,
    Subject, Verdict,
    balance::{State, Weighed, Weighing, client, standings, weigh},
    budget::{Allowance, Population},
    fair_queue::{Queue, turns},
    groups::{GroupLoad, Groups, comes_back, load},
    guards::Guards,
    limits::measure,
    lookup::Lookup,
    matches::{Matched, Matches},
    recall::{Flying, Recall, Still, of_no_excess, still},
};
use crate::{
    policy::{By, MissingFact, Mode, OnReconnect, Policy, Rule},
    snapshot::{Connection, Cookie, EndpointKey, Identity, KernelTime, Snapshot, Who},
};

/// Decides what to do with every connection of `snapshot` at `now`.
///
/// Chosen are the connections that have reached a limit of their rule and that no guard skips,
/// and those that are the excess of a hot endpoint; as many as the budgets have left. Rules take
/// turns, and none has more of the slots than the others leave; of one rule those furthest beyond their limit come first (the ratio of value to limit,
/// exactly; then the lower cookie). Dry runs have budgets of their own.
pub fn decide(policy: &Policy, snapshot: &Snapshot, ledger: &Ledger, now: KernelTime) -> Plan {
    let matches = Matches::of(policy, snapshot);
    let groups = Groups::of(policy, &matches, snapshot, ledger);
    let judged = judge_all(policy, &matches, snapshot, ledger, &groups, now);
    let Judged {
        mut candidates,
        mut skipped,
        mut recalls,
        overdue,
        ..
    } = judged;

    // Stable: equals stay in the order of their cookies, and those of an endpoint in theirs.
    candidates.sort_by(|a, b| b.worst.compare(a.worst));
    let there = Population::of(snapshot, &groups);
    let allowance = |mode| Allowance::new(policy, mode, ledger, &there, now);
    let (mut enforce, mut dry_run) = (allowance(Mode::Enforce), allowance(Mode::DryRun));
    let queues = candidates.iter().map(Candidate::queue);
    let mut had = enforce.turns().clone();
    had.extend(dry_run.turns());
    let order = turns(queues, &had);
    let mut few = FirstFew::of(ledger);
    let mut together = None;
    let mut decisions = Vec::with_capacity(snapshot.connections.len());
    let in_turn = order.into_iter().zip(1..);
    let mut in_turn: VecDeque<_> = in_turn.map(|(index, place)| (index, place, true)).collect();
    while let Some((index, place, others_wait)) = in_turn.pop_front() {
        let Some(candidate) = candidates.get(index) else {
            continue;
        };
        let mode = policy.mode_of(candidate.rule);
        let allowance = if mode == Mode::DryRun {
            &mut dry_run
        } else {
            &mut enforce
        };
        if others_wait && allowance.slots.has_half(candidate.queue()) {
            in_turn.push_back((index, place, false));
            continue;
        }
        let group = candidate.group(snapshot);
        let taken = few.allow(candidate, mode, ledger).and_then(|()| {
            let ramp = Ramp::of(policy, candidate.rule, ledger, now);
            allowance.take(
                candidate.queue(),
                &group,
                candidate.connection.endpoint,
                ramp,
            )
        });
        let verdict = match taken {
            // Not before: most of many are refused.
            Ok(()) => {
                let here = together.get_or_insert_with(|| together_at(snapshot));
                let here = here.get(&(candidate.connection.endpoint, client(candidate.connection)));
                let here = here.copied().unwrap_or(0);
                let chosen = candidate.chosen(mode, group, here, ledger, now);
                few.count(&chosen.charge);
                Verdict::Move(chosen)
            }
            Err(reason) => Verdict::Skipped(reason),
        };
        let all = match verdict {
            Verdict::Move(_) => &mut decisions,
            Verdict::Skipped(_) => &mut skipped,
        };
        all.push(Decision {
            cookie: candidate.connection.cookie,
            rule: Some(candidate.rule.name().clone()),
            place: Some(place),
            verdict,
        });
    }
    enforce.slots.make_room(ledger, &mut recalls);
    // By the key apart: decisions are large.
    skipped.sort_by_cached_key(|decision| decision.cookie);
    decisions.append(&mut skipped);
    let budget_left = if policy.mode() == Mode::DryRun {
        dry_run.left()
    } else {
        enforce.left()
    };
    let forecasts: Vec<Forecast> = [dry_run.forecast(), enforce.forecast()]
        .into_iter()
        .flatten()
        .collect();
    Plan {
        decisions,
        forecasts,
        balanced: standings(&groups),
        recalls,
        overdue,
        budget_left,
    }
}

/// How many connections each client has at each endpoint.
fn together_at(snapshot: &Snapshot) -> Lookup<(EndpointKey, IpAddr), u64> {
    let mut together = Lookup::default();
    for connection in &snapshot.connections {
        let key = (connection.endpoint, client(connection));
        *together.slot(key, || 0) += 1;
    }
    together
}

/// What each connection deserves, budgets aside.
#[derive(Default)]
struct Judged<'a> {
    candidates: Vec<Candidate<'a>>,
    skipped: Vec<Decision>,
    weighed: Vec<Weighed<'a>>,
    rules: Vec<&'a Rule>,
    flying: Vec<Flying<'a>>,
    recalls: Vec<Recall>,
    overdue: u64,
}

fn judge_all<'a>(
    policy: &'a Policy,
    matches: &Matches<'a>,
    snapshot: &'a Snapshot,
    ledger: &Ledger,
    groups: &'a Groups,
    now: KernelTime,
) -> Judged<'a> {
    let mut judged = Judged::default();
    let mut guards = GuardsAt::new(policy, snapshot, matches.endpoints);
    let mut order: Vec<(Cookie, usize)> = (matches.all.iter().zip(0..))
        .map(|(matched, index)| (matched.connection.cookie, index))
        .collect();
    order.sort_unstable();
    for same in order.chunk_by(|a, b| a.0 == b.0) {
        let [(_, index)] = same else {
            let duplicate = |(cookie, _): &(Cookie, _)| skip(*cookie, None, SkipReason::Duplicate);
            judged.skipped.extend(same.iter().map(duplicate));
            let cookie = same[0].0;
            if ledger.is_in_flight(cookie) {
                let why = SkipReason::Duplicate;
                judged.recalls.push(Recall { cookie, why });
            }
            continue;
        };
        let matched = &matches.all[*index];
        let connection = matched.connection;
        let shared = groups.of_connection(*index);
        let (rule, unsure) = match matched.found {
            Ok(found) => (found.map(|(_, rule)| rule), None),
            Err((_, MissingFact::Cgroup)) => (None, Some(SkipReason::CgroupUnknown)),
            Err((rule, lack)) => {
                let rule = Some(rule.name().clone());
                (None, Some(SkipReason::Unnamed { lack, rule }))
            }
        };
        let judgement = if ledger.is_in_flight(connection.cookie) {
            let found = unsure.map_or(Ok(rule), Err);
            let still = still(policy, found, snapshot, connection, ledger, now);
            judged.in_flight(still, connection, rule, (shared, ledger));
            Judgement::Skip(SkipReason::InFlight)
        } else {
            match unsure {
                Some(unsure) => Judgement::Skip(unsure),
                None => judge(
                    policy,
                    matched,
                    (snapshot, shared),
                    &mut guards,
                    ledger,
                    now,
                ),
            }
        };
        judged.take_in(judgement, connection, rule, (shared, ledger), now);
    }
    judged.weigh(snapshot);
    judged.recalls.append(&mut of_no_excess(&judged.flying));
    judged.recalls.sort_by_key(|recall| recall.cookie);
    judged
}

impl<'a> Judged<'a> {
    /// Takes in whether the move of `connection`, which is in flight, is still to be made.
    fn in_flight(
        &mut self,
        still: Still,
        connection: &'a Connection,
        rule: Option<&Rule>,
        (shared, ledger): (Option<&'a GroupLoad>, &Ledger),
    ) {
        let cookie = connection.cookie;
        match still {
            Still::Needed => {}
            Still::Not(why) => self.recalls.push(Recall { cookie, why }),
            Still::IfExcess => self.flying.extend(rule.and_then(|rule| {
                let balance = rule.balance()?;
                Some(Flying {
                    cookie,
                    endpoint: connection.endpoint,
                    began: ledger.in_flight_since(cookie)?.0,
                    shared: shared?,
                    balance,
                    load: load(connection, balance.by(), ledger).unwrap_or(0),
                })
            })),
        }
    }

    fn take_in(
        &mut self,
        judgement: Judgement<'a>,
        connection: &'a Connection,
        rule: Option<&'a Rule>,
        (shared, ledger): (Option<&'a GroupLoad>, &Ledger),
        now: KernelTime,
    ) {
        let state = match judgement {
            Judgement::Choose(candidate) => {
                self.overdue += u64::from(candidate.overdue);
                self.candidates.push(candidate);
                State::Goes
            }
            Judgement::Weigh(later) => later.map_or(State::Free, |later| match later {
                SkipReason::DryRun => {
                    self.skipped.push(skip(connection.cookie, rule, later));
                    State::Goes
                }
                later => State::Later(later),
            }),
            Judgement::Skip(reason) => {
                // An idle connection of a pool is not late: no time nor budget would make it move.
                let waits = matches!(
                    reason,
                    SkipReason::InFlight | SkipReason::Held { .. } | SkipReason::DryRun
                );
                let is_overdue = |rule: &Rule| {
                    let measures = measure(rule, connection, ledger, now).0;
                    { measures }.any(Reason::overdue)
                };
                self.overdue += u64::from(waits && rule.is_some_and(is_overdue));
                let goes = reason == SkipReason::DryRun;
                let flies = reason == SkipReason::InFlight;
                self.skipped.push(skip(connection.cookie, rule, reason));
                if flies {
                    return;
                }
                if goes { State::Goes } else { State::Stays }
            }
        };
        let Some((rule, balance)) = rule.and_then(|rule| Some((rule, rule.balance()?))) else {
            return;
        };
        let asked = matches!(state, State::Free | State::Later(_));
        let load = load(connection, balance.by(), ledger);
        let (Some(shared), Some(load)) = (shared, load) else {
            if asked {
                self.skipped
                    .push(skip(connection.cookie, Some(rule), SkipReason::LoadUnknown));
            }
            return;
        };
        self.rules.push(rule);
        self.weighed.push(Weighed {
            connection,
            shared,
            balance,
            load,
            counts: !comes_back(connection, ledger, now),
            state,
        });
    }

    fn weigh(&mut self, snapshot: &'a Snapshot) {
        for (index, weighing) in weigh(&self.weighed) {
            let (Some(one), Some(rule)) = (self.weighed.get(index), self.rules.get(index)) else {
                continue;
            };
            match weighing {
                Weighing::Move(worst) => self.candidates.push(Candidate {
                    connection: one.connection,
                    who: snapshot.who(&one.connection.endpoint),
                    rule,
                    shared: Some(one.shared),
                    worst,
                    overdue: false,
                }),
                Weighing::Skip(why) => {
                    self.skipped
                        .push(skip(one.connection.cookie, Some(rule), why));
                }
            }
        }
    }
}

/// What a connection deserves by itself.
enum Judgement<'a> {
    Choose(Candidate<'a>),
    Skip(SkipReason),
    /// It is within its limits: its endpoint decides. If it may be moved only later, why.
    Weigh(Option<SkipReason>),
}

/// A connection that has reached a limit, or is of its endpoint's excess.
struct Candidate<'a> {
    connection: &'a Connection,
    who: &'a Who,
    rule: &'a Rule,
    shared: Option<&'a GroupLoad>,
    worst: Reason,
    overdue: bool,
}

impl<'a> Candidate<'a> {
    fn queue(&self) -> Queue<'a> {
        let namespace = self.who.pod().map(|pod| pod.namespace.as_str());
        (self.rule.name().as_str(), namespace)
    }

    fn group(&self, snapshot: &Snapshot) -> Arc<Group> {
        match self.shared {
            Some(shared) => Arc::clone(&shared.group),
            // Each that a rule is for is of a group.
            None => Group::of(self.rule, snapshot, &self.connection.endpoint).into(),
        }
    }

    fn chosen(
        &self,
        mode: Mode,
        group: Arc<Group>,
        here: u64,
        ledger: &Ledger,
        now: KernelTime,
    ) -> Move {
        let &Self {
            connection,
            who,
            rule,
            worst,
            ..
        } = self;
        let name = |pod: &Identity| format!("{}/{}", pod.namespace, pod.pod);
        let mut reasons: Vec<Reason> = measure(rule, connection, ledger, now)
            .0
            .filter(|reason| reason.exceeded())
            .collect();
        reasons.sort_by(|a, b| b.compare(*a));
        if matches!(worst, Reason::Balance { .. }) {
            reasons.push(worst);
        }
        Move {
            cookie: connection.cookie,
            endpoint: connection.endpoint,
            local: connection.local,
            remote: connection.remote,
            pod: who.pod().map(name),
            rule: rule.name().clone(),
            reasons,
            steps: rule.steps().clone(),
            at_end: rule.at_end(),
            mode,
            heeds_guards: true,
            is_sniffed: rule.on_reconnect() == OnReconnect::Detect,
            charge: Box::new(self.charge(group, here, ledger)),
        }
    }

    fn charge(&self, group: Arc<Group>, here: u64, ledger: &Ledger) -> Charge {
        let &Self {
            connection,
            who,
            rule,
            shared,
            worst,
            ..
        } = self;
        let by = rule
            .balance()
            .map_or(By::Connections, |balance| balance.by());
        let load = load(connection, by, ledger).unwrap_or(0);
        let facts = shared.and_then(|shared| shared.facts.ok());
        Charge {
            rule: rule.name().clone(),
            namespace: who.pod().map(|pod| pod.namespace.clone()),
            group,
            endpoint: connection.endpoint,
            client: client(connection),
            here,
            load,
            share: match worst {
                Reason::Balance { .. } => facts.map_or(0, |facts| facts.share(load)),
                _ => 0,
            },
            siblings: shared.map_or(0, |shared| shared.siblings()),
            whole: shared.is_some_and(GroupLoad::is_seen_whole),
            stage: Fate::There,
        }
    }
}

/// Moves under way whose use is not known yet.
#[derive(Default)]
struct FirstFew {
    under_way: BTreeMap<(Subject, EndpointKey), u64>,
    /// Where not all endpoints are seen: those of them whose clients have not been seen for a while.
    late: BTreeMap<(Subject, EndpointKey), u64>,
}

impl FirstFew {
    fn of(ledger: &Ledger) -> Self {
        let mut few = Self::default();
        ledger.unsettled().for_each(|charge| few.count(charge));
        for charge in ledger.late() {
            if charge.whole {
                few.count(charge);
            } else {
                count(&mut few.late, charge);
            }
        }
        few
    }

    fn count(&mut self, charge: &Charge) {
        count(&mut self.under_way, charge);
    }

    /// Balance alone waits until moves are seen to help: a limit is a limit in any case. What is
    /// only told is told as a whole.
    fn allow(
        &self,
        candidate: &Candidate<'_>,
        mode: Mode,
        ledger: &Ledger,
    ) -> Result<(), SkipReason> {
        let balances = matches!(candidate.worst, Reason::Balance { .. });
        if !balances || mode != Mode::Enforce {
            return Ok(());
        }
        let connection = candidate.connection;
        for whom in Subject::both(client(connection), candidate.rule.name()) {
            let test = ledger.returns(whom.clone(), connection.endpoint);
            let test = test.copied().unwrap_or_default();
            let most = test.allowed();
            let key = (whom, connection.endpoint);
            let of = |moves: &BTreeMap<_, u64>| moves.get(&key).copied().unwrap_or(0);
            let late = if test.hold.times > 0 {
                of(&self.late)
            } else {
                0
            };
            let under_way = of(&self.under_way) + late;
            if under_way >= most {
                return Err(SkipReason::FirstFew {
                    whom: key.0,
                    under_way,
                    most,
                });
            }
        }
        Ok(())
    }
}

fn count(moves: &mut BTreeMap<(Subject, EndpointKey), u64>, charge: &Charge) {
    for whom in Subject::both(charge.client, &charge.rule) {
        *moves.entry((whom, charge.endpoint)).or_default() += 1;
    }
}

/// The guards of each rule at each endpoint, once they were asked for.
struct GuardsAt<'a> {
    policy: &'a Policy,
    snapshot: &'a Snapshot,
    /// By the endpoint's index; of its rules, of which there are few, by theirs.
    known: Vec<Vec<(usize, Guards<'a>)>>,
}

impl<'a> GuardsAt<'a> {
    fn new(policy: &'a Policy, snapshot: &'a Snapshot, endpoints: usize) -> Self {
        let known = (0..endpoints).map(|_| Vec::new()).collect();
        Self {
            policy,
            snapshot,
            known,
        }
    }

    fn first(
        &mut self,
        matched: &Matched<'a>,
        (number, rule): (usize, &'a Rule),
    ) -> Option<SkipReason> {
        let (known, connection) = (&mut self.known[matched.endpoint], matched.connection);
        let at = match known.iter().position(|(of, _)| *of == number) {
            Some(at) => at,
            None => {
                let at = &connection.endpoint;
                let guards = Guards::of(self.policy, rule, self.snapshot, at);
                known.push((number, guards));
                known.len() - 1
            }
        };
        known[at].1.first(connection)
    }
}

fn judge<'a>(
    policy: &Policy,
    matched: &Matched<'a>,
    (snapshot, shared): (&'a Snapshot, Option<&'a GroupLoad>),
    guards: &mut GuardsAt<'a>,
    ledger: &Ledger,
    now: KernelTime,
) -> Judgement<'a> {
    let Ok(Some(found)) = matched.found else {
        return Judgement::Skip(SkipReason::NoRule);
    };
    if let Some(reason) = guards.first(matched, found) {
        return Judgement::Skip(reason);
    }
    let (connection, (_, rule)) = (matched.connection, found);
    let (mut measures, unknown) = measure(rule, connection, ledger, now);
    let worst = measures.next().map(|first| {
        measures.fold((first, first.overdue()), |(worst, overdue), reason| {
            let worst = if reason.compare(worst).is_gt() {
                reason
            } else {
                worst
            };
            (worst, overdue || reason.overdue())
        })
    });
    let later = || not_now(policy, rule, connection, ledger, now);
    let (worst, overdue) = match worst {
        Some((worst, overdue)) if worst.exceeded() => (worst, overdue),
        _ if rule.balance().is_some() => return Judgement::Weigh(later()),
        Some((nearest, _)) => return Judgement::Skip(SkipReason::WithinLimits { nearest }),
        // A rule without limits balances.
        None => {
            let reason = unknown.map_or(SkipReason::NoRule, SkipReason::RateUnknown);
            return Judgement::Skip(reason);
        }
    };
    if let Some(reason) = later() {
        return Judgement::Skip(reason);
    }
    Judgement::Choose(Candidate {
        connection,
        who: snapshot.who(&connection.endpoint),
        rule,
        shared,
        worst,
        overdue,
    })
}

/// Why one that may be moved is not moved now.
fn not_now(
    policy: &Policy,
    rule: &Rule,
    connection: &Connection,
    ledger: &Ledger,
    now: KernelTime,
) -> Option<SkipReason> {
    let age = now.since(connection.opened);
    let min = policy.guards().min_age();
    if age < min {
        return Some(SkipReason::MinAge { age, min });
    }
    if let Some((after, left)) = ledger.held(connection.cookie, now) {
        match after.refusal().filter(|refusal| refusal.is_sniffed()) {
            Some(refusal) if rule.on_reconnect() == OnReconnect::Detect => {
                return Some(SkipReason::Sniffed { refusal, left });
            }
            // Its rule vouches for it by now.
            Some(_) => {}
            None => {
                return Some(SkipReason::Held {
                    after: after.clone(),
                    left: left.unwrap_or_default(),
                });
            }
        }
    }
    if let Some(returns) = returns(rule, connection, ledger, now) {
        return Some(returns);
    }
    if policy.mode_of(rule) == Mode::DryRun && ledger.was_said(connection.cookie) {
        return Some(SkipReason::DryRun);
    }
    // It would hold up others that can be heard. While its server has the word it is not silent.
    let since = connection.since_received;
    let answered = connection.send_queue == 0 && connection.since_sent <= since;
    let is_silent = since >= SILENT && answered;
    let must_be_sniffed = rule.on_reconnect() == OnReconnect::Detect;
    (must_be_sniffed && is_silent).then_some(SkipReason::Silent { since })
}

/// Whether it would only come back: its client, or those of its rule.
pub(super) fn returns(
    rule: &Rule,
    connection: &Connection,
    ledger: &Ledger,
    now: KernelTime,
) -> Option<SkipReason> {
    Subject::both(client(connection), rule.name())
        .into_iter()
        .find_map(|whom| {
            let test = ledger.returns(whom.clone(), connection.endpoint)?;
            Some(SkipReason::Returns {
                whom,
                moves: test.moves,
                returned: test.returned,
                siblings: test.siblings,
                left: test.hold.left(now)?,
            })
        })
}

fn skip(cookie: Cookie, rule: Option<&Rule>, reason: SkipReason) -> Decision {
    let rule = rule.map(|rule| rule.name().clone());
    Decision {
        cookie,
        rule,
        place: None,
        verdict: Verdict::Skipped(reason),
    }
}
