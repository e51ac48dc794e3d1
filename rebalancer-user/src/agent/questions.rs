//! Requests that the loop answers. Of them only a drain moves anything, at the passes that follow.

use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;

use super::{
    Agent,
    drains::NotDrained,
    fact::{Fact, ResumeCause},
    kept,
    pause::Resumed,
};
use crate::{
    api::{DrainTarget, Form, Origin, Source},
    http::{DrainAnswer, DrainRequest, PauseAnswer},
    plan::{Cooldown, Plan, decide, explain},
    policy::{Mode, Policy, RuleName},
    render,
    snapshot::{Cookie, KernelTime, Snapshot},
};

/// Requests that only the agent's loop can answer.
pub(super) enum Question {
    /// About the node as it is now, which is observed for that.
    Inspect(Box<Inspection>),
    /// The cooldowns, as of now.
    Cooldowns(oneshot::Sender<(Vec<Cooldown>, KernelTime)>),
    /// To end the cooldowns of this rule, or all; the answer is how many there were.
    ClearCooldowns(Option<RuleName>, oneshot::Sender<usize>),
    /// To end the drains that were asked for by this target; the answer is how many endpoints they are of.
    CancelDrain(DrainTarget, oneshot::Sender<usize>),
    /// To pause moves for so long, and why.
    Pause(Duration, Option<String>, oneshot::Sender<PauseAnswer>),
    /// To end the pause of this node.
    Resume(oneshot::Sender<Resumed>),
}

/// What to do with a new snapshot.
pub(super) enum Inspection {
    /// Return it.
    Dump(oneshot::Sender<Looked<Arc<Snapshot>>>),
    /// Make the plan of it.
    Plan(Trial, oneshot::Sender<Looked<(Arc<Snapshot>, Plan)>>),
    /// Drain what is meant, or say what that would do.
    Drain(
        DrainRequest,
        oneshot::Sender<Looked<Result<DrainAnswer, NotDrained>>>,
    ),
    /// Explain one connection, rendered in this form; `None` if there is no such connection.
    Explain(
        Trial,
        Cookie,
        Form,
        oneshot::Sender<Looked<Option<Vec<u8>>>>,
    ),
}

/// What was seen, or the error in words.
pub(super) type Looked<T> = Result<T, String>;

/// The policy by which to decide, without doing anything.
#[derive(Default)]
pub(super) struct Trial {
    /// Another one than the agent's.
    pub(super) policy: Option<Policy>,
    /// Do no more than this.
    pub(super) mode: Option<Mode>,
}

impl Agent {
    pub(super) fn asked(&mut self, question: Question) {
        // The client may have disconnected.
        match question {
            Question::Inspect(inspection) => self.look_for(*inspection),
            Question::Cooldowns(reply) => {
                let now = kept::now();
                drop(reply.send((self.ledger.cooldowns(now), now)));
            }
            Question::ClearCooldowns(rule, reply) => drop(reply.send(self.clear_cooldowns(rule))),
            Question::CancelDrain(target, reply) => drop(reply.send(self.cancel_drain(&target))),
            Question::Pause(time, why, reply) => drop(reply.send(self.pause_moves(time, why))),
            Question::Resume(reply) => drop(reply.send(self.resume_moves(ResumeCause::Asked))),
        }
    }

    /// Answers by what was just seen. The client may have disconnected.
    pub(super) fn answer(&mut self, inspection: Inspection, looked: Looked<Arc<Snapshot>>) {
        match inspection {
            Inspection::Dump(reply) => drop(reply.send(looked)),
            Inspection::Plan(trial, reply) => drop(reply.send(looked.map(|snapshot| {
                let plan = decide(&self.tried(trial), &snapshot, &self.ledger, snapshot.taken);
                (snapshot, plan)
            }))),
            Inspection::Drain(request, reply) => {
                drop(reply.send(looked.map(|snapshot| self.request_drain(request, &snapshot))))
            }
            Inspection::Explain(trial, id, form, reply) => {
                drop(reply.send(
                    looked.and_then(|snapshot| {
                        self.explained(&self.tried(trial), &snapshot, id, form)
                    }),
                ));
            }
        }
    }

    /// Ends the cooldowns of a rule, or all of them; returns how many.
    fn clear_cooldowns(&mut self, rule: Option<RuleName>) -> usize {
        let cleared = self.ledger.clear_cooldowns(rule.as_ref(), kept::now());
        for one in &cleared {
            self.journal.record(Fact::CooldownCleared(one));
        }
        if !cleared.is_empty() {
            self.saved.changed();
        }
        cleared.len()
    }

    /// The policy that a request asks about.
    fn tried(&self, trial: Trial) -> Policy {
        let policy = match trial.policy {
            None => self.policy.clone(),
            Some(policy) if self.names.is_some() => policy.with_kubernetes_defaults(),
            Some(policy) => policy,
        };
        policy.with_mode_at_most(trial.mode.unwrap_or(Mode::Enforce).safest(self.mode))
    }

    fn explained(
        &self,
        policy: &Policy,
        snapshot: &Snapshot,
        id: Cookie,
        form: Form,
    ) -> Result<Option<Vec<u8>>, String> {
        let (ledger, now) = (&self.ledger, snapshot.taken);
        let plan = decide(policy, snapshot, ledger, now);
        let Some(explained) = explain(policy, snapshot, &plan, ledger, now, id) else {
            return Ok(None);
        };
        let mut text = Vec::new();
        render::explanation(
            &mut text,
            form,
            &explained,
            snapshot,
            &Origin::here(Source::Agent),
        )
        .map_err(|error| error.to_string())?;
        Ok(Some(text))
    }
}
