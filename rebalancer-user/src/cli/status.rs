//! `rebalancer status`: what the agent that runs says of itself.

use clap::Args;

use super::{KernelArgs, print, running};
use crate::{
    api::{self, Form},
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
        print(|out| match self.output.notation() {
            None => render::status_table(out, status, jiff::Timestamp::now()),
            Some(notation) => api::write_status(out, notation, status),
        })
    }
}
