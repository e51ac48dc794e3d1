//! Records listens, accepts and closes. Runs a few times per connection.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_TCP_CLOSE, BPF_TCP_SYN_RECV, bpf_sock_ops,
    },
    cty::c_void,
    helpers::generated::bpf_get_socket_cookie,
    macros::sock_ops,
    programs::SockOpsContext,
};
use rebalancer_common::{Connection, Fault, kind};

use crate::{
    endpoint::{self, MINUS_ONE},
    faults, record, scope,
    sock::TcpSock,
};

/// `linux/errno.h`
const ECONNABORTED: u32 = 103;
const ECONNRESET: u32 = 104;
const ETIMEDOUT: u32 = 110;

/// The program on the cgroup root. Always returns 1: any other value would break other sock_ops
/// programs.
#[sock_ops]
pub(crate) fn sock_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_LISTEN_CB => open(&ctx, kind::LISTENER),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => open(&ctx, kind::CONNECTION),
        BPF_SOCK_OPS_STATE_CB => state(&ctx),
        _ => {}
    }
    1
}

/// A socket starts to listen, or a connection is accepted.
#[inline(always)]
fn open(ctx: &SockOpsContext, kind: u8) {
    let Some(settings) = scope::settings() else {
        return faults::count(ctx, Fault::NoSettings);
    };
    let Some((sk, tcp)) = socket(ctx) else { return };
    if !scope::covers(settings, tcp) {
        return;
    }
    let mut new = Connection::ZERO;
    record::describe(&mut new, tcp, cookie(ctx), kind);
    // SAFETY: `sk` is this call's socket, and this call runs under its lock.
    match unsafe { record::open(sk, settings, &mut new) } {
        Ok(()) => {
            enable_state_callback(ctx);
            if tcp.is_mptcp() {
                // SAFETY: as above.
                unsafe { record::copy_to_mptcp(sk, &mut new) };
            }
        }
        // Two of our links may be attached for a moment, or the socket must not be recorded.
        Err(record::NotRecorded::Already) => {}
        Err(record::NotRecorded::Fault(fault)) => faults::count(ctx, fault),
    }
}

/// A socket with the callback changes its state. The first change after the accept shows that no
/// other program has cleared the callback; the change to CLOSE ends the record.
#[inline(always)]
fn state(ctx: &SockOpsContext) {
    // `args[0]` is shared with other programs' replies, so it is not used; they cannot write
    // `args[1]`.
    let is_first = ctx_ref(ctx).state == BPF_TCP_SYN_RECV;
    if ctx.arg(1) != BPF_TCP_CLOSE && !is_first {
        return;
    }
    let Some((sk, tcp)) = socket(ctx) else { return };
    // SAFETY: `sk` is this call's socket.
    let Some(stored) = (unsafe { record::get(sk) }) else {
        // Not recorded: another program has set the flag, or recording excludes this socket.
        return;
    };
    if is_first {
        // SAFETY: the record of this socket, whose lock is held during this call.
        unsafe { record::close_will_be_seen(stored) };
    }
    if ctx.arg(1) != BPF_TCP_CLOSE {
        return;
    }
    // SAFETY: as above.
    let record = unsafe { *stored };
    // Only once: two of our links may be attached for a moment.
    // SAFETY: `sk` is this call's socket.
    if !unsafe { record::remove(sk) } {
        return;
    }
    let Some(sums) = endpoint::get(&endpoint::key(&record)) else {
        return faults::count(ctx, Fault::EndpointGone);
    };
    if record.kind == kind::LISTENER {
        // SAFETY: a live map value.
        return unsafe { endpoint::add(&raw mut (*sums).listeners, MINUS_ONE) };
    }
    // SAFETY: a live map value.
    unsafe {
        endpoint::add(
            &raw mut (*sums).bytes_in,
            tcp.bytes_received().wrapping_sub(record.summed_in),
        );
        endpoint::add(
            &raw mut (*sums).bytes_out,
            tcp.bytes_acked().wrapping_sub(record.summed_out),
        );
        match tcp.sk_err() {
            ECONNRESET => endpoint::add(&raw mut (*sums).closed_by_reset, 1),
            ECONNABORTED => endpoint::add(&raw mut (*sums).closed_by_abort, 1),
            ETIMEDOUT => endpoint::add(&raw mut (*sums).closed_by_timeout, 1),
            _ => {}
        }
        endpoint::add(&raw mut (*sums).closed, 1);
        record::no_longer_open(&record, sums);
    }
}

/// This call's socket, if it is a full one.
#[inline(always)]
fn socket(ctx: &SockOpsContext) -> Option<(*mut c_void, TcpSock)> {
    let full = ctx_ref(ctx).is_fullsock;
    // SAFETY: a union of one member.
    let sk = unsafe { ctx_ref(ctx).__bindgen_anon_2.sk };
    if full == 0 || sk.is_null() {
        faults::count(ctx, Fault::NoSocket);
        return None;
    }
    let sk = sk.cast();
    // SAFETY: `sk` is this call's socket, not null.
    let tcp = unsafe { TcpSock::from_sk(sk) };
    if tcp.is_none() {
        faults::count(ctx, Fault::NoTcpSock);
    }
    Some((sk, tcp?))
}

/// The socket's cookie, created on first use.
#[inline(always)]
fn cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: a helper without preconditions beyond the context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// Adds the STATE callback to the socket's flags and clears none.
#[inline(always)]
fn enable_state_callback(ctx: &SockOpsContext) {
    let present = ctx.cb_flags();
    if present & BPF_SOCK_OPS_STATE_CB_FLAG != 0 {
        return; // inherited from the listener, or set by another program
    }
    if ctx
        .set_cb_flags((present | BPF_SOCK_OPS_STATE_CB_FLAG) as i32)
        .is_err()
    {
        faults::count(ctx, Fault::CallbackRefused);
    }
}

#[inline(always)]
fn ctx_ref(ctx: &SockOpsContext) -> &bpf_sock_ops {
    // SAFETY: `ops` is the program's context, valid for the call.
    unsafe { &*ctx.ops }
}
