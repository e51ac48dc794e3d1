//! Names, paths and addresses of the cluster; there is one cluster at a time. Its addresses exist
//! only in its namespaces and cannot clash with the machine's.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The name of its cgroup, and the prefix of its network namespaces.
pub(super) const NAME: &str = "rebalancer-cluster";

pub(super) const CONTROL_PLANE: &str = "10.200.0.1";
pub(super) const NODE_BITS: u8 = 24;
pub(crate) const PODS: &str = "10.244.0.0/16";
pub(super) const SERVICES: &str = "10.96.0.0/16";
/// The ClusterIP of the API server, the first of [`SERVICES`].
pub(super) const KUBERNETES: &str = "10.96.0.1";
pub(super) const API_SERVER: &str = "https://10.200.0.1:6443";

/// The folder of all files of the cluster, removed with it.
pub(super) fn state() -> &'static Path {
    Path::new("/var/lib/rebalancer-cluster")
}

/// The network namespace of the control plane, or of a node.
pub(super) fn namespace(host: &str) -> String {
    format!("{NAME}-{host}")
}

pub(super) fn namespace_path(host: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace(host))
}

/// A node, by its number from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node(pub(super) u8);

impl Node {
    pub(super) fn name(self) -> String {
        format!("node{}", self.0)
    }

    pub(super) fn address(self) -> String {
        format!("10.200.0.{}", 10 + u16::from(self.0))
    }

    pub(super) fn folder(self) -> PathBuf {
        state().join(self.name())
    }
}

/// The file with the description of the running cluster.
pub(super) fn description() -> PathBuf {
    state().join("description")
}

/// What kind of cluster is running; `None` if none is.
pub(super) fn running() -> Option<String> {
    fs::read_to_string(description()).ok()
}
