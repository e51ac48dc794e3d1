//! `rebalancer plan`: what would be moved now, and why.

use std::{fs, io, path::PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::{
    Output,
    input::{Input, ledger_of},
};
use crate::{
    plan::decide,
    render::{self, Notation, Sort},
};

/// Show what would be moved now, in what order and why; what is skipped and why; how long it takes.
///
/// It changes nothing. It asks the same core as the agent, with what the agent that runs has moved
/// so far: it is what that agent would do now. Without an agent the budgets are shown unspent.
#[derive(Args)]
pub(super) struct Plan {
    #[command(flatten)]
    input: Input,
    /// The form of the output; wide, JSON and YAML show every connection, one by one.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Also write the snapshot that the plan is made of, as `dump -o json` does.
    #[arg(long, value_name = "FILE", hide = true)]
    dump_to: Option<PathBuf>,
}

impl Plan {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let (policy, dumped) = &self.input.read()?;
        let (snapshot, origin) = (&dumped.snapshot, &dumped.origin);
        if let Some(file) = &self.dump_to {
            let mut dump = Vec::new();
            let (json, sort) = (Notation::Json, Sort::default());
            let ledger = dumped.ledger.as_ref();
            render::connections(&mut dump, json, snapshot, ledger, origin, sort)?;
            fs::write(file, dump).with_context(|| format!("writing {}", file.display()))?;
        }
        let plan = decide(policy, snapshot, &ledger_of(dumped), snapshot.taken);
        let out = &mut io::stdout().lock();
        match self.output {
            Output::Table => render::plan_table(out, &plan, snapshot),
            Output::Wide => render::plan_wide(out, &plan, snapshot),
            Output::Json => render::plan(out, Notation::Json, &plan, snapshot, origin),
            Output::Yaml => render::plan(out, Notation::Yaml, &plan, snapshot, origin),
        }
        .context("writing to stdout")
    }
}
