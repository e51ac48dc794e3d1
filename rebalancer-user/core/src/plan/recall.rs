//! Which moves in flight are not to be made any more.
//!
//! A victim may wait for minutes for its quiet moment, and what it was chosen for may be over by
//! then. So each pass judges it again: its rule, its guards, its limits, and the excess of its
//! endpoint, of which those in flight are a part, as they are still there. What only puts off the
//! start of a move (age, budgets, a hold after an outcome, silence) recalls none.

use std::collections::BTreeMap;

use super::{
    Ledger, LoadComparison, SkipReason,
    balance::to_move,
    drain::{Draining, mode},
    groups::GroupLoad,
    later::returns,
    limits::{Furthest, furthest},
};
use crate::{
    policy::{Balance, By, Mode, Policy, Rule},
    snapshot::{Connection, Cookie, EndpointKey, KernelTime},
};

/// A move in flight that is not to be made any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recall {
    /// Its connection.
    pub cookie: Cookie,
    /// Why it would not be chosen now.
    pub why: SkipReason,
}

/// What becomes of a move in flight, by its connection alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Review {
    /// It continues.
    Continue,
    /// It continues as long as its endpoint holds too much.
    ContinueIfExcess,
    /// It is recalled.
    Recall(SkipReason),
}

/// A move in flight that continues as long as its endpoint holds too much.
pub(super) struct InFlight<'a> {
    pub(super) cookie: Cookie,
    pub(super) endpoint: EndpointKey,
    pub(super) began: KernelTime,
    pub(super) group: &'a GroupLoad,
    pub(super) balance: Balance,
    pub(super) load: u64,
}

/// Judges a connection whose move is in flight. `found`: the rule that matches it now, or why that
/// is not known. `guarded`: the first guard of that rule that skips it, and
/// how its endpoint is drained, if it is.
pub(super) fn review(
    policy: &Policy,
    found: Result<Option<&Rule>, SkipReason>,
    (guarded, draining): (Option<SkipReason>, Option<Draining>),
    connection: &Connection,
    ledger: &Ledger,
    now: KernelTime,
) -> Review {
    let rule = match found {
        Ok(rule) => rule,
        Err(undetermined) => return Review::Recall(undetermined),
    };
    let Some((_, by)) = ledger.in_flight_since(connection.cookie) else {
        return Review::Continue;
    };
    let Some(rule) = rule.filter(|rule| *rule.name() == by.rule) else {
        let chosen_by = by.rule.clone();
        return Review::Recall(SkipReason::OtherRule { chosen_by });
    };
    let is_drained = draining.is_some_and(|draining| draining.concerns(connection, now));
    if is_drained && guarded.is_none() && mode(policy, rule, draining) == Mode::Enforce {
        return Review::Continue;
    }
    let (furthest, unknown) = furthest(rule, connection, ledger, now);
    let is_too_old = furthest.is_some_and(|furthest| furthest.is_too_old);
    let forbidden = guarded
        .or_else(|| (policy.mode_of(rule) != Mode::Enforce).then_some(SkipReason::DryRun))
        .or_else(|| returns(rule, (connection, is_too_old), ledger, now));
    if let Some(why) = forbidden {
        return Review::Recall(why);
    }
    match furthest {
        Some(furthest) if furthest.reason.exceeded() => Review::Continue,
        _ if rule.balance().is_some() => Review::ContinueIfExcess,
        Some(Furthest { reason, .. }) => {
            Review::Recall(SkipReason::WithinLimits { nearest: reason })
        }
        None => Review::Recall(unknown.map_or(SkipReason::NotDrained, |unknown| {
            SkipReason::RateUnknown { unknown }
        })),
    }
}

/// Recalls of those that are not of their endpoint's excess any more, the latest of an endpoint
/// first.
pub(super) fn recall_beyond_excess(moves: &[InFlight<'_>]) -> Vec<Recall> {
    let mut endpoints: BTreeMap<_, Vec<&InFlight<'_>>> = BTreeMap::new();
    for one in moves {
        let key = (one.group.rule.as_str(), one.endpoint);
        endpoints.entry(key).or_default().push(one);
    }
    let mut recalls = Vec::new();
    for ((_, endpoint), mut moves) in endpoints {
        // It is the oldest that continue.
        moves.sort_by_key(|one| (one.began, one.cookie));
        of_endpoint(endpoint, &moves, &mut recalls);
    }
    recalls
}

fn of_endpoint(endpoint: EndpointKey, moves: &[&InFlight<'_>], recalls: &mut Vec<Recall>) {
    let Some(first) = moves.first() else { return };
    let (group, balance) = (first.group, first.balance);
    let mut all = |why: &SkipReason| {
        recalls.extend(moves.iter().map(|one| Recall {
            cookie: one.cookie,
            why: why.clone(),
        }));
    };
    let facts = match group.facts {
        Ok(facts) => facts,
        Err(view) => return all(&SkipReason::NoClusterView { view }),
    };
    let Some(at) = group.endpoints.get(&endpoint).filter(|at| at.ready) else {
        return all(&SkipReason::NotReady);
    };
    let load = at.load.saturating_add(at.in_flight);
    let excess = facts.still_beyond(load, balance);
    let comparison = LoadComparison::of(balance, facts, load);
    if excess == 0 {
        return all(&SkipReason::WithinBalance { comparison });
    }
    if let Some((failure, left)) = group.held {
        let failure = Box::new(failure);
        return all(&SkipReason::FillFailed { failure, left });
    }
    if balance.by() != By::Connections {
        // What one of them carries changes from one interval to the next, and their sum less.
        return;
    }
    let mut left = to_move(excess, facts.endpoints, true);
    for one in moves {
        if one.load <= left {
            left -= one.load;
        } else {
            let why = SkipReason::OthersMoved { comparison };
            recalls.push(Recall {
                cookie: one.cookie,
                why,
            });
        }
    }
}
