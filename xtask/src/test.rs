//! `cargo xtask test`: the project's checks by section, from those that need nothing to those
//! that need root and this machine's kernel. Nothing is skipped silently.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::{
    cargo,
    setup::{self, Need},
    steps, terminal,
};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// Format and lints, of the kernel half too
    Lint,
    /// Unit and property tests: needs neither root nor a BPF toolchain
    Unit,
    /// The command line, as a black box
    Cli,
    /// On this kernel, in the lab: needs root
    Kernel,
    /// What each step does to real servers and clients, as a table: needs root
    Steps,
    /// All of them but the table
    All,
}

struct Section {
    name: &'static str,
    command: Command,
}

pub(crate) fn run(suite: Suite) -> Result<()> {
    let sections = match suite {
        Suite::Lint => lint()?,
        Suite::Unit => unit(),
        Suite::Cli => cli()?,
        Suite::Kernel => kernel()?,
        Suite::Steps => return steps::run(),
        Suite::All => {
            let kernel = kernel()?;
            lint()?
                .into_iter()
                .chain(unit())
                .chain(cli()?)
                .chain(kernel)
                .collect()
        }
    };
    let results: Vec<_> = sections.into_iter().map(Section::run).collect();
    summarize(&results)
}

fn lint() -> Result<Vec<Section>> {
    // The agent's build script builds the kernel half, also for clippy.
    setup::ensure(&[Need::Lints, Need::Kernel])?;
    Ok(vec![
        section("format", &["fmt", "--all", "--check"]),
        section(
            "lints",
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
        ),
    ])
}

fn unit() -> Vec<Section> {
    let mut sections = vec![
        section(
            "unit and property tests",
            &["test", "--workspace", "--lib", "--bins"],
        ),
        section(
            "properties of decisions",
            &["test", "--workspace", "--test", "decide"],
        ),
        section("examples in the docs", &["test", "--workspace", "--doc"]),
    ];
    if !setup::kernel_is_ready() {
        println!("no BPF toolchain: the agent is built without its kernel half for these tests");
        for section in &mut sections {
            section.command.env("AYA_BUILD_SKIP", "1");
        }
    }
    sections
}

fn cli() -> Result<Vec<Section>> {
    setup::ensure(&[Need::Kernel, Need::Host])?;
    let tests = ["cli", "deploy", "plan", "policy", "manual"].map(|test| ["--test", test]);
    let agent = ["test", "--workspace"];
    Ok(vec![section(
        "command line, manifests",
        &[&agent[..], tests.as_flattened()].concat(),
    )])
}

fn kernel() -> Result<Vec<Section>> {
    needs_this_kernel()?;
    setup::ensure(&[Need::Kernel, Need::Host])?;
    let one_by_one = ["--", "--test-threads=1"];
    let agent = ["test", "--workspace", "--test", "kernel"];
    Ok(vec![
        section("the lab", &["test", "--workspace", "--test", "lab"]),
        section("kernel", &[&agent[..], &one_by_one].concat()),
    ])
}

/// What the kernel tests and the demo need of the machine, beyond programs.
pub(crate) fn needs_this_kernel() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("this needs root; `cargo xtask test unit` does not");
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        bail!(
            "this kernel has no BTF (/sys/kernel/btf/vmlinux): boot one with CONFIG_DEBUG_INFO_BTF"
        );
    }
    Ok(())
}

// Always `--workspace`: with `-p` cargo would resolve features anew, and build the agent and its
// kernel half once more.
fn section(name: &'static str, arguments: &[&str]) -> Section {
    let mut command = cargo();
    command.args(arguments);
    Section { name, command }
}

impl Section {
    /// Runs it, its output as it comes.
    fn run(mut self) -> (&'static str, bool, Duration) {
        terminal::heading(format!("── {} ──", self.name));
        let started = Instant::now();
        let passed = match self.command.status() {
            Ok(status) => status.success(),
            Err(error) => {
                eprintln!("cargo: {error}");
                false
            }
        };
        (self.name, passed, started.elapsed())
    }
}

fn summarize(results: &[(&'static str, bool, Duration)]) -> Result<()> {
    terminal::heading("Summary");
    for (name, passed, time) in results {
        let mark = if *passed {
            terminal::green("✓")
        } else {
            terminal::red("✗")
        };
        println!("  {mark} {name:<26} {:>6.1} s", time.as_secs_f64());
    }
    let failed: Vec<&str> = results
        .iter()
        .filter(|(_, passed, _)| !passed)
        .map(|(name, ..)| *name)
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    bail!("failed: {}", failed.join(", "))
}
