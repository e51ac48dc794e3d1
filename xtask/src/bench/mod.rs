//! `cargo xtask bench`: what the agent costs, as ratios of interleaved rounds on this machine.

mod accept;
mod ratios;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// What recording costs an accepted connection: real nginx and ab without keep-alive, in the
    /// lab, each round with and without the agent
    Accept(accept::Args),
}

pub(crate) fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Accept(arguments) => accept::run(arguments),
    }
}
