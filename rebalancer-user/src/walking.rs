//! How much walking may take. Passes, the moving thread and counting each walk when they need to; there is
//! one account of it, and passes, which can best be put off, pay for all.

use std::time::{Duration, Instant};

/// All walks together take no more than one part in so many of a CPU: 2 %.
const SHARE: u32 = 50;

/// Of that, what the moving thread may take again and again while something is about to be moved. If it
/// could take all, there would be no passes, which judge what is about to be moved.
const MOVERS_SHARE: u32 = 2 * SHARE;

/// When the next pass may be.
pub(crate) struct Account {
    /// CPU time of all walks, as it was when the last pass ended.
    paid: Duration,
}

impl Account {
    /// What was `walked` so far is paid for.
    pub(crate) fn new(walked: Duration) -> Self {
        Self { paid: walked }
    }

    /// A pass has ended, and all walks have taken so much CPU time so far: for how long there is to be
    /// no other pass.
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

    /// A walk has taken so much CPU time.
    pub(crate) fn walked(&mut self, cpu: Duration, now: Instant) {
        self.again = Some(now + cpu.saturating_mul(MOVERS_SHARE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node on which each walk takes as long, and on which the moving thread always wants to know
    /// owners anew that it has known for a second. Returns the share of walking, and how many passes
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
    fn all_walks_together_take_their_share_and_no_more() {
        let interval = Duration::from_secs(5);
        for new_moves in [false, true] {
            // 150,000 connections, as measured.
            let (share, passes) = share(Duration::from_millis(150), interval, new_moves);
            // What was walked in the last cycle is not paid for yet.
            assert!((0.015..0.021).contains(&share), "{share}");
            assert!(passes > 3600 / 31, "passes go on: {passes}");
        }
    }

    #[test]
    fn where_a_walk_is_cheap_nothing_is_put_off() {
        let (share, passes) = share(Duration::from_millis(1), Duration::from_secs(5), true);
        assert_eq!(passes, 720);
        assert!(share < 0.02, "{share}");
    }
}
