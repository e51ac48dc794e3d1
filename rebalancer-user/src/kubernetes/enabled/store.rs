//! The objects of one kind, as the API server has reported them, and whether they may be outdated. Pure.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// A change of the objects of a kind. `None` for a value: nothing of the object is used.
#[derive(Clone, Debug)]
pub(super) enum Change<T> {
    /// A new list begins.
    Begin,
    /// One of the list.
    Listed(String, Option<T>),
    /// The list is complete: what was not in it is gone.
    Done,
    /// One has come, or has changed.
    Set(String, Option<T>),
    /// One was removed.
    Removed(String),
}

/// The objects of one kind, and when the API server last answered about them.
#[derive(Debug)]
pub(super) struct Store<T> {
    /// `None` until the first list is complete.
    pub(super) now: Option<BTreeMap<String, T>>,
    relisted: Option<BTreeMap<String, T>>,
    failed: bool,
    pub(super) answered: Option<Instant>,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self {
            now: None,
            relisted: None,
            failed: false,
            answered: None,
        }
    }
}

impl<T> Store<T> {
    /// Applies a change that was received at `at`.
    pub(super) fn change(&mut self, change: Change<T>, at: Instant) {
        match change {
            // Nothing was received yet: it is asked for.
            Change::Begin => {
                self.relisted = Some(BTreeMap::new());
                return;
            }
            Change::Listed(key, value) => {
                let relisted = self.relisted.get_or_insert_default();
                relisted.extend(value.map(|value| (key, value)));
            }
            Change::Done => self.now = Some(self.relisted.take().unwrap_or_default()),
            Change::Set(key, Some(value)) => {
                self.now.get_or_insert_default().insert(key, value);
            }
            Change::Set(key, None) | Change::Removed(key) => {
                self.now.get_or_insert_default().remove(&key);
            }
        }
        self.answered(at);
    }

    /// The API server has answered at `at`.
    pub(super) fn answered(&mut self, at: Instant) {
        self.failed = false;
        self.answered = Some(at);
    }

    /// It has not answered, or has refused.
    pub(super) fn failed(&mut self) {
        self.failed = true;
    }

    /// Whether they have been listed once.
    pub(super) fn is_listed(&self) -> bool {
        self.now.is_some()
    }

    /// Whether an answer is overdue: to a list for so long, or of a watch at all.
    pub(super) fn waits(&self, now: Instant, list: Duration, watch: Duration) -> bool {
        let most = if self.relisted.is_some() || !self.is_listed() {
            list
        } else {
            watch
        };
        let silent = |answered| now.saturating_duration_since(answered) >= most;
        self.answered.is_none_or(silent)
    }

    /// Since when they may be outdated, if so; `Some(None)`: they were never known.
    pub(super) fn outdated(&self, now: Instant, patience: Duration) -> Option<Option<Instant>> {
        let Some(answered) = self.answered.filter(|_| self.is_listed()) else {
            return Some(None);
        };
        let silent = now.saturating_duration_since(answered) > patience;
        (self.failed || self.relisted.is_some() || silent).then_some(Some(answered))
    }
}

/// How often the API server must answer about each kind, and for how long its silence is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    /// The server is asked to end a watch after so long, and it is started again: so it answers at
    /// least so often, however little happens.
    pub(super) watch: Duration,
    /// What is known is outdated when nothing was received for longer.
    pub(super) patience: Duration,
}

impl Pace {
    /// Trusted for no longer than the ready endpoints of a Service must have stayed the same, as
    /// they may have changed in silence; but a watch is not restarted more often than `LEAST` allows.
    pub(super) fn within(stabilization_window: Duration) -> Self {
        const LEAST: Duration = Duration::from_secs(20);
        const MOST: Duration = Duration::from_secs(60);
        let patience = stabilization_window.clamp(LEAST, MOST);
        // The rest is for the answer.
        let watch = Duration::from_secs(patience.as_secs() * 3 / 4);
        Self { watch, patience }
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self::within(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_server_that_answers_is_seen_to_in_time(stabilization_window in 0..100_000_u64) {
            let stabilization_window = Duration::from_millis(stabilization_window);
            let Pace { watch, patience } = Pace::within(stabilization_window);
            prop_assert!(watch + Duration::from_secs(5) <= patience);
            prop_assert!(patience <= stabilization_window.max(Duration::from_secs(20)));
            prop_assert!(patience <= Duration::from_secs(60) && watch >= Duration::from_secs(15));
        }
    }
}
