//! `cargo xtask bench`: what the agent costs on this machine.

mod accept;
mod notice;
mod ratios;

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;

use crate::{
    cargo,
    setup::{self, Need},
};

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// What recording adds to an accepted connection: nginx and ab without keep-alive in the lab,
    /// with and without the agent in each round
    Accept(accept::Args),
    /// Established connections: time and memory to list them, and scheduling delay on the walk's
    /// CPU
    Held {
        /// Number of connections
        #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1000..=1_000_000))]
        connections: u64,
        /// Number of other open files beside them
        #[arg(long, default_value_t = 15_000, value_parser = clap::value_parser!(u64).range(0..=18_000))]
        others: u64,
        /// Duration of each of the six parts of the delay measurement
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Clients of HTTP/2, each asked to leave again and again by the step Notice: calls that fail
    Notice(notice::Args),
    /// Connections opened and closed as fast as this machine can, listed continuously
    Churn {
        /// Duration
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
}

pub(crate) fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Accept(arguments) => accept::run(arguments),
        Bench::Notice(arguments) => notice::run(arguments),
        Bench::Held {
            connections,
            others,
            seconds,
        } => run_kernel_test(
            "scale::held::held_connections_are_all_listed",
            &[
                ("REBALANCER_TEST_HELD", *connections),
                ("REBALANCER_TEST_OTHERS", *others),
                ("REBALANCER_TEST_HELD_SECONDS", *seconds),
            ],
        ),
        Bench::Churn { seconds } => run_kernel_test(
            "scale::churn::sums_are_exact_at_the_highest_connection_rate",
            &[("REBALANCER_TEST_CHURN_SECONDS", *seconds)],
        ),
    }
}

/// Runs the kernel test `test` in a release build; `environment` sets its size.
fn run_kernel_test(test: &str, environment: &[(&str, u64)]) -> Result<()> {
    setup::needs_this_kernel()?;
    setup::ensure(&[Need::Kernel, Need::Host])?;
    let mut command = cargo();
    command.args(["test", "--release", "--workspace", "--test", "kernel", "--"]);
    command.args(["--nocapture", "--exact", test]);
    command.envs(environment.iter().map(|(name, n)| (name, n.to_string())));
    let status = command.status().context("cargo test")?;
    ensure!(status.success(), "{test} failed");
    Ok(())
}
