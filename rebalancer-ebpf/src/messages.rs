//! Counts the sends of a connection, or follows them to tell its client to leave. Runs once per
//! send, only on the sockets that the agent has added to the map that the program is attached to.

use aya_ebpf::{
    bindings::sk_action::{SK_DROP, SK_PASS},
    cty::c_void,
    macros::sk_msg,
    programs::SkMsgContext,
};
use rebalancer_common::{Connection, flags};

use crate::{maps::NOTICES, notice, record};

/// Passes on every message: unchanged, or with what [`notice`] puts before it.
#[sk_msg]
pub(crate) fn messages(ctx: SkMsgContext) -> u32 {
    // SAFETY: the program's context, valid for the call; a union of one member.
    let sk: *mut c_void = unsafe { (*ctx.msg).__bindgen_anon_3.sk }.cast();
    if sk.is_null() {
        return SK_PASS;
    }
    // SAFETY: this call's socket, not null.
    let Some(stored) = (unsafe { record::get(sk) }) else {
        return SK_PASS;
    };
    // SAFETY: the record of this socket.
    let cookie = unsafe { (*stored).cookie };
    let Some(notice) = NOTICES.get_ptr_mut(cookie) else {
        // SAFETY: the record of this socket.
        unsafe { count(&ctx, stored) };
        return SK_PASS;
    };
    // SAFETY: the record of this socket. What was counted before it was added for the notice, too,
    // still is.
    unsafe {
        if (*stored).flags & flags::COUNTED != 0 {
            count(&ctx, stored);
        }
    }
    // SAFETY: this call's socket, and a value of the map.
    match unsafe { notice::follow(&ctx, sk, cookie, notice) } {
        Ok(()) => SK_PASS,
        Err(notice::Spoilt) => SK_DROP,
    }
}

/// # Safety
/// `stored` is the record of the call's socket. All writers, including a send, hold the socket's
/// lock.
#[inline(always)]
unsafe fn count(ctx: &SkMsgContext, stored: *mut Connection) {
    // SAFETY: the caller's.
    unsafe {
        (*stored).messages += 1;
        (*stored).message_bytes += u64::from(ctx.size());
        (*stored).flags |= flags::COUNTED;
    }
}
