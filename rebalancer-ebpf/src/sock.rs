//! Reads the kernel's socket structures at offsets that the loader has frozen.
//!
//! Each load is a plain load through a pointer whose type the verifier knows from the kernel's
//! BTF, so the verifier rejects a wrong offset at load time.

use core::ptr::read_volatile;

use aya_ebpf::{
    cty::c_void,
    helpers::generated::{bpf_skc_to_mptcp_sock, bpf_skc_to_tcp_sock},
};
use rebalancer_common::offsets::{ABSENT, Offsets};

/// Frozen by the loader, see `rebalancer_common::offsets`.
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: Offsets = Offsets::ZERO;

/// Frozen by the loader: inode of the host's network namespace.
#[unsafe(no_mangle)]
static HOST_NETNS: u32 = 0;

/// Inode of the host's network namespace.
#[inline(always)]
pub(crate) fn host_netns() -> u32 {
    frozen(&HOST_NETNS)
}

/// A value that the loader patches after compilation. Values are read one by one, as a copy of the
/// whole table would not fit on the stack.
#[inline(always)]
pub(crate) fn frozen<T: Copy>(value: &'static T) -> T {
    // SAFETY: a valid reference; volatile, or the compiler would use the value before patching.
    unsafe { read_volatile(value) }
}

/// `linux/socket.h`
const AF_INET6: u16 = 10;

/// A `struct tcp_sock` of the kernel.
#[derive(Clone, Copy)]
pub(crate) struct TcpSock(*const u8);

/// Defines a reader of one field.
macro_rules! fields {
    ($($name:ident: $ty:ty;)*) => {
        $(
            #[inline(always)]
            pub(crate) fn $name(self) -> $ty {
                // SAFETY: the verifier checks the load against the kernel's type of the field.
                unsafe { self.load(frozen(&OFFSETS.$name)) }
            }
        )*
    };
}

impl TcpSock {
    /// `sk` as a TCP socket, if it is a full one.
    ///
    /// # Safety
    /// `sk` is a socket pointer from the kernel.
    #[inline(always)]
    pub(crate) unsafe fn from_sk(sk: *mut c_void) -> Option<Self> {
        // SAFETY: the caller's.
        let tcp = unsafe { bpf_skc_to_tcp_sock(sk) };
        if tcp.is_null() {
            None
        } else {
            Some(Self(tcp.cast_const().cast()))
        }
    }

    /// `sk` as an MPTCP socket; only fields of `struct sock` (`skc_*`, `sk_*`) may be read.
    ///
    /// # Safety
    /// `sk` is a socket pointer from the kernel, not null.
    #[inline(always)]
    pub(crate) unsafe fn from_mptcp(sk: *mut c_void) -> Option<Self> {
        const IPPROTO_MPTCP: u16 = 262;
        let sock = Self(sk.cast_const().cast());
        (sock.sk_protocol() == IPPROTO_MPTCP).then_some(sock)
    }

    /// # Safety
    /// `offset` is a frozen offset of a `T` in `struct tcp_sock`.
    #[inline(always)]
    unsafe fn load<T>(self, offset: u32) -> T {
        // SAFETY: the caller's.
        unsafe { read_volatile(self.0.add(offset as usize).cast::<T>()) }
    }

    fields! {
        skc_state: u8;
        skc_family: u16;
        skc_num: u16;
        skc_dport: u16;
        skc_bound_dev_if: u32;
        sk_protocol: u16;
        sk_err: u32;
        sk_ack_backlog: u32;
        lrcvtime: u32;
        lsndtime: u32;
        bytes_received: u64;
        bytes_acked: u64;
        bytes_sent: u64;
        write_seq: u32;
        snd_una: u32;
        snd_nxt: u32;
        rcv_nxt: u32;
        copied_seq: u32;
        bytes_retrans: u64;
        first_tx_mstamp: u64;
        snd_wl1: u32;
        tcp_mstamp: u64;
        delivered_mstamp: u64;
        rcv_rtt_time: u64;
        rcv_rtt_last_tsecr: u32;
        data_segs_in: u32;
        data_segs_out: u32;
        total_retrans: u32;
        srtt_us: u32;
        cb_flags: u8;
    }

    /// Local address; IPv4 as IPv4-mapped IPv6.
    #[inline(always)]
    pub(crate) fn local_addr(self) -> [u8; 16] {
        self.address(
            frozen(&OFFSETS.skc_rcv_saddr),
            frozen(&OFFSETS.skc_v6_rcv_saddr),
        )
    }

    /// Remote address; IPv4 as IPv4-mapped IPv6.
    #[inline(always)]
    pub(crate) fn remote_addr(self) -> [u8; 16] {
        self.address(frozen(&OFFSETS.skc_daddr), frozen(&OFFSETS.skc_v6_daddr))
    }

    #[inline(always)]
    fn address(self, v4: u32, v6: u32) -> [u8; 16] {
        if self.skc_family() == AF_INET6 && v6 != ABSENT {
            // SAFETY: a `struct in6_addr`, read word by word.
            octets(unsafe {
                [
                    self.load(v6),
                    self.load(v6 + 4),
                    self.load(v6 + 8),
                    self.load(v6 + 12),
                ]
            })
        } else {
            // SAFETY: a `__be32`.
            mapped(unsafe { self.load(v4) })
        }
    }

    /// TCP timestamp of the last acknowledged data, without the connection's offset, which the
    /// kernel also subtracts from echoed timestamps.
    #[inline(always)]
    pub(crate) fn sent_timestamp(self) -> u32 {
        let sent = self.first_tx_mstamp();
        if self.counts_microseconds() {
            sent as u32
        } else {
            (sent / 1000) as u32
        }
    }

    /// Whether exactly one segment with data was received, and data sent later is acknowledged.
    #[inline(always)]
    pub(crate) fn sole_request_answered(self) -> bool {
        let received = self.rcv_rtt_time();
        self.data_segs_in() == 1 && received != 0 && self.first_tx_mstamp() > received
    }

    /// Whether the last event is a pure ACK of sent data that follows all of the peer's data: its
    /// sequence number is the next one expected.
    #[inline(always)]
    pub(crate) fn answer_acknowledged(self) -> bool {
        self.snd_wl1() == self.rcv_nxt() && self.tcp_mstamp() == self.delivered_mstamp()
    }

    /// Whether its TCP timestamps count microseconds.
    #[inline(always)]
    fn counts_microseconds(self) -> bool {
        let bit = frozen(&OFFSETS.tcp_usec_ts);
        // SAFETY: the byte that contains the bit.
        bit != ABSENT && unsafe { self.load::<u8>(bit / 8) } >> (bit % 8) & 1 == 1
    }

    /// Whether the connection was opened from this side: then one more byte is acknowledged or in
    /// flight than was sent, for the SYN. Not valid after a FIN, which also counts as one.
    #[inline(always)]
    pub(crate) fn has_sent_syn(self) -> bool {
        let in_flight = self.snd_nxt().wrapping_sub(self.snd_una());
        let counted = self.bytes_acked().wrapping_add(u64::from(in_flight));
        counted != self.bytes_sent().wrapping_sub(self.bytes_retrans())
    }

    /// Whether the socket is a subflow of MPTCP.
    #[inline(always)]
    pub(crate) fn is_mptcp(self) -> bool {
        let offset = frozen(&OFFSETS.is_mptcp);
        // SAFETY: the field is a `bool`, read as a byte.
        offset != ABSENT && unsafe { self.load::<u8>(offset) } != 0
    }

    /// Inode of the socket's network namespace.
    #[inline(always)]
    pub(crate) fn netns(self) -> u32 {
        // SAFETY: it is a `u32`.
        unsafe { self.load_of_net(frozen(&OFFSETS.net_inum)) }
    }

    /// Cookie of the socket's network namespace; 0 if the kernel has none.
    #[inline(always)]
    pub(crate) fn netns_cookie(self) -> u64 {
        let offset = frozen(&OFFSETS.net_cookie);
        if offset == ABSENT {
            return 0;
        }
        // SAFETY: it is a `u64`.
        unsafe { self.load_of_net(offset) }
    }

    /// # Safety
    /// `offset` is a frozen offset of a `T` in `struct net`.
    #[inline(always)]
    unsafe fn load_of_net<T>(self, offset: u32) -> T {
        // SAFETY: `skc_net` is a `struct net *`, never null for a live socket; the verifier turns
        // loads through it into loads that cannot fault.
        unsafe {
            let net: *const u8 = self.load(frozen(&OFFSETS.skc_net));
            read_volatile(net.add(offset as usize).cast::<T>())
        }
    }

    /// ID of the socket's cgroup v2; 0 if the kernel does not expose it.
    #[inline(always)]
    pub(crate) fn cgroup(self) -> u64 {
        self.cgroup_node().map_or(0, Cgroup::id)
    }

    /// The socket's cgroup v2, if the kernel exposes it.
    #[inline(always)]
    pub(crate) fn cgroup_node(self) -> Option<Cgroup> {
        let offset = frozen(&OFFSETS.sk_cgroup);
        if offset == ABSENT {
            return None;
        }
        // SAFETY: a `struct cgroup *`.
        Cgroup::new(unsafe { self.load(offset) })
    }
}

/// Frozen by the loader: whether this kernel has `bpf_skc_to_mptcp_sock`.
#[unsafe(no_mangle)]
static MPTCP: u32 = 0;

/// The MPTCP socket of a subflow, which is the one that a descriptor refers to; null for other
/// sockets.
///
/// # Safety
/// `sk` is this call's full socket.
#[inline(always)]
pub(crate) unsafe fn mptcp_of(sk: *mut c_void) -> *mut c_void {
    if frozen(&MPTCP) == 0 {
        return core::ptr::null_mut();
    }
    // SAFETY: the caller's.
    unsafe { bpf_skc_to_mptcp_sock(sk) }.cast()
}

/// The `struct sock` of a `struct socket`.
///
/// # Safety
/// `socket` is a `struct socket` from the kernel, not null.
#[inline(always)]
pub(crate) unsafe fn sk_of(socket: *const u8) -> *mut c_void {
    // SAFETY: the caller's.
    unsafe { pointer(socket, &OFFSETS.socket_sk) }
        .cast_mut()
        .cast()
}

/// A `struct cgroup` of the kernel.
#[derive(Clone, Copy)]
pub(crate) struct Cgroup(*const u8);

impl Cgroup {
    #[inline(always)]
    fn new(cgroup: *const u8) -> Option<Self> {
        (!cgroup.is_null()).then_some(Self(cgroup))
    }

    /// Its ID; 0 if the kernel does not expose it.
    #[inline(always)]
    pub(crate) fn id(self) -> u64 {
        // SAFETY: a `kernfs_node *`, then its id; a load through a pointer cannot fault, as above.
        unsafe {
            let node = pointer(self.0, &OFFSETS.cgroup_kn);
            if node.is_null() {
                return 0;
            }
            read_volatile(node.add(frozen(&OFFSETS.kernfs_id) as usize).cast::<u64>())
        }
    }

    /// Its parent; `None` for the root.
    #[inline(always)]
    pub(crate) fn parent(self) -> Option<Self> {
        // SAFETY: a `cgroup_subsys_state *`, then a `cgroup *`, likewise.
        unsafe {
            let state = pointer(self.0, &OFFSETS.cgroup_parent);
            if state.is_null() {
                return None;
            }
            Self::new(pointer(state, &OFFSETS.css_cgroup))
        }
    }
}

/// Loads a pointer from a kernel structure.
///
/// # Safety
/// `structure` points to a kernel structure with a pointer at the frozen `offset`.
#[inline(always)]
unsafe fn pointer(structure: *const u8, offset: &'static u32) -> *const u8 {
    // SAFETY: the caller's.
    unsafe { read_volatile(structure.add(frozen(offset) as usize).cast::<*const u8>()) }
}

/// An IPv4 address in network order as the IPv4-mapped IPv6 address.
#[inline(always)]
fn mapped(ip4: u32) -> [u8; 16] {
    let [a, b, c, d] = ip4.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

#[inline(always)]
fn octets(words: [u32; 4]) -> [u8; 16] {
    let mut octets = [0; 16];
    let mut i = 0;
    while i < 4 {
        let word = words[i].to_ne_bytes();
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
pub(crate) fn is_loopback(addr: &[u8; 16]) -> bool {
    matches!(
        addr,
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, ..]
            | [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    )
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
