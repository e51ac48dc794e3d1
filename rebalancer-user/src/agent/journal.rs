//! The one place through which the agent reports: each [`Fact`] goes to the log, to the events that
//! clients follow, to the metrics, to the status and to Kubernetes Events. Each of these matches every
//! fact, so a new fact does not compile until all of them handle it.

use std::time::Instant;

use super::{
    event_recorder::EventRecorder,
    events::Events,
    fact::{Fact, Pass},
    log,
    numbers::Numbers,
    published::Published,
    state::AgentState,
};
use crate::{
    api::{EventDrain, EventKind, EventMove},
    bpf,
    plan::{Ledger, Load, Move, NewHold},
    policy::Policy,
    snapshot::KernelTime,
};

/// Reports facts to all destinations.
pub(super) struct Journal {
    state: AgentState,
    numbers: Numbers,
    events: Events,
    event_recorder: EventRecorder,
}

impl Journal {
    pub(super) fn new(state: AgentState, numbers: Numbers, event_recorder: EventRecorder) -> Self {
        Self {
            events: Events::new(state.up_since()),
            state,
            numbers,
            event_recorder,
        }
    }

    pub(super) fn record(&mut self, fact: Fact<'_>) {
        log::write(&fact);
        if let Some(what) = event(&fact) {
            self.events.add(what);
        }
        self.numbers.record(&fact);
        self.event_recorder.record(&fact, Instant::now());
        self.state.record(fact);
    }

    pub(super) fn pass_began(&mut self) {
        self.state.pass_began();
    }

    /// A pass ended, successfully or not, so the loop is alive. Writes the Kubernetes Events that are due.
    pub(super) fn pass_ended(&mut self) {
        self.event_recorder.write(Instant::now());
        self.state.pass_ended();
    }

    pub(super) fn listing_failed(&mut self, error: &bpf::Error) {
        let repeated = self.state.listing_failed();
        self.record(Fact::ListingFailed { error, repeated });
    }

    pub(super) fn passed(&mut self, pass: Pass<'_>) {
        if self.state.listing_failed() {
            self.record(Fact::ListingRecovered);
        }
        self.record(Fact::Passed(pass));
    }

    /// The recent events.
    pub(super) fn events(&self) -> Events {
        self.events.clone()
    }

    /// The run, and the number of its newest event.
    pub(super) fn newest_event(&self) -> (String, u64) {
        self.events.newest()
    }

    /// Everything that requests can read; `now` is when the last snapshot was taken.
    pub(super) fn published(&self, policy: &Policy, ledger: &Ledger, now: KernelTime) -> Published {
        self.state.published(&self.numbers, policy, ledger, now)
    }
}

/// The event for clients; `None` if the fact is not an event.
fn event(fact: &Fact<'_>) -> Option<EventKind> {
    Some(match fact {
        Fact::PolicyLoaded { mode, policy, .. } => EventKind::PolicyLoaded {
            mode: mode.as_str().to_owned(),
            rules: policy.rules().len(),
        },
        Fact::PolicyRefused { error } => EventKind::PolicyRefused {
            error: (*error).to_owned(),
        },
        Fact::Paused { paused, .. } | Fact::StillPaused { paused } => EventKind::Paused {
            until: paused.until,
            reason: paused.reason.clone(),
        },
        Fact::Resumed { cause } => EventKind::Resumed {
            cause: cause.as_str().to_owned(),
        },
        Fact::ListingFailed {
            error,
            repeated: false,
        } => EventKind::ListingFailed {
            error: error.to_string(),
        },
        Fact::ListingRecovered => EventKind::ListingRecovered,
        Fact::WouldMove { chosen } => EventKind::WouldMove(about(chosen)),
        Fact::MoveStarted { chosen, .. } => EventKind::Started(about(chosen)),
        Fact::MoveEnded {
            chosen,
            step,
            outcome,
            waited,
        } => EventKind::Ended {
            about: about(chosen),
            step: step.map(|step| step.as_str().to_owned()),
            outcome: outcome.as_str().to_owned(),
            detail: outcome.to_string(),
            waited_seconds: waited.as_secs_f64(),
        },
        Fact::DrainBegan(drained) => EventKind::DrainBegan(EventDrain::of(drained, None)),
        Fact::DrainEnded { drained, all } => {
            EventKind::DrainEnded(EventDrain::of(drained, drained.enough(*all)))
        }
        Fact::DrainTooShort(short) => EventKind::DrainTooShort(EventDrain::too_short(short)),
        Fact::CooldownStarted(hold) => cooldown(hold),
        Fact::MoverLost { cause, .. } => EventKind::MoverLost {
            cause: cause.as_str().to_owned(),
            connection: cause.at().map(|cookie| cookie.to_string()),
        },
        Fact::MoverReplaced { .. } => EventKind::MoverReplaced,
        Fact::ListingFailed { repeated: true, .. }
        | Fact::PodsWithoutNames { .. }
        | Fact::Passed(_)
        | Fact::MoveRecalled(_)
        | Fact::CooldownCleared(_)
        | Fact::MoverAnswered { .. }
        | Fact::Counting(_)
        | Fact::CountingNotStarted { .. }
        | Fact::AttachedAgain { .. }
        | Fact::ExchangeChanged { .. }
        | Fact::KernelFault { .. }
        | Fact::InvalidRecords { .. } => return None,
    })
}

fn about(chosen: &Move) -> EventMove {
    let reasons = chosen.reasons().iter();
    EventMove {
        id: chosen.cookie().to_string(),
        rule: chosen.rule().to_string(),
        reasons: reasons.map(|reason| reason.as_str().to_owned()).collect(),
        why: chosen.why(),
        mode: chosen.mode().as_str().to_owned(),
        local: chosen.local().to_string(),
        peer: chosen.remote().to_string(),
        pod: chosen.pod().map(str::to_owned),
    }
}

fn cooldown(hold: &NewHold) -> EventKind {
    let (of, cause, why, lasts) = match hold {
        NewHold::Returns {
            subject,
            endpoint,
            test,
            lasts,
        } => (
            format!(
                "{subject} at port {} of netns {}",
                endpoint.port, endpoint.netns.0
            ),
            "returns",
            format!(
                "{} of {} moves returned to the same endpoint, where one in {} does by chance",
                test.returned, test.moves, test.siblings
            ),
            lasts,
        ),
        NewHold::FillFailed {
            rule,
            group,
            failure,
            lasts,
        } => (
            format!("rule {rule}, {group}"),
            "fillFailed",
            format!(
                "{} moves have not filled the emptiest endpoint: it holds {} of a mean of {}",
                failure.moves,
                Load(failure.by, failure.least),
                Load(failure.by, failure.mean)
            ),
            lasts,
        ),
    };
    EventKind::Held {
        of,
        cause: cause.to_owned(),
        why,
        for_seconds: lasts.as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{agent::fact::MoverLoss, snapshot::Cookie};

    #[test]
    fn who_follows_events_sees_that_the_mover_was_lost_and_at_which_connection() {
        let lost = |cause| {
            let fact = Fact::MoverLost {
                cause,
                may_restart: true,
            };
            match event(&fact) {
                Some(EventKind::MoverLost { cause, connection }) => (cause, connection),
                other => panic!("{other:?}"),
            }
        };
        let stuck = MoverLoss::Stuck {
            time: Duration::from_secs(9),
            at: Some(Cookie(0x1f)),
        };
        assert_eq!(lost(stuck), ("stuck".to_owned(), Some("1f".to_owned())));
        assert_eq!(lost(MoverLoss::Panicked), ("panicked".to_owned(), None));
    }
}
