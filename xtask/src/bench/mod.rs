//! `cargo xtask bench`: what things cost on this machine, of the release build.

mod churn;
mod held;
mod measured;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Connections held: time and memory to list them, and how long that keeps a CPU from others
    Held(held::Args),
    /// Connections that come and go as fast as this machine can make them, listed all the time
    Churn(churn::Args),
}

pub(crate) fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Held(arguments) => held::run(arguments),
        Bench::Churn(arguments) => churn::run(arguments),
    }
}
