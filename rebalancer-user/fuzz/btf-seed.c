// The shapes that the offsets are looked for in; seed of the fuzz target `btf`:
//   gcc -gbtf -c minimal.c && objcopy --dump-section .BTF=minimal minimal.o
typedef struct { void *net; } possible_net_t;
struct ns_common { unsigned long stashed; unsigned int inum; };
struct net { int passive; struct ns_common ns; };
struct kernfs_node { int count; unsigned long long id; };
struct cgroup { int level; struct kernfs_node *kn; };
struct in6_addr { unsigned char b[16]; };
struct sock_common {
	union { struct { unsigned int skc_daddr, skc_rcv_saddr; }; unsigned long long skc_addrpair; };
	unsigned short skc_dport, skc_num, skc_family;
	volatile unsigned char skc_state;
	unsigned char skc_reuse : 4;
	int skc_bound_dev_if;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr, skc_v6_rcv_saddr;
	unsigned long long skc_cookie;
};
struct sock_cgroup_data { struct cgroup *cgroup; };
struct sock {
	struct sock_common __sk_common;
	void *sk_socket; int sk_err; unsigned int sk_ack_backlog;
	struct sock_cgroup_data sk_cgrp_data;
};
struct inet_sock { struct sock sk; };
struct inet_connection_sock { struct inet_sock icsk_inet; struct { unsigned int lrcvtime; } icsk_ack; };
struct tcp_sock {
	struct inet_connection_sock inet_conn;
	unsigned long long bytes_received, bytes_acked, bytes_sent;
	unsigned int lsndtime, write_seq, snd_una, snd_nxt, rcv_nxt, copied_seq, snd_wl1;
	unsigned int data_segs_in, data_segs_out, total_retrans, srtt_us;
	unsigned char bpf_sock_ops_cb_flags;
	_Bool is_mptcp;
};
struct tcp_sock t; struct net n; struct cgroup c;
