//! Creates, finds and removes a socket's record. It is in socket storage, which the kernel frees
//! with the socket.

use aya_ebpf::{
    bindings::BPF_SK_STORAGE_GET_F_CREATE,
    cty::c_void,
    helpers::generated::{bpf_ktime_get_ns, bpf_sk_storage_delete, bpf_sk_storage_get},
};
use rebalancer_common::{
    Connection, EndpointKey, EndpointSums, Fault, IpProto, Settings, flags, kind,
};

use crate::{
    endpoint::{self, MINUS_ONE},
    maps::CONNECTIONS,
    scope,
    sock::{TcpSock, is_loopback, mptcp_of},
};

/// Why a socket got no record.
pub(crate) enum NotRecorded {
    /// It has one already, or must not have one.
    Already,
    /// It should have one, but a fault prevented it.
    Fault(Fault),
}

/// Fills in a new record of a socket.
#[inline(always)]
pub(crate) fn describe(new: &mut Connection, tcp: TcpSock, cookie: u64, kind: u8) {
    *new = Connection::ZERO;
    new.cookie = cookie;
    // SAFETY: a helper without preconditions.
    new.start_ns = unsafe { bpf_ktime_get_ns() };
    new.cgroup = tcp.cgroup();
    new.netns_cookie = tcp.netns_cookie();
    new.netns = tcp.netns();
    new.local_port = tcp.skc_num();
    new.local_addr = tcp.local_addr();
    new.family = tcp.skc_family() as u8;
    new.kind = kind;
    new.protocol = IpProto::Tcp as u8;
    new.device = tcp.skc_bound_dev_if();
    if kind == kind::CONNECTION {
        new.remote_port = u16::from_be(tcp.skc_dport());
        new.remote_addr = tcp.remote_addr();
    }
}

/// Stores a new record and counts it at its endpoint, unless the socket has one. Whether its close
/// will be seen is not known yet, as a program that runs after this one may clear the callback.
///
/// # Safety
/// `sk` is a socket from the kernel, not null, and its lock is held.
#[inline(always)]
pub(crate) unsafe fn open(
    sk: *mut c_void,
    settings: &Settings,
    new: &mut Connection,
) -> Result<(), NotRecorded> {
    let listener = new.kind == kind::LISTENER;
    if !listener {
        new.flags = flags::NO_CLOSE_CALLBACK;
    }
    // SAFETY: the caller's.
    let (stored, sums) = unsafe { get_or_create(sk, settings, new) }?;
    // SAFETY: the record of this socket, whose lock is held.
    unsafe {
        if (*stored).start_ns != new.start_ns {
            // The socket had a record. A formerly connected socket may listen.
            if !listener || (*stored).kind == kind::LISTENER {
                return Err(NotRecorded::Already);
            }
            *stored = *new;
        }
    }
    // SAFETY: live map values.
    unsafe {
        if listener {
            endpoint::add(&raw mut (*sums).listeners, 1);
        } else {
            endpoint::add(&raw mut (*sums).accepted, 1);
            endpoint::add(&raw mut (*sums).without_close, 1);
            if let Some(node) = endpoint::node() {
                endpoint::add(node, 1);
            }
        }
    }
    Ok(())
}

/// Notes that no other program has cleared the callback of a connection recorded by [`open`]: the
/// caller was called by it.
///
/// # Safety
/// `stored` is the record of a socket whose lock is held.
#[inline(always)]
pub(crate) unsafe fn close_will_be_seen(stored: *mut Connection) {
    // SAFETY: the caller's, and a live map value.
    unsafe {
        // Only once: two of our links may be attached for a moment.
        if (*stored).flags & flags::NO_CLOSE_CALLBACK == 0 {
            return;
        }
        (*stored).flags &= !flags::NO_CLOSE_CALLBACK;
        if let Some(sums) = endpoint::get(&endpoint::key(&*stored)) {
            endpoint::add(&raw mut (*sums).without_close, MINUS_ONE);
            endpoint::add(&raw mut (*sums).open, 1);
        }
    }
}

/// Stores and counts a new record of a socket that is older than tracking: its close will not be
/// seen.
///
/// # Safety
/// `sk` is a socket from the kernel, not null. Its lock need not be held.
#[inline(always)]
pub(crate) unsafe fn adopt(
    sk: *mut c_void,
    settings: &Settings,
    new: &mut Connection,
) -> Result<*mut Connection, NotRecorded> {
    // SAFETY: the caller's.
    let (stored, sums) = unsafe { get_or_create(sk, settings, new) }?;
    // SAFETY: a record; sock_ops may have created and counted it meanwhile.
    if unsafe { (*stored).start_ns } != new.start_ns {
        return Err(NotRecorded::Already);
    }
    // SAFETY: a live map value.
    unsafe {
        if new.kind == kind::LISTENER {
            endpoint::add(&raw mut (*sums).listeners, 1);
        } else {
            endpoint::add(&raw mut (*sums).accepted, 1);
            endpoint::add(&raw mut (*sums).without_close, 1);
        }
    }
    Ok(stored)
}

/// Adds the bytes since the last pass to the endpoint's sums, for a connection whose close will not
/// be seen.
///
/// # Safety
/// `stored` is a record, and the caller is the agent's walk, the only writer of these fields.
#[inline(always)]
pub(crate) unsafe fn sum(stored: *mut Connection, received: u64, acked: u64) {
    // SAFETY: the caller's.
    let Some(sums) = endpoint::get(&endpoint::key(unsafe { &*stored })) else {
        return;
    };
    // SAFETY: the caller's, and live map values.
    unsafe {
        endpoint::add(
            &raw mut (*sums).bytes_in,
            received.wrapping_sub((*stored).summed_in),
        );
        endpoint::add(
            &raw mut (*sums).bytes_out,
            acked.wrapping_sub((*stored).summed_out),
        );
        (*stored).summed_in = received;
        (*stored).summed_out = acked;
    }
}

/// Copies a subflow's record to its MPTCP socket, as no descriptor refers to the subflow. Counts
/// stay with the subflow.
///
/// # Safety
/// `sk` is this call's full socket.
#[inline(always)]
pub(crate) unsafe fn copy_to_mptcp(sk: *mut c_void, record: &mut Connection) {
    // SAFETY: the caller's; the kernel copies `record`, which is as long as the map's value.
    unsafe {
        let mptcp = mptcp_of(sk);
        if !mptcp.is_null() {
            record.flags = 0;
            let value = core::ptr::from_mut(record).cast();
            let create = BPF_SK_STORAGE_GET_F_CREATE.into();
            // If it fails, the connection is recorded, but the walk does not find it.
            let _copy = bpf_sk_storage_get(storage(), mptcp, value, create);
        }
    }
}

/// Removes a record. Returns false if another caller has removed it, which then accounts for it.
///
/// # Safety
/// `sk` is a socket from the kernel, not null. Its lock need not be held.
#[inline(always)]
pub(crate) unsafe fn remove(sk: *mut c_void) -> bool {
    // SAFETY: the caller's; it fails if there is no record.
    unsafe { bpf_sk_storage_delete(storage(), sk) == 0 }
}

/// Whether the settings still include this socket.
#[inline(always)]
pub(crate) fn is_wanted(stored: &Connection, tcp: TcpSock) -> bool {
    let Some(settings) = scope::settings() else {
        return true;
    };
    let remote = stored.kind == kind::LISTENER
        || settings.loopback != 0
        || !is_loopback(&stored.remote_addr);
    remote && scope::covers(settings, tcp)
}

/// Subtracts what [`open`] or [`adopt`] counted for a removed record.
#[inline(always)]
pub(crate) fn uncount(record: &Connection) {
    let Some(sums) = endpoint::get(&endpoint::key(record)) else {
        return;
    };
    // SAFETY: live map values.
    unsafe {
        if record.kind == kind::LISTENER {
            return endpoint::add(&raw mut (*sums).listeners, MINUS_ONE);
        }
        endpoint::add(&raw mut (*sums).accepted, MINUS_ONE);
        no_longer_open(record, sums);
    }
}

/// Subtracts a closed or removed connection from the open ones.
///
/// # Safety
/// `sums` are those of the record's endpoint.
#[inline(always)]
pub(crate) unsafe fn no_longer_open(record: &Connection, sums: *mut EndpointSums) {
    // SAFETY: live map values.
    unsafe {
        if record.flags & flags::WITHOUT_CLOSE != 0 {
            return endpoint::add(&raw mut (*sums).without_close, MINUS_ONE);
        }
        endpoint::add(&raw mut (*sums).open, MINUS_ONE);
        if let Some(node) = endpoint::node() {
            endpoint::add(node, MINUS_ONE);
        }
    }
}

/// Counts `count` connections of [`open`] as connections whose close will not be seen.
#[inline(always)]
pub(crate) fn no_close_will_be_seen(at: &EndpointKey, count: u64) {
    let Some(sums) = endpoint::get(at) else {
        return;
    };
    // SAFETY: live map values.
    unsafe {
        endpoint::add(&raw mut (*sums).open, count.wrapping_neg());
        endpoint::add(&raw mut (*sums).without_close, count);
        if let Some(node) = endpoint::node() {
            endpoint::add(node, count.wrapping_neg());
        }
    }
}

/// The socket's record, if it has one.
///
/// # Safety
/// `sk` is a socket from the kernel, not null.
#[inline(always)]
pub(crate) unsafe fn get(sk: *mut c_void) -> Option<*mut Connection> {
    // SAFETY: the caller's; a null value without the create flag only looks up.
    let found = unsafe { bpf_sk_storage_get(storage(), sk, core::ptr::null_mut(), 0) };
    if found.is_null() {
        None
    } else {
        Some(found.cast())
    }
}

/// The socket's record, created from `init` if there is none and the limits allow it, and the sums
/// of its endpoint. `init` is the storage's initial value, so that a walk never sees an empty
/// record.
///
/// # Safety
/// `sk` is a socket from the kernel, not null.
#[inline(always)]
unsafe fn get_or_create(
    sk: *mut c_void,
    settings: &Settings,
    init: &mut Connection,
) -> Result<(*mut Connection, *mut EndpointSums), NotRecorded> {
    let listener = init.kind == kind::LISTENER;
    if !listener && settings.loopback == 0 && is_loopback(&init.remote_addr) {
        return Err(NotRecorded::Already);
    }
    let Some(sums) = endpoint::get_or_create(&endpoint::key(init)) else {
        return Err(NotRecorded::Fault(Fault::EndpointsFull));
    };
    let over = if listener {
        None
    } else {
        over_cap(settings, sums)
    };
    let create = match over {
        None => BPF_SK_STORAGE_GET_F_CREATE.into(),
        Some(_) => 0,
    };
    let value = core::ptr::from_mut(init).cast();
    // SAFETY: the caller's; the kernel copies `value`, which is as long as the map's value.
    let found = unsafe { bpf_sk_storage_get(storage(), sk, value, create) };
    if found.is_null() {
        return Err(NotRecorded::Fault(over.unwrap_or(Fault::StorageFailed)));
    }
    Ok((found.cast(), sums))
}

/// The limit that one more connection would exceed.
#[inline(always)]
fn over_cap(settings: &Settings, sums: *mut EndpointSums) -> Option<Fault> {
    // SAFETY: live map values; a race can only exceed a limit by a few.
    unsafe {
        // Negative if connections close that were open when the endpoint's sums were removed.
        let open = core::ptr::read_volatile(&raw const (*sums).open).cast_signed();
        if open >= i64::from(settings.max_per_endpoint) {
            return Some(Fault::OverCap);
        }
        let node = endpoint::node()?;
        let others = core::ptr::read_volatile(endpoint::node_without_close()?);
        let all = core::ptr::read_volatile(node).cast_signed() + others.cast_signed();
        (all >= i64::from(settings.max_per_node)).then_some(Fault::OverNodeCap)
    }
}

#[inline(always)]
fn storage() -> *mut c_void {
    core::ptr::addr_of!(CONNECTIONS).cast_mut().cast()
}
