//! `cargo xtask simulate`: made-up clusters around the agent's own decisions. The simulator is an
//! example of the agent's crate, as this one must not depend on it.

use std::ffi::OsString;

use anyhow::{Context as _, Result, ensure};

use crate::{cargo, setup};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What the simulator takes; `cargo xtask simulate -- --help` tells
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
}

pub(crate) fn run(arguments: &Args) -> Result<()> {
    let mut cargo = cargo();
    if !setup::kernel_is_ready() {
        // Nothing of it runs here.
        cargo.env("AYA_BUILD_SKIP", "1");
    }
    let status = cargo
        .args(["run", "--release", "-p", "rebalancer-user"])
        .args(["--example", "simulate", "--"])
        .args(&arguments.arguments)
        .status()
        .context("cargo run")?;
    ensure!(status.success(), "the simulation failed: see above");
    Ok(())
}
