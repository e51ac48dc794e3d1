//! Which connections leave an endpoint because it stops or is to be empty.
//!
//! A pod is deleted some time before its containers are asked to stop, if `preStop` takes some. Within that
//! time new connections go elsewhere already, and the old ones are moved, evenly spread over what is left of
//! it: some are quiet only now and then, and a server that takes all clients over at once is hot. So it is with
//! a pod that its Service does not select any more, and with an endpoint that an operator wants empty: then
//! those that were opened before leave it, each once.

use std::time::Duration;

use super::{
    Reason, SkipReason,
    drained::{DRAIN_MARGIN, DRAIN_PASS, DrainCause, LEAST, TooShort, UNTIL_KNOWN, enough},
};
use crate::{
    policy::{Drain, DrainOn, Mode, Policy, Rule},
    snapshot::{
        Connection, Ending, EndpointKey, Identity, KernelTime, RemovedFrom, RequestedDrain,
        Snapshot,
    },
};

/// An endpoint that is drained.
#[derive(Clone, Copy)]
pub(super) struct Draining {
    cause: DrainCause,
    since: Duration,
    within: Duration,
}

impl Draining {
    /// Whether `rule` or an operator drains this endpoint now: of several reasons the most urgent.
    pub(super) fn of(rule: &Rule, snapshot: &Snapshot, endpoint: &EndpointKey) -> Option<Self> {
        let at = snapshot.endpoints.get(endpoint)?;
        let pod = at.who.pod();
        let terminating = ending(rule, pod)
            .filter(|ending| ending.stops_after >= LEAST)
            .map(|ending| (DrainCause::Terminating, ending.since, ending.stops_after));
        let removed = removed_from(rule, pod)
            .map(|(from, within)| (from.since, within))
            .min()
            .map(|(since, within)| (DrainCause::Removed, since, within));
        let unready =
            unready(rule, pod).map(|(since, within)| (DrainCause::Unready, since, within));
        let requested = at
            .drain
            .filter(|RequestedDrain { since, within }| since < within)
            .map(|RequestedDrain { since, within }| (DrainCause::Requested, since, within));
        [terminating, removed, unready, requested]
            .into_iter()
            .flatten()
            .map(|(cause, since, within)| Self {
                cause,
                since,
                within,
            })
            .min_by_key(|draining| draining.left())
    }

    /// Why.
    pub(super) fn cause(self) -> DrainCause {
        self.cause
    }

    /// Whether an operator has asked for it: whatever the policy's mode.
    pub(super) fn is_requested(self) -> bool {
        self.cause == DrainCause::Requested
    }

    /// Since it began.
    pub(super) fn took(self) -> Duration {
        self.since
    }

    /// Until its containers are asked to stop, or the drain ends.
    pub(super) fn left(self) -> Duration {
        self.within.saturating_sub(self.since)
    }

    /// Why its connections leave.
    pub(super) fn reason(self) -> Reason {
        let (cause, left) = (self.cause, self.left());
        Reason::Drain { cause, left }
    }

    /// Whether a connection is to leave. One that was opened later comes from a client that has chosen this
    /// endpoint since, and would choose it again; until every node sends new connections elsewhere, it may not
    /// have.
    pub(super) fn concerns(self, connection: &Connection, now: KernelTime) -> bool {
        let age = now.since(connection.opened);
        self.cause == DrainCause::Terminating || age.saturating_add(UNTIL_KNOWN) > self.since
    }

    /// How many of this many connections may begin to leave in one pass.
    pub(super) fn quota(self, connections: usize) -> usize {
        if self.since < UNTIL_KNOWN {
            return 0;
        }
        let left = self.left().saturating_sub(DRAIN_MARGIN).max(DRAIN_PASS);
        let passes = left.as_nanos() / DRAIN_PASS.as_nanos();
        connections.div_ceil(usize::try_from(passes).unwrap_or(usize::MAX).max(1))
    }
}

/// The most that may be done with connections of `rule` at an endpoint: what an operator asks for is done.
pub(super) fn mode(policy: &Policy, rule: &Rule, draining: Option<Draining>) -> Mode {
    match draining {
        Some(draining) if draining.is_requested() => Mode::Enforce,
        _ => policy.mode_of(rule),
    }
}

/// The pod is being deleted, and its rule wants it to be empty then.
fn ending(rule: &Rule, pod: Option<&Identity>) -> Option<Ending> {
    let pod = pod?;
    let drains = rule.drain()?.begins_on(DrainOn::Terminating);
    pod.ending.filter(|_| drains && pod.terminating)
}

/// The Services that the pod was removed from a short time ago, if its rule drains it then; and how long it has. If the
/// rule names Services, no other matters.
pub(super) fn removed_from<'a>(
    rule: &'a Rule,
    pod: Option<&'a Identity>,
) -> impl Iterator<Item = (&'a RemovedFrom, Duration)> {
    let drain = rule
        .drain()
        .filter(|drain| drain.begins_on(DrainOn::Removed));
    let within = drain.map(Drain::within);
    let meant = rule.matches().services();
    let is_meant = move |namespace: &str, name: &str| {
        let mut meant = meant.iter();
        meant.len() == 0 || meant.any(|meant| meant.means(namespace, name))
    };
    pod.into_iter()
        .flat_map(|pod| pod.removed_from.iter().map(|from| (&*pod.namespace, from)))
        .filter(move |(namespace, from)| is_meant(namespace, &from.service.name))
        .filter_map(move |(_, from)| Some((from, within?)))
        .filter(|(from, within)| from.since < *within)
}

/// Since when no Service sends new connections to a living pod because it is not ready, if its rule drains it then;
/// and how long it has.
fn unready(rule: &Rule, pod: Option<&Identity>) -> Option<(Duration, Duration)> {
    let drain = rule
        .drain()
        .filter(|drain| drain.begins_on(DrainOn::Unready))?;
    let services = pod.filter(|pod| !pod.terminating)?.services.as_ref()?;
    if services.iter().any(|at| at.ready || at.terminating) {
        return None;
    }
    let since = services.iter().filter_map(|at| at.unready).min()?;
    (since < drain.within()).then(|| (since, drain.within()))
}

/// Whether a rule that drains leaves the connections of an endpoint because its pod stops too soon.
pub(super) fn too_short(
    policy: &Policy,
    rule: &Rule,
    snapshot: &Snapshot,
    endpoint: &EndpointKey,
) -> Option<TooShort> {
    let who = snapshot.who(endpoint);
    let Ending { stops_after, .. } = ending(rule, who.pod())?;
    if stops_after >= LEAST {
        return None;
    }
    let here = |connection: &&Connection| connection.endpoint == *endpoint;
    let connections = snapshot.connections.iter().filter(here).count() as u64;
    Some(TooShort {
        endpoint: *endpoint,
        who: who.clone(),
        rule: rule.name().clone(),
        stops_after,
        enough: enough(connections, policy.budget().max_in_flight().get().into()),
        connections,
    })
}

/// The same, as the reason for each of them.
pub(super) fn no_time(
    policy: &Policy,
    rule: &Rule,
    snapshot: &Snapshot,
    endpoint: &EndpointKey,
) -> Option<SkipReason> {
    let short = too_short(policy, rule, snapshot, endpoint)?;
    Some(SkipReason::NoTimeToDrain {
        pod: short.who.pod()?.full_name().into(),
        stops_after: short.stops_after,
        enough: short.enough,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many seconds after it began, of fifteen.
    fn terminating(since: u64) -> Draining {
        Draining {
            cause: DrainCause::Terminating,
            since: Duration::from_secs(since),
            within: Duration::from_secs(15),
        }
    }

    #[test]
    fn a_hundred_connections_are_spread_over_the_time_that_is_left() {
        let mut left = 100;
        let mut began = Vec::new();
        for second in 0..15 {
            let draining = terminating(second);
            let quota = draining.quota(left).min(left);
            left -= quota;
            began.push(quota);
        }
        assert_eq!(began, [0, 9, 9, 9, 9, 8, 8, 8, 8, 8, 8, 8, 8, 0, 0]);
    }

    #[test]
    fn whoever_is_left_at_the_end_may_go_at_once() {
        let late = terminating(20);
        assert_eq!((late.quota(7), late.left()), (7, Duration::ZERO));
    }
}
