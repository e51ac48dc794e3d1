//! The kernel side, seen from userspace: load, attach, pin, read. Nothing is decided here.
//!
//! - [`Tracker`] holds the sock_ops program on the cgroup root and the pinned maps.
//! - [`Walker`] reads every connection, with an iterator and memory of its own, so that readers do not
//!   affect each other.
//! - [`MessageCounter`] holds the sk_msg program, and the sockets that it counts or follows the sends of;
//!   [`Sends`] is one of them for a whole process.
//! - [`Capture`] holds the programs that copy what sniffed connections receive and send.
//! - [`read_endpoints`] and [`read_faults`] read the small maps directly.

mod capture;
mod error;
mod fionread;
mod log;
mod maps;
mod messages;
mod nesting;
mod offsets;
mod pins;
mod sys;
mod tracker;
mod walker;

pub use capture::{Capture, Captured};
pub use error::Error;
pub use fionread::Fionread;
pub(crate) use fionread::fionread;
pub use log::KernelLog;
pub use maps::{
    EmptyEndpoints, agent_pid, endpoints_capacity, read_endpoints, read_faults, remove_endpoints,
};
pub use messages::{Joiner, MessageCounter, Reason, Sends, forget_joined, left_joined};
pub use offsets::Kernel;
#[cfg(any(test, fuzzing))]
pub(crate) use offsets::find_offsets;
pub use pins::{DEFAULT_DIR, PinDir, agent_runs, mount_bpffs};
pub use tracker::{Inherited, Lifetime, Tracker, Tracking, sock_ops_programs, tracks};
pub use walker::{Adopt, Pass, Walked, Walker};

/// The kernel half, built by `build.rs`.
pub(crate) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/rebalancer-ebpf"));
