//! Passes on what connections receive and send that are about to be moved, so that the agent knows
//! when an answer is complete. The programs are on the cgroups of such connections, while there are
//! any; of others there they ask the cookie and are done.
//!
//! A packet is seen here as IP hands it over: with all of its fragments, before it is split for the
//! wire, whatever the application has sent it by. What is retransmitted is seen again.
//!
//! What does not reach the agent, for want of memory or because a packet is not understood, needs no
//! mention: it compares what it has seen with TCP's own counters.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_get_socket_cookie, bpf_sk_fullsock, bpf_skb_load_bytes, bpf_tcp_sock},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use rebalancer_common::{Direction, Segment, Watched, listening};

use crate::maps::{SEGMENTS, WATCHED};

/// The packet passes, whatever was seen of it.
const PASS: i32 = 1;

/// Chunks that one packet is passed on in: 64 KiB, and what a few of them more may hold.
const MOST_CHUNKS: usize = 20;

/// Bytes of a chunk for what is short, as requests and the heads of answers are.
const SHORT: usize = 512;

/// IPv6 headers that may stand before TCP's: hop-by-hop (of a jumbogram), routing, destination.
const MOST_EXTENSIONS: usize = 3;

/// What is reserved in the ring buffer.
#[repr(C)]
struct Chunk<const BYTES: usize> {
    head: Segment,
    bytes: [u8; BYTES],
}

#[cgroup_skb(ingress)]
pub(crate) fn watch_in(ctx: SkBuffContext) -> i32 {
    let _not_watched = watch(&ctx, Direction::In);
    PASS
}

#[cgroup_skb(egress)]
pub(crate) fn watch_out(ctx: SkBuffContext) -> i32 {
    let _not_watched = watch(&ctx, Direction::Out);
    PASS
}

#[inline(always)]
fn watch(ctx: &SkBuffContext, direction: Direction) -> Option<()> {
    let skb = ctx.skb.skb;
    // SAFETY: the program's own context.
    let cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    let watched = WATCHED.get_ptr_mut(cookie)?;
    if matches!(direction, Direction::Out) {
        // SAFETY: the program's own context, and a value of the map.
        let _later = unsafe { base(skb, watched) };
    }
    // SAFETY: a value of the map.
    let wanted = unsafe { *watched };
    if wanted.listening == listening::OFF {
        return Some(());
    }
    let at = tcp_header(ctx)?;
    let seq = u32::from_be(ctx.load(at + 4).ok()?);
    let payload = at as u32 + u32::from(ctx.load::<u8>(at + 12).ok()? >> 4) * 4;
    let length = ctx.len().checked_sub(payload)?;
    if length == 0 {
        return Some(());
    }
    if wanted.listening == listening::LENGTHS {
        return tell_of(segment(cookie, seq, length, direction, false));
    }
    let which = direction as usize & 1;
    let mut from = 0;
    if wanted.skipping[which] != 0 {
        let ahead = wanted.skip_to[which].wrapping_sub(seq) as i32;
        if ahead > 0 && ahead as u32 > length {
            return Some(());
        }
        if ahead > 0 {
            // The last that is not wanted: from it on the agent knows where it is.
            from = ahead as u32;
            tell_of(segment(cookie, seq, from, direction, false))?;
        }
    }
    // Whole chunks first, and then the rest: with a length that varies in the loop the verifier of
    // Linux 6.1 would follow each of its ways.
    for _ in 0..MOST_CHUNKS {
        if length - from <= Segment::MOST as u32 {
            break;
        }
        let head = segment(
            cookie,
            seq.wrapping_add(from),
            Segment::MOST as u32,
            direction,
            true,
        );
        pass_on::<{ Segment::MOST }>(skb, payload + from, head)?;
        from += Segment::MOST as u32;
    }
    let left = length - from;
    if left == 0 || left > Segment::MOST as u32 {
        return Some(());
    }
    let head = segment(cookie, seq.wrapping_add(from), left, direction, true);
    if left as usize <= SHORT {
        pass_on::<SHORT>(skb, payload + from, head)
    } else {
        pass_on::<{ Segment::MOST }>(skb, payload + from, head)
    }
}

/// Passes on that there was something, and no byte of it.
#[inline(always)]
fn tell_of(segment: Segment) -> Option<()> {
    SEGMENTS.reserve_untyped::<Segment>(0).map(|mut entry| {
        entry.write(segment);
        entry.submit(0);
    })
}

#[inline(always)]
fn segment(cookie: u64, seq: u32, length: u32, direction: Direction, present: bool) -> Segment {
    Segment {
        cookie,
        seq,
        length,
        direction: direction as u32,
        present: present.into(),
    }
}

/// Passes on what is at `offset`: as many bytes as `head` says, and no more than BYTES.
#[inline(always)]
fn pass_on<const BYTES: usize>(skb: *mut __sk_buff, offset: u32, head: Segment) -> Option<()> {
    let mut entry = SEGMENTS.reserve_untyped::<Chunk<BYTES>>(0)?;
    let chunk: *mut Chunk<BYTES> = MaybeUninit::as_mut_ptr(&mut entry);
    // The verifier is shown the bounds: 1 and BYTES, a power of two.
    let length = ((head.length - 1) & (BYTES as u32 - 1)) + 1;
    // SAFETY: the reserved memory; the kernel writes as many bytes as are there for them.
    let loaded = unsafe {
        (&raw mut (*chunk).head).write(Segment { length, ..head });
        bpf_skb_load_bytes(skb.cast(), offset, (&raw mut (*chunk).bytes).cast(), length)
    };
    if loaded < 0 {
        entry.discard(0);
        return None;
    }
    entry.submit(0);
    Some(())
}

/// Finds out once how TCP's counters and sequence numbers belong together. What is sent is sent
/// under the socket's lock, so that they do.
///
/// # Safety
/// `skb` is the context, `watched` a value of the map.
#[inline(always)]
unsafe fn base(skb: *mut __sk_buff, watched: *mut Watched) -> Option<()> {
    // SAFETY: by this function's own conditions; null is asked for.
    unsafe {
        if (*watched).based != 0 {
            return Some(());
        }
        let sk = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return None;
        }
        let sk = bpf_sk_fullsock(sk);
        if sk.is_null() {
            return None;
        }
        let tcp = bpf_tcp_sock(sk);
        if tcp.is_null() {
            return None;
        }
        (*watched).base = [
            (*tcp).rcv_nxt.wrapping_sub((*tcp).bytes_received as u32),
            (*tcp).snd_una.wrapping_sub((*tcp).bytes_acked as u32),
        ];
        (*watched).based = 1;
    }
    Some(())
}

/// Where the TCP header begins; the packet begins with IP's.
#[inline(always)]
fn tcp_header(ctx: &SkBuffContext) -> Option<usize> {
    const TCP: u8 = 6;
    const EXTENSIONS: [u8; 3] = [0, 43, 60];
    let first: u8 = ctx.load(0).ok()?;
    if first >> 4 == 4 {
        return (ctx.load::<u8>(9).ok()? == TCP).then_some(usize::from(first & 15) * 4);
    }
    let mut next: u8 = ctx.load(6).ok()?;
    let mut at = 40;
    for _ in 0..MOST_EXTENSIONS {
        if !EXTENSIONS.contains(&next) {
            break;
        }
        let [after, length]: [u8; 2] = ctx.load(at).ok()?;
        next = after;
        at += 8 + usize::from(length) * 8;
    }
    (next == TCP).then_some(at)
}
