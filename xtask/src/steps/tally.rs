//! The counts of one cell's clients.

use std::fmt::Display;

use parking_lot::Mutex;

/// Sums over all connections of a cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Completed requests, transactions or messages.
    pub(super) done: u64,
    /// Failed or missing ones.
    pub(super) lost: u64,
    /// Number of reconnects.
    pub(super) reconnects: u64,
    /// The first problem.
    pub(super) problem: Option<String>,
}

/// Counts for all clients of a cell.
#[derive(Default)]
pub(super) struct Tally(Mutex<Seen>);

impl Tally {
    pub(super) fn done(&self) {
        self.0.lock().done += 1;
    }

    pub(super) fn lost(&self, why: impl Display) {
        let mut seen = self.0.lock();
        seen.lost += 1;
        seen.problem.get_or_insert_with(|| why.to_string());
    }

    pub(super) fn reconnected(&self) {
        self.0.lock().reconnects += 1;
    }

    pub(super) fn seen(&self) -> Seen {
        self.0.lock().clone()
    }
}

/// A receiver of numbered messages that counts missing ones, across reconnects.
#[derive(Default)]
pub(super) struct Follower(Option<u64>);

impl Follower {
    pub(super) fn receive(&mut self, number: u64, tally: &Tally) {
        // Ignore duplicates.
        if self.0.is_some_and(|last| number <= last) {
            return;
        }
        let next = self.0.map_or(number, |last| last + 1);
        for missed in next..number {
            tally.lost(format!("message {missed} is missing"));
        }
        tally.done();
        self.0 = Some(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_counts_as_lost_messages() {
        let (tally, mut follower) = (Tally::default(), Follower::default());
        for number in [7, 8, 8, 11, 12] {
            follower.receive(number, &tally);
        }
        let seen = tally.seen();
        assert_eq!((seen.done, seen.lost), (4, 2));
        assert_eq!(seen.problem.as_deref(), Some("message 9 is missing"));
    }
}
