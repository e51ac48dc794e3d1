//! The agent's care of its moving thread: one that is stuck or has ended is given up, what it had in
//! hand is told, and another goes on without the connection at which it was.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;
use tracing::{error, info, warn};

use super::{Agent, watcher};
use crate::{
    bpf::{Kernel, Walker},
    moves::{Done, Health, Mechanism, Mover, Pulse, Steps},
    plan::{Move, Outcome},
    render::MoverStatus,
    snapshot::Cookie,
};

/// So many threads may be stuck at one time, or have ended by a defect, before nothing more is moved:
/// each that is stuck stays, for as long as the kernel does not answer it.
const MOST_GIVEN_UP: usize = 4;

/// What a moving thread is made with.
pub(super) struct Making {
    kernel: Arc<Kernel>,
    mechanism: Mechanism,
    done: UnboundedSender<Done>,
    /// Threads that were stuck, and at which connection.
    stuck: Vec<(Pulse, Option<Cookie>)>,
    defects: usize,
    replaced: u64,
}

impl Making {
    pub(super) fn new(
        kernel: Arc<Kernel>,
        mechanism: Mechanism,
        done: UnboundedSender<Done>,
    ) -> Self {
        Self {
            kernel,
            mechanism,
            done,
            stuck: Vec::new(),
            defects: 0,
            replaced: 0,
        }
    }

    /// Starts one.
    pub(super) fn start(&self, pins: &Path) -> anyhow::Result<Mover> {
        // The thread asks the kernel by itself, so it has its own iterator and memory.
        let walker = Walker::open(Arc::clone(&self.kernel), pins)?;
        let watcher = watcher(&self.kernel, pins);
        self.kernel.forget_types();
        Ok(Mover::start(
            walker,
            watcher,
            self.mechanism,
            self.done.clone(),
        )?)
    }

    /// Whether a thread is stuck at this connection still.
    pub(super) fn is_unanswered(&self, cookie: Cookie) -> bool {
        self.stuck.iter().any(|(_, at)| *at == Some(cookie))
    }

    /// Those that were stuck and have been answered since have ended.
    fn forget_answered(&mut self, now: Instant) {
        self.stuck.retain(|(pulse, at)| {
            let has_ended = pulse.health(now) == Health::Ended;
            if has_ended {
                let at = at.map(|cookie| cookie.to_string());
                info!(
                    at,
                    "the kernel has answered an abandoned moving thread, which has ended"
                );
            }
            !has_ended
        });
    }

    fn may_start(&self) -> bool {
        self.stuck.len() + self.defects < MOST_GIVEN_UP
    }
}

/// What is let known of the moving thread; of none, where this node cannot reset.
#[derive(Clone, Debug, Default)]
pub(super) struct MoverSigns {
    pub(super) pulse: Option<Pulse>,
    pub(super) steps: Steps,
    pub(super) replaced: u64,
}

impl MoverSigns {
    pub(super) fn of(mover: Option<&Mover>, replaced: u64) -> Self {
        Self {
            pulse: mover.map(Mover::pulse),
            steps: mover.map(Mover::steps).unwrap_or_default(),
            replaced,
        }
    }

    pub(super) fn health(&self, now: Instant) -> Option<Health> {
        self.pulse.as_ref().map(|pulse| pulse.health(now))
    }

    pub(super) fn status(&self, now: Instant) -> Option<MoverStatus> {
        let (state, time, at) = match self.health(now)? {
            Health::Fine => ("fine", None, None),
            Health::Stuck { time, at } => ("stuck", Some(time), at),
            Health::Ended => ("ended", None, None),
        };
        Some(MoverStatus {
            state: state.to_owned(),
            stuck_seconds: time.as_ref().map(Duration::as_secs_f64),
            at: at.map(|cookie| cookie.to_string()),
            replaced: self.replaced,
        })
    }
}

impl Agent {
    /// Ends the moving thread, and tells what is known of the moves that it could not tell of.
    pub(super) fn end_mover(&mut self) {
        let moves = self.mover.as_mut().map(Mover::end).unwrap_or_default();
        self.tell_given_up(moves);
        self.mover = None;
    }

    fn tell_given_up(&mut self, moves: Vec<(Move, Outcome)>) {
        for (chosen, outcome) in moves {
            self.ended(&chosen, None, outcome, Duration::ZERO);
        }
    }

    /// Gives the moving thread up if it is stuck or has ended, and starts another.
    pub(super) fn tend_mover(&mut self, now: Instant) {
        let (Some(making), Some(mover)) = (&mut self.making, &mut self.mover) else {
            return;
        };
        making.forget_answered(now);
        let given_up = mover.give_up(now);
        match given_up.as_ref().map(|of| of.health) {
            Some(Health::Stuck { time, at }) => {
                making.stuck.push((mover.pulse(), at));
                error!(
                    seconds = time.as_secs(),
                    at = at.map(|cookie| cookie.to_string()),
                    "the moving thread is stuck: the kernel does not answer it, because something holds \
                     the socket's lock; abandoned the thread, that connection is not touched again"
                );
            }
            Some(_) => {
                making.defects += 1;
                error!("the moving thread has panicked");
            }
            None => {}
        }
        if given_up.is_some() && !making.may_start() {
            error!(
                "too many moving threads are stuck: nothing is moved until the kernel answers one of them"
            );
        }
        if mover.is_given_up() && making.may_start() {
            match making.start(self.tracker.pins()) {
                Ok(next) => {
                    warn!("started another moving thread");
                    making.replaced += 1;
                    *mover = next;
                    let signs = MoverSigns::of(self.mover.as_ref(), making.replaced);
                    self.state.mover_signs(signs);
                }
                Err(error) => {
                    error!(%error, "could not start another moving thread: nothing is moved")
                }
            }
        }
        self.tell_given_up(given_up.map(|of| of.moves).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_cannot_reset_has_no_thread_to_tell_of() {
        assert_eq!(MoverSigns::default().status(Instant::now()), None);
    }

    #[test]
    fn a_thread_is_told_of_in_a_word() {
        let signs = MoverSigns {
            pulse: Some(Pulse::default()),
            ..MoverSigns::default()
        };
        let status = signs.status(Instant::now()).unwrap();
        assert_eq!((status.state.as_str(), status.replaced), ("fine", 0));
    }
}
