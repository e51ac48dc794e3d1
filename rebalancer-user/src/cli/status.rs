//! `rebalancer status`: what the agent that runs says of itself.

use std::io;

use anyhow::Context as _;
use clap::Args;

use super::{KernelArgs, Output, running};
use crate::{
    api::{self, Notation},
    render,
};

/// Show the state of the running agent: mode, policy, last pass, budgets, moves.
///
/// Asks over the agent's root-only socket. Exit code 5 if no agent is running, 4 if access is denied.
#[derive(Args)]
pub(super) struct Status {
    /// Output format; wide is the same as table.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    kernel: KernelArgs,
}

impl Status {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let status = &running::status(&self.kernel)?;
        let out = &mut io::stdout().lock();
        match self.output {
            Output::Table | Output::Wide => {
                render::status_table(out, status, jiff::Timestamp::now())
            }
            Output::Json => api::write_status(out, Notation::Json, status),
            Output::Yaml => api::write_status(out, Notation::Yaml, status),
        }
        .context("writing to stdout")
    }
}
