//! The walk: one pass over the open descriptors of all processes writes a row to memory shared with
//! the reader for each descriptor of a socket with a record. Sockets that are older than tracking
//! get their record here.
//!
//! During a call the kernel holds a reference to the file, so its socket cannot be freed; it takes
//! no socket lock. A pass that is read in portions resumes at the same process and descriptor and
//! can be rescheduled between any two descriptors.

use aya_ebpf::{
    bindings::{BPF_SOCK_OPS_STATE_CB_FLAG, file as File},
    cty::c_void,
    helpers::generated::{
        bpf_get_socket_cookie, bpf_jiffies64, bpf_ktime_get_ns, bpf_sock_from_file,
    },
};
use rebalancer_common::{Connection, Fault, Live, WalkHead, flags, kind};

use crate::{
    endpoint, faults,
    maps::{ROWS, WALK_HEAD},
    process, record, scope,
    sock::{self, TcpSock},
};

/// The kernel's `struct bpf_iter__task_file`.
#[repr(C)]
pub(crate) struct Context {
    meta: *mut c_void,
    task: *const u8,
    fd: u32,
    file: *mut File,
}

/// `linux/tcp_states.h`
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;
const LISTEN: u8 = 10;

/// Continue with the next descriptor.
const NEXT: i32 = 0;
/// Stop: `read` fails with EAGAIN, and the next `read` resumes with this descriptor.
const FULL: i32 = 1;

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub(crate) extern "C" fn walk(ctx: *mut Context) -> i32 {
    let Some(head) = WALK_HEAD.get_ptr_mut(0) else {
        return NEXT;
    };
    // SAFETY: the single element of this reader's map.
    unsafe {
        if (*head).lost != 0 {
            record::no_close_will_be_seen(&(*head).lost_at, (*head).lost);
            (*head).lost = 0;
        }
    }
    // SAFETY: the kernel's context.
    let (task, fd, file) = unsafe { ((*ctx).task, (*ctx).fd, (*ctx).file) };
    if task.is_null() || file.is_null() {
        // SAFETY: the single element of this reader's map.
        unsafe {
            (*head).passes += 1;
            (*head).now_ns = bpf_ktime_get_ns();
            (*head).jiffies = bpf_jiffies64();
            (*head).level = process::reader_level().into();
        }
        return NEXT;
    }
    // SAFETY: the single element of this reader's map.
    unsafe { (*head).files += 1 };
    // SAFETY: the iterator's file, not null.
    let socket = unsafe { bpf_sock_from_file(file) };
    if socket.is_null() {
        return NEXT;
    }
    // SAFETY: the kernel's `struct socket`, not null.
    let sk = unsafe { sock::sk_of(socket.cast()) };
    if sk.is_null() {
        return NEXT;
    }
    // SAFETY: the socket of an open file, not null.
    let (tcp, mptcp) = match unsafe { TcpSock::from_sk(sk) } {
        Some(tcp) => (tcp, false),
        // SAFETY: as above.
        None => match unsafe { TcpSock::from_mptcp(sk) } {
            Some(sock) => (sock, true),
            None => return NEXT,
        },
    };
    // SAFETY: as above.
    let stored = match unsafe { record::get(sk) } {
        Some(stored) => stored,
        // SAFETY: as above.
        None => match unsafe { adopt(head, sk, tcp, mptcp) } {
            Some(stored) => stored,
            None => return NEXT,
        },
    };
    // SAFETY: the record of this socket, and the single element of this reader's map.
    unsafe {
        if (*head).adopt != 0 && !record::is_wanted(&*stored, tcp) {
            // The settings have changed, or its cgroup was not yet excluded when it was recorded.
            (*head).scratch = *stored;
            if record::remove(sk) {
                record::uncount(&(*head).scratch);
            }
            return NEXT;
        }
    }
    // SAFETY: the single element of this reader's map.
    let cursor = unsafe { (*head).cursor };
    let Some(row) = ROWS.get_ptr_mut(cursor as u32) else {
        // SAFETY: as above. The descriptor is visited and counted again.
        unsafe { (*head).files -= 1 };
        return FULL;
    };
    // SAFETY: `stored` is the record in socket storage, `row` is in this reader's memory.
    unsafe {
        if mptcp {
            read_mptcp(tcp, &raw mut (*row).live);
        } else {
            read_live(tcp, (*stored).kind, &raw mut (*row).live);
            if (*head).adopt != 0 && (*stored).kind == kind::CONNECTION {
                note_lost_callback(tcp, stored);
                if (*stored).flags & flags::WITHOUT_CLOSE != 0 {
                    let (received, acked) = ((*row).live.bytes_received, (*row).live.bytes_acked);
                    record::sum(stored, received, acked);
                }
            }
        }
        // After the sums, as the record contains what is in them.
        (*row).connection = *stored;
        (*row).pid = process::id(task);
        (*row).fd = fd;
        (*head).cursor = cursor + 1;
    }
    NEXT
}

/// Creates the record of a connection or listener that is older than tracking, if the reader is the
/// agent and its settings include the socket.
///
/// # Safety
/// `sk` is the socket of an open file, not null.
#[inline(always)]
unsafe fn adopt(
    head: *mut WalkHead,
    sk: *mut c_void,
    tcp: TcpSock,
    mptcp: bool,
) -> Option<*mut Connection> {
    // SAFETY: the single element of this reader's map.
    if unsafe { (*head).adopt } == 0 {
        return None;
    }
    let kind = match tcp.skc_state() {
        LISTEN => kind::LISTENER,
        ESTABLISHED | CLOSE_WAIT => kind::CONNECTION,
        _ => return None,
    };
    let settings = scope::settings()?;
    // SAFETY: the single element of this reader's map.
    let within = unsafe { (*head).within };
    if !scope::covers(settings, tcp) || !scope::is_within(tcp, within) {
        return None;
    }
    // Unknown for an MPTCP socket, which is never moved.
    if kind == kind::CONNECTION && !mptcp && tcp.has_sent_syn() {
        return None; // opened from this side
    }
    // SAFETY: the socket of an open file.
    let cookie = unsafe { bpf_get_socket_cookie(sk) };
    // SAFETY: the single element of this reader's map.
    let new = unsafe { &mut (*head).scratch };
    record::describe(new, tcp, cookie, kind);
    new.flags = flags::ADOPTED;
    if kind == kind::CONNECTION {
        // SAFETY: the single element of this reader's map.
        if !accepted_here(new) || unsafe { (*head).room } == 0 {
            return None;
        }
    }
    // SAFETY: the socket of an open file.
    match unsafe { record::adopt(sk, settings, new) } {
        Ok(stored) => {
            if kind == kind::CONNECTION {
                // SAFETY: the single element of this reader's map.
                unsafe {
                    (*head).room -= 1;
                    (*head).adopted += 1;
                }
            }
            Some(stored)
        }
        // Retried in every pass, so only sock_ops counts sockets over a limit.
        Err(record::NotRecorded::Already | record::NotRecorded::Fault(Fault::OverCap)) => None,
        Err(record::NotRecorded::Fault(Fault::OverNodeCap | Fault::EndpointsFull)) => None,
        Err(record::NotRecorded::Fault(fault)) => {
            // Not logged: logging needs more stack than is left.
            let _before = faults::add(fault);
            None
        }
    }
}

/// Whether the connection was accepted: an established socket does not record it, but there is a
/// listener on its port. A connection that is visited before its listener is adopted in the next
/// pass.
#[inline(always)]
fn accepted_here(connection: &Connection) -> bool {
    match endpoint::get(&endpoint::key(connection)) {
        // SAFETY: a live map value.
        Some(sums) => unsafe { core::ptr::read_volatile(&raw const (*sums).listeners) != 0 },
        None => false,
    }
}

/// Notes that a program attached after ours has cleared the STATE callback of a connection. Its
/// close will not be seen: from now on it counts like an adopted one. The walk cannot set the
/// callback again, as that needs the socket's lock.
///
/// # Safety
/// `stored` is the record of `tcp`, a connection.
#[inline(always)]
unsafe fn note_lost_callback(tcp: TcpSock, stored: *mut Connection) {
    // SAFETY: the caller's.
    let flags = unsafe { (*stored).flags };
    if flags & flags::WITHOUT_CLOSE != 0
        || u32::from(tcp.cb_flags()) & BPF_SOCK_OPS_STATE_CB_FLAG != 0
        || !matches!(tcp.skc_state(), ESTABLISHED | CLOSE_WAIT)
    {
        return;
    }
    // SAFETY: the caller's. No callback changes the record any more.
    unsafe {
        (*stored).flags = flags | flags::NO_CLOSE_CALLBACK;
        record::no_close_will_be_seen(&endpoint::key(&*stored), 1);
    }
}

/// Reads only the state of an MPTCP socket: the counters are those of its subflows, which no
/// descriptor refers to.
///
/// # Safety
/// `live` is in a row of this reader's memory.
#[inline(always)]
unsafe fn read_mptcp(sock: TcpSock, live: *mut Live) {
    // SAFETY: the caller's.
    unsafe {
        *live = Live::ZERO;
        (*live).state = sock.skc_state();
        (*live).mptcp = 1;
    }
}

/// # Safety
/// `live` is in a row of this reader's memory.
#[inline(always)]
unsafe fn read_live(tcp: TcpSock, kind: u8, live: *mut Live) {
    // SAFETY: a helper without preconditions.
    let (now, now_us) = unsafe { (bpf_jiffies64() as u32, bpf_ktime_get_ns() / 1000) };
    // SAFETY: the caller's.
    unsafe {
        (*live).since_delivered_us = now_us.saturating_sub(tcp.delivered_mstamp());
        (*live).bytes_received = tcp.bytes_received();
        (*live).bytes_acked = tcp.bytes_acked();
        (*live).bytes_sent = tcp.bytes_sent();
        (*live).write_seq = tcp.write_seq();
        (*live).snd_una = tcp.snd_una();
        (*live).snd_nxt = tcp.snd_nxt();
        (*live).rcv_nxt = tcp.rcv_nxt();
        (*live).copied_seq = tcp.copied_seq();
        (*live).sent_timestamp = tcp.sent_timestamp();
        (*live).echoed_timestamp = tcp.rcv_rtt_last_tsecr();
        (*live).since_sent = now.wrapping_sub(tcp.lsndtime());
        (*live).since_received = now.wrapping_sub(tcp.lrcvtime());
        (*live).data_segs_in = tcp.data_segs_in();
        (*live).data_segs_out = tcp.data_segs_out();
        (*live).total_retrans = tcp.total_retrans();
        (*live).srtt_us8 = tcp.srtt_us();
        (*live).backlog = if kind == kind::LISTENER {
            tcp.sk_ack_backlog()
        } else {
            0
        };
        (*live).state = tcp.skc_state();
        (*live).mptcp = tcp.is_mptcp() as u8;
        (*live).sole_request_answered = tcp.sole_request_answered() as u8;
        (*live).answer_acknowledged = tcp.answer_acknowledged() as u8;
        (*live).reserved = [0; 4];
    }
}
