//! Counts the sends of a connection. Runs once per send, only on the sockets that the agent has
//! added to the map that the program is attached to.

use aya_ebpf::{bindings::sk_action::SK_PASS, cty::c_void, macros::sk_msg, programs::SkMsgContext};
use rebalancer_common::flags;

use crate::record;

/// Always passes the message on unchanged.
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
    // SAFETY: the record of this socket. All writers, including a send, hold the socket's lock.
    unsafe {
        (*stored).messages += 1;
        (*stored).message_bytes += u64::from(ctx.size());
        (*stored).flags |= flags::COUNTED;
    }
}
