//! The state of the moving thread, for the status, the metrics and the probes.

use std::time::{Duration, Instant};

use crate::{
    api::MoverStatus,
    moves::{Health, Mover, Pulse, Steps},
};

/// The state of the moving thread; there is none if no reset mechanism works on this node.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_cannot_reset_shows_no_moving_thread() {
        assert_eq!(MoverSigns::default().status(Instant::now()), None);
    }

    #[test]
    fn the_status_shows_a_working_thread_as_fine() {
        let signs = MoverSigns {
            pulse: Some(Pulse::default()),
            ..MoverSigns::default()
        };
        let status = signs.status(Instant::now()).unwrap();
        assert_eq!((status.state.as_str(), status.replaced), ("fine", 0));
    }
}
