//! The decision: judge each connection by itself, then let the most overdue have the budget.

use super::{
    Decision, Ledger, Move, Plan, Reason, Spared, Verdict, budget::Allowance, guards::guard,
    limits::measure,
};
use crate::{
    policy::{Lack, Mode, Policy, Rule},
    snapshot::{Connection, Cookie, Identity, KernelTime, Snapshot, Who},
};

/// Decides what to do with every connection of `snapshot` at `now`.
///
/// Chosen are the connections that have reached a limit of their rule and that no guard spares,
/// the one furthest beyond its limit first (the ratio of value to limit, exactly; then the lower
/// cookie), as many as the budgets have left. Dry runs have budgets of their own.
pub fn decide(policy: &Policy, snapshot: &Snapshot, ledger: &Ledger, now: KernelTime) -> Plan {
    let tracked = u64::try_from(snapshot.connections.len()).unwrap_or(u64::MAX);
    let mut connections: Vec<&Connection> = snapshot.connections.iter().collect();
    connections.sort_unstable_by_key(|connection| connection.cookie);

    let mut spared = Vec::with_capacity(connections.len());
    let mut candidates = Vec::new();
    let mut overdue = 0;
    for same in connections.chunk_by(|a, b| a.cookie == b.cookie) {
        let [connection] = same else {
            let duplicate = |c: &&Connection| spare(c.cookie, None, Spared::Duplicate);
            spared.extend(same.iter().map(duplicate));
            continue;
        };
        let who = snapshot.who(&connection.endpoint);
        let (rule, unsure) = match policy.rule_for(connection, who) {
            Ok(rule) => (rule, None),
            Err((_, Lack::Cgroup)) => (None, Some(Spared::CgroupUnknown)),
            Err((rule, lack)) => {
                let rule = Some(rule.name().clone());
                (None, Some(Spared::Unnamed { lack, rule }))
            }
        };
        let judgement = match unsure {
            Some(unsure) if !ledger.is_in_flight(connection.cookie) => Judgement::Spare(unsure),
            _ => judge(policy, rule, snapshot, connection, ledger, now),
        };
        match judgement {
            Judgement::Choose(candidate) => {
                overdue += u64::from(candidate.overdue);
                candidates.push(candidate);
            }
            Judgement::Spare(reason) => {
                let waits = matches!(
                    reason,
                    Spared::InFlight | Spared::Held { .. } | Spared::DryRun
                );
                let is_overdue = |rule: &Rule| {
                    measure(rule, connection, ledger, now)
                        .0
                        .any(Reason::overdue)
                };
                overdue += u64::from(waits && rule.is_some_and(is_overdue));
                spared.push(spare(connection.cookie, rule, reason));
            }
        }
    }

    // Stable: equals stay in the order of their cookies.
    candidates.sort_by(|a, b| b.worst.compare(a.worst));
    let allowance = |mode| Allowance::new(policy, mode, ledger, tracked, now);
    let (mut enforce, mut dry_run) = (allowance(Mode::Enforce), allowance(Mode::DryRun));
    let mut decisions = Vec::with_capacity(connections.len());
    for (candidate, place) in candidates.into_iter().zip(1..) {
        let mode = policy.mode_of(candidate.rule);
        let allowance = if mode == Mode::DryRun {
            &mut dry_run
        } else {
            &mut enforce
        };
        match allowance.take() {
            Ok(()) => decisions.push(candidate.chosen(mode, place, ledger, now)),
            Err(reason) => {
                let waits = spare(candidate.connection.cookie, Some(candidate.rule), reason);
                spared.push(Decision {
                    place: Some(place),
                    ..waits
                });
            }
        }
    }
    spared.sort_by_key(|decision| decision.cookie);
    decisions.append(&mut spared);
    let budget_left = if policy.mode() == Mode::DryRun {
        dry_run.left()
    } else {
        enforce.left()
    };
    let outlooks = [dry_run.outlook(), enforce.outlook()];
    Plan {
        decisions,
        outlooks: outlooks.into_iter().flatten().collect(),
        overdue,
        budget_left,
    }
}

/// What a connection deserves, budgets aside.
enum Judgement<'a> {
    Choose(Candidate<'a>),
    Spare(Spared),
}

/// A connection that has reached a limit.
struct Candidate<'a> {
    connection: &'a Connection,
    who: &'a Who,
    rule: &'a Rule,
    worst: Reason,
    overdue: bool,
}

impl Candidate<'_> {
    fn chosen(&self, mode: Mode, place: u64, ledger: &Ledger, now: KernelTime) -> Decision {
        let &Self {
            connection,
            who,
            rule,
            ..
        } = self;
        let name = |pod: &Identity| format!("{}/{}", pod.namespace, pod.pod);
        let mut reasons: Vec<Reason> = measure(rule, connection, ledger, now)
            .0
            .filter(|reason| reason.exceeded())
            .collect();
        reasons.sort_by(|a, b| b.compare(*a));
        let chosen = Move {
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
        };
        Decision {
            cookie: connection.cookie,
            rule: Some(rule.name().clone()),
            place: Some(place),
            verdict: Verdict::Move(chosen),
        }
    }
}

fn judge<'a>(
    policy: &Policy,
    rule: Option<&'a Rule>,
    snapshot: &'a Snapshot,
    connection: &'a Connection,
    ledger: &Ledger,
    now: KernelTime,
) -> Judgement<'a> {
    if ledger.is_in_flight(connection.cookie) {
        return Judgement::Spare(Spared::InFlight);
    }
    let Some(rule) = rule else {
        return Judgement::Spare(Spared::NoRule);
    };
    if let Some(reason) = guard(policy, rule, snapshot, connection) {
        return Judgement::Spare(reason);
    }
    let (mut measures, unknown) = measure(rule, connection, ledger, now);
    let Some(first) = measures.next() else {
        // A rule has a limit; one without would have nothing to ask for.
        let reason = unknown.map_or(Spared::NoRule, Spared::RateUnknown);
        return Judgement::Spare(reason);
    };
    let (worst, overdue) = measures.fold((first, first.overdue()), |(worst, overdue), reason| {
        let worst = if reason.compare(worst).is_gt() {
            reason
        } else {
            worst
        };
        (worst, overdue || reason.overdue())
    });
    if !worst.exceeded() {
        return Judgement::Spare(Spared::WithinLimits { nearest: worst });
    }
    let age = now.since(connection.opened);
    let min = policy.guards().min_age();
    if age < min {
        return Judgement::Spare(Spared::MinAge { age, min });
    }
    if let Some((after, left)) = ledger.held(connection.cookie, now) {
        return Judgement::Spare(Spared::Held {
            after: after.clone(),
            left,
        });
    }
    if policy.mode_of(rule) == Mode::DryRun && ledger.was_said(connection.cookie) {
        return Judgement::Spare(Spared::DryRun);
    }
    Judgement::Choose(Candidate {
        connection,
        who: snapshot.who(&connection.endpoint),
        rule,
        worst,
        overdue,
    })
}

fn spare(cookie: Cookie, rule: Option<&Rule>, reason: Spared) -> Decision {
    let rule = rule.map(|rule| rule.name().clone());
    Decision {
        cookie,
        rule,
        place: None,
        verdict: Verdict::Spared(reason),
    }
}
