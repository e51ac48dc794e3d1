//! Builds the agent, one file that contains the kernel half: `cargo xtask build` for use, without
//! optimization for the demo.

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

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
    let mut command = cargo();
    command.args(["build", "--release", "-p", "rebalancer-user"]);
    build(&mut command, "release/rebalancer", 7)
}

/// The path of this agent, or of one that is built now. Installs the `needs` of what it is used for.
pub(crate) fn given_or_built(given: Option<&Path>, needs: &[Need]) -> Result<PathBuf> {
    setup::ensure(needs)?;
    match given {
        Some(program) => program.canonicalize().context("--agent"),
        None => {
            setup::ensure(&[Need::Kernel])?;
            agent()
        }
    }
}

/// Builds the agent that the tests use, which is quicker to build, and returns its path.
pub(crate) fn unoptimized() -> Result<PathBuf> {
    let mut command = as_for_tests();
    build(command.args(["--bin", "rebalancer"]), "debug/rebalancer", 3)
}

fn build(command: &mut Command, program: &str, minutes: u32) -> Result<PathBuf> {
    let program = target().join(program);
    if !program.exists() {
        println!("  The first build takes about {minutes} minutes on two cores.");
    }
    let status = command.status().context("cargo build")?;
    ensure!(status.success(), "building the agent failed: see above");
    Ok(program)
}

/// `cargo build`, to be given its binaries, that shares all libraries with the tests: with
/// `--examples`, of which these packages have none, it takes the tests' features.
pub(crate) fn as_for_tests() -> Command {
    let mut command = cargo();
    command.args([
        "build",
        "-p",
        "rebalancer-user",
        "-p",
        "xtask",
        "--examples",
    ]);
    command
}

/// Compiles what the agent depends on while packages are downloaded and installed. Dropping it stops
/// it; what it has compiled is not compiled again.
pub(crate) struct HeadStart(Child);

impl HeadStart {
    /// `None` if the kernel half can be built already, and with it the agent.
    pub(crate) fn take() -> Result<Option<Self>> {
        if setup::kernel_is_ready() {
            return Ok(None);
        }
        println!("Compiling the agent's dependencies in the background.");
        // The agent itself fails, without the toolchain for its kernel half.
        let child = as_for_tests()
            .args(["--bin", "rebalancer", "--keep-going"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        Ok(Some(Self(child.context("cargo build")?)))
    }
}

impl Drop for HeadStart {
    fn drop(&mut self) {
        // With its compilers: the build that follows starts the same ones.
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

/// Cargo's target folder.
pub(crate) fn target() -> PathBuf {
    let root = root();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    root.join(target)
}
