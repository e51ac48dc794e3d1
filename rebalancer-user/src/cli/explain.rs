//! `rebalancer explain ID`: one connection, and why it is moved or skipped.

use std::io::Write as _;

use anyhow::bail;
use clap::Args;

use super::{
    input::{Input, Source},
    print,
};
use crate::{
    api::Form,
    plan::{Ledger, decide, explain},
    render,
    snapshot::Cookie,
};

/// Explain one connection: its rule, its limits, why it is skipped, and what it would take to move it.
///
/// Asks the running agent, as `plan` does.
#[derive(Args)]
pub(super) struct Explain {
    /// The connection's ID, as shown in the first column by `dump` and `plan`.
    #[arg(value_parser = id)]
    id: Cookie,
    #[command(flatten)]
    input: Input,
    /// Output format; wide is the same as table.
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
}

impl Explain {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self.input.read(self.output, Some(self.id))? {
            Source::Agent(answer) => print(|out| out.write_all(&answer)),
            Source::Replay(replay) => {
                let (policy, dumped) = &*replay;
                let (snapshot, origin) = (&dumped.snapshot, &dumped.origin);
                let ledger = Ledger::default();
                let now = snapshot.taken;
                let plan = decide(policy, snapshot, &ledger, now);
                let Some(explained) = explain(policy, snapshot, &plan, &ledger, now, self.id)
                else {
                    bail!(render::not_tracked(self.id));
                };
                let form = self.output;
                print(|out| render::explanation(out, form, &explained, snapshot, origin))
            }
        }
    }
}

fn id(text: &str) -> Result<Cookie, &'static str> {
    text.parse()
        .map_err(|_| "not an ID: expected up to 16 hexadecimal digits")
}
