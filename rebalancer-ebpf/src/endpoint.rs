//! The sums of each endpoint, shared by all CPUs and changed by atomic adds only.

use aya_ebpf::bindings::BPF_NOEXIST;
use rebalancer_common::{Connection, ENDPOINTS_PER_PLACE, EndpointKey, EndpointSums};

use crate::{
    maps::{ENDPOINTS, NODE, PLACES},
    sock,
};

/// The endpoint of a record.
#[inline(always)]
pub(crate) fn key(connection: &Connection) -> EndpointKey {
    let host = connection.netns == sock::host_netns();
    EndpointKey {
        cgroup: if host { connection.cgroup } else { 0 },
        netns_cookie: connection.netns_cookie,
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

/// The endpoint's sums, created if they do not exist; `None` if the map or the place is full.
#[inline(always)]
pub(crate) fn get_or_create(key: &EndpointKey) -> Option<*mut EndpointSums> {
    if let Some(sums) = get(key) {
        return Some(sums);
    }
    let place = key.place();
    if PLACES.get_ptr(place).is_none() {
        // Another CPU may have inserted it.
        let _exists_already = PLACES.insert(place, 0, BPF_NOEXIST.into());
    }
    let count = PLACES.get_ptr_mut(place)?;
    // SAFETY: a live map value; a race can only exceed the limit by a few.
    if unsafe { core::ptr::read_volatile(count) } >= ENDPOINTS_PER_PLACE {
        return None;
    }
    // If another CPU has inserted it, the lookup below finds its entry.
    if ENDPOINTS
        .insert(key, EndpointSums::ZERO, BPF_NOEXIST.into())
        .is_ok()
    {
        // SAFETY: a live map value.
        unsafe { add(count, 1) };
    }
    get(key)
}

/// The number of recorded connections on the node whose close will be seen. It can be negative.
#[inline(always)]
pub(crate) fn node() -> Option<*mut u64> {
    NODE.get_ptr_mut(0)
}

/// The agent's correction of [`node`]: connections whose close will not be seen, minus those of
/// [`node`] that it found closed. It can be negative.
#[inline(always)]
pub(crate) fn node_without_close() -> Option<*const u64> {
    NODE.get_ptr(1)
}

/// Adding this subtracts one.
pub(crate) const MINUS_ONE: u64 = u64::MAX;

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
