//! Which moves in flight are not to be made any more.
//!
//! A victim may wait for minutes for its quiet moment, and what it was chosen for may be over by
//! then. So each pass judges it again: its rule, its guards, its limits, and the excess of its
//! endpoint, of which those in flight are a part, as they are still there. What only puts off the
//! start of a move (age, budgets, a hold after an outcome, silence) recalls none.

use std::collections::BTreeMap;

use super::{
    Ledger, SkipReason,
    balance::to_move,
    decide::returns,
    groups::GroupLoad,
    guards::Guards,
    limits::{LoadComparison, measure},
};
use crate::{
    policy::{Balance, By, Mode, Policy, Rule},
    snapshot::{Connection, Cookie, EndpointKey, KernelTime, Snapshot},
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
pub(super) enum Still {
    /// It goes on.
    Needed,
    /// It goes on as long as its endpoint holds too much.
    IfExcess,
    /// It is recalled.
    Not(SkipReason),
}

/// A move in flight that goes on as long as its endpoint holds too much.
pub(super) struct Flying<'a> {
    pub(super) cookie: Cookie,
    pub(super) endpoint: EndpointKey,
    pub(super) began: KernelTime,
    pub(super) shared: &'a GroupLoad,
    pub(super) balance: Balance,
    pub(super) load: u64,
}

/// Judges a connection whose move is in flight. `found`: the rule that matches it now, or why that
/// is not known.
pub(super) fn still(
    policy: &Policy,
    found: Result<Option<&Rule>, SkipReason>,
    snapshot: &Snapshot,
    connection: &Connection,
    ledger: &Ledger,
    now: KernelTime,
) -> Still {
    let rule = match found {
        Ok(rule) => rule,
        Err(unsure) => return Still::Not(unsure),
    };
    let Some((_, by)) = ledger.in_flight_since(connection.cookie) else {
        return Still::Needed;
    };
    let Some(rule) = rule.filter(|rule| *rule.name() == by.rule) else {
        let chosen_by = by.rule.clone();
        return Still::Not(SkipReason::OtherRule { chosen_by });
    };
    let forbidden = Guards::of(policy, rule, snapshot, &connection.endpoint)
        .first(connection)
        .or_else(|| (policy.mode_of(rule) != Mode::Enforce).then_some(SkipReason::DryRun))
        .or_else(|| returns(rule, connection, ledger, now));
    if let Some(why) = forbidden {
        return Still::Not(why);
    }
    let (measures, unknown) = measure(rule, connection, ledger, now);
    let nearest = measures.reduce(|a, b| if b.compare(a).is_gt() { b } else { a });
    match nearest {
        Some(nearest) if nearest.exceeded() => Still::Needed,
        _ if rule.balance().is_some() => Still::IfExcess,
        Some(nearest) => Still::Not(SkipReason::WithinLimits { nearest }),
        None => Still::Not(unknown.map_or(SkipReason::NoRule, SkipReason::RateUnknown)),
    }
}

/// The moves that are not of their endpoint's excess any more, the latest of an endpoint first.
pub(super) fn of_no_excess(flying: &[Flying<'_>]) -> Vec<Recall> {
    let mut endpoints: BTreeMap<_, Vec<&Flying<'_>>> = BTreeMap::new();
    for one in flying {
        let key = (one.shared.rule.as_str(), one.endpoint);
        endpoints.entry(key).or_default().push(one);
    }
    let mut recalls = Vec::new();
    for ((_, endpoint), mut flying) in endpoints {
        // It is the oldest that go on.
        flying.sort_by_key(|one| (one.began, one.cookie));
        of_endpoint(endpoint, &flying, &mut recalls);
    }
    recalls
}

fn of_endpoint(endpoint: EndpointKey, flying: &[&Flying<'_>], recalls: &mut Vec<Recall>) {
    let Some(first) = flying.first() else { return };
    let (shared, balance) = (first.shared, first.balance);
    let mut all = |why: &SkipReason| {
        recalls.extend(flying.iter().map(|one| Recall {
            cookie: one.cookie,
            why: why.clone(),
        }));
    };
    let facts = match shared.facts {
        Ok(facts) => facts,
        Err(view) => return all(&SkipReason::NoClusterView(view)),
    };
    let Some(held) = shared.endpoints.get(&endpoint).filter(|held| held.ready) else {
        return all(&SkipReason::NotReady);
    };
    let load = held.load.saturating_add(held.in_flight);
    let excess = facts.still_beyond(load, balance);
    let standing = LoadComparison::of(balance, facts, load);
    if excess == 0 {
        return all(&SkipReason::WithinBalance(standing));
    }
    if let Some((futile, left)) = shared.held {
        return all(&SkipReason::Futile { futile, left });
    }
    if balance.by() != By::Connections {
        // What one of them carries changes from one interval to the next, and their sum less.
        return;
    }
    let mut left = to_move(excess, facts.endpoints, true);
    for one in flying {
        if one.load <= left {
            left -= one.load;
        } else {
            recalls.push(Recall {
                cookie: one.cookie,
                why: SkipReason::OthersMoved(standing),
            });
        }
    }
}
