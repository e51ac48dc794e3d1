//! The listing: one pass over one shard writes each record and its socket's live values into
//! memory that the reader has mapped.
//!
//! The iterator holds no reference to the socket: TCP sockets are recycled under RCU, so the
//! cookie is compared before and after the reads, and the socket is handed to no helper that
//! changes it.

use aya_ebpf::{
    cty::c_void,
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns},
};
use rebalancer_common::{Connection, Listed, Live, kind};

use crate::{
    maps::{LIST_HEAD, LISTING},
    sock::TcpSock,
};

/// `struct bpf_iter__bpf_sk_storage_map` of the kernel.
#[repr(C)]
pub(crate) struct Context {
    meta: *mut c_void,
    map: *mut c_void,
    sk: *mut c_void,
    value: *mut Connection,
}

/// Go on with the next socket.
const NEXT: i32 = 0;
/// Stop: `read` fails with EAGAIN, and the pass was not exact.
const FULL: i32 = 1;

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub(crate) extern "C" fn list(ctx: *mut Context) -> i32 {
    // SAFETY: the kernel's context.
    let (sk, value) = unsafe { ((*ctx).sk, (*ctx).value) };
    let Some(head) = LIST_HEAD.get_ptr_mut(0) else {
        return NEXT;
    };
    if sk.is_null() || value.is_null() {
        if sk.is_null() && value.is_null() {
            // SAFETY: the one slot of this reader's own map.
            unsafe {
                (*head).passes += 1;
                (*head).now_ns = bpf_ktime_get_ns();
                (*head).jiffies = bpf_jiffies64();
            }
        }
        return NEXT; // a null socket alone is one that is just being destroyed
    }
    // SAFETY: the iterator's socket, not null.
    let Some(tcp) = (unsafe { TcpSock::from_sk(sk) }) else {
        return NEXT;
    };
    // SAFETY: the one slot of this reader's own map.
    let cursor = unsafe { (*head).cursor };
    let Some(slot) = LISTING.get_ptr_mut(cursor as u32) else {
        return FULL;
    };
    // SAFETY: `value` is the record in socket storage, `slot` this reader's own memory.
    unsafe {
        (*slot).connection = *value;
        if tcp.skc_cookie() != (*slot).connection.cookie {
            (*head).recycled += 1;
            return NEXT;
        }
        read_live(tcp, slot);
        if tcp.skc_cookie() != (*slot).connection.cookie {
            (*head).recycled += 1;
            return NEXT;
        }
        (*head).cursor = cursor + 1;
    }
    NEXT
}

/// # Safety
/// `slot` is a slot of the listing.
#[inline(always)]
unsafe fn read_live(tcp: TcpSock, slot: *mut Listed) {
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_jiffies64() } as u32;
    // SAFETY: the caller's.
    unsafe {
        let listener = (*slot).connection.kind == kind::LISTENER;
        let live: *mut Live = &raw mut (*slot).live;
        (*live).bytes_received = tcp.bytes_received();
        (*live).bytes_acked = tcp.bytes_acked();
        (*live).bytes_sent = tcp.bytes_sent();
        (*live).write_seq = tcp.write_seq();
        (*live).snd_una = tcp.snd_una();
        (*live).snd_nxt = tcp.snd_nxt();
        (*live).rcv_nxt = tcp.rcv_nxt();
        (*live).copied_seq = tcp.copied_seq();
        (*live).snd_wl1 = tcp.snd_wl1();
        (*live).since_sent = now.wrapping_sub(tcp.lsndtime());
        (*live).since_received = now.wrapping_sub(tcp.lrcvtime());
        (*live).data_segs_in = tcp.data_segs_in();
        (*live).data_segs_out = tcp.data_segs_out();
        (*live).total_retrans = tcp.total_retrans();
        (*live).srtt_us8 = tcp.srtt_us();
        (*live).backlog = if listener { tcp.sk_ack_backlog() } else { 0 };
        (*live).state = tcp.skc_state();
        (*live).owned = tcp.owned() as u8;
        (*live).mptcp = tcp.is_mptcp() as u8;
        (*live).reserved = 0;
    }
}
