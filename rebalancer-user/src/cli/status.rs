//! `rebalancer status`: what the agent that runs says of itself.

use std::io;

use anyhow::Context as _;
use clap::Args;

use super::{KernelArgs, running};
use crate::{
    api::{self, Form, Notation},
    render,
};

/// Show the state of the running agent: mode, policy, last pass, budgets, moves.
///
/// Asks over the agent's root-only socket. Exit code 5 if no agent is running, 4 if access is denied.
#[derive(Args)]
pub(super) struct Status {
    /// Output format; wide is the same as table.
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
    #[command(flatten)]
    kernel: KernelArgs,
}

impl Status {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let status = &running::status(&self.kernel)?;
        let out = &mut io::stdout().lock();
        match self.output {
            Form::Table | Form::Wide => render::status_table(out, status, jiff::Timestamp::now()),
            Form::Json => api::write_status(out, Notation::Json, status),
            Form::Yaml => api::write_status(out, Notation::Yaml, status),
        }
        .context("writing to stdout")
    }
}
