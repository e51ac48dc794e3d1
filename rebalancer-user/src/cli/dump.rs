//! `rebalancer dump`: every tracked connection, or every endpoint.

use clap::Args;

use super::{KernelArgs, need_privilege, print, records::Records, running};
use crate::{
    api::{self, Dumped, Form, Sort},
    bpf, render,
};

/// Show every tracked connection, or every endpoint.
///
/// Asks the running agent. Without one it reads the maps that a previous agent has left; if there
/// are none it attaches for the duration of the call: ages then count from the call, and closed
/// connections are unknown. Only an agent knows pod names. A `>` marks the age of a connection that
/// is older than tracking: it is at least that.
#[derive(Args)]
pub(super) struct Dump {
    /// Show endpoints: listeners, connections accepted, open and closed, bytes.
    #[arg(long)]
    endpoints: bool,
    /// Output format. `plan --snapshot` and `explain --snapshot` read JSON.
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
    /// Sort order of the connections [default: by endpoint, oldest first].
    #[arg(long, value_enum, value_name = "BY", conflicts_with = "endpoints")]
    sort: Option<Sort>,
    #[command(flatten)]
    kernel: KernelArgs,
}

impl Dump {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let Dumped { origin, snapshot } = &self.read()?;
        let sort = self.sort.unwrap_or_default();
        let notation = self.output.notation();
        print(|out| match (self.endpoints, notation) {
            (true, None) => render::endpoints_table(out, snapshot),
            (true, Some(notation)) => api::write_endpoints(out, notation, snapshot, origin),
            (false, Some(notation)) => {
                api::write_connections(out, notation, snapshot, origin, sort)
            }
            (false, None) => match self.output {
                Form::Wide => render::connections_wide(out, snapshot, sort),
                _ => render::connections_table(out, snapshot, sort),
            },
        })
    }

    /// What the agent sees; without one, what its pins or a program attached for this call show.
    fn read(&self) -> anyhow::Result<Dumped> {
        need_privilege()?;
        if bpf::agent_runs(&self.kernel.pins) {
            return Ok(running::dump(&self.kernel)?);
        }
        let (origin, snapshot) = Records::open(&self.kernel)?.read()?;
        Ok(Dumped { origin, snapshot })
    }
}
