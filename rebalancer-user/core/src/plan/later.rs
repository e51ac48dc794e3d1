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
    if let Some((after, left)) = ledger.held(connection.cookie, now) {
        match after.refusal().filter(|refusal| refusal.is_sniffed()) {
            // Its rule has a step for it by now.
            Some(Refusal::Http2) if rule.gives_notice() => {}
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
    if let Some(returns) = returns(rule, (connection, is_too_old), ledger, now) {
        return Some(returns);
    }
    if policy.mode_of(rule) == Mode::DryRun && ledger.is_reported(connection.cookie) {
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
