//! Where names of pods come from.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::kubernetes::{Access, Ask};

/// Where names of pods and Services come from.
#[derive(Args, Clone, Debug)]
pub(super) struct NamesArgs {
    /// Whether the API server is asked for names of pods and Services. `auto`: in a pod with a
    /// token, or with a kubeconfig; an agent that has neither and finds pods on its node moves
    /// nothing, as it cannot know what skips them. `off` lets it. The last one given counts.
    #[arg(
        long,
        value_enum,
        default_value_t = AskArg::Auto,
        value_name = "WHEN",
        overrides_with = "kubernetes"
    )]
    kubernetes: AskArg,
    /// The way to the API server, instead of a pod's own.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// What the API server calls this node; with a kubeconfig it is the host's name by default.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AskArg {
    /// If there is one to ask.
    Auto,
    /// Yes.
    On,
    /// No.
    Off,
}

impl NamesArgs {
    pub(super) fn access(&self) -> Access {
        Access {
            ask: match self.kubernetes {
                AskArg::Auto => Ask::Auto,
                AskArg::On => Ask::On,
                AskArg::Off => Ask::Off,
            },
            kubeconfig: self.kubeconfig.clone(),
            node: self.node_name.clone().filter(|name| !name.is_empty()),
        }
    }
}
