//! Names of programs, maps and globals, used by the loader, for pins and in messages. The kernel
//! half uses the same names; the loader rejects an object that lacks one.

/// Program on the cgroup root: records listens, accepts and closes.
pub const SOCK_OPS: &str = "sock_ops";
/// Iterator over the open descriptors of all processes: reads the records, and creates those of
/// sockets that are older than tracking.
pub const WALK: &str = "walk";
/// sk_msg program on the sockets in `counted`: counts their sends, and tells the clients of those in
/// `notices` to leave.
pub const MESSAGES: &str = "messages";
/// cgroup_skb programs on the cgroups of the connections in `sniffed`: copy their received and sent
/// segments to the agent.
pub const SNIFF: [&str; 2] = ["sniff_in", "sniff_out"];

/// The pinned link of [`SOCK_OPS`], which keeps the program attached while no agent runs.
pub const LINK: &str = "link";

/// Socket storage: a socket → its [`crate::Connection`].
pub const CONNECTIONS: &str = "connections";
/// Hash: [`crate::Place`] → number of its endpoints.
pub const PLACES: &str = "places";
/// Array of two numbers whose sum is the number of recorded connections on the node: the kernel
/// half's count, and a correction from the agent's last pass, which adds connections that the
/// kernel half does not count and subtracts those whose close it has not seen.
pub const NODE: &str = "node";
/// Hash: [`crate::EndpointKey`] → [`crate::EndpointSums`].
pub const ENDPOINTS: &str = "endpoints";
/// Array of one [`crate::Settings`].
pub const SETTINGS: &str = "settings";
/// Hash: ID of a cgroup in and below which sockets are not recorded → 1.
pub const EXCLUDED: &str = "excluded";
/// Per-CPU array of counters, indexed by [`crate::Fault`].
pub const FAULTS: &str = "faults";
/// Hash: cookie → [`crate::Sniffed`], of connections that are being moved. Not pinned: the kernel
/// frees it when the agent exits, like the links of [`SNIFF`].
pub const SNIFFED: &str = "sniffed";
/// Ring buffer of [`crate::Segment`], of the connections in `sniffed`. Not pinned.
pub const SEGMENTS: &str = "segments";
/// Hash: cookie → [`crate::Notice`], of connections that are about to be asked to leave. Not pinned.
pub const NOTICES: &str = "notices";
/// Hash: cookie → the highest stream that the client may have opened, of those in `notices` that may be notified.
/// Not pinned.
pub const GOAWAYS: &str = "goaways";
/// Memory-mapped array of [`crate::Row`]; each reader has its own.
pub const ROWS: &str = "rows";
/// Memory-mapped array of one [`crate::WalkHead`]; each reader has its own.
pub const WALK_HEAD: &str = "walk_head";
/// Socket hash: cookie → socket, of the connections whose sends are counted or followed. The agent creates it
/// when that is asked for and does not pin it: when the agent exits, the kernel detaches every
/// socket from it. It is not in the kernel half's object.
pub const COUNTED: &str = "counted";
/// Hash: cookie → 1, of the sockets in `counted`, and of those that have left it and whose readers were not
/// woken yet. Pinned, for the agent that follows one that was killed. It is not in the kernel half's object.
pub const JOINED: &str = "joined";

/// Frozen global: inode of the host's network namespace.
pub const HOST_NETNS: &str = "HOST_NETNS";
/// Frozen global: the kernel's offsets, see [`crate::offsets`].
pub const OFFSETS: &str = "OFFSETS";
/// Frozen global: level of the reader's pid namespace; 0 is the initial one.
pub const PID_LEVEL: &str = "PID_LEVEL";
/// Frozen global: 1 if this kernel has `bpf_skc_to_mptcp_sock`.
pub const MPTCP: &str = "MPTCP";
