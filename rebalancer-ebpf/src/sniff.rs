//! Copies the segments of connections that are being moved to the agent, so that it knows when a
//! response is complete. The programs are attached to the cgroups of such connections only. For
//! other connections in the same cgroup they only compare the cookie.
//!
//! A packet is seen as IP passes it: with all of its fragments, before segmentation for the wire,
//! whatever system call sent it. Retransmissions are seen again.
//!
//! Segments that do not reach the agent, because memory is short or a packet cannot be parsed, are
//! not reported: the agent compares what it has received with TCP's counters.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_get_socket_cookie, bpf_sk_fullsock, bpf_skb_load_bytes, bpf_tcp_sock},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use rebalancer_common::{Direction, Segment, Sniffed, copy};

use crate::maps::{SEGMENTS, SNIFFED};

/// Always let the packet pass.
const PASS: i32 = 1;

/// Maximum number of chunks per packet: 64 KiB and a margin.
const MOST_CHUNKS: usize = 20;

/// Size of a chunk for short segments, such as requests and response heads.
const SHORT: usize = 512;

/// Maximum number of IPv6 extension headers before TCP's: hop-by-hop (of a jumbogram), routing,
/// destination.
const MOST_EXTENSIONS: usize = 3;

/// An entry of the ring buffer.
#[repr(C)]
struct Chunk<const BYTES: usize> {
    head: Segment,
    bytes: [u8; BYTES],
}

#[cgroup_skb(ingress)]
pub(crate) fn sniff_in(ctx: SkBuffContext) -> i32 {
    let _not_sniffed = sniff(&ctx, Direction::In);
    PASS
}

#[cgroup_skb(egress)]
pub(crate) fn sniff_out(ctx: SkBuffContext) -> i32 {
    let _not_sniffed = sniff(&ctx, Direction::Out);
    PASS
}

#[inline(always)]
fn sniff(ctx: &SkBuffContext, direction: Direction) -> Option<()> {
    let skb = ctx.skb.skb;
    // SAFETY: the program's context.
    let cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    let sniffed = SNIFFED.get_ptr_mut(cookie)?;
    if matches!(direction, Direction::Out) {
        // SAFETY: the program's context, and a value of the map.
        let _retried = unsafe { set_base(skb, sniffed) };
    }
    // SAFETY: a value of the map.
    let request = unsafe { *sniffed };
    if request.copy == copy::OFF {
        return Some(());
    }
    let at = tcp_header(ctx)?;
    let seq = u32::from_be(ctx.load(at + 4).ok()?);
    let payload = at as u32 + u32::from(ctx.load::<u8>(at + 12).ok()? >> 4) * 4;
    let length = ctx.len().checked_sub(payload)?;
    if length == 0 {
        return Some(());
    }
    if request.copy == copy::LENGTHS {
        return submit_length(segment(cookie, seq, length, direction, false));
    }
    let which = direction as usize & 1;
    let mut from = 0;
    if request.skipping[which] != 0 {
        let ahead = request.skip_to[which].wrapping_sub(seq) as i32;
        if ahead > 0 && ahead as u32 > length {
            return Some(());
        }
        if ahead > 0 {
            // Reports the skipped bytes, so that the agent knows where the rest begins.
            from = ahead as u32;
            submit_length(segment(cookie, seq, from, direction, false))?;
        }
    }
    // Whole chunks first, then the rest: with a variable length in the loop, the verifier of Linux
    // 6.1 would explore too many paths.
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
        submit_bytes::<{ Segment::MOST }>(skb, payload + from, head)?;
        from += Segment::MOST as u32;
    }
    let left = length - from;
    if left == 0 || left > Segment::MOST as u32 {
        return Some(());
    }
    let head = segment(cookie, seq.wrapping_add(from), left, direction, true);
    if left as usize <= SHORT {
        submit_bytes::<SHORT>(skb, payload + from, head)
    } else {
        submit_bytes::<{ Segment::MOST }>(skb, payload + from, head)
    }
}

/// Submits a segment's length without its bytes.
#[inline(always)]
fn submit_length(segment: Segment) -> Option<()> {
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

/// Submits the bytes at `offset`: `head.length` of them, at most BYTES.
#[inline(always)]
fn submit_bytes<const BYTES: usize>(skb: *mut __sk_buff, offset: u32, head: Segment) -> Option<()> {
    let mut entry = SEGMENTS.reserve_untyped::<Chunk<BYTES>>(0)?;
    let chunk: *mut Chunk<BYTES> = MaybeUninit::as_mut_ptr(&mut entry);
    // Bounds for the verifier: 1 to BYTES, a power of two.
    let length = ((head.length - 1) & (BYTES as u32 - 1)) + 1;
    // SAFETY: the reserved memory, which has room for `length` bytes.
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

/// Computes once the offset between TCP's counters and sequence numbers. Called on egress, where
/// the socket's lock is held, so that the values are consistent.
///
/// # Safety
/// `skb` is the context, `sniffed` a value of the map.
#[inline(always)]
unsafe fn set_base(skb: *mut __sk_buff, sniffed: *mut Sniffed) -> Option<()> {
    // SAFETY: the caller's; pointers are checked for null.
    unsafe {
        if (*sniffed).based != 0 {
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
        (*sniffed).base = [
            (*tcp).rcv_nxt.wrapping_sub((*tcp).bytes_received as u32),
            (*tcp).snd_una.wrapping_sub((*tcp).bytes_acked as u32),
        ];
        (*sniffed).based = 1;
    }
    Some(())
}

/// The offset of the TCP header; the packet starts with the IP header.
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
