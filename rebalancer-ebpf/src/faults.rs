//! Counts what goes wrong, per CPU, and says it once.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::warn;
use rebalancer_common::Fault;

use crate::maps::FAULTS;

/// Counts a fault. The first of its kind on a CPU is also logged; never each, as a fault can come
/// with every connection.
#[inline(never)]
pub(crate) fn count(ctx: &impl EbpfContext, fault: Fault) {
    if add(fault) == Some(0) {
        warn!(ctx, "first fault of kind {} on this CPU", fault as u32);
    }
}

/// Counts a fault, and returns how many there were on this CPU before.
#[inline(always)]
pub(crate) fn add(fault: Fault) -> Option<u64> {
    let counter = FAULTS.get_ptr_mut(fault as u32)?;
    // SAFETY: the pointer is this CPU's slot; sock_ops programs are not preempted by another on it.
    let before = unsafe { *counter };
    // SAFETY: as above.
    unsafe { *counter = before + 1 };
    Some(before)
}
