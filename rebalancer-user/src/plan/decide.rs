//! The decision.

use super::{Ledger, Plan};
use crate::{
    policy::Policy,
    snapshot::{KernelTime, Snapshot},
};

/// Decides what to do with every connection of `snapshot` at `now`.
pub fn decide(_policy: &Policy, _snapshot: &Snapshot, _ledger: &Ledger, _now: KernelTime) -> Plan {
    Plan {
        decisions: Vec::new(),
        overdue: 0,
        budget_left: 0,
    }
}
