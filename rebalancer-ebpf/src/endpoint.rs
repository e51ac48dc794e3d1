//! Sums of each endpoint, shared by all CPUs and changed by atomic adds only.

use aya_ebpf::bindings::BPF_NOEXIST;
use rebalancer_common::{Connection, EndpointKey, EndpointSums};

use crate::{maps::ENDPOINTS, sock};

/// The endpoint of a record.
#[inline(always)]
pub(crate) fn key(connection: &Connection) -> EndpointKey {
    let host = connection.netns == sock::host_netns();
    EndpointKey {
        cgroup: if host { connection.cgroup } else { 0 },
        netns: connection.netns,
        port: connection.local_port,
        reserved: 0,
    }
}

/// The endpoint's sums, if it is known.
#[inline(always)]
pub(crate) fn get(key: &EndpointKey) -> Option<*mut EndpointSums> {
    ENDPOINTS.get_ptr_mut(key)
}

/// The endpoint's sums, made if there are none; `None` when the map is full.
#[inline(always)]
pub(crate) fn get_or_create(key: &EndpointKey) -> Option<*mut EndpointSums> {
    if let Some(sums) = get(key) {
        return Some(sums);
    }
    // Another CPU may be first: then the insert fails, and the second look finds its entry.
    let _exists_already = ENDPOINTS.insert(key, EndpointSums::ZERO, BPF_NOEXIST.into());
    get(key)
}

/// Adds to a counter that other CPUs change as well. Subtracts by adding the two's complement.
///
/// # Safety
/// `counter` points into a live map value.
#[inline(always)]
pub(crate) unsafe fn add(counter: *mut u64, n: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's.
    let _before: u64 = unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
            counter, n,
        )
    };
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's.
    unsafe {
        core::sync::atomic::AtomicU64::from_ptr(counter)
            .fetch_add(n, core::sync::atomic::Ordering::Relaxed);
    }
}
