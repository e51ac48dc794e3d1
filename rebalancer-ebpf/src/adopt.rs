//! Makes records of connections and listeners that are older than tracking, and removes those that
//! are not wanted any more: an iterator over the TCP sockets of one network namespace, listeners
//! first.
//!
//! The kernel holds the socket's lock and a reference meanwhile, so an accept that is recorded at
//! the same moment is not counted twice.

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_SOCK_OPS_STATE_CB_FLAG,
    cty::c_void,
    helpers::generated::{bpf_get_socket_cookie, bpf_setsockopt},
};
use rebalancer_common::{Connection, Fault, flags, kind};

use crate::{
    endpoint, faults, record, scope,
    sock::{TcpSock, frozen},
};

/// `struct bpf_iter__tcp` of the kernel; its last member is not of interest.
#[repr(C)]
pub(crate) struct Context {
    meta: *mut c_void,
    sk_common: *mut c_void,
}

struct Ctx(*mut Context);

impl EbpfContext for Ctx {
    fn as_ptr(&self) -> *mut c_void {
        self.0.cast()
    }
}

/// `linux/tcp_states.h`
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;
const LISTEN: u8 = 10;

/// `linux/tcp.h`
const SOL_TCP: i32 = 6;
const TCP_BPF_SOCK_OPS_CB_FLAGS: i32 = 1008;

/// Frozen by the loader: the cgroup that `sock_ops` is attached to, which sees no socket outside of
/// it, while this iterator sees the whole machine's. 0: the root.
#[unsafe(no_mangle)]
static ADOPT_WITHIN: u64 = 0;

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub(crate) extern "C" fn adopt(ctx: *mut Context) -> i32 {
    const NEXT: i32 = 0;
    // SAFETY: the kernel's context.
    let sk = unsafe { (*ctx).sk_common };
    if sk.is_null() {
        return NEXT; // the end
    }
    // SAFETY: the iterator's socket, not null. Time-wait and request sockets are none of ours.
    let Some(tcp) = (unsafe { TcpSock::from_sk(sk) }) else {
        return NEXT;
    };
    let kind = match tcp.skc_state() {
        LISTEN => kind::LISTENER,
        ESTABLISHED | CLOSE_WAIT => kind::CONNECTION,
        _ => return NEXT,
    };
    let ctx = Ctx(ctx);
    let Some(settings) = scope::settings() else {
        faults::count(&ctx, Fault::NoSettings);
        return NEXT;
    };
    if !scope::is_within(tcp, frozen(&ADOPT_WITHIN)) {
        return NEXT;
    }
    let groups = scope::groups(settings, tcp.skc_num());
    if !scope::covers(settings, groups, tcp) {
        // It may have a record from when it was to have one, or when that was not known.
        // SAFETY: the iterator's socket, whose lock the kernel holds for us.
        unsafe { record::remove(sk, tcp.skc_cookie()) };
        return NEXT;
    }
    // The cookie first: it chooses the shard.
    // SAFETY: a helper that takes the iterator's socket.
    let cookie = unsafe { bpf_get_socket_cookie(sk) };
    let mut new = record::describe(tcp, cookie, kind);
    new.flags = flags::ADOPTED;
    if kind == kind::CONNECTION && !accepted_here(&new) {
        return NEXT;
    }
    // SAFETY: the iterator's socket, whose lock the kernel holds for us.
    match unsafe { record::open(sk, settings, &mut new) } {
        Ok(stored) => ask_for_close(&ctx, sk, tcp, stored),
        Err(record::NotRecorded::Already) => {
            // A program that was attached behind ours may have wiped the callback.
            // SAFETY: the iterator's socket.
            if let Some(stored) = unsafe { record::get(sk, cookie) } {
                ask_for_close(&ctx, sk, tcp, stored);
            }
        }
        Err(record::NotRecorded::Fault(fault)) => faults::count(&ctx, fault),
    }
    NEXT
}

/// Whether the connection came to a listener: nothing in an established socket says so, but a
/// listener on its port does. Listeners come first, so theirs are recorded by now.
#[inline(always)]
fn accepted_here(connection: &Connection) -> bool {
    match endpoint::get(&endpoint::key(connection)) {
        // SAFETY: a live map value.
        Some(sums) => unsafe { core::ptr::read_volatile(&raw const (*sums).listeners) != 0 },
        None => false,
    }
}

/// Adds the STATE callback to the flags that are there; clears none. Kernels before 6.12 refuse:
/// then the close is not seen, and the listing alone tells that the connection is gone.
#[inline(always)]
fn ask_for_close(ctx: &Ctx, sk: *mut c_void, tcp: TcpSock, stored: *mut Connection) {
    let present = u32::from(tcp.cb_flags());
    if present & BPF_SOCK_OPS_STATE_CB_FLAG != 0 {
        return;
    }
    let mut wanted = (present | BPF_SOCK_OPS_STATE_CB_FLAG) as i32;
    // SAFETY: the iterator's socket; `wanted` is as long as is said.
    let refused = unsafe {
        bpf_setsockopt(
            sk,
            SOL_TCP,
            TCP_BPF_SOCK_OPS_CB_FLAGS,
            (&raw mut wanted).cast(),
            size_of::<i32>() as i32,
        )
    };
    if refused != 0 {
        // SAFETY: the record of this socket, whose lock is held.
        unsafe { (*stored).flags |= flags::NO_CLOSE_CALLBACK };
        faults::count(ctx, Fault::CallbackRefused);
    }
}
