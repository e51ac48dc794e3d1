//! `rebalancer dump`: every tracked connection, or every endpoint.

use std::io;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use super::{
    KernelArgs, Output,
    names::NamesArgs,
    records::{Records, agents_ledger},
};
use crate::render::{self, Notation, Sort, Source};

/// Show every tracked connection, or every endpoint.
///
/// Reads the maps of the agent that runs. Without one it attaches for the call: it then shows what
/// is there, but ages count from the call, and nothing is known of what has closed.
#[derive(Args)]
pub(super) struct Dump {
    /// Show endpoints: listeners, connections accepted, open and closed, bytes.
    #[arg(long)]
    endpoints: bool,
    /// The form of the output. JSON can be given to `plan --snapshot` and `explain --snapshot`.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// The order of the connections; without it by endpoint, the oldest first.
    #[arg(long, value_enum, value_name = "BY", conflicts_with = "endpoints")]
    sort: Option<SortArg>,
    #[command(flatten)]
    kernel: KernelArgs,
    #[command(flatten)]
    names: NamesArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum SortArg {
    /// The oldest first.
    Age,
    /// The heaviest first.
    Bytes,
    /// The highest average rate first.
    Rate,
    /// By id.
    Id,
}

impl From<SortArg> for Sort {
    fn from(sort: SortArg) -> Self {
        match sort {
            SortArg::Age => Self::Age,
            SortArg::Bytes => Self::Bytes,
            SortArg::Rate => Self::Rate,
            SortArg::Id => Self::Id,
        }
    }
}

impl Dump {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut records = Records::open(&self.kernel)?;
        let (origin, mut snapshot) = records.read()?;
        let cgroup = self.kernel.cgroup.as_deref();
        self.names.put(&mut snapshot, cgroup)?;
        let (origin, snapshot) = (&origin, &snapshot);
        let sort = self.sort.map_or(Sort::default(), Sort::from);
        let out = &mut io::stdout().lock();
        if self.endpoints {
            match self.output {
                Output::Table | Output::Wide => render::endpoints_table(out, snapshot),
                Output::Json => render::endpoints(out, Notation::Json, snapshot, origin),
                Output::Yaml => render::endpoints(out, Notation::Yaml, snapshot, origin),
            }
        } else {
            // For a replay. The ledger after the records, as `plan` does.
            let replayable = matches!(self.output, Output::Json | Output::Yaml);
            let agent = (replayable && origin.source == Source::Agent)
                .then(|| agents_ledger(&self.kernel))
                .flatten();
            let ledger = agent.as_ref().map(|agent| &agent.ledger);
            let write =
                |notation, out| render::connections(out, notation, snapshot, ledger, origin, sort);
            match self.output {
                Output::Table => render::connections_table(out, snapshot, sort),
                Output::Wide => render::connections_wide(out, snapshot, sort),
                Output::Json => write(Notation::Json, out),
                Output::Yaml => write(Notation::Yaml, out),
            }
        }
        .context("writing to stdout")
    }
}
