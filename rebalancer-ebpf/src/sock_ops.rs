//! Records listens, accepts and closes. Runs a handful of times in a connection's life.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_TCP_CLOSE, bpf_sock_ops,
    },
    cty::c_void,
    helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_ns},
    macros::sock_ops,
    programs::SockOpsContext,
};
use rebalancer_common::{Connection, Fault, IpProto, Settings, flags, kind};

use crate::{endpoint, faults, maps::SETTINGS, record, sock::TcpSock};

const AF_INET: u32 = 2;

/// `linux/errno.h`
const ECONNABORTED: u32 = 103;
const ECONNRESET: u32 = 104;
const ETIMEDOUT: u32 = 110;

/// The program on the cgroup root. The answer is always 1: anything else would break the
/// programs beside us.
#[sock_ops]
pub(crate) fn sock_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_LISTEN_CB => listen(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accept(&ctx),
        BPF_SOCK_OPS_STATE_CB => state(&ctx),
        _ => {}
    }
    1
}

/// A socket begins to listen.
#[inline(always)]
fn listen(ctx: &SockOpsContext) {
    let Some((sk, tcp)) = socket(ctx) else { return };
    let mut new = describe(ctx, tcp, kind::LISTENER);
    new.remote_port = 0;
    new.remote_addr = [0; 16];
    // SAFETY: `sk` is this call's socket.
    let Some(stored) = (unsafe { record::get_or_create(sk, &mut new) }) else {
        return faults::count(ctx, Fault::StorageFailed);
    };
    // SAFETY: the record of this socket, whose lock this call runs under.
    unsafe {
        let listens_already = (*stored).start_ns != new.start_ns
            && (*stored).kind == kind::LISTENER
            && (*stored).flags & flags::CLOSED == 0;
        if listens_already {
            return;
        }
        // A socket that listened before, or was connected before, listens anew.
        *stored = new;
    }
    let Some(sums) = endpoint::get_or_create(&endpoint::key(&new)) else {
        return faults::count(ctx, Fault::EndpointsFull);
    };
    // SAFETY: a live map value.
    unsafe { endpoint::add(&raw mut (*sums).listeners, 1) };
    ask_for_close(ctx, stored);
}

/// A connection was made to a listener here.
#[inline(always)]
fn accept(ctx: &SockOpsContext) {
    let Some((sk, tcp)) = socket(ctx) else { return };
    let Some(settings) = settings() else {
        return faults::count(ctx, Fault::NoSettings);
    };
    let mut new = describe(ctx, tcp, kind::CONNECTION);
    if settings.loopback == 0 && is_loopback(&new.remote_addr) {
        return;
    }
    let Some(sums) = endpoint::get_or_create(&endpoint::key(&new)) else {
        return faults::count(ctx, Fault::EndpointsFull);
    };
    // SAFETY: a live map value; a racing add only makes the cap late by a few.
    if unsafe { core::ptr::read_volatile(&raw const (*sums).open) }
        >= u64::from(settings.max_per_endpoint)
    {
        return faults::count(ctx, Fault::OverCap);
    }
    // SAFETY: `sk` is this call's socket.
    let Some(stored) = (unsafe { record::get_or_create(sk, &mut new) }) else {
        return faults::count(ctx, Fault::StorageFailed);
    };
    // SAFETY: the record of this socket, whose lock this call runs under.
    if unsafe { (*stored).start_ns } != new.start_ns {
        // Two of our links run side by side for a moment: the other one has counted it.
        return faults::count(ctx, Fault::RecordExists);
    }
    // SAFETY: a live map value.
    unsafe {
        endpoint::add(&raw mut (*sums).accepted, 1);
        endpoint::add(&raw mut (*sums).open, 1);
    }
    ask_for_close(ctx, stored);
}

/// A socket that asked for it changes its state; only the way to CLOSE is of interest.
#[inline(always)]
fn state(ctx: &SockOpsContext) {
    // `args[0]` is shared with other programs' replies and never looked at; `args[1]` can not be
    // written by them.
    if ctx.arg(1) != BPF_TCP_CLOSE {
        return;
    }
    let Some((sk, tcp)) = socket(ctx) else { return };
    // SAFETY: `sk` is this call's socket.
    let Some(stored) = (unsafe { record::get(sk, tcp.skc_cookie()) }) else {
        // Not one of ours: another program set the flag, or its peer is not recorded.
        return;
    };
    // SAFETY: the record of this socket, whose lock this call runs under.
    let record = unsafe { *stored };
    if record.flags & flags::CLOSED != 0 {
        return;
    }
    // SAFETY: as above.
    unsafe { (*stored).flags = record.flags | flags::CLOSED };
    let Some(sums) = endpoint::get(&endpoint::key(&record)) else {
        return faults::count(ctx, Fault::EndpointGone);
    };
    const MINUS_ONE: u64 = u64::MAX;
    if record.kind == kind::LISTENER {
        // SAFETY: a live map value.
        return unsafe { endpoint::add(&raw mut (*sums).listeners, MINUS_ONE) };
    }
    // SAFETY: a live map value.
    unsafe {
        endpoint::add(&raw mut (*sums).bytes_in, tcp.bytes_received());
        endpoint::add(&raw mut (*sums).bytes_out, tcp.bytes_acked());
        match tcp.sk_err() {
            ECONNRESET => endpoint::add(&raw mut (*sums).closed_by_reset, 1),
            ECONNABORTED => endpoint::add(&raw mut (*sums).closed_by_abort, 1),
            ETIMEDOUT => endpoint::add(&raw mut (*sums).closed_by_timeout, 1),
            _ => {}
        }
        endpoint::add(&raw mut (*sums).closed, 1);
        endpoint::add(&raw mut (*sums).open, MINUS_ONE);
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

/// A record of this call's socket.
#[inline(always)]
fn describe(ctx: &SockOpsContext, tcp: TcpSock, kind: u8) -> Connection {
    let family = ctx.family();
    // All are read before the choice: left to itself the compiler chooses a pointer into the
    // context and loads through it, which the verifier refuses.
    let local_ip4 = word(&ctx_ref(ctx).local_ip4);
    let remote_ip4 = word(&ctx_ref(ctx).remote_ip4);
    let local_ip6 = words(&ctx_ref(ctx).local_ip6);
    let remote_ip6 = words(&ctx_ref(ctx).remote_ip6);
    let (local_addr, remote_addr) = if family == AF_INET {
        (mapped(local_ip4), mapped(remote_ip4))
    } else {
        (octets(local_ip6), octets(remote_ip6))
    };
    Connection {
        // SAFETY: helpers without preconditions beyond the context. The cookie is made here.
        cookie: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) },
        // SAFETY: as above.
        start_ns: unsafe { bpf_ktime_get_ns() },
        cgroup: tcp.cgroup(),
        netns: tcp.netns(),
        local_port: ctx.local_port() as u16,
        // Network order, in the upper half of the word as the kernel's host sees it.
        remote_port: u16::from_be((ctx.remote_port() >> 16) as u16),
        local_addr,
        remote_addr,
        family: family as u8,
        kind,
        flags: 0,
        protocol: IpProto::Tcp as u8,
        device: tcp.skc_bound_dev_if(),
    }
}

/// Adds the STATE callback to the flags that are there; clears none.
#[inline(always)]
fn ask_for_close(ctx: &SockOpsContext, stored: *mut Connection) {
    let present = ctx.cb_flags();
    if present & BPF_SOCK_OPS_STATE_CB_FLAG != 0 {
        return; // inherited from the listener, or set by a program beside us
    }
    if ctx
        .set_cb_flags((present | BPF_SOCK_OPS_STATE_CB_FLAG) as i32)
        .is_err()
    {
        // SAFETY: the record of this call's socket.
        unsafe { (*stored).flags |= flags::NO_CLOSE_CALLBACK };
        faults::count(ctx, Fault::CallbackRefused);
    }
}

#[inline(always)]
fn settings() -> Option<Settings> {
    SETTINGS.get(0).copied()
}

#[inline(always)]
fn ctx_ref(ctx: &SockOpsContext) -> &bpf_sock_ops {
    // SAFETY: `ops` is the program's context, valid for the call.
    unsafe { &*ctx.ops }
}

#[inline(always)]
fn word(word: &u32) -> u32 {
    // SAFETY: a valid reference; volatile, so that the load stays where it is written.
    unsafe { core::ptr::read_volatile(word) }
}

#[inline(always)]
fn words(words: &[u32; 4]) -> [u32; 4] {
    [
        word(&words[0]),
        word(&words[1]),
        word(&words[2]),
        word(&words[3]),
    ]
}

/// An IPv4 address in network order as the IPv4-mapped IPv6 address.
#[inline(always)]
fn mapped(ip4: u32) -> [u8; 16] {
    let [a, b, c, d] = ip4.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

#[inline(always)]
fn octets(ip6: [u32; 4]) -> [u8; 16] {
    let mut octets = [0; 16];
    let mut i = 0;
    while i < 4 {
        let word = ip6[i].to_ne_bytes();
        octets[4 * i] = word[0];
        octets[4 * i + 1] = word[1];
        octets[4 * i + 2] = word[2];
        octets[4 * i + 3] = word[3];
        i += 1;
    }
    octets
}

/// 127.0.0.0/8, also mapped, and ::1.
#[inline(always)]
fn is_loopback(addr: &[u8; 16]) -> bool {
    match addr {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, ..]
        | [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_127_mapped_or_one() {
        assert!(is_loopback(&mapped(u32::from_ne_bytes([127, 9, 9, 9]))));
        assert!(is_loopback(&std::net::Ipv6Addr::LOCALHOST.octets()));
        assert!(!is_loopback(&mapped(u32::from_ne_bytes([10, 127, 0, 1]))));
        assert!(!is_loopback(&std::net::Ipv6Addr::UNSPECIFIED.octets()));
        assert!(!is_loopback(
            &"7f00::1".parse::<std::net::Ipv6Addr>().unwrap().octets()
        ));
    }

    #[test]
    fn addresses_keep_their_octets() {
        let ip = std::net::Ipv4Addr::new(10, 1, 2, 3);
        assert_eq!(
            mapped(u32::from_ne_bytes(ip.octets())),
            ip.to_ipv6_mapped().octets()
        );
        let six: std::net::Ipv6Addr = "2001:db8:1:2:3:4:5:6".parse().unwrap();
        let words = std::array::from_fn(|i| {
            u32::from_ne_bytes(six.octets()[4 * i..4 * i + 4].try_into().unwrap())
        });
        assert_eq!(octets(words), six.octets());
    }
}
