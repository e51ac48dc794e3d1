//! The `rebalancer` binary: see [`rebalancer_user::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    rebalancer_user::cli::main()
}
