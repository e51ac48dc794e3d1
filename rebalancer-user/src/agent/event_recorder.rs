//! Kubernetes Events, where there is an API server: a refused policy, about the agent's own pod; and, if
//! it was asked to, the moves of each pod, those of a few minutes in one Event.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::fact::{Fact, MoverLoss};
use crate::{
    kubernetes::{Access, EventWriter, Notice, PodAt, write_event},
    plan::{Drained, Move, Outcome, TooShort},
    policy::RuleName,
    snapshot::{Cookie, Identity, Snapshot},
};

/// No more than one Event of a rule and a pod in this time.
const EVERY: Duration = Duration::from_secs(300);
/// Rules and pods with moves that were not reported yet; those of more are not reported.
const CAPACITY: usize = 1024;
/// The same refusal is not reported again within this time.
const REPEAT_AFTER: Duration = Duration::from_secs(300);
/// An agent that is about to exit waits no longer.
const WITHIN: Duration = Duration::from_secs(5);

/// Moves are gathered, and reported together.
pub(super) struct EventRecorder {
    writer: Option<EventWriter>,
    /// Of moves in flight, if moves are to be reported.
    pods: Option<BTreeMap<Cookie, PodAt>>,
    pending: PendingMoves,
    refused: Option<(String, Instant)>,
}

impl EventRecorder {
    pub(super) fn new(writer: Option<EventWriter>, moves: bool) -> Self {
        let moves = moves && writer.is_some();
        Self {
            writer,
            pods: moves.then(BTreeMap::new),
            pending: PendingMoves::default(),
            refused: None,
        }
    }

    pub(super) fn record(&mut self, fact: &Fact<'_>, now: Instant) {
        match fact {
            Fact::PolicyRefused { error } => self.policy_refused(error, now),
            Fact::MoveStarted { chosen, snapshot } => self.move_started(chosen, snapshot),
            Fact::MoveEnded {
                chosen, outcome, ..
            } => self.move_ended(chosen, outcome),
            Fact::MoverLost { cause, .. } => self.mover_lost(*cause),
            Fact::DrainEnded { drained, all } => self.drain_ended(drained, *all),
            Fact::DrainTooShort(short) => self.drain_too_short(short),
            Fact::PolicyLoaded { .. }
            | Fact::PodsWithoutNames { .. }
            | Fact::Paused { .. }
            | Fact::StillPaused { .. }
            | Fact::Resumed { .. }
            | Fact::Passed(_)
            | Fact::ListingFailed { .. }
            | Fact::ListingRecovered
            | Fact::WouldMove { .. }
            | Fact::MoveRecalled(_)
            | Fact::DrainBegan(_)
            | Fact::CooldownStarted(_)
            | Fact::CooldownCleared(_)
            | Fact::MoverReplaced { .. }
            | Fact::MoverAnswered { .. }
            | Fact::Counting(_)
            | Fact::CountingNotStarted { .. }
            | Fact::AttachedAgain { .. }
            | Fact::ExchangeChanged { .. }
            | Fact::KernelFault { .. }
            | Fact::InvalidRecords { .. } => {}
        }
    }

    fn policy_refused(&mut self, error: &str, now: Instant) {
        let Some(writer) = &self.writer else {
            return;
        };
        let same = |(before, at): &(String, Instant)| before == error && now - *at < REPEAT_AFTER;
        if !self.refused.as_ref().is_some_and(same) {
            self.refused = Some((error.to_owned(), now));
            writer.send(refusal(
                "The policy was refused, the last valid one stays in effect",
                error,
            ));
        }
    }

    /// What it would take for all to leave next time is of use to whoever wrote the pod's spec.
    fn drain_ended(&self, drained: &Drained, all: u64) {
        let (Some(writer), Some(pod), Some(enough)) =
            (&self.writer, drained.who.pod(), drained.enough(all))
        else {
            return;
        };
        let (count, seconds) = (drained.count(), enough.as_secs());
        writer.send(drain_notice(
            pod,
            format!(
                "{count} of {all} connections had not left port {} in time. With `preStop: {{sleep: \
                 {{seconds: {seconds}}}}}` they could have, at the pace of the others",
                drained.endpoint.port
            ),
        ));
    }

    fn drain_too_short(&self, short: &TooShort) {
        let (Some(writer), Some(pod)) = (&self.writer, short.who.pod()) else {
            return;
        };
        let TooShort {
            connections,
            stops_after,
            enough,
            endpoint,
            rule,
            ..
        } = short;
        writer.send(drain_notice(
            pod,
            format!(
                "Rule {rule} cannot drain port {}: the containers are asked to stop {} s after the deletion, \
                 and {connections} connections break off. `lifecycle: {{preStop: {{sleep: {{seconds: \
                 {}}}}}}}` gives them time to leave",
                endpoint.port,
                stops_after.as_secs(),
                enough.as_secs()
            ),
        ));
    }

    fn mover_lost(&self, cause: MoverLoss) {
        if let Some(writer) = &self.writer {
            writer.send(Notice {
                about: None,
                reason: "MoverLost",
                action: "MoveConnections",
                note: format!(
                    "The thread that moves connections was lost ({}); the log has more",
                    cause.as_str()
                ),
                warning: true,
            });
        }
    }

    fn move_started(&mut self, chosen: &Move, snapshot: &Snapshot) {
        if let Some(pods) = &mut self.pods
            && let Some(pod) = snapshot.who(&chosen.endpoint()).pod()
        {
            pods.insert(chosen.cookie(), pod_at(pod));
        }
    }

    fn move_ended(&mut self, chosen: &Move, outcome: &Outcome) {
        let pods = self.pods.as_mut();
        if let Some(pod) = pods.and_then(|pods| pods.remove(&chosen.cookie()))
            && outcome.is_made()
        {
            self.pending.add(chosen.rule(), pod, outcome.as_str());
        }
    }

    /// Reports what is due: call it at each pass, so that the moves of one pass are one Event.
    pub(super) fn write(&mut self, now: Instant) {
        if let Some(writer) = &self.writer {
            for notice in self.pending.due(now) {
                writer.send(notice);
            }
        }
    }
}

fn drain_notice(pod: &Identity, note: String) -> Notice {
    Notice {
        about: Some(pod_at(pod)),
        reason: "DrainIncomplete",
        action: "MoveConnections",
        note,
        warning: true,
    }
}

fn pod_at(pod: &Identity) -> PodAt {
    PodAt {
        namespace: pod.namespace.clone(),
        name: pod.pod.clone(),
        uid: Some(pod.uid.clone()),
    }
}

fn refusal(what: &str, error: &str) -> Notice {
    Notice {
        about: None,
        reason: "PolicyRefused",
        action: "LoadPolicy",
        note: format!("{what}:\n{error}"),
        warning: true,
    }
}

/// Reports that the agent does not start with this policy, before it exits. Without access to an API
/// server nothing is reported; a failure does not matter, as the agent exits anyhow.
pub async fn report_refusal(access: &Access, own: PodAt, error: &str) {
    let notice = refusal("The policy was refused, the agent does not start", error);
    let written = tokio::time::timeout(WITHIN, write_event(access, own, notice)).await;
    if !matches!(written, Ok(Ok(()))) {
        tracing::debug!(
            ?written,
            "could not create a Kubernetes Event for the refused policy"
        );
    }
}

/// Moves that were not reported yet.
#[derive(Default)]
struct PendingMoves(BTreeMap<(RuleName, PodAt), MoveCounts>);

#[derive(Default)]
struct MoveCounts {
    counts: BTreeMap<&'static str, u64>,
    reported: Option<Instant>,
}

impl PendingMoves {
    fn add(&mut self, rule: &RuleName, pod: PodAt, outcome: &'static str) {
        let key = (rule.clone(), pod);
        if self.0.len() < CAPACITY || self.0.contains_key(&key) {
            let part = self.0.entry(key).or_default();
            *part.counts.entry(outcome).or_default() += 1;
        }
    }

    /// What is due at `now`; forgets rules and pods without moves for long.
    fn due(&mut self, now: Instant) -> Vec<Notice> {
        let mut notices = Vec::new();
        self.0.retain(|(rule, pod), part| {
            let since = part
                .reported
                .map(|reported| now.saturating_duration_since(reported));
            if since.is_some_and(|since| since < EVERY) {
                return true;
            }
            let counts = std::mem::take(&mut part.counts);
            if counts.is_empty() {
                return false;
            }
            part.reported = Some(now);
            notices.push(moved(rule, pod, &counts));
            true
        });
        notices
    }
}

fn moved(rule: &RuleName, pod: &PodAt, counts: &BTreeMap<&'static str, u64>) -> Notice {
    let all: u64 = counts.values().sum();
    let each: Vec<String> = counts.iter().map(|(how, n)| format!("{n} {how}")).collect();
    let what = if all == 1 {
        "connection"
    } else {
        "connections"
    };
    Notice {
        about: Some(pod.clone()),
        reason: "ConnectionsMoved",
        action: "MoveConnections",
        note: format!(
            "Rule {rule} has moved {all} {what} of this pod, so that their clients reconnect: {}",
            each.join(", ")
        ),
        warning: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_and_a_pod_have_one_event_in_five_minutes() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let rule = RuleName::manual();
        let pod = |name: &str| PodAt {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: None,
        };
        let mut pending = PendingMoves::default();
        for outcome in ["reset", "closed", "reset"] {
            pending.add(&rule, pod("a"), outcome);
        }
        pending.add(&rule, pod("b"), "reset");
        let reported = pending.due(at(0));
        assert_eq!(reported.len(), 2);
        assert!(
            reported[0].note.contains("3 connections")
                && reported[0].note.ends_with("1 closed, 2 reset"),
            "{}",
            reported[0].note
        );
        assert!(
            reported[1].note.contains("1 connection of"),
            "{}",
            reported[1].note
        );
        pending.add(&rule, pod("a"), "reset");
        assert!(pending.due(at(299)).is_empty());
        assert_eq!(pending.due(at(300)).len(), 1);
        assert_eq!(pending.due(at(1000)).len(), 0);
        assert!(pending.0.is_empty(), "what has nothing new is forgotten");
    }

    #[test]
    fn pods_are_bounded() {
        let mut pending = PendingMoves::default();
        for n in 0..CAPACITY + 10 {
            let pod = PodAt {
                namespace: "shop".to_owned(),
                name: n.to_string(),
                uid: None,
            };
            pending.add(&RuleName::manual(), pod, "reset");
        }
        assert_eq!(pending.due(Instant::now()).len(), CAPACITY);
    }
}
