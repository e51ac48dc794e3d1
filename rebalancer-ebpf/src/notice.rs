//! Tells a client to leave, by a constant frame of HTTP/2 in front of a send that begins at a
//! boundary between two frames.
//!
//! A connection joins at a rest, where its next send begins a frame; each further one is followed by
//! its frames' headers, and by the sequence number at which it begins, so that none is missed. What
//! cannot be followed ends it for good: unsure means not notified. Only a constant length is inserted,
//! at offset 0, in front of a send that the kernel takes as a whole, as nothing is unacknowledged.

use aya_ebpf::{
    bindings::sk_msg_md,
    cty::c_void,
    helpers::{bpf_msg_pull_data, bpf_msg_push_data},
    programs::SkMsgContext,
};
use rebalancer_common::{
    Notice,
    frames::{GOAWAY, HEADER},
    notice::{MIN_SENDS, MOST_BYTES, state},
};

use crate::{maps::GOAWAYS, sock::TcpSock};

/// There is room in front of the message that could not be written to, so it must not be sent. Not
/// reachable, as the room is a page of its own.
pub(crate) struct Spoilt;

/// Follows one send.
///
/// # Safety
/// `sk` is the call's socket, whose lock is held, and `notice` a value of the map.
#[inline(always)]
pub(crate) unsafe fn follow(
    ctx: &SkMsgContext,
    sk: *mut c_void,
    cookie: u64,
    notice: *mut Notice,
) -> Result<(), Spoilt> {
    // SAFETY: the caller's.
    unsafe {
        if (*notice).state != state::FOLLOWED {
            return Ok(());
        }
        let Some(tcp) = TcpSock::from_sk(sk) else {
            return Ok(());
        };
        let (at, size) = (tcp.write_seq(), ctx.size());
        if at != (*notice).next {
            (*notice).state = state::MISSED;
            return Ok(());
        }
        // Pages that are not its own cannot be read, and may change until they are sent.
        if ctx.data() + 1 > ctx.data_end() {
            (*notice).state = state::SHARED;
            return Ok(());
        }
        let mut frames = (*notice).frames;
        let was_at_boundary = frames.is_at_boundary();
        let followed = frames.send(size, |place| header(ctx.msg, place));
        (*notice).frames = frames;
        (*notice).next = at.wrapping_add(size);
        if let Err(stop) = followed {
            (*notice).state = stop as u32;
            return Ok(());
        }
        if !frames.is_at_boundary() {
            return Ok(());
        }
        let may_be_notified = was_at_boundary
            && (*notice).sends >= MIN_SENDS
            && (HEADER..=MOST_BYTES).contains(&size)
            && tcp.snd_una() == at
            && GOAWAYS
                .get_ptr(cookie)
                .is_some_and(|highest| frames.newest <= *highest);
        (*notice).sends += 1;
        if !may_be_notified {
            return Ok(());
        }
        let notified = tell(ctx.msg);
        (*notice).state = match notified {
            Ok(true) => state::NOTIFIED,
            Ok(false) | Err(Spoilt) => state::REFUSED,
        };
        notified.map(|_| ())
    }
}

/// The header of a frame at a place in the message.
#[inline(always)]
fn header(msg: *mut sk_msg_md, place: u32) -> Option<[u8; HEADER as usize]> {
    // SAFETY: the program's context. The helper makes these bytes readable, and sets the bounds,
    // which are checked.
    unsafe {
        if bpf_msg_pull_data(msg, place, place + HEADER, 0) != 0 {
            return None;
        }
        let data = (*msg).__bindgen_anon_1.data as usize;
        if data + HEADER as usize > (*msg).__bindgen_anon_2.data_end as usize {
            return None;
        }
        Some((data as *const [u8; HEADER as usize]).read())
    }
}

/// `Ok(false)`: the kernel made no room.
#[inline(always)]
fn tell(msg: *mut sk_msg_md) -> Result<bool, Spoilt> {
    const LENGTH: u32 = GOAWAY.len() as u32;
    // SAFETY: the program's context; the bounds are checked before the write.
    unsafe {
        if bpf_msg_push_data(msg, 0, LENGTH, 0) != 0 {
            return Ok(false);
        }
        if bpf_msg_pull_data(msg, 0, LENGTH, 0) != 0 {
            return Err(Spoilt);
        }
        let data = (*msg).__bindgen_anon_1.data as usize;
        if data + GOAWAY.len() > (*msg).__bindgen_anon_2.data_end as usize {
            return Err(Spoilt);
        }
        (data as *mut [u8; GOAWAY.len()]).write(GOAWAY);
        Ok(true)
    }
}
