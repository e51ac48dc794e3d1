//! `cargo xtask simulate`: the agent's decisions in simulated clusters. The simulator is an example
//! of rebalancer-core and needs nothing else of the agent.

use std::ffi::OsString;

use anyhow::{Context as _, Result, ensure};

use crate::cargo;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Arguments of the simulator; see `cargo xtask simulate -- --help`
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
}

pub(crate) fn run(arguments: &Args) -> Result<()> {
    let status = cargo()
        .args(["run", "--release", "-p", "rebalancer-core"])
        .args(["--example", "simulate", "--"])
        .args(&arguments.arguments)
        .status()
        .context("cargo run")?;
    ensure!(status.success(), "the simulation failed: see above");
    Ok(())
}
