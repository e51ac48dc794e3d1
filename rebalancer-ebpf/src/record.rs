//! Socket storage: where a socket's record is kept. The kernel frees it with the socket.

use aya_ebpf::{
    bindings::BPF_SK_STORAGE_GET_F_CREATE, cty::c_void, helpers::generated::bpf_sk_storage_get,
};
use rebalancer_common::Connection;

use crate::maps::shard;

/// The socket's record, if it has one.
///
/// # Safety
/// `sk` is a socket that the kernel gave this program, not null.
#[inline(always)]
pub(crate) unsafe fn get(sk: *mut c_void, cookie: u64) -> Option<*mut Connection> {
    // SAFETY: the caller's; a null value without the create flag only looks up.
    let found = unsafe { bpf_sk_storage_get(shard(cookie), sk, core::ptr::null_mut(), 0) };
    if found.is_null() {
        None
    } else {
        Some(found.cast())
    }
}

/// The socket's record, made from `init` if there is none. Passed as the storage's initial value,
/// so that a listing never sees an empty one.
///
/// # Safety
/// `sk` is a socket that the kernel gave this program, not null.
#[inline(always)]
pub(crate) unsafe fn get_or_create(
    sk: *mut c_void,
    init: &mut Connection,
) -> Option<*mut Connection> {
    let map = shard(init.cookie);
    let value = core::ptr::from_mut(init).cast();
    // SAFETY: the caller's; the kernel copies `value`, which is as long as the map's value.
    let found = unsafe { bpf_sk_storage_get(map, sk, value, BPF_SK_STORAGE_GET_F_CREATE.into()) };
    if found.is_null() {
        None
    } else {
        Some(found.cast())
    }
}
