//! `cargo xtask bench churn`

use anyhow::Result;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

pub(super) fn run(arguments: &Args) -> Result<()> {
    super::measured::run(
        "scale::churn::sums_are_exact_as_fast_as_connections_can_come_and_go",
        &[("REBALANCER_TEST_CHURN_SECONDS", arguments.seconds)],
    )
}
