//! Counts the sends of a connection. Runs once for each, on the sockets that the agent has put
//! into the map it is attached to, and on no other.

use aya_ebpf::{bindings::sk_action::SK_PASS, cty::c_void, macros::sk_msg, programs::SkMsgContext};
use rebalancer_common::flags;

use crate::record;

/// The answer is always to pass the message on as it is.
#[sk_msg]
pub(crate) fn messages(ctx: SkMsgContext) -> u32 {
    count(&ctx);
    SK_PASS
}

#[inline(always)]
fn count(ctx: &SkMsgContext) {
    // SAFETY: the program's context, valid for the call; a union of one member.
    let sk: *mut c_void = unsafe { (*ctx.msg).__bindgen_anon_3.sk }.cast();
    if sk.is_null() {
        return;
    }
    // SAFETY: this call's socket, not null.
    let Some(stored) = (unsafe { record::get(sk) }) else {
        return;
    };
    // SAFETY: the record of this socket. A send holds the socket's lock, as does what else writes
    // there, so nothing is lost.
    unsafe {
        (*stored).messages += 1;
        (*stored).message_bytes += u64::from(ctx.size());
        (*stored).flags |= flags::COUNTED;
    }
}
