//! `cargo xtask simulate`: made-up clusters around the agent's own decisions. The simulator is an
//! example of rebalancer-core: it needs nothing else of the agent.

use std::ffi::OsString;

use anyhow::{Context as _, Result, ensure};

use crate::cargo;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What the simulator takes; `cargo xtask simulate -- --help` tells
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
