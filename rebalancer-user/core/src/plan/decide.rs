//! The decision: judge each connection by itself and its endpoint beside its siblings, then let
//! the budgets have them in turn.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{
    Charge, Drained, Fate, Ledger, Move, Plan, Ramp, Reason,
    balance::standings,
    budget::{Allowance, Population},
    drain::{Draining, mode, too_short},
    first_few::FirstFew,
    groups::{GroupLoad, Groups, load},
    judge::{Candidate, Cause, Judged, judge},
    limits::{compare, measure},
    matches::{Matches, Pair},
};
use crate::{
    policy::{By, Mode, OnReconnect, Policy, Rule},
    snapshot::{Identity, KernelTime, Snapshot},
};

/// Decides what to do with every connection of `snapshot` at `now`.
///
/// Chosen are the connections that have reached a limit of their rule and that no guard skips,
/// and those that are the excess of a hot endpoint; as many as the budgets have left. Rules take
/// turns, and none has more of the slots than the others leave; of one rule those furthest beyond
/// their limit come first (the ratio of value to limit, exactly; then the lower cookie). Dry runs
/// have budgets of their own.
pub fn decide(policy: &Policy, snapshot: &Snapshot, ledger: &Ledger, now: KernelTime) -> Plan {
    let matches = Matches::of(policy, snapshot);
    let groups = Groups::of(policy, &matches, snapshot, ledger);
    let Judged {
        mut judgements,
        mut reasons,
        candidates,
        excess,
        drained,
        states,
        mut recalls,
        overdue,
    } = judge(policy, &matches, snapshot, &groups, ledger, now);

    // Stable: equals stay in the order of their cookies, and those of an endpoint in theirs. Many of
    // these are equal, and stand together already.
    let mut equals: Vec<&[Candidate<'_>]> =
        candidates.chunk_by(|a, b| a.beyond == b.beyond).collect();
    equals.sort_by(|a, b| compare(b[0].beyond, a[0].beyond));
    let candidates: Vec<&Candidate<'_>> = equals.into_iter().flatten().collect();
    let population = Population::of(&matches, &groups);
    let ramp = |pair: &Pair<'_>| Ramp::of(policy, pair.rule, ledger, now);
    let ramps: Vec<Option<Ramp>> = matches.pairs.iter().map(ramp).collect();
    let allowance = |mode| Allowance::new(policy, mode, ledger, &population, now);
    let (mut enforce, mut dry_run) = (allowance(Mode::Enforce), allowance(Mode::DryRun));
    let mut had = enforce.turns().clone();
    had.extend(dry_run.turns());
    let queues = candidates
        .iter()
        .map(|one| population.account(one.pair).queue);
    let order = population.queues.turns(queues, &had);
    let mut few = FirstFew::of(ledger);
    let mut chosen = Vec::new();
    let mut turns: Vec<(usize, u32)> = order.into_iter().zip(1..).collect();
    // A queue takes more than half of the slots only after the others; if it is the only one, at once.
    let has_others = population.queues.len() > 1;
    for others_wait in [true, false].into_iter().skip(usize::from(!has_others)) {
        turns.retain(|(index, place)| {
            let candidate = candidates[*index];
            let Pair { rule, endpoint, .. } = &matches.pairs[candidate.pair];
            let account = population.account(candidate.pair);
            let mode = mode(policy, rule, drained[candidate.pair]);
            let allowance = if mode == Mode::DryRun {
                &mut dry_run
            } else {
                &mut enforce
            };
            if others_wait && allowance.slots.has_half(account.queue) {
                return true;
            }
            let connection = candidate.connection;
            // A limit is a limit in any case. What is only reported is reported as a whole.
            let taken = if candidate.cause == Cause::Excess && mode == Mode::Enforce {
                few.allow((*endpoint, rule.name()), connection, ledger)
            } else {
                Ok(())
            };
            let judgement = &mut judgements[candidate.index];
            judgement.place = Some(*place);
            let is_excess = candidate.cause == Cause::Excess;
            let taken = taken.and_then(|()| match candidate.cause {
                Cause::Drain => allowance.take_slot(account),
                Cause::Limit | Cause::Excess => {
                    allowance.take(account, ramps[candidate.pair], is_excess)
                }
            });
            match taken {
                Ok(()) => {
                    few.count(connection, rule.name());
                    chosen.push(candidate);
                }
                Err(why) => judgement.why = Some(reasons.add(why)),
            }
            false
        });
    }
    enforce.slots.make_room(ledger, &mut recalls);

    let together = together_at(&matches, chosen.iter().copied());
    let moves = chosen.into_iter().map(|candidate| {
        let pair = &matches.pairs[candidate.pair];
        let key = (pair.endpoint_index, candidate.connection.client());
        let chosen = Chosen {
            candidate,
            pair,
            group: groups.of_pair(candidate.pair),
            excess: excess[candidate.pair].filter(|_| candidate.cause == Cause::Excess),
            drained: drained[candidate.pair].filter(|_| candidate.cause == Cause::Drain),
            here: together.get(&key).copied().unwrap_or(0),
        };
        (candidate.index, chosen.into_move(policy, ledger, now))
    });
    let moves = moves.collect();
    let standing = matches.pairs.iter().zip(drained).zip(states);
    let standing = standing.filter_map(|((pair, drained), connections)| {
        let drained = drained?;
        Some(Drained {
            endpoint: pair.endpoint,
            who: pair.who.clone(),
            rule: pair.rule.name().clone(),
            cause: drained.cause(),
            took: drained.took(),
            left: drained.left(),
            connections,
        })
    });
    let mut standing: Vec<Drained> = standing.collect();
    standing.sort_by(|a, b| (a.endpoint, &a.rule).cmp(&(b.endpoint, &b.rule)));
    let pairs = matches.pairs.iter();
    let too_short = pairs.filter_map(|pair| too_short(policy, pair.rule, snapshot, &pair.endpoint));
    // By the indexes of `Matches`, which has one more.
    let rules = policy.rules().iter().chain([Rule::manual()]);
    let rules = rules.map(|rule| rule.name().clone());
    Plan {
        drained: standing,
        too_short: too_short.collect(),
        rules: rules.collect(),
        moves,
        judgements,
        reasons: reasons.into_inner(),
        forecasts: [dry_run.forecast(), enforce.forecast()]
            .into_iter()
            .flatten()
            .collect(),
        balanced: standings(&groups),
        recalls,
        overdue,
        budget_left: if policy.mode() == Mode::DryRun {
            dry_run.left()
        } else {
            enforce.left()
        },
    }
}

/// How many connections the clients of those have at the same endpoints.
fn together_at<'a>(
    matches: &Matches<'_>,
    chosen: impl Iterator<Item = &'a Candidate<'a>>,
) -> BTreeMap<(usize, IpAddr), u64> {
    let mut has_chosen = vec![false; matches.endpoints.len()];
    let mut together: BTreeMap<_, _> = chosen
        .map(|candidate| {
            let endpoint = matches.pairs[candidate.pair].endpoint_index;
            has_chosen[endpoint] = true;
            ((endpoint, candidate.connection.client()), 0)
        })
        .collect();
    for matched in &matches.all {
        let endpoint = matched.endpoint_index as usize;
        if has_chosen[endpoint]
            && let Some(count) = together.get_mut(&(endpoint, matched.connection.client()))
        {
            *count += 1;
        }
    }
    together
}

/// A connection that is to be moved, and what is known of it.
struct Chosen<'a> {
    candidate: &'a Candidate<'a>,
    pair: &'a Pair<'a>,
    group: &'a GroupLoad,
    /// The excess that it is of, if that is why.
    excess: Option<Reason>,
    /// Its endpoint is drained, and that is why.
    drained: Option<Draining>,
    /// Connections that its client has at its endpoint.
    here: u64,
}

impl Chosen<'_> {
    fn into_move(self, policy: &Policy, ledger: &Ledger, now: KernelTime) -> Move {
        let (rule, connection) = (self.pair.rule, self.candidate.connection);
        let mut reasons = Vec::new();
        measure(rule, connection, ledger, now, |reason| {
            if reason.exceeded() {
                reasons.push(reason);
            }
        });
        reasons.sort_by(|a, b| b.compare(*a));
        reasons.extend(self.excess);
        // What must leave in time is named before its limits.
        reasons.splice(0..0, self.drained.map(Draining::reason));
        let pod = self.pair.who.pod();
        Move {
            cookie: connection.cookie,
            endpoint: connection.endpoint,
            local: connection.local,
            remote: connection.remote,
            pod: pod.map(Identity::full_name),
            rule: rule.name().clone(),
            reasons,
            steps: rule.steps().clone(),
            at_end: rule.at_end(),
            mode: mode(policy, rule, self.drained),
            heeds_guards: true,
            is_sniffed: rule.on_reconnect() == OnReconnect::Detect,
            charge: Box::new(self.charge(ledger)),
        }
    }

    fn charge(&self, ledger: &Ledger) -> Charge {
        let &Self {
            group,
            pair,
            here,
            excess,
            ..
        } = self;
        let connection = self.candidate.connection;
        let balance = pair.rule.balance();
        let by = balance.map_or(By::Connections, |balance| balance.by());
        let load = load(connection, by, ledger).unwrap_or(0);
        let share = excess
            .and(group.facts.ok())
            .map_or(0, |facts| facts.share(load));
        Charge {
            rule: pair.rule.name().clone(),
            namespace: pair.who.pod().map(|pod| pod.namespace.clone()),
            group: Arc::clone(&group.name),
            endpoint: connection.endpoint,
            client: connection.client(),
            here,
            load,
            share,
            siblings: group.siblings(),
            whole: group.is_seen_whole(),
            drains: self.drained.is_some(),
            fate: Fate::There,
        }
    }
}
