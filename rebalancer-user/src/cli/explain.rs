//! `rebalancer explain ID`: one connection, and why it is moved or skipped.

use anyhow::Context as _;
use clap::Args;

use super::{input::Input, print};
use crate::{
    api::{Dumped, Form},
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
        let (id, form) = (self.id, self.output);
        self.input.show(form, Some(id), |policy, dumped| {
            let Dumped { snapshot, origin } = dumped;
            let (ledger, now) = (Ledger::default(), snapshot.taken);
            let plan = decide(policy, snapshot, &ledger, now);
            let explained = explain(policy, snapshot, &plan, &ledger, now, id);
            let explained = explained.with_context(|| render::not_tracked(id))?;
            print(|out| render::explanation(out, form, &explained, snapshot, origin))
        })
    }
}

fn id(text: &str) -> Result<Cookie, &'static str> {
    text.parse()
        .map_err(|_| "not an ID: expected up to 16 hexadecimal digits")
}
