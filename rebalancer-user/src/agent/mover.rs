//! The agent's care of its moving thread: one that is stuck or has ended is given up, what it had in
//! hand is told, and another goes on without the connection at which it was.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;
use tracing::{error, warn};

use super::{Agent, watcher};
use crate::{
    bpf::{Kernel, Walker},
    moves::{Done, GivenUp, Health, Mechanism, Mover, Pulse, Steps},
    render::MoverStatus,
    snapshot::Cookie,
};

/// Threads that are given up before nothing more is moved: each that is stuck stays, for as long as
/// the kernel does not answer it.
const MOST_GIVEN_UP: u64 = 4;

/// What a moving thread is made with.
pub(super) struct Making {
    kernel: Arc<Kernel>,
    mechanism: Mechanism,
    done: UnboundedSender<Done>,
    /// Connections at which threads were stuck.
    unanswered: BTreeSet<Cookie>,
    given_up: u64,
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
            unanswered: BTreeSet::new(),
            given_up: 0,
        }
    }

    /// Starts one; not the first takes over from the one before.
    pub(super) fn start(&self, pins: &Path) -> anyhow::Result<Mover> {
        // The thread asks the kernel by itself, so it has its own iterator and memory.
        let walker = Walker::open(Arc::clone(&self.kernel), pins)?;
        let watcher = watcher(&self.kernel, pins);
        self.kernel.forget_types();
        let done = self.done.clone();
        Ok(match self.given_up {
            0 => Mover::start(walker, watcher, self.mechanism, done)?,
            _ => {
                let unanswered = self.unanswered.clone();
                Mover::take_over(unanswered, walker, watcher, self.mechanism, done)?
            }
        })
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
    /// Gives the moving thread up if it is stuck or has ended, and tells what is known of the moves
    /// that it had in hand. Why, if so.
    pub(super) fn give_up_mover(&mut self, now: Instant) -> Option<Health> {
        let GivenUp { health, moves } = self.mover.as_mut()?.give_up(now)?;
        for (chosen, outcome) in moves {
            self.ended(&chosen, None, outcome, Duration::ZERO);
        }
        Some(health)
    }

    /// Gives the moving thread up if it is stuck or has ended, and starts another.
    pub(super) fn tend_mover(&mut self, now: Instant) {
        let Some(health) = self.give_up_mover(now) else {
            return;
        };
        let Some(making) = &mut self.making else {
            return;
        };
        making.given_up += 1;
        if let Health::Stuck { time, at } = health {
            making.unanswered.extend(at);
            error!(
                seconds = time.as_secs(),
                at = at.map(|cookie| cookie.to_string()),
                "the moving thread is stuck: the kernel does not answer it, as something holds the \
                 socket's lock; it is given up, and that connection left alone"
            );
        } else {
            error!("the moving thread has ended by a defect");
        }
        if making.given_up >= MOST_GIVEN_UP {
            return error!("too many of them: nothing more is moved until the agent is restarted");
        }
        match making.start(self.tracker.pins()) {
            Ok(mover) => {
                warn!("another moving thread goes on");
                self.mover = Some(mover);
                let signs = MoverSigns::of(self.mover.as_ref(), making.given_up);
                self.state.mover_signs(signs);
            }
            Err(error) => error!(
                %error,
                "no other could be started: nothing is moved until the agent is restarted"
            ),
        }
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
