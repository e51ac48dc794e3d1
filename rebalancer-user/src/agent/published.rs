//! What the loop publishes after each pass, so that requests are answered without waiting for it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{mover_signs::MoverSigns, numbers::Numbers};
use crate::api::{ServiceItem, Status};

/// The loop hangs if no pass has ended for longer than this and three intervals.
const PATIENCE: Duration = Duration::from_secs(30);

/// Everything that requests can read without the loop.
pub(super) struct Published {
    pub(super) status: Status,
    pub(super) numbers: Numbers,
    pub(super) services: Arc<Vec<ServiceItem>>,
    pub(super) mover: MoverSigns,
    pub(super) beat: Beat,
}

/// Signs of life of the loop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beat {
    /// When the agent started.
    pub(super) started: Instant,
    /// When the last pass ended, well or not.
    pub(super) last: Option<Instant>,
    /// From one pass to the next.
    pub(super) interval: Duration,
}

impl Beat {
    /// The state of the loop in words.
    pub(super) fn at(&self, now: Instant) -> Result<String, String> {
        let silent = now.saturating_duration_since(self.last.unwrap_or(self.started));
        let most = PATIENCE.max(self.interval.saturating_mul(3));
        let since = match self.last {
            Some(_) => format!("the last pass ended {:.1} s ago", silent.as_secs_f64()),
            None => format!("no pass has ended in {:.1} s", silent.as_secs_f64()),
        };
        if silent > most {
            return Err(format!("{since}, one is due every {:?}", self.interval));
        }
        Ok(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_hangs_after_three_intervals_and_half_a_minute() {
        let started = Instant::now();
        let after = |seconds| started + Duration::from_secs(seconds);
        let beat = |last, interval| Beat {
            started,
            last,
            interval: Duration::from_secs(interval),
        };
        assert!(beat(None, 5).at(after(30)).is_ok());
        assert!(beat(None, 5).at(after(31)).is_err());
        assert!(beat(Some(after(100)), 5).at(after(130)).is_ok());
        let hangs = beat(Some(after(100)), 5).at(after(131)).unwrap_err();
        assert_eq!(hangs, "the last pass ended 31.0 s ago, one is due every 5s");
        assert!(beat(Some(after(100)), 60).at(after(280)).is_ok());
        assert!(beat(Some(after(100)), 60).at(after(281)).is_err());
    }
}
