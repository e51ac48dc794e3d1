//! `rebalancer explain ID`: one connection, and why it is moved or skipped.

use std::io;

use anyhow::{Context as _, bail};
use clap::Args;

use super::{
    Output,
    input::{Input, ledger_of},
};
use crate::{
    plan::explain,
    render::{self, Notation},
    snapshot::Cookie,
};

/// Explain one connection: its rule, its limits, what skips it, and what it would take.
///
/// As `plan`, it knows what the agent that runs has moved.
#[derive(Args)]
pub(super) struct Explain {
    /// The connection, as `dump` and `plan` show it in their first columns.
    #[arg(value_parser = id)]
    id: Cookie,
    #[command(flatten)]
    input: Input,
    /// The form of the output; wide is as table.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

impl Explain {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let (policy, dumped) = &self.input.read()?;
        let (snapshot, origin) = (&dumped.snapshot, &dumped.origin);
        let ledger = ledger_of(dumped);
        let Some(explained) = explain(policy, snapshot, &ledger, snapshot.taken, self.id) else {
            bail!(
                "no connection {} is tracked: it has ended, or was never recorded",
                self.id
            );
        };
        let out = &mut io::stdout().lock();
        match self.output {
            Output::Table | Output::Wide => render::explanation_table(out, &explained, snapshot),
            Output::Json => render::explanation(out, Notation::Json, &explained, snapshot, origin),
            Output::Yaml => render::explanation(out, Notation::Yaml, &explained, snapshot, origin),
        }
        .context("writing to stdout")
    }
}

fn id(text: &str) -> Result<Cookie, &'static str> {
    text.parse()
        .map_err(|_| "not an id: up to 16 hexadecimal digits are expected")
}
