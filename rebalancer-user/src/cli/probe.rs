//! `rebalancer probe`: whether the agent lives and is ready, for a kubelet's exec probe.

use std::io::Write as _;

use anyhow::anyhow;
use clap::{Args, ValueEnum};

use super::{KernelArgs, print, running};

/// Check whether the running agent is live or ready.
///
/// For exec probes and scripts: asks over the agent's socket what /healthz and /readyz report over
/// HTTP. Exit code 0 if it is; otherwise 1, with the reason.
#[derive(Args)]
pub(super) struct Probe {
    /// What to check.
    #[arg(value_enum)]
    what: What,
    #[command(flatten)]
    kernel: KernelArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Its main loop makes progress; if not, it should be restarted
    Live,
    /// It is attached, its policy is valid, and it has listed all connections once
    Ready,
}

impl Probe {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let path = match self.what {
            What::Live => "/healthz",
            What::Ready => "/readyz",
        };
        // Probes only distinguish 0 from other exit codes.
        let answer = running::text(&self.kernel, path).map_err(|error| anyhow!("{error}"))?;
        print(|out| out.write_all(&answer))
    }
}
