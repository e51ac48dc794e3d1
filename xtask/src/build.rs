//! `cargo xtask build`: the release agent, one file that contains the kernel half.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use crate::{
    cargo, root,
    setup::{self, Need},
    terminal,
};

/// Builds the agent and returns its path.
pub(crate) fn run() -> Result<PathBuf> {
    setup::ensure(&[Need::Kernel])?;
    let agent = agent()?;
    let bytes = agent.metadata().context("the built agent")?.len();
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    println!(
        "{} {} ({mebibytes:.1} MiB)",
        terminal::green("built"),
        agent.display()
    );
    Ok(agent)
}

/// Builds the agent with cargo's own output and returns its path.
pub(crate) fn agent() -> Result<PathBuf> {
    let status = cargo()
        .args(["build", "--release", "-p", "rebalancer-user"])
        .status()
        .context("cargo build")?;
    ensure!(
        status.success(),
        "cargo build --release -p rebalancer-user failed"
    );
    Ok(target().join("release/rebalancer"))
}

/// Cargo's target folder.
pub(crate) fn target() -> PathBuf {
    let root = root();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    root.join(target)
}
