//! `rebalancer status`: what the agent that runs says of itself.

use std::io;

use anyhow::Context as _;
use clap::Args;

use super::{KernelArgs, Output, running};
use crate::render::{self, Notation};

/// Ask the agent that runs how it is: mode, policy, last pass, budgets, moves.
///
/// It asks through the agent's socket, which is root's alone, and disturbs nothing. Exit code 5 if
/// no agent runs, 4 if it may not be asked.
#[derive(Args)]
pub(super) struct Status {
    /// The form of the output; wide is as table.
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
            Output::Json => render::status(out, Notation::Json, status),
            Output::Yaml => render::status(out, Notation::Yaml, status),
        }
        .context("writing to stdout")
    }
}
