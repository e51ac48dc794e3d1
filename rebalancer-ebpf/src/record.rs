//! A socket's record: how it is made, and where it is kept. Socket storage keeps it, and the
//! kernel frees it with the socket.

use aya_ebpf::{
    bindings::BPF_SK_STORAGE_GET_F_CREATE,
    cty::c_void,
    helpers::generated::{bpf_ktime_get_ns, bpf_sk_storage_delete, bpf_sk_storage_get},
};
use rebalancer_common::{Connection, Fault, IpProto, Settings, flags, kind};

use crate::{
    endpoint,
    maps::shard,
    sock::{TcpSock, is_loopback},
};

/// Why a socket got no record now.
pub(crate) enum NotRecorded {
    /// It has one, or it shall have none.
    Already,
    /// It should have one.
    Fault(Fault),
}

/// A new record of a socket.
#[inline(always)]
pub(crate) fn describe(tcp: TcpSock, cookie: u64, kind: u8) -> Connection {
    let listener = kind == kind::LISTENER;
    Connection {
        cookie,
        // SAFETY: a helper without preconditions.
        start_ns: unsafe { bpf_ktime_get_ns() },
        cgroup: tcp.cgroup(),
        netns: tcp.netns(),
        local_port: tcp.skc_num(),
        remote_port: if listener {
            0
        } else {
            u16::from_be(tcp.skc_dport())
        },
        local_addr: tcp.local_addr(),
        remote_addr: if listener { [0; 16] } else { tcp.remote_addr() },
        family: tcp.skc_family() as u8,
        kind,
        flags: 0,
        protocol: IpProto::Tcp as u8,
        device: tcp.skc_bound_dev_if(),
        messages: 0,
        message_bytes: 0,
    }
}

/// Stores a new record and counts it at its endpoint, once: a socket that has one keeps it.
///
/// # Safety
/// `sk` is a socket that the kernel gave this program, not null, and its lock is held.
#[inline(always)]
pub(crate) unsafe fn open(
    sk: *mut c_void,
    settings: &Settings,
    new: &mut Connection,
) -> Result<*mut Connection, NotRecorded> {
    let listener = new.kind == kind::LISTENER;
    if !listener && settings.loopback == 0 && is_loopback(&new.remote_addr) {
        return Err(NotRecorded::Already);
    }
    let Some(sums) = endpoint::get_or_create(&endpoint::key(new)) else {
        return Err(NotRecorded::Fault(Fault::EndpointsFull));
    };
    // SAFETY: a live map value; a racing add only makes the cap late by a few.
    let now_open = unsafe { core::ptr::read_volatile(&raw const (*sums).open) };
    // SAFETY: the caller's.
    let Some(stored) = (unsafe { get_or_create(sk, new, now_open, settings.max_per_endpoint) })
    else {
        let over = !listener && now_open >= u64::from(settings.max_per_endpoint);
        return Err(NotRecorded::Fault(if over {
            Fault::OverCap
        } else {
            Fault::StorageFailed
        }));
    };
    // SAFETY: the record of this socket, whose lock is held.
    unsafe {
        if (*stored).start_ns != new.start_ns {
            // It was there. A socket that was closed or connected before may listen anew.
            let anew = listener
                && ((*stored).kind != kind::LISTENER || (*stored).flags & flags::CLOSED != 0);
            if !anew {
                return Err(NotRecorded::Already);
            }
            *stored = *new;
        }
    }
    // SAFETY: a live map value.
    unsafe {
        if listener {
            endpoint::add(&raw mut (*sums).listeners, 1);
        } else {
            endpoint::add(&raw mut (*sums).accepted, 1);
            endpoint::add(&raw mut (*sums).open, 1);
        }
    }
    Ok(stored)
}

/// Takes back what [`open`] has done for a socket that is not to be recorded any more.
///
/// # Safety
/// `sk` is a socket that the kernel gave this program, not null, and its lock is held.
#[inline(always)]
pub(crate) unsafe fn remove(sk: *mut c_void, cookie: u64) {
    // SAFETY: the caller's.
    let Some(stored) = (unsafe { get(sk, cookie) }) else {
        return;
    };
    // SAFETY: the record of this socket, whose lock is held.
    let record = unsafe { *stored };
    if record.flags & flags::CLOSED == 0
        && let Some(sums) = endpoint::get(&endpoint::key(&record))
    {
        const MINUS_ONE: u64 = u64::MAX;
        // SAFETY: a live map value.
        unsafe {
            if record.kind == kind::LISTENER {
                endpoint::add(&raw mut (*sums).listeners, MINUS_ONE);
            } else {
                endpoint::add(&raw mut (*sums).accepted, MINUS_ONE);
                endpoint::add(&raw mut (*sums).open, MINUS_ONE);
            }
        }
    }
    // SAFETY: the caller's; it fails only where there is none.
    let _removed = unsafe { bpf_sk_storage_delete(shard(cookie), sk) };
}

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

/// The socket's record, made from `init` if there is none and the endpoint has room. Passed as
/// the storage's initial value, so that a listing never sees an empty one.
///
/// # Safety
/// `sk` is a socket that the kernel gave this program, not null.
#[inline(always)]
unsafe fn get_or_create(
    sk: *mut c_void,
    init: &mut Connection,
    now_open: u64,
    most: u32,
) -> Option<*mut Connection> {
    let room = init.kind == kind::LISTENER || now_open < u64::from(most);
    let create = if room {
        BPF_SK_STORAGE_GET_F_CREATE.into()
    } else {
        0
    };
    let map = shard(init.cookie);
    let value = core::ptr::from_mut(init).cast();
    // SAFETY: the caller's; the kernel copies `value`, which is as long as the map's value.
    let found = unsafe { bpf_sk_storage_get(map, sk, value, create) };
    if found.is_null() {
        None
    } else {
        Some(found.cast())
    }
}
