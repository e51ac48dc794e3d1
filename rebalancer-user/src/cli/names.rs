//! Where names of pods come from.

use std::path::PathBuf;

use clap::Args;

use crate::kubernetes::{Access, Ask};

/// Where names of pods and Services come from.
#[derive(Args, Clone, Debug)]
pub(super) struct NamesArgs {
    /// Whether to ask the API server about pods and Services. `auto`: if there is a service account
    /// token or a kubeconfig; an agent that has neither but finds pods on its node moves nothing,
    /// because it cannot know which guards apply. With `off` it does move. The last one given applies.
    #[arg(
        long,
        value_enum,
        default_value_t = Ask::Auto,
        value_name = "WHEN",
        overrides_with = "kubernetes"
    )]
    kubernetes: Ask,
    /// Kubeconfig to use instead of the pod's service account.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Name of this Node object [default with a kubeconfig: the hostname].
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,
}

impl NamesArgs {
    pub(super) fn access(&self) -> Access {
        Access {
            ask: self.kubernetes,
            kubeconfig: self.kubeconfig.clone(),
            node: self.node_name.clone().filter(|name| !name.is_empty()),
        }
    }
}
