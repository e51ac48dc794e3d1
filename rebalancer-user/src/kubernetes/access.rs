//! How the API server is asked.

use std::path::PathBuf;

/// Whether the API server is asked for names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ask {
    /// If a kubeconfig is given, or this is a pod with a token.
    #[default]
    Auto,
    /// Yes, and it is an error if that is not possible.
    On,
    /// No.
    Off,
}

/// How to ask the API server.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Whether to.
    pub ask: Ask,
    /// Instead of a pod's own token.
    pub kubeconfig: Option<PathBuf>,
    /// What the API server calls this node.
    pub node: Option<String>,
}
