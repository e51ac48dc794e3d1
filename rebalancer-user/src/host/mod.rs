//! What Linux says of this host without BPF: cgroups, processes and the sockets that they hold, network
//! namespaces, `sock_diag(7)`, socket options, capabilities. Nothing is decided here.
//!
//! - `cgroup` finds the cgroup v2 mounts and their root; `cgroup_tree` lists paths by id.
//! - `process` holds a process by a pidfd and reads its `/proc/PID`; `owner` adds a descriptor of a socket.
//! - `netns` opens and enters network namespaces.
//! - `sock_diag` looks at one socket, or destroys it; `sockopt` has the options that rustix lacks.
//! - `distribution` names the node's Linux distribution.
//! - `folder` is a directory that no other user can change; `pair` is a loopback connection to test with.

mod cgroup;
mod cgroup_tree;
mod distribution;
pub(crate) mod folder;
mod limits;
pub mod netns;
mod owner;
mod pair;
mod process;
mod sock_diag;
mod sockopt;

pub use cgroup::{CgroupError, cgroup_root, enter_cgroup_namespace_of_process_1};
pub(crate) use cgroup::{CgroupMounts, ROOT_INODE, any_cgroup2, open_cgroup, own_cgroup};
pub use cgroup_tree::{CgroupPaths, CgroupTree};
pub use distribution::distribution;
pub use folder::FolderError;
pub(crate) use limits::{may_take_descriptors, return_memory};
pub use limits::{missing_capabilities, missing_for_owners, raise_descriptors, raise_memlock};
pub use owner::Holder;
pub(crate) use owner::{Owner, Processes, SocketOwners, with_duplicate};
pub(crate) use pair::Pair;
pub(crate) use process::Facts;
pub(crate) use sock_diag::Diag;
#[cfg(any(test, fuzzing))]
pub(crate) use sock_diag::parse_answer;
pub use sock_diag::{Inode, Socket, SocketId};
pub(crate) use sockopt::{option, set_option, signal_readable};
