//! `cargo xtask bench held`

use anyhow::Result;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many connections
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1000..=1_000_000))]
    connections: u64,
    /// How many other files are open beside them
    #[arg(long, default_value_t = 15_000, value_parser = clap::value_parser!(u64).range(0..=18_000))]
    others: u64,
    /// How long each of the six parts of the delay measurement lasts
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

pub(super) fn run(arguments: &Args) -> Result<()> {
    super::measured::run(
        "scale::held::held_connections_are_all_listed",
        &[
            ("REBALANCER_TEST_HELD", arguments.connections),
            ("REBALANCER_TEST_OTHERS", arguments.others),
            ("REBALANCER_TEST_HELD_SECONDS", arguments.seconds),
        ],
    )
}
