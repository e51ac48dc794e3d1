//! What was moved, and when: what the next decision must know of those before.

use std::time::Duration;

use super::{Move, Outcome};
use crate::snapshot::{Cookie, KernelTime, Snapshot};

/// For so long a connection is not chosen again once a move of it has ended.
pub const HOLD: Duration = Duration::from_secs(600);

/// What was moved and told so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {}

impl Ledger {
    /// Records that `chosen` was started.
    pub fn started(&mut self, _chosen: &Move, _now: KernelTime) {}

    /// Records how the move of `cookie` ended; gives the budget back if it did no harm.
    pub fn ended(&mut self, _cookie: Cookie, _outcome: Outcome, _now: KernelTime) {}

    /// Records that `chosen` was told in dry run. It counts against the budget of dry runs, so
    /// that they show the pace of the real ones.
    pub fn said(&mut self, _chosen: &Move, _now: KernelTime) {}

    /// Forgets what can no longer matter: connections that are gone, and moves older than
    /// `window`. Call it after each plan; the ledger then stays as small as the snapshot.
    pub fn prune(&mut self, _snapshot: &Snapshot, _window: Duration, _now: KernelTime) {}

    /// Moves started and not ended.
    pub fn in_flight(&self) -> usize {
        0
    }
}
