//! `rebalancer plan`: what would be moved now, and why.

use clap::Args;

use super::{input::Input, print};
use crate::{
    api::{Dumped, Form},
    plan::{Ledger, decide},
    render,
};

/// Show what would be moved now, in which order and why, what is skipped and why, and how long it takes.
///
/// Changes nothing. Asks the running agent what it would do now, by its own policy or with --policy by
/// another. With --snapshot it evaluates a saved dump, without an agent.
#[derive(Args)]
pub(super) struct Plan {
    #[command(flatten)]
    input: Input,
    /// Output format; wide, JSON and YAML list every connection.
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
}

impl Plan {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let form = self.output;
        self.input.show(form, None, |policy, dumped| {
            let Dumped { snapshot, origin } = dumped;
            let plan = decide(policy, snapshot, &Ledger::default(), snapshot.taken);
            print(|out| render::plan(out, form, &plan, snapshot, origin))
        })
    }
}
