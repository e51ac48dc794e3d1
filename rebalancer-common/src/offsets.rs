//! Offsets of the fields that the programs read in the running kernel's structures, in bytes unless
//! stated otherwise. The loader finds them in the kernel's BTF and freezes them into the programs
//! as constants, so that the verifier checks each load against the kernel's types.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! offsets {
    ($($(#[doc = $doc:literal])* $field:ident: $ty:literal, $path:literal;)*) => {
        /// Byte offsets of the running kernel.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct Offsets { $($(#[doc = $doc])* pub $field: u32,)* }

        impl Offsets {
            /// The values before the loader has set the real ones.
            pub const ZERO: Self = zerocopy::transmute!([0u8; size_of::<Self>()]);

            /// `(field, struct, member path)` of every offset, in the order of the fields.
            pub const PATHS: &'static [(&'static str, &'static str, &'static str)] =
                &[$((stringify!($field), $ty, $path),)*];
        }
    };
}

offsets! {
    /// `possible_net_t`: pointer to the network namespace.
    skc_net: "tcp_sock", "inet_conn.icsk_inet.sk.__sk_common.skc_net";
    /// TCP state, one byte.
    skc_state: "tcp_sock", "inet_conn.icsk_inet.sk.__sk_common.skc_state";
    /// Address family, two bytes.
    skc_family: "tcp_sock", "inet_conn.icsk_inet.sk.__sk_common.skc_family";
    /// Local port, host order, two bytes.
    skc_num: "tcp_sock", "inet_conn.icsk_inet.sk.__sk_common.skc_num";
    /// Remote port, network order, two bytes.
    skc_dport: "tcp_sock", "inet_conn.icsk_inet.sk.__sk_common.skc_dport";
    /// Local IPv4 address.
    skc_rcv_saddr: "tcp_sock", "inet_conn.icsk_inet.sk.__sk_common.skc_rcv_saddr";
    /// Remote IPv4 address.
    skc_daddr: "tcp_sock", "inet_conn.icsk_inet.sk.__sk_common.skc_daddr";
    /// Local IPv6 address. Optional: a kernel may be built without IPv6.
    skc_v6_rcv_saddr: "tcp_sock", "inet_conn.icsk_inet.sk.__sk_common.skc_v6_rcv_saddr";
    /// Remote IPv6 address. Optional, likewise.
    skc_v6_daddr: "tcp_sock", "inet_conn.icsk_inet.sk.__sk_common.skc_v6_daddr";
    /// Interface that the socket is bound to, or 0.
    skc_bound_dev_if: "tcp_sock", "inet_conn.icsk_inet.sk.__sk_common.skc_bound_dev_if";
    /// Protocol number, two bytes.
    sk_protocol: "tcp_sock", "inet_conn.icsk_inet.sk.sk_protocol";
    /// Pending error, positive errno.
    sk_err: "tcp_sock", "inet_conn.icsk_inet.sk.sk_err";
    /// Length of a listener's accept queue.
    sk_ack_backlog: "tcp_sock", "inet_conn.icsk_inet.sk.sk_ack_backlog";
    /// Pointer to the socket's cgroup. Optional: before 5.15 it is packed into a word.
    sk_cgroup: "tcp_sock", "inet_conn.icsk_inet.sk.sk_cgrp_data.cgroup";
    /// Jiffies of the last data received.
    lrcvtime: "tcp_sock", "inet_conn.icsk_ack.lrcvtime";
    /// Jiffies of the last data sent.
    lsndtime: "tcp_sock", "lsndtime";
    /// See [`crate::Live::bytes_received`].
    bytes_received: "tcp_sock", "bytes_received";
    /// See [`crate::Live::bytes_acked`].
    bytes_acked: "tcp_sock", "bytes_acked";
    /// See [`crate::Live::bytes_sent`].
    bytes_sent: "tcp_sock", "bytes_sent";
    /// See [`crate::Live::write_seq`].
    write_seq: "tcp_sock", "write_seq";
    /// See [`crate::Live::snd_una`].
    snd_una: "tcp_sock", "snd_una";
    /// See [`crate::Live::snd_nxt`].
    snd_nxt: "tcp_sock", "snd_nxt";
    /// See [`crate::Live::rcv_nxt`].
    rcv_nxt: "tcp_sock", "rcv_nxt";
    /// See [`crate::Live::copied_seq`].
    copied_seq: "tcp_sock", "copied_seq";
    /// Bytes of retransmitted data.
    bytes_retrans: "tcp_sock", "bytes_retrans";
    /// When the last acknowledged data was sent, in microseconds.
    first_tx_mstamp: "tcp_sock", "first_tx_mstamp";
    /// Sequence number of the peer's last segment that changed the window or acknowledged data.
    snd_wl1: "tcp_sock", "snd_wl1";
    /// Time of the last event (segment received or sent, data read), in microseconds.
    tcp_mstamp: "tcp_sock", "tcp_mstamp";
    /// When sent data was last newly acknowledged, in microseconds.
    delivered_mstamp: "tcp_sock", "delivered_mstamp";
    /// When the first data of the current measurement window was received, in microseconds: until a
    /// whole window has been received, the first data of the connection.
    rcv_rtt_time: "tcp_sock", "rcv_rtt_est.time";
    /// See [`crate::Live::echoed_timestamp`].
    rcv_rtt_last_tsecr: "tcp_sock", "rcv_rtt_last_tsecr";
    /// Whether TCP timestamps count microseconds instead of milliseconds: one bit, with its offset
    /// in bits. Optional: exists since 6.7.
    tcp_usec_ts: "tcp_sock", "tcp_usec_ts";
    /// See [`crate::Live::data_segs_in`].
    data_segs_in: "tcp_sock", "data_segs_in";
    /// See [`crate::Live::data_segs_out`].
    data_segs_out: "tcp_sock", "data_segs_out";
    /// See [`crate::Live::total_retrans`].
    total_retrans: "tcp_sock", "total_retrans";
    /// See [`crate::Live::srtt_us8`].
    srtt_us: "tcp_sock", "srtt_us";
    /// Callback flags that sock_ops programs have set, one byte.
    cb_flags: "tcp_sock", "bpf_sock_ops_cb_flags";
    /// Whether the socket is an MPTCP subflow, one byte. Optional: [`ABSENT`] without MPTCP.
    is_mptcp: "tcp_sock", "is_mptcp";
    /// `struct net`: the namespace's inode.
    net_inum: "net", "ns.inum";
    /// `struct net`: the namespace's cookie. Optional: before 5.12 it is created on demand.
    net_cookie: "net", "net_cookie";
    /// `struct cgroup`: pointer to its kernfs node.
    cgroup_kn: "cgroup", "kn";
    /// `struct cgroup`: pointer to its parent's state.
    cgroup_parent: "cgroup", "self.parent";
    /// `struct cgroup_subsys_state`: pointer to its cgroup.
    css_cgroup: "cgroup_subsys_state", "cgroup";
    /// `struct kernfs_node`: the cgroup's id.
    kernfs_id: "kernfs_node", "id";
    /// `struct socket`: pointer to its `struct sock`.
    socket_sk: "socket", "sk";
    /// `struct task_struct`: the PID in the initial pid namespace.
    task_tgid: "task_struct", "tgid";
    /// `struct task_struct`: pointer to the `signal_struct` that the threads of a process share.
    task_signal: "task_struct", "signal";
    /// `struct signal_struct`: pointers to the process's `struct pid`, by kind.
    signal_pids: "signal_struct", "pids";
    /// `struct pid`: level of its pid namespace.
    pid_level: "pid", "level";
    /// `struct pid`: its number in each pid namespace, from the initial one on.
    pid_numbers: "pid", "numbers";
}

/// The offset of a field that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// Fields that a kernel may lack.
pub const OPTIONAL: &[&str] = &[
    "is_mptcp",
    "net_cookie",
    "sk_cgroup",
    "skc_v6_rcv_saddr",
    "skc_v6_daddr",
    "tcp_usec_ts",
];

/// Fields of one bit, whose offset is in bits.
pub const BITS: &[&str] = &["tcp_usec_ts"];
