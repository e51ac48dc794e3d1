//! How the API server is asked.

use std::path::PathBuf;

use clap::ValueEnum;

/// Whether the API server is asked for names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Ask {
    /// If an API server is configured.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
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
