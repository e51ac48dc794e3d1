//! Counts faults per CPU and logs the first of each kind.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::warn;
use rebalancer_common::Fault;

use crate::maps::FAULTS;

/// Counts a fault. Only the first of its kind on a CPU is logged, as a fault can occur with every
/// connection.
#[inline(never)]
pub(crate) fn count(ctx: &impl EbpfContext, fault: Fault) {
    if add(fault) == Some(0) {
        warn!(ctx, "first fault of kind {} on this CPU", fault as u32);
    }
}

/// Counts a fault and returns the previous count on this CPU.
#[inline(always)]
pub(crate) fn add(fault: Fault) -> Option<u64> {
    let counter = FAULTS.get_ptr_mut(fault as u32)?;
    // SAFETY: the pointer is this CPU's element, and no other sock_ops program preempts this one on
    // it.
    let before = unsafe { *counter };
    // SAFETY: as above.
    unsafe { *counter = before + 1 };
    Some(before)
}
