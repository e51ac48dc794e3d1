//! Names of programs, maps and globals: written once, used by the loader, by the pins and in
//! messages. The kernel half uses the same words; a name that is not in the
//! object is an error at load.

/// Program on the cgroup root: records listens, accepts and closes.
pub const SOCK_OPS: &str = "sock_ops";
/// Iterator over the open descriptors of all processes: reads the records, and makes those of
/// sockets that are older than tracking.
pub const WALK: &str = "walk";
/// sk_msg program on the sockets in `counted`: counts what each sends.
pub const MESSAGES: &str = "messages";
/// cgroup_skb programs on the cgroups of the connections in `watched`: pass on what these receive
/// and send.
pub const WATCH: [&str; 2] = ["watch_in", "watch_out"];

/// The pinned link of [`SOCK_OPS`]: what keeps the program attached while no agent runs.
pub const LINK: &str = "link";

/// Socket storage: a socket → its [`crate::Connection`].
pub const CONNECTIONS: &str = "connections";
/// Hash: [`crate::Place`] → how many endpoints it has.
pub const PLACES: &str = "places";
/// Array of two numbers, which together are the connections recorded on the node: those that the kernel
/// half counts; and what corrects it, as the agent's last pass has found: more that it does not count,
/// less those whose end it has not seen.
pub const NODE: &str = "node";
/// Hash: [`crate::EndpointKey`] → [`crate::EndpointSums`].
pub const ENDPOINTS: &str = "endpoints";
/// Array of one [`crate::Settings`].
pub const SETTINGS: &str = "settings";
/// Hash: the id of a cgroup whose sockets are not recorded, nor those below it → 1.
pub const EXCLUDED: &str = "excluded";
/// Per-CPU array of counters, indexed by [`crate::Fault`].
pub const FAULTS: &str = "faults";
/// Hash: cookie → [`crate::Watched`], of the connections that are about to be moved. The agent's own:
/// it is pinned nowhere, and gone with its process, as are the links of [`WATCH`].
pub const WATCHED: &str = "watched";
/// Ring buffer of [`crate::Segment`], of the connections in `watched`. The agent's own as well.
pub const SEGMENTS: &str = "segments";
/// Memory-mapped array of [`crate::Row`]; each reader has its own.
pub const ROWS: &str = "rows";
/// Memory-mapped array of one [`crate::WalkHead`]; each reader has its own.
pub const WALK_HEAD: &str = "walk_head";
/// Socket hash: cookie → socket, of the connections whose sends are counted. The agent makes it
/// when a rule asks, and pins it nowhere: with its process it is gone, and every socket is as it
/// was. The kernel half does not name it.
pub const COUNTED: &str = "counted";

/// Frozen global: inode of the host's network namespace.
pub const HOST_NETNS: &str = "HOST_NETNS";
/// Frozen global: the kernel's offsets, see [`crate::offsets`].
pub const OFFSETS: &str = "OFFSETS";
/// Frozen global: how many pid namespaces lie between the initial one and the reader's.
pub const PID_LEVEL: &str = "PID_LEVEL";
/// Frozen global: 1 if this kernel leads a program from a subflow to its MPTCP socket.
pub const MPTCP: &str = "MPTCP";
