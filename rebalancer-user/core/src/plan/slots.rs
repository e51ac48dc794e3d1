//! Whose moves are in flight: no rule and namespace has all of `maxInFlight` to itself.
//!
//! A connection that is never quiet keeps its slot until its steps have timed out, and the next of its
//! queue takes it then. So a queue has at most half of the slots while another has a candidate for one.
//! What it has taken while there was none is recalled, as far as others wait for it.

use std::{cmp::Reverse, collections::BTreeMap};

use super::{
    Charge, Ledger, Recall, SkipReason,
    fair_queue::{Queue, Queues},
};

/// The slots of one mode.
pub(super) struct Slots {
    max: u64,
    free: u64,
    /// By a queue's index: moves in flight, those that were begun now among them.
    held: Vec<u64>,
    /// By a queue's index: candidates that wait for nothing else.
    waiting: Vec<u64>,
}

fn queue(by: &Charge) -> Queue<'_> {
    (by.rule.as_str(), by.namespace.as_deref())
}

impl Slots {
    /// All of them are free.
    pub(super) fn all(queues: &Queues<'_>, max: u64) -> Self {
        Self {
            max,
            free: max,
            held: vec![0; queues.len()],
            waiting: vec![0; queues.len()],
        }
    }

    /// Those that moves in flight have left.
    pub(super) fn beside(ledger: &Ledger, queues: &Queues<'_>, max: u64) -> Self {
        let mut slots = Self::all(queues, max);
        for (_, _, by) in ledger.moves_in_flight() {
            if let Some(queue) = queues.index(&queue(by)) {
                slots.held[queue] += 1;
            }
            slots.free = slots.free.saturating_sub(1);
        }
        slots
    }

    /// Rounded up, so that two queues leave none free.
    fn half(&self) -> u64 {
        self.max.div_ceil(2)
    }

    /// Whether the queue has no more to take before all others had theirs.
    pub(super) fn has_half(&self, queue: usize) -> bool {
        self.held[queue] >= self.half()
    }

    /// Takes one.
    ///
    /// # Errors
    /// None is free.
    pub(super) fn take(&mut self, queue: usize) -> Result<(), SkipReason> {
        if self.free == 0 {
            self.waiting[queue] += 1;
            return Err(SkipReason::MaxInFlight { max: self.max });
        }
        self.free -= 1;
        self.held[queue] += 1;
        Ok(())
    }

    /// Adds to `recalls` the moves that make room for those that wait: of the queues that have more
    /// than half, the latest first.
    pub(super) fn make_room(&self, ledger: &Ledger, recalls: &mut Vec<Recall>) {
        let half = self.half();
        let queues = self.held.iter().zip(&self.waiting);
        let wait = |(held, waiting): (&u64, &u64)| half.saturating_sub(*held).min(*waiting);
        let waiting: u64 = queues.map(wait).sum();
        let mut left = waiting.saturating_sub(recalls.len() as u64);
        if left == 0 {
            return;
        }
        let is_recalled = |cookie| recalls.iter().any(|recall| recall.cookie == cookie);
        let mut moves: Vec<_> = ledger
            .moves_in_flight()
            .filter(|(cookie, ..)| !is_recalled(*cookie))
            .collect();
        moves.sort_unstable_by_key(|(cookie, began, _)| Reverse((*began, *cookie)));
        let mut held: BTreeMap<Queue<'_>, u64> = BTreeMap::new();
        for (_, _, by) in &moves {
            *held.entry(queue(by)).or_default() += 1;
        }
        for (cookie, _, by) in moves {
            let Some(held) = held.get_mut(&queue(by)).filter(|held| **held > half) else {
                continue;
            };
            if left == 0 {
                break;
            }
            let why = SkipReason::OthersWait {
                held: *held,
                max: self.max,
            };
            recalls.push(Recall { cookie, why });
            *held -= 1;
            left -= 1;
        }
        recalls.sort_by_key(|recall| recall.cookie);
    }
}
