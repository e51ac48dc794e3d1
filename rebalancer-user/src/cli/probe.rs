//! `rebalancer probe`: whether the agent lives and is ready, for a kubelet's exec probe.

use std::io::{self, Write as _};

use anyhow::{Context as _, anyhow};
use clap::{Args, ValueEnum};

use super::{KernelArgs, running};

/// Ask the agent that runs whether it lives or is ready.
///
/// For probes of kind exec, and scripts: it asks through the agent's socket what /healthz and
/// /readyz tell by HTTP. Exit code 0 if so; else 1, and why.
#[derive(Args)]
pub(super) struct Probe {
    /// What to ask.
    #[arg(value_enum)]
    what: What,
    #[command(flatten)]
    kernel: KernelArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Whether its loop goes round: if not, it is to be started anew
    Live,
    /// Whether it is attached, by a valid policy, and has listed once
    Ready,
}

impl Probe {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let path = match self.what {
            What::Live => "/healthz",
            What::Ready => "/readyz",
        };
        // A word of its own: whoever probes tells only 0 from all else.
        let said = running::text(&self.kernel, path).map_err(|error| anyhow!("{error}"))?;
        io::stdout().write_all(&said).context("writing to stdout")
    }
}
