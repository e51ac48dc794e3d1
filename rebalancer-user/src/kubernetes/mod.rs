//! Names: from the API server's objects to whose each endpoint of a snapshot is, and facts of the
//! Services that lead there.
//!
//! An endpoint's network namespace leads to a process, its cgroup to the pod's uid, and that, if
//! the API server has such a pod on this node, to its names. Whatever is not certain stays
//! [`Who::Unknown`](crate::snapshot::Who::Unknown). Nothing else needs names: a plain host has none,
//! and every decision is made from a [`Snapshot`] however it was named. Whether this is a plain host
//! is asked here too, of the cgroups of its processes.

mod access;
mod cgroup;
#[cfg(not(feature = "kubernetes"))]
mod disabled;
#[cfg(feature = "kubernetes")]
mod enabled;
mod node;
mod notice;

#[cfg(not(feature = "kubernetes"))]
pub use disabled::{EventWriter, Exchange, Names, write_event};
#[cfg(feature = "kubernetes")]
pub use enabled::{
    EventWriter, Exchange, Lease, Names, NodeBalances, ReportEvent, coordination, definition,
    write_event,
};

pub use access::{Access, Ask};
pub use node::process_in_pod;
pub use notice::{Notice, PodAt};
