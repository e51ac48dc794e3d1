//! `cargo xtask build`: the release agent, one file with the kernel half inside.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use crate::{
    cargo, root,
    setup::{self, Need},
    terminal,
};

/// Builds the agent and returns where it is.
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

/// Builds the agent, showing cargo's own progress.
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

/// Where cargo builds.
pub(crate) fn target() -> PathBuf {
    let root = root();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    root.join(target)
}
