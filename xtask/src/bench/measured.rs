//! Benches that are kernel tests too: the same code, in the release build and with larger numbers.

use anyhow::{Context as _, Result, ensure};

use crate::{
    cargo,
    setup::{self, Need},
};

/// Runs the kernel test `test` of the release build, its size told by `environment`.
pub(super) fn run(test: &str, environment: &[(&str, u64)]) -> Result<()> {
    setup::needs_this_kernel()?;
    setup::ensure(&[Need::Kernel, Need::Host])?;
    let mut command = cargo();
    command.args(["test", "--release", "--workspace", "--test", "kernel", "--"]);
    command.args(["--nocapture", "--exact", test]);
    for (variable, number) in environment {
        command.env(variable, number.to_string());
    }
    let status = command.status().context("cargo test")?;
    ensure!(status.success(), "{test} failed");
    Ok(())
}
