//! Names, paths and addresses of the cluster; there is one cluster at a time. Its addresses exist
//! only in its namespaces and cannot clash with the machine's.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::Options;

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

/// The description of the running cluster for later commands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Description {
    pub(super) nodes: u8,
    pub(super) kube: String,
    pub(super) mode: String,
}

impl Description {
    pub(super) fn of(options: Options) -> Self {
        Self {
            nodes: options.nodes,
            kube: options.kube.to_string(),
            mode: options.mode.to_string(),
        }
    }

    fn path() -> PathBuf {
        state().join("cluster.json")
    }

    pub(super) fn write(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).context("describe the cluster")?;
        fs::write(Self::path(), text).context("cluster.json")
    }

    /// `None` if no cluster is running.
    pub(super) fn read() -> Option<Self> {
        serde_json::from_slice(&fs::read(Self::path()).ok()?).ok()
    }
}
