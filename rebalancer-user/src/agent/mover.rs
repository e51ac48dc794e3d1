//! The agent and its moving thread: moves are started, recalled and end. A thread that is stuck or has
//! ended is abandoned, its moves are reported, and another thread continues without the connection at
//! which it was stuck.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, error, warn};

use super::{
    Agent,
    fact::{Fact, MoverLoss},
    mover_signs::MoverSigns,
};
use crate::{
    bpf::{Capture, Kernel, Reason, Sends, Walker},
    moves::{Done, Health, Mechanism, Mover, Order, Pulse, wake},
    plan::{Move, Outcome, Recall, Refusal},
    policy::StepKind,
    snapshot::{Cookie, Snapshot},
};

/// How many threads may be stuck at one time, or have panicked, before nothing more is moved: a stuck
/// thread remains until the kernel answers it.
const MOST_GIVEN_UP: usize = 4;

/// What a moving thread is made with.
pub(super) struct MoverFactory {
    kernel: Arc<Kernel>,
    sends: Arc<Sends>,
    mechanism: Mechanism,
    done: UnboundedSender<Done>,
    /// Threads that were stuck, and at which connection.
    stuck: Vec<(Pulse, Option<Cookie>)>,
    defects: usize,
    replaced: u64,
}

impl MoverFactory {
    pub(super) fn new(
        kernel: Arc<Kernel>,
        sends: Arc<Sends>,
        mechanism: Mechanism,
        done: UnboundedSender<Done>,
    ) -> Self {
        Self {
            kernel,
            sends,
            mechanism,
            done,
            stuck: Vec::new(),
            defects: 0,
            replaced: 0,
        }
    }

    /// Starts one.
    pub(super) fn start(&self, pins: &Path) -> anyhow::Result<Mover> {
        // The thread walks independently of the loop, so it has its own iterator and memory.
        let walker = Walker::open(Arc::clone(&self.kernel), pins)?;
        let capture = capture(&self.kernel, pins);
        self.kernel.forget_types();
        Ok(Mover::start(
            walker,
            capture,
            Some(Arc::clone(&self.sends)),
            self.mechanism,
            self.done.clone(),
        )?)
    }

    /// Whether a thread is stuck at this connection still.
    pub(super) fn is_unanswered(&self, cookie: Cookie) -> bool {
        self.stuck.iter().any(|(_, at)| *at == Some(cookie))
    }

    /// The connections at which threads were stuck that have been answered since, and so have ended.
    fn forget_answered(&mut self, now: Instant) -> Vec<Option<Cookie>> {
        let answered = |(pulse, _): &mut (Pulse, _)| pulse.health(now) == Health::Ended;
        let answered = self.stuck.extract_if(.., answered);
        answered.map(|(_, at)| at).collect()
    }

    /// Has the sockets leave the socket hash that a thread which is stuck cannot remove, and wakes their readers.
    fn leave_for_it(&self, pins: &Path) {
        let left = self.sends.leave_all(Reason::Notice);
        if left.is_empty() {
            return;
        }
        let sends = Arc::clone(&self.sends);
        let waking = Walker::open(Arc::clone(&self.kernel), pins)
            .map_err(anyhow::Error::from)
            .and_then(|mut walker| wake(&mut walker, &left, move |cookie| sends.woken(cookie)));
        if let Err(error) = waking {
            warn!(
                error = format!("{error:#}"),
                "could not wake the readers that a stuck thread has left"
            );
        }
    }

    fn may_start(&self) -> bool {
        self.stuck.len() + self.defects < MOST_GIVEN_UP
    }
}

impl Agent {
    /// Orders a move, or reports why it cannot be made.
    pub(super) fn start_move(&mut self, chosen: &Move, snapshot: &Snapshot, order: Order) {
        self.ledger.started(chosen, self.now);
        self.saved.changed();
        self.journal.record(Fact::MoveStarted { chosen, snapshot });
        let factory = self.factory.as_ref();
        let ordered = match &self.mover {
            Some(_) if factory.is_some_and(|m| m.is_unanswered(chosen.cookie())) => {
                Err(Refusal::Unanswered)
            }
            Some(mover) => mover.order(order),
            None => Err(Refusal::NoMechanism),
        };
        if let Err(why) = ordered {
            self.move_ended(chosen, None, Outcome::Refused(why), Duration::ZERO);
        }
    }

    pub(super) fn recall(&mut self, recall: &Recall) {
        self.journal.record(Fact::MoveRecalled(recall));
        if let Some(mover) = &self.mover {
            mover.recall(recall.cookie, recall.why.to_string());
        }
    }

    /// Recalls every move in flight.
    pub(super) fn recall_all(&self, why: &'static str) {
        if let Some(mover) = &self.mover {
            mover.recall_all(why);
        }
    }

    /// The moving thread reports that a move has ended.
    pub(super) fn done(&mut self, done: &Done) {
        let chosen = &done.chosen;
        if let Some(time) = done.since_look {
            debug!(cookie = %chosen.cookie(), us = time.as_micros() as u64, "from the last look to the end of the step");
        }
        self.move_ended(chosen, done.step, done.outcome.clone(), done.waited);
        self.publish();
    }

    fn move_ended(
        &mut self,
        chosen: &Move,
        step: Option<StepKind>,
        outcome: Outcome,
        waited: Duration,
    ) {
        self.journal.record(Fact::MoveEnded {
            chosen,
            step,
            outcome: &outcome,
            waited,
        });
        self.ledger
            .ended_after(chosen.cookie(), outcome, waited, self.now);
        self.saved.changed();
    }

    /// Ends the moving thread; reports the moves that it could not report itself.
    pub(super) fn end_mover(&mut self) {
        let moves = self.mover.as_mut().map(Mover::end).unwrap_or_default();
        self.abandoned(moves);
        self.mover = None;
    }

    fn abandoned(&mut self, moves: Vec<(Move, Outcome)>) {
        for (chosen, outcome) in moves {
            self.move_ended(&chosen, None, outcome, Duration::ZERO);
        }
    }

    /// Abandons the moving thread if it is stuck or has ended, and starts another.
    pub(super) fn tend_mover(&mut self, now: Instant) {
        let (Some(factory), Some(mover)) = (&mut self.factory, &mut self.mover) else {
            return;
        };
        for at in factory.forget_answered(now) {
            self.journal.record(Fact::MoverAnswered { at });
        }
        let given_up = mover.give_up(now);
        if let Some(of) = &given_up {
            let cause = match of.health {
                Health::Stuck { time, at } => {
                    factory.stuck.push((mover.pulse(), at));
                    MoverLoss::Stuck { time, at }
                }
                Health::Fine | Health::Ended => {
                    factory.defects += 1;
                    MoverLoss::Panicked
                }
            };
            factory.leave_for_it(self.tracker.pins());
            let may_restart = factory.may_start();
            self.journal.record(Fact::MoverLost { cause, may_restart });
        }
        if mover.is_given_up() && factory.may_start() {
            match factory.start(self.tracker.pins()) {
                Ok(next) => {
                    factory.replaced += 1;
                    *mover = next;
                    let signs = MoverSigns::of(self.mover.as_ref(), factory.replaced);
                    self.journal.record(Fact::MoverReplaced { signs });
                }
                Err(error) => {
                    error!(%error, "could not start another moving thread: nothing is moved")
                }
            }
        }
        self.abandoned(given_up.map(|of| of.moves).unwrap_or_default());
    }
}

/// What sniffs victims. Without it the agent moves only connections whose rule sets `onReconnect`.
fn capture(kernel: &Kernel, pins: &Path) -> Option<Capture> {
    let opened = Capture::open(kernel, pins);
    let opened = opened.inspect_err(|error| {
        warn!(%error, "protocol detection is unavailable: only rules that set onReconnect move connections");
    });
    opened.ok()
}
