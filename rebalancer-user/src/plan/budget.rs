//! How many of the chosen may be moved now.

use std::time::Duration;

use super::{Ledger, Outlook, Spared, outlook::Pace};
use crate::{
    policy::{Mode, Policy},
    snapshot::KernelTime,
};

/// What is left of the budgets of one mode.
pub(super) struct Allowance {
    mode: Mode,
    per_node: u64,
    left: u64,
    max_in_flight: u64,
    slots: u64,
    window: Duration,
    interval: Duration,
    asked: u64,
    taken: u64,
}

impl Allowance {
    /// On a node that tracks `tracked` connections.
    pub(super) fn new(
        policy: &Policy,
        mode: Mode,
        ledger: &Ledger,
        tracked: u64,
        now: KernelTime,
    ) -> Self {
        let budget = policy.budget();
        let per_node = budget.per_node().of(tracked);
        let max_in_flight = u64::from(budget.max_in_flight().get());
        // What is only told is never in flight; a round of it is as large as a real one.
        let in_flight = if mode == Mode::DryRun {
            0
        } else {
            ledger.in_flight()
        };
        let in_flight = u64::try_from(in_flight).unwrap_or(u64::MAX);
        Self {
            mode,
            per_node,
            left: per_node.saturating_sub(ledger.spent(mode, budget.window(), now)),
            max_in_flight,
            slots: max_in_flight.saturating_sub(in_flight),
            window: budget.window(),
            interval: policy.interval(),
            asked: 0,
            taken: 0,
        }
    }

    /// Takes one move out of it.
    ///
    /// # Errors
    /// Why there is none left.
    pub(super) fn take(&mut self) -> Result<(), Spared> {
        self.asked += 1;
        if self.left == 0 {
            return Err(Spared::Budget {
                per_node: self.per_node,
                window: self.window,
            });
        }
        if self.slots == 0 {
            return Err(Spared::MaxInFlight {
                max: self.max_in_flight,
            });
        }
        self.left -= 1;
        self.slots -= 1;
        self.taken += 1;
        Ok(())
    }

    /// How long it makes take what was asked of it; none if nothing was.
    pub(super) fn outlook(&self) -> Option<Outlook> {
        let pace = Pace {
            per_node: self.per_node,
            max_in_flight: self.max_in_flight,
            window: self.window,
            interval: self.interval,
        };
        let spent = self.per_node.saturating_sub(self.left + self.taken);
        (self.asked > 0).then(|| Outlook {
            mode: self.mode,
            chosen: self.asked,
            now: self.taken,
            per_window: pace.per_window(),
            window: self.window,
            lasts: pace.last_start(spent + self.asked),
        })
    }

    /// Moves that the window still has.
    pub(super) fn left(&self) -> u64 {
        self.left
    }
}
