//! Looks at how what a connection receives begins. Runs once for each of its packets, on the
//! sockets that are about to be moved, while they are, and on no other.

use aya_ebpf::{
    cty::c_long, helpers::bpf_get_socket_cookie, macros::socket_filter, programs::SkBuffContext,
};
use rebalancer_common::{Beginning, HEAD, beginning};

use crate::maps::WATCHED;

/// Where a TCP header says how long it is, in words, in the upper half of the byte.
const DATA_OFFSET: usize = 12;

/// The shortest frame of HTTP/2. What is shorter says nothing.
const SHORTEST: u32 = 9;

/// The answer is always the whole packet: nothing is dropped, nothing cut off.
#[socket_filter]
pub(crate) fn watch(ctx: SkBuffContext) -> i64 {
    // One that cannot be read is not heard, and so its connection not moved.
    let _unread = hear(&ctx);
    i64::from(u32::MAX)
}

#[inline(always)]
fn hear(ctx: &SkBuffContext) -> Result<(), c_long> {
    // A socket filter is given the packet from its TCP header on.
    let header = u32::from(ctx.load::<u8>(DATA_OFFSET)? >> 4) * 4;
    let length = ctx.len().saturating_sub(header);
    if length == 0 {
        return Ok(());
    }
    // SAFETY: the program's own context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) };
    let Some(heard) = WATCHED.get_ptr_mut(cookie) else {
        return Ok(());
    };
    let begins = if length < SHORTEST {
        Beginning::Other
    } else {
        let mut head = [0; HEAD];
        if length < HEAD as u32 {
            let short: [u8; SHORTEST as usize] = ctx.load(header as usize)?;
            head[..SHORTEST as usize].copy_from_slice(&short);
        } else {
            head = ctx.load(header as usize)?;
        }
        beginning(&head)
    };
    // SAFETY: a value of the map. Of two packets of one socket at a time either may be the first.
    unsafe {
        if (*heard).first == 0 {
            (*heard).first = begins as u32;
        }
    }
    Ok(())
}
