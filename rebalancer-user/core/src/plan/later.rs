//! Why one that may be moved is not moved now.

use super::{Ledger, Refusal, SILENT, SkipReason, Subject};
use crate::{
    policy::{Mode, OnReconnect, Policy, Rule},
    snapshot::{Connection, KernelTime},
};

/// The first reason to wait: its age, how its last move ended, where its client comes back, and
/// whether its protocol can be detected now. `is_too_old`: it has reached its `maxAge`.
pub(super) fn later(
    policy: &Policy,
    rule: &Rule,
    (connection, is_too_old): (&Connection, bool),
    ledger: &Ledger,
    now: KernelTime,
) -> Option<SkipReason> {
    let age = now.since(connection.opened);
    let min = policy.guards().min_age();
    if age < min {
        return Some(SkipReason::MinAge { age, min });
    }
    let sniffed = sniffed(rule, connection, ledger, now);
    if sniffed.is_some() {
        return sniffed;
    }
    if let Some((after, left)) = ledger.held(connection.cookie, now)
        && after.refusal().is_none_or(|refusal| !refusal.is_sniffed())
    {
        return Some(SkipReason::Held {
            after: after.clone(),
            left: left.unwrap_or_default(),
        });
    }
    if let Some(returns) = returns(rule, (connection, is_too_old), ledger, now) {
        return Some(returns);
    }
    reported_or_silent(policy.mode_of(rule), rule, connection, ledger)
}

/// Of one that may be moved at any age and wherever its client comes back, whether its protocol forbids it.
pub(super) fn protocol(
    mode: Mode,
    rule: &Rule,
    connection: &Connection,
    ledger: &Ledger,
    now: KernelTime,
) -> Option<SkipReason> {
    sniffed(rule, connection, ledger, now)
        .or_else(|| reported_or_silent(mode, rule, connection, ledger))
}

/// Its protocol was detected, and its rule has no step for it.
fn sniffed(
    rule: &Rule,
    connection: &Connection,
    ledger: &Ledger,
    now: KernelTime,
) -> Option<SkipReason> {
    let (after, left) = ledger.held(connection.cookie, now)?;
    let refusal = after.refusal().filter(|refusal| refusal.is_sniffed())?;
    // Its rule has a step for it by now, or vouches for it.
    let is_allowed = refusal == Refusal::Http2 && rule.gives_notice();
    let is_asked = rule.on_reconnect() == OnReconnect::Detect && !is_allowed;
    is_asked.then_some(SkipReason::Sniffed { refusal, left })
}

fn reported_or_silent(
    mode: Mode,
    rule: &Rule,
    connection: &Connection,
    ledger: &Ledger,
) -> Option<SkipReason> {
    if mode == Mode::DryRun && ledger.is_reported(connection.cookie) {
        return Some(SkipReason::DryRun);
    }
    // It would hold up others whose protocol can be detected. While its server has the word it is
    // not silent.
    let since = connection.since_received;
    let answered = connection.send_queue == 0 && connection.since_sent <= since;
    let is_silent = since >= SILENT && answered;
    let must_be_sniffed = rule.on_reconnect() == OnReconnect::Detect;
    (must_be_sniffed && is_silent).then_some(SkipReason::Silent { since })
}

/// Whether it would only come back: its client, or those of its rule. To move weight that comes back
/// moves nothing; but `maxAge` asks for a new connection, and any is one, wherever it comes.
pub(super) fn returns(
    rule: &Rule,
    (connection, is_too_old): (&Connection, bool),
    ledger: &Ledger,
    now: KernelTime,
) -> Option<SkipReason> {
    if is_too_old {
        return None;
    }
    let tests = ledger.returns(connection.endpoint)?;
    let both = Subject::both(connection.client(), rule.name());
    both.into_iter().find_map(|subject| {
        let test = tests.get(&subject)?;
        let left = test.hold.left(now)?;
        Some(SkipReason::Returns {
            subject,
            test: Box::new(*test),
            left,
        })
    })
}
