//! `cargo xtask bench`: what the agent costs on this machine.

mod accept;
mod churn;
mod held;
mod measured;
mod ratios;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// What recording costs an accepted connection: real nginx and ab without keep-alive, in the
    /// lab, each round with and without the agent
    Accept(accept::Args),
    /// Connections held: time and memory to list them, and how long that keeps a CPU from others
    Held(held::Args),
    /// Connections that come and go as fast as this machine can make them, listed all the time
    Churn(churn::Args),
}

pub(crate) fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Accept(arguments) => accept::run(arguments),
        Bench::Held(arguments) => held::run(arguments),
        Bench::Churn(arguments) => churn::run(arguments),
    }
}
