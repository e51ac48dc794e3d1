//! How soon to try again what may well be undone again.

use std::time::{Duration, Instant};

/// Waits that double, as long as what was repaired is found undone as soon as it is looked at
/// again. Two programs that both want to be the last on a cgroup would otherwise each attach again
/// at every interval, without end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    /// The wait after the next repair.
    wait: Duration,
    /// Not before.
    next: Option<Instant>,
}

impl Backoff {
    /// Waits that begin at `first` and end at `most`.
    pub(super) fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            wait: first,
            next: None,
        }
    }

    /// Whether to look now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| now >= next)
    }

    /// It had to be repaired. Returns how long it is not looked at now.
    pub(super) fn repaired(&mut self, now: Instant) -> Duration {
        let wait = self.wait;
        self.next = Some(now + wait);
        self.wait = wait.saturating_mul(2).min(self.most);
        wait
    }

    /// It was looked at and is as it should be. It has stayed so for the whole of the last wait, so
    /// whatever undoes it does not do so at once.
    pub(super) fn intact(&mut self) {
        self.wait = self.first;
        self.next = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Repairs within a day, looked at every second, where `undone` says whether it is.
    fn repairs(mut undone: impl FnMut(Duration) -> bool) -> Vec<u64> {
        let began = Instant::now();
        let mut backoff = Backoff::new(10 * SECOND, 3600 * SECOND);
        let mut at = Vec::new();
        for second in 0..86_400 {
            let since = Duration::from_secs(second);
            if !backoff.is_due(began + since) {
                continue;
            }
            if undone(since) {
                backoff.repaired(began + since);
                at.push(second);
            } else {
                backoff.intact();
            }
        }
        at
    }

    #[test]
    fn what_is_always_undone_is_repaired_ever_more_rarely() {
        let at = repairs(|_| true);
        assert_eq!(at[..6], [0, 10, 30, 70, 150, 310]);
        let last = at[at.len() - 1] - at[at.len() - 2];
        assert_eq!(last, 3600);
        assert!(at.len() < 40, "{} times a day", at.len());
    }

    #[test]
    fn what_is_undone_now_and_then_is_repaired_when_it_is_seen() {
        let hourly = |since: Duration| since.as_secs() % 3600 == 1800;
        let at = repairs(hourly);
        assert_eq!(at.len(), 24);
        assert_eq!(at[1] - at[0], 3600);
    }

    #[test]
    fn the_wait_is_the_shortest_again_after_a_repair_that_lasts() {
        let now = Instant::now();
        let mut backoff = Backoff::new(10 * SECOND, 40 * SECOND);
        let waits = [(); 4].map(|()| backoff.repaired(now));
        assert_eq!(waits, [10, 20, 40, 40].map(|n| n * SECOND));
        assert!(!backoff.is_due(now + 39 * SECOND));
        assert!(backoff.is_due(now + 40 * SECOND));
        backoff.intact();
        assert_eq!(backoff.repaired(now), 10 * SECOND);
    }
}
