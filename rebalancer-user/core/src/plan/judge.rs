//! What each connection deserves, budgets aside: by itself, and as a part of what its endpoint holds.

use std::collections::BTreeMap;

use super::{
    Ledger, Reason, Recall, SkipReason,
    balance::{Clients, State, Weighed, Weighing, weigh},
    drain::{Draining, mode},
    groups::{Groups, load},
    guards::Guards,
    later::{later, protocol},
    limits::{Furthest, furthest, measure},
    matches::{Found, Matched, Matches, Pair},
    recall::{InFlight, Review, recall_beyond_excess, review},
};
use crate::{
    policy::{MissingFact, Policy},
    snapshot::{Connection, Cookie, KernelTime, Snapshot},
};

/// A connection that has reached a limit, is of its endpoint's excess, or is drained.
pub(super) struct Candidate<'a> {
    pub(super) connection: &'a Connection,
    /// The index of its judgement.
    pub(super) index: usize,
    /// The index of its endpoint and rule.
    pub(super) pair: usize,
    /// How far it is beyond: value and limit.
    pub(super) beyond: (u64, u64),
    pub(super) cause: Cause,
}

/// Why one is a candidate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// It has reached a limit.
    Limit,
    /// It is of its endpoint's excess, and within its limits.
    Excess,
    /// Its endpoint is drained.
    Drain,
}

/// What is known of one connection. Small, as many are written in no particular order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    pub(super) cookie: Cookie,
    /// The index of the first rule that matches it.
    pub(super) rule: Option<u32>,
    pub(super) place: Option<u32>,
    /// The index of why it is left; of a candidate none, until it is known.
    pub(super) why: Option<u32>,
}

/// Why connections are left, by index: many in a row for the same reason.
#[derive(Default)]
pub(super) struct Reasons(Vec<SkipReason>);

impl Reasons {
    pub(super) fn add(&mut self, why: SkipReason) -> u32 {
        if self.0.last() != Some(&why) {
            self.0.push(why);
        }
        self.0.len() as u32 - 1
    }

    pub(super) fn into_inner(self) -> Vec<SkipReason> {
        self.0
    }
}

/// What each connection deserves.
#[derive(Default)]
pub(super) struct Judged<'a> {
    /// One for each connection, by cookie.
    pub(super) judgements: Vec<Judgement>,
    pub(super) reasons: Reasons,
    pub(super) candidates: Vec<Candidate<'a>>,
    /// The excess of each pair that has any.
    pub(super) excess: Vec<Option<Reason>>,
    /// Of each pair, if it is drained.
    pub(super) drained: Vec<Option<Draining>>,
    /// Of each pair that is drained, how many connections are in which state.
    pub(super) states: Vec<BTreeMap<&'static str, u64>>,
    pub(super) recalls: Vec<Recall>,
    pub(super) overdue: u64,
}

/// Judges all connections of a snapshot.
pub(super) fn judge<'a>(
    policy: &'a Policy,
    matches: &'a Matches<'a>,
    snapshot: &'a Snapshot,
    groups: &'a Groups,
    ledger: &'a Ledger,
    now: KernelTime,
) -> Judged<'a> {
    let pairs = matches.pairs.iter();
    let mut by_cookie: Vec<(Cookie, usize)> = (matches.all.iter().zip(0..))
        .map(|(matched, index)| (matched.connection.cookie, index))
        .collect();
    by_cookie.sort_unstable();
    // Each connection of a rule that balances may have a client of its own.
    let balanced = pairs.clone().filter(|pair| pair.rule.balance().is_some());
    let clients = balanced.map(|pair| pair.connections).sum();
    let drained: Vec<Option<Draining>> = pairs
        .clone()
        .map(|pair| Draining::of(pair.rule, snapshot, &pair.endpoint))
        .collect();
    let quota = |(pair, drained): (&Pair<'_>, &Option<Draining>)| {
        drained.map_or(0, |draining| draining.quota(pair.connections))
    };
    let quotas = pairs.clone().zip(&drained).map(quota).collect();
    let mut judge = Judge {
        policy,
        matches,
        snapshot,
        groups,
        ledger,
        now,
        guards: pairs.clone().map(|_| None).collect(),
        weighed: pairs.clone().map(to_weigh).collect(),
        clients: Clients::with_capacity(clients),
        quotas,
        in_flight: Vec::new(),
        judged: Judged {
            judgements: Vec::with_capacity(by_cookie.len()),
            excess: pairs.clone().map(|_| None).collect(),
            states: vec![BTreeMap::new(); pairs.len()],
            drained,
            ..Judged::default()
        },
    };
    for same in by_cookie.chunk_by(|a, b| a.0 == b.0) {
        let (cookie, index) = same[0];
        if same.len() == 1 {
            judge.connection(&matches.all[index]);
            continue;
        }
        if ledger.is_in_flight(cookie) {
            let why = SkipReason::Duplicate;
            judge.judged.recalls.push(Recall { cookie, why });
        }
        for _ in same {
            judge.push(cookie, None, Some(SkipReason::Duplicate));
        }
    }
    judge.weigh();
    let Judge {
        in_flight,
        mut judged,
        ..
    } = judge;
    judged.recalls.append(&mut recall_beyond_excess(&in_flight));
    judged.recalls.sort_by_key(|recall| recall.cookie);
    judged
}

/// Room for the connections of a pair whose rule balances.
fn to_weigh<'a>(pair: &Pair<'_>) -> Vec<Weighed<'a>> {
    let balances = pair.rule.balance().is_some();
    Vec::with_capacity(if balances { pair.connections } else { 0 })
}

struct Judge<'a> {
    policy: &'a Policy,
    matches: &'a Matches<'a>,
    snapshot: &'a Snapshot,
    groups: &'a Groups,
    ledger: &'a Ledger,
    now: KernelTime,
    /// Of each pair, once they were asked for.
    guards: Vec<Option<Guards<'a>>>,
    /// The connections of each pair whose rule balances.
    weighed: Vec<Vec<Weighed<'a>>>,
    clients: Clients,
    /// How many more of each pair may begin to leave what is drained.
    quotas: Vec<usize>,
    in_flight: Vec<InFlight<'a>>,
    judged: Judged<'a>,
}

impl<'a> Judge<'a> {
    fn push(&mut self, cookie: Cookie, pair: Option<usize>, why: Option<SkipReason>) {
        let why = why.map(|why| self.judged.reasons.add(why));
        self.judged.judgements.push(Judgement {
            cookie,
            rule: pair.map(|pair| self.matches.pairs[pair].rule_index),
            place: None,
            why,
        });
    }

    fn connection(&mut self, matched: &Matched<'a>) {
        let connection = matched.connection;
        let found = match matched.found {
            Found::Pair(pair) => Ok(pair as usize),
            Found::NoRule => Err(SkipReason::NoRule),
            Found::Undetermined(_, MissingFact::Cgroup) => Err(SkipReason::CgroupUnknown),
            Found::Undetermined(rule, lack) => {
                let rule = Some(self.policy.rules()[rule as usize].name().clone());
                Err(SkipReason::Unnamed { lack, rule })
            }
        };
        let pair = found.as_ref().ok().copied();
        let why = if self.ledger.is_in_flight(connection.cookie) {
            self.review(connection, found);
            Some(SkipReason::InFlight)
        } else {
            found.map_or_else(Some, |pair| self.of_rule(connection, pair))
        };
        if let Some(pair) = pair.filter(|pair| {
            self.judged.drained[*pair]
                .is_some_and(|draining| draining.concerns(connection, self.now))
        }) {
            let state = why.as_ref().map_or("chosen", SkipReason::as_str);
            *self.judged.states[pair].entry(state).or_default() += 1;
        }
        self.push(connection.cookie, pair, why);
    }

    /// Whether the move of a connection, which is in flight, is still to be made.
    fn review(&mut self, connection: &'a Connection, found: Result<usize, SkipReason>) {
        let (ledger, now, cookie) = (self.ledger, self.now, connection.cookie);
        let pair = found.as_ref().ok().copied();
        let rule = pair.map(|pair| self.matches.pairs[pair].rule);
        if let Some(rule) = rule {
            let mut is_overdue = false;
            measure(rule, connection, ledger, now, |reason| {
                is_overdue |= reason.overdue()
            });
            self.judged.overdue += u64::from(is_overdue);
        }
        let guarded = pair.and_then(|pair| self.guards(pair).first(connection));
        let draining = pair.and_then(|pair| self.judged.drained[pair]);
        let found = match found {
            Err(SkipReason::NoRule) => Ok(None),
            Err(why) => Err(why),
            Ok(_) => Ok(rule),
        };
        match review(
            self.policy,
            found,
            (guarded, draining),
            connection,
            ledger,
            now,
        ) {
            Review::Continue => {}
            Review::Recall(why) => self.judged.recalls.push(Recall { cookie, why }),
            Review::ContinueIfExcess => self.in_flight.extend(pair.and_then(|pair| {
                let balance = rule?.balance()?;
                Some(InFlight {
                    cookie,
                    endpoint: connection.endpoint,
                    began: ledger.in_flight_since(cookie)?.0,
                    group: self.groups.of_pair(pair),
                    balance,
                    load: load(connection, balance.by(), ledger).unwrap_or(0),
                })
            })),
        }
    }

    fn guards(&mut self, pair: usize) -> &Guards<'a> {
        let (policy, snapshot, at) = (self.policy, self.snapshot, &self.matches.pairs[pair]);
        self.guards[pair].get_or_insert_with(|| Guards::of(policy, at.rule, snapshot, &at.endpoint))
    }

    /// Why one that a rule is for is left, as far as that is known before its endpoint is weighed and
    /// budgets are asked.
    fn of_rule(&mut self, connection: &'a Connection, pair: usize) -> Option<SkipReason> {
        let (why, state) = self.by_itself(connection, pair);
        let Some(balance) = self.matches.pairs[pair].rule.balance() else {
            return why;
        };
        let Some(load) = load(connection, balance.by(), self.ledger) else {
            let is_asked = matches!(state, State::Free | State::Later | State::Returns);
            return if is_asked {
                Some(SkipReason::LoadUnknown)
            } else {
                why
            };
        };
        let counted = !self.ledger.always_returns(connection, self.now);
        let group = self.groups.indexes()[pair];
        let client = counted.then(|| self.clients.add(group, connection, load));
        self.weighed[pair].push(Weighed {
            connection,
            index: self.judged.judgements.len(),
            client,
            load,
            state,
        });
        why
    }

    /// Why it is left, if it is no candidate and is not to be weighed.
    fn by_itself(
        &mut self,
        connection: &'a Connection,
        pair: usize,
    ) -> (Option<SkipReason>, State) {
        let (policy, ledger, now) = (self.policy, self.ledger, self.now);
        let rule = self.matches.pairs[pair].rule;
        if let Some(why) = self.guards(pair).first(connection) {
            return (Some(why), State::Stays);
        }
        if let Some(draining) = self.judged.drained[pair] {
            return (self.drained(connection, pair, draining), State::Stays);
        }
        let (furthest, unknown) = furthest(rule, connection, ledger, now);
        let is_too_old = furthest.is_some_and(|furthest| furthest.is_too_old);
        let later = || later(policy, rule, (connection, is_too_old), ledger, now);
        let (furthest, overdue) = match furthest {
            Some(furthest) if furthest.reason.exceeded() => (furthest.reason, furthest.overdue),
            _ if rule.balance().is_some() => {
                let why = later();
                let state = match why {
                    None => State::Free,
                    Some(SkipReason::DryRun) => State::Goes,
                    Some(SkipReason::Returns { .. }) => State::Returns,
                    Some(_) => State::Later,
                };
                return (why, state);
            }
            Some(Furthest { reason, .. }) => {
                let why = SkipReason::WithinLimits { nearest: reason };
                return (Some(why), State::Stays);
            }
            None => {
                let unknown = unknown.map(|unknown| SkipReason::RateUnknown { unknown });
                let why = unknown.unwrap_or(SkipReason::NotDrained);
                return (Some(why), State::Stays);
            }
        };
        if let Some(why) = later() {
            // An idle connection of a pool is not late: no time nor budget would make it move.
            let waits = matches!(why, SkipReason::Held { .. } | SkipReason::DryRun);
            self.judged.overdue += u64::from(waits && overdue);
            let goes = why == SkipReason::DryRun;
            return (Some(why), if goes { State::Goes } else { State::Stays });
        }
        self.judged.overdue += u64::from(overdue);
        self.judged.candidates.push(Candidate {
            connection,
            index: self.judged.judgements.len(),
            pair,
            beyond: furthest.fraction(),
            cause: Cause::Limit,
        });
        (None, State::Goes)
    }

    /// Why one of an endpoint that is drained stays for now. Neither its age nor how an earlier move ended
    /// matters: there is no later.
    fn drained(
        &mut self,
        connection: &'a Connection,
        pair: usize,
        draining: Draining,
    ) -> Option<SkipReason> {
        let (policy, ledger, now) = (self.policy, self.ledger, self.now);
        let rule = self.matches.pairs[pair].rule;
        if !draining.concerns(connection, now) {
            return Some(SkipReason::OpenedLater);
        }
        let mode = mode(policy, rule, Some(draining));
        if let Some(why) = protocol(mode, rule, connection, ledger, now) {
            return Some(why);
        }
        let quota = &mut self.quotas[pair];
        if *quota == 0 {
            let (cause, left) = (draining.cause(), draining.left());
            return Some(SkipReason::DrainedLater { cause, left });
        }
        *quota -= 1;
        self.judged.candidates.push(Candidate {
            connection,
            index: self.judged.judgements.len(),
            pair,
            beyond: draining.reason().fraction(),
            cause: Cause::Drain,
        });
        None
    }

    /// Weighs the endpoints, in the order of their rules' names and their keys.
    fn weigh(&mut self) {
        let (matches, groups) = (self.matches, self.groups);
        let (weighed, clients) = (&self.weighed, &self.clients);
        let Judged {
            judgements,
            reasons,
            candidates,
            excess,
            ..
        } = &mut self.judged;
        let mut pairs: Vec<usize> = (0..weighed.len()).collect();
        pairs.retain(|pair| !weighed[*pair].is_empty());
        pairs.sort_by_key(|pair| {
            let pair = &matches.pairs[*pair];
            (pair.rule.name(), pair.endpoint)
        });
        candidates.reserve(weighed.iter().map(Vec::len).sum());
        for pair in pairs {
            let at = &matches.pairs[pair];
            let Some(balance) = at.rule.balance() else {
                continue;
            };
            let answer = |one: &Weighed<'a>, weighing| match weighing {
                Weighing::Move(reason) => {
                    excess[pair] = Some(reason);
                    candidates.push(Candidate {
                        connection: one.connection,
                        index: one.index,
                        pair,
                        beyond: reason.fraction(),
                        cause: Cause::Excess,
                    });
                }
                Weighing::Skip(why) => judgements[one.index].why = Some(reasons.add(why)),
            };
            let group = (groups.of_pair(pair), balance);
            weigh(group, at.endpoint, &weighed[pair], clients, answer);
        }
    }
}
