//! `rebalancer coordinator`: merge the reports of all nodes, so that balance works across them.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;

use super::{agent::own_pod, log::LogArgs};
use crate::{coordinator, kubernetes::Access};

/// Run a coordinator: merge what the agents of all nodes report, so that they balance Services across
/// nodes.
///
/// It needs no privileges and moves nothing. Run two or more: one leads, by a Lease in the namespace.
#[derive(Args)]
pub(super) struct Coordinator {
    /// Namespace of the Lease [default: that of the pod, from $POD_NAMESPACE].
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Name of the Lease.
    #[arg(long, value_name = "NAME", default_value = "rebalancer-coordinator")]
    lease: String,
    /// Kubeconfig to use instead of the pod's service account.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// TCP address for metrics and health.
    #[arg(long, value_name = "ADDRESS")]
    serve: Option<SocketAddr>,
    #[command(flatten)]
    log: LogArgs,
}

impl Coordinator {
    pub(super) fn run(self) -> anyhow::Result<()> {
        self.log.start()?;
        let own = own_pod();
        let Some(namespace) = self
            .namespace
            .or_else(|| own.as_ref().map(|own| own.namespace.clone()))
        else {
            bail!(
                "the namespace of the lease is not known\n  remedy: --namespace, or $POD_NAMESPACE and $POD_NAME"
            );
        };
        // Others on the same host hold the lease under another name.
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy();
        let identity = own.map_or_else(|| format!("{host}-{}", std::process::id()), |own| own.name);
        let access = Access {
            kubeconfig: self.kubeconfig,
            ..Access::default()
        };
        let options = coordinator::Options {
            access,
            namespace,
            lease: self.lease,
            identity,
            serve_at: self.serve,
        };
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting the runtime")?
            .block_on(coordinator::run(options))
    }
}
