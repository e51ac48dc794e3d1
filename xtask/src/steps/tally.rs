//! The counts of one cell's clients.

use std::{
    cell::{Cell, RefCell},
    fmt::Display,
    time::Duration,
};

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

/// A connection of a cell's clients, which counts for the cell what happens on it.
pub(super) struct Connection<'a> {
    seen: &'a RefCell<Seen>,
    /// Its client's think time: different for each, and not in phase with a server.
    pub(super) think: Duration,
    /// The last of the numbered messages that it has received, across reconnects.
    last: Cell<Option<u64>>,
}

impl<'a> Connection<'a> {
    pub(super) fn new(index: u64, seen: &'a RefCell<Seen>) -> Self {
        Self {
            seen,
            think: Duration::from_millis(300 + 15 * index),
            last: Cell::default(),
        }
    }

    /// Counts an exchange; returns whether it was completed.
    pub(super) fn count<E: Display>(&self, exchange: Result<(), E>) -> bool {
        match &exchange {
            Ok(()) => self.seen.borrow_mut().done += 1,
            Err(why) => self.lost(why),
        }
        exchange.is_ok()
    }

    fn lost(&self, why: impl Display) {
        let mut seen = self.seen.borrow_mut();
        seen.lost += 1;
        seen.problem.get_or_insert_with(|| format!("{why:#}"));
    }

    pub(super) fn reconnected(&self) {
        self.seen.borrow_mut().reconnects += 1;
    }

    /// Counts a numbered message, and those before it that are missing.
    pub(super) fn receive(&self, number: u64) {
        let last = self.last.get();
        // Ignore duplicates.
        if last.is_some_and(|last| number <= last) {
            return;
        }
        for missed in last.map_or(number, |last| last + 1)..number {
            self.lost(format_args!("message {missed} is missing"));
        }
        self.seen.borrow_mut().done += 1;
        self.last.set(Some(number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_counts_as_lost_messages() {
        let seen = RefCell::default();
        let connection = Connection::new(0, &seen);
        for number in [7, 8, 8, 11, 12] {
            connection.receive(number);
        }
        let seen = seen.into_inner();
        assert_eq!((seen.done, seen.lost), (4, 2));
        assert_eq!(seen.problem.as_deref(), Some("message 9 is missing"));
    }
}
