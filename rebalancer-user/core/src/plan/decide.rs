//! The decision: judge each connection by itself and its endpoint beside its siblings, then let
//! the budgets have them in turn.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Charge, Decision, Fate, Ledger, Move, Plan, Ramp, Reason, Verdict,
    balance::standings,
    budget::{Allowance, Population},
    first_few::FirstFew,
    groups::{GroupLoad, Groups, load},
    judge::{Candidate, Judged, judge},
    limits::{compare, measure},
    matches::{Matches, Pair},
};
use crate::{
    policy::{By, Mode, OnReconnect, Policy},
    snapshot::{KernelTime, Snapshot},
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
        mut decisions,
        mut candidates,
        excess,
        mut recalls,
        overdue,
    } = judge(policy, &matches, snapshot, &groups, ledger, now);

    // Stable: equals stay in the order of their cookies, and those of an endpoint in theirs.
    candidates.sort_by(|a, b| compare(b.beyond, a.beyond));
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
    let in_turn = order.into_iter().zip(1..);
    let mut in_turn: VecDeque<_> = in_turn.map(|(index, place)| (index, place, true)).collect();
    while let Some((index, place, others_wait)) = in_turn.pop_front() {
        let candidate = &candidates[index];
        let (rule, account) = (
            matches.pairs[candidate.pair].rule,
            population.account(candidate.pair),
        );
        let mode = policy.mode_of(rule);
        let allowance = if mode == Mode::DryRun {
            &mut dry_run
        } else {
            &mut enforce
        };
        if others_wait && allowance.slots.has_half(account.queue) {
            in_turn.push_back((index, place, false));
            continue;
        }
        let (connection, endpoint) = (candidate.connection, matches.pairs[candidate.pair].endpoint);
        // A limit is a limit in any case. What is only reported is reported as a whole.
        let taken = if candidate.is_excess && mode == Mode::Enforce {
            few.allow(connection, rule, endpoint, ledger)
        } else {
            Ok(())
        };
        let decision = &mut decisions[candidate.index];
        decision.place = Some(place);
        match taken
            .and_then(|()| allowance.take(account, ramps[candidate.pair], candidate.is_excess))
        {
            Ok(()) => {
                few.count(connection.client(), rule, endpoint);
                chosen.push(candidate);
            }
            Err(why) => decision.verdict = Verdict::Skipped(why),
        }
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
            excess: excess[candidate.pair].filter(|_| candidate.is_excess),
            here: together.get(&key).copied().unwrap_or(0),
        };
        (candidate.index, chosen.into_move(policy, ledger, now))
    });
    let moves = moves.collect();
    Plan {
        decisions: moves_first(decisions, moves),
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

/// The moves, each with the index of its decision, in their order; then the other decisions as they are.
fn moves_first(mut decisions: Vec<Decision>, moves: Vec<(usize, Move)>) -> Vec<Decision> {
    let mut is_left = vec![true; decisions.len()];
    let moves = moves.into_iter().map(|(index, chosen)| {
        is_left[index] = false;
        Decision {
            verdict: Verdict::Move(Box::new(chosen)),
            ..decisions[index].clone()
        }
    });
    let moves: Vec<Decision> = moves.collect();
    let mut is_left = is_left.into_iter();
    decisions.retain(|_| is_left.next().unwrap_or(true));
    decisions.splice(0..0, moves);
    decisions
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
        let endpoint = matched.endpoint_index;
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
    /// Connections that its client has at its endpoint.
    here: u64,
}

impl Chosen<'_> {
    fn into_move(self, policy: &Policy, ledger: &Ledger, now: KernelTime) -> Move {
        let (rule, connection) = (self.pair.rule, self.candidate.connection);
        let measures = measure(rule, connection, ledger, now).0;
        let mut reasons: Vec<Reason> = measures.filter(|reason| reason.exceeded()).collect();
        reasons.sort_by(|a, b| b.compare(*a));
        reasons.extend(self.excess);
        let pod = self.pair.who.pod();
        Move {
            cookie: connection.cookie,
            endpoint: connection.endpoint,
            local: connection.local,
            remote: connection.remote,
            pod: pod.map(|pod| format!("{}/{}", pod.namespace, pod.pod)),
            rule: rule.name().clone(),
            reasons,
            steps: rule.steps().clone(),
            at_end: rule.at_end(),
            mode: policy.mode_of(rule),
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
            fate: Fate::There,
        }
    }
}
