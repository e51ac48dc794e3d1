//! What the agent has written as Kubernetes Events, where there is an API server: a refused policy
//! about its own pod, and, if it was asked to, the moves of each pod, a few minutes' worth in one.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::fact::Fact;
use crate::{
    kubernetes::{Access, Announcer, Notice, PodAt, announce_once},
    plan::{Move, Outcome},
    policy::RuleName,
    snapshot::{Cookie, Snapshot},
};

/// No more than one Event of a rule and a pod in this time.
const EVERY: Duration = Duration::from_secs(300);
/// Rules and pods that are told apart; what is more is not told.
const MOST: usize = 1024;
/// The same refusal is not written again within this time.
const SAME: Duration = Duration::from_secs(300);
/// An agent that is about to end waits no longer.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Who writes, and what is gathered.
pub(super) struct EventRecorder {
    announcer: Option<Announcer>,
    /// Of moves under way, if those are to be told.
    pods: Option<BTreeMap<Cookie, PodAt>>,
    gathered: Gathered,
    refused: Option<(String, Instant)>,
}

impl EventRecorder {
    pub(super) fn new(announcer: Option<Announcer>, moves: bool) -> Self {
        let moves = moves && announcer.is_some();
        Self {
            announcer,
            pods: moves.then(BTreeMap::new),
            gathered: Gathered::default(),
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
            | Fact::CooldownStarted(_)
            | Fact::CooldownCleared(_)
            | Fact::MoverLost { .. }
            | Fact::MoverReplaced { .. }
            | Fact::MoverAnswered { .. }
            | Fact::AttachedAgain { .. }
            | Fact::KernelFault { .. }
            | Fact::InvalidRecords { .. } => {}
        }
    }

    fn policy_refused(&mut self, error: &str, now: Instant) {
        let Some(announcer) = &self.announcer else {
            return;
        };
        let same = |(before, at): &(String, Instant)| before == error && now - *at < SAME;
        if !self.refused.as_ref().is_some_and(same) {
            self.refused = Some((error.to_owned(), now));
            announcer.event_recorder(refusal(
                "The policy was refused, the last valid one stays in effect",
                error,
            ));
        }
    }

    fn move_started(&mut self, chosen: &Move, snapshot: &Snapshot) {
        if let Some(pods) = &mut self.pods
            && let Some(pod) = snapshot.who(&chosen.endpoint()).pod()
        {
            let at = PodAt {
                namespace: pod.namespace.clone(),
                name: pod.pod.clone(),
                uid: Some(pod.uid.clone()),
            };
            pods.insert(chosen.cookie(), at);
        }
    }

    fn move_ended(&mut self, chosen: &Move, outcome: &Outcome) {
        let pods = self.pods.as_mut();
        if let Some(pod) = pods.and_then(|pods| pods.remove(&chosen.cookie()))
            && matches!(outcome, Outcome::Closed | Outcome::Reset)
        {
            self.gathered.add(chosen.rule(), pod, outcome.as_str());
        }
    }

    /// Has what is due written: call it at each pass, so that the moves of one pass are one Event.
    pub(super) fn write(&mut self, now: Instant) {
        if let Some(announcer) = &self.announcer {
            for notice in self.gathered.due(now) {
                announcer.event_recorder(notice);
            }
        }
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

/// Writes that the agent does not start by this policy, before it ends. Without access there is
/// nobody to tell; a failure is none of the agent's, which ends anyhow.
pub async fn announce_refusal(access: &Access, own: PodAt, error: &str) {
    let notice = refusal("The policy was refused, the agent does not start", error);
    let written = tokio::time::timeout(LAST_WORDS, announce_once(access, own, notice)).await;
    if !matches!(written, Ok(Ok(()))) {
        tracing::debug!(
            ?written,
            "could not create a Kubernetes Event for the refused policy"
        );
    }
}

/// Moves that were not told yet.
#[derive(Default)]
struct Gathered(BTreeMap<(RuleName, PodAt), Part>);

#[derive(Default)]
struct Part {
    counts: BTreeMap<&'static str, u64>,
    told: Option<Instant>,
}

impl Gathered {
    fn add(&mut self, rule: &RuleName, pod: PodAt, outcome: &'static str) {
        let key = (rule.clone(), pod);
        if self.0.len() < MOST || self.0.contains_key(&key) {
            let part = self.0.entry(key).or_default();
            *part.counts.entry(outcome).or_default() += 1;
        }
    }

    /// What is to be told at `now`; forgets whoever had nothing new for long.
    fn due(&mut self, now: Instant) -> Vec<Notice> {
        let mut notices = Vec::new();
        self.0.retain(|(rule, pod), part| {
            let since = part.told.map(|told| now.saturating_duration_since(told));
            if since.is_some_and(|since| since < EVERY) {
                return true;
            }
            let counts = std::mem::take(&mut part.counts);
            if counts.is_empty() {
                return false;
            }
            part.told = Some(now);
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
        let mut gathered = Gathered::default();
        for outcome in ["reset", "closed", "reset"] {
            gathered.add(&rule, pod("a"), outcome);
        }
        gathered.add(&rule, pod("b"), "reset");
        let told = gathered.due(at(0));
        assert_eq!(told.len(), 2);
        assert!(
            told[0].note.contains("3 connections") && told[0].note.ends_with("1 closed, 2 reset"),
            "{}",
            told[0].note
        );
        assert!(told[1].note.contains("1 connection of"), "{}", told[1].note);
        gathered.add(&rule, pod("a"), "reset");
        assert!(gathered.due(at(299)).is_empty());
        assert_eq!(gathered.due(at(300)).len(), 1);
        assert_eq!(gathered.due(at(1000)).len(), 0);
        assert!(gathered.0.is_empty(), "what has nothing new is forgotten");
    }

    #[test]
    fn pods_without_end_are_not_gathered() {
        let mut gathered = Gathered::default();
        for n in 0..MOST + 10 {
            let pod = PodAt {
                namespace: "shop".to_owned(),
                name: n.to_string(),
                uid: None,
            };
            gathered.add(&RuleName::manual(), pod, "reset");
        }
        assert_eq!(gathered.due(Instant::now()).len(), MOST);
    }
}
