//! Names of programs, maps and globals: written once, used by the loader, by the pins and in
//! messages. The kernel half uses the same words; a name that is not in the
//! object is an error at load.

/// Program on the cgroup root: records listens, accepts and closes.
pub const SOCK_OPS: &str = "sock_ops";
/// Iterator over one shard of the connections.
pub const LIST: &str = "list";
/// Iterator over the TCP sockets of one network namespace: makes records of those older than us.
pub const ADOPT: &str = "adopt";
/// sk_msg program on the sockets in `counted`: counts what each sends.
pub const MESSAGES: &str = "messages";
/// Socket filter on the connections in `watched`: hears what they speak.
pub const WATCH: &str = "watch";

/// The pinned link of [`SOCK_OPS`]: what keeps the program attached while no agent runs.
pub const LINK: &str = "link";

/// Hash: [`crate::EndpointKey`] → [`crate::EndpointSums`].
pub const ENDPOINTS: &str = "endpoints";
/// Array of one [`crate::Settings`].
pub const SETTINGS: &str = "settings";
/// Array of [`crate::WANTED_WORDS`] words: for each port the groups of rules that name it.
pub const WANTED: &str = "wanted";
/// Hash: a cgroup's id → its [`crate::class`]. Filled only where the policy names cgroups.
pub const CGROUPS: &str = "cgroups";
/// Per-CPU array of counters, indexed by [`crate::Fault`].
pub const FAULTS: &str = "faults";
/// Hash: cookie → [`crate::Heard`], of the connections that are about to be moved. Pinned so that
/// what a killed agent was watching is found and left alone.
pub const WATCHED: &str = "watched";
/// Memory-mapped array of [`crate::Listed`]; each reader has its own.
pub const LISTING: &str = "listing";
/// Memory-mapped array of one [`crate::ListHead`]; each reader has its own.
pub const LIST_HEAD: &str = "list_head";
/// Socket hash: cookie → socket, of the connections whose sends are counted. The agent makes it
/// when a rule asks, and pins it nowhere: with its process it is gone, and every socket is as it
/// was. The kernel half does not name it.
pub const COUNTED: &str = "counted";

/// The connections' socket-storage maps, by shard.
pub const CONNECTIONS: [&str; crate::SHARDS] = [
    "connections_00",
    "connections_01",
    "connections_02",
    "connections_03",
    "connections_04",
    "connections_05",
    "connections_06",
    "connections_07",
    "connections_08",
    "connections_09",
    "connections_10",
    "connections_11",
    "connections_12",
    "connections_13",
    "connections_14",
    "connections_15",
    "connections_16",
    "connections_17",
    "connections_18",
    "connections_19",
    "connections_20",
    "connections_21",
    "connections_22",
    "connections_23",
    "connections_24",
    "connections_25",
    "connections_26",
    "connections_27",
    "connections_28",
    "connections_29",
    "connections_30",
    "connections_31",
];

/// Frozen global: inode of the host's network namespace.
pub const HOST_NETNS: &str = "HOST_NETNS";
/// Frozen global: id of the cgroup below which older sockets are adopted; 0: wherever they are.
pub const ADOPT_WITHIN: &str = "ADOPT_WITHIN";
/// Frozen global: the kernel's offsets, see [`crate::offsets`].
pub const OFFSETS: &str = "OFFSETS";
