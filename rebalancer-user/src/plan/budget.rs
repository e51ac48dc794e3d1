//! How many of the chosen may be moved now.

use super::{Ledger, Spared};
use crate::{
    policy::{Mode, Policy},
    snapshot::KernelTime,
};

/// What is left of the budgets of one mode.
pub(super) struct Allowance {
    per_node: u64,
    left: u64,
    max_in_flight: u64,
    slots: u64,
    window: std::time::Duration,
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
            per_node,
            left: per_node.saturating_sub(ledger.spent(mode, budget.window(), now)),
            max_in_flight,
            slots: max_in_flight.saturating_sub(in_flight),
            window: budget.window(),
        }
    }

    /// Takes one move out of it.
    ///
    /// # Errors
    /// Why there is none left.
    pub(super) fn take(&mut self) -> Result<(), Spared> {
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
        Ok(())
    }

    /// Moves that the window still has.
    pub(super) fn left(&self) -> u64 {
        self.left
    }
}
