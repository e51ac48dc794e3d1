//! `rebalancer plan`: what would be moved now, and why.

use std::io::Write as _;

use clap::Args;

use super::{
    input::{Input, Source},
    print,
};
use crate::{
    api::Form,
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
        match self.input.read(self.output, None)? {
            Source::Agent(answer) => print(|out| out.write_all(&answer)),
            Source::Replay(replay) => {
                let (policy, dumped) = &*replay;
                let (snapshot, origin) = (&dumped.snapshot, &dumped.origin);
                let plan = decide(policy, snapshot, &Ledger::default(), snapshot.taken);
                print(|out| render::plan(out, self.output, &plan, snapshot, origin))
            }
        }
    }
}
