//! Limits the CPU time of walks. Passes, the moving thread and counting each walk when they need to; passes,
//! which can best be delayed, are delayed for all of them.

use std::time::{Duration, Instant};

/// All walks together take at most 1/50 of a CPU: 2 %.
const SHARE: u32 = 50;

/// The moving thread takes at most half of that, so that passes, which decide about moves, still happen.
const MOVERS_SHARE: u32 = 2 * SHARE;

/// When the next pass may be.
pub(crate) struct Account {
    /// CPU time of all walks, as it was when the last pass ended.
    paid: Duration,
}

impl Account {
    /// Starts after `walked` CPU time.
    pub(crate) fn new(walked: Duration) -> Self {
        Self { paid: walked }
    }

    /// A pass has ended, and all walks have taken `walked` CPU time so far. Returns the delay of the next
    /// pass.
    pub(crate) fn passed(&mut self, walked: Duration) -> Duration {
        let unpaid = walked.saturating_sub(self.paid);
        self.paid = walked;
        unpaid.saturating_mul(SHARE)
    }
}

/// When the moving thread may walk again to find owners.
#[derive(Default)]
pub(crate) struct Pace {
    again: Option<Instant>,
}

impl Pace {
    pub(crate) fn may_walk(&self, now: Instant) -> bool {
        self.again.is_none_or(|again| again <= now)
    }

    /// A walk has taken `cpu` time.
    pub(crate) fn walked(&mut self, cpu: Duration, now: Instant) {
        self.again = Some(now + cpu.saturating_mul(MOVERS_SHARE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node on which each walk takes as long, and on which the moving thread always wants to know
    /// owners again after a second. Returns the share of walking, and how many passes
    /// there were.
    fn share(walk: Duration, interval: Duration, new_moves: bool) -> (f64, u32) {
        const TICK: Duration = Duration::from_millis(20);
        let (start, span) = (Instant::now(), Duration::from_secs(3600));
        let (mut walked, mut passes) = (Duration::ZERO, 0);
        let (mut account, mut pace) = (Account::new(walked), Pace::default());
        let (mut now, mut next_pass, mut known) = (start, start, start);
        while now < start + span {
            if now >= next_pass {
                walked += walk;
                passes += 1;
                next_pass = now + account.passed(walked).max(interval);
                if new_moves {
                    walked += walk;
                    pace.walked(walk, now);
                    known = now;
                }
            }
            if now >= known + Duration::from_secs(1) && pace.may_walk(now) {
                walked += walk;
                pace.walked(walk, now);
                known = now;
            }
            now += TICK;
        }
        (walked.as_secs_f64() / span.as_secs_f64(), passes)
    }

    #[test]
    fn all_walks_together_take_at_most_their_share() {
        let interval = Duration::from_secs(5);
        for new_moves in [false, true] {
            // 150,000 connections, as measured.
            let (share, passes) = share(Duration::from_millis(150), interval, new_moves);
            // What was walked in the last cycle is not paid for yet.
            assert!((0.015..0.021).contains(&share), "{share}");
            assert!(passes > 3600 / 31, "passes continue: {passes}");
        }
    }

    #[test]
    fn cheap_walks_delay_no_pass() {
        let (share, passes) = share(Duration::from_millis(1), Duration::from_secs(5), true);
        assert_eq!(passes, 720);
        assert!(share < 0.02, "{share}");
    }
}
