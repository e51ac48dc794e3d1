//! `cargo xtask test`: all checks in sections, first those that need nothing, last those that need
//! root and this machine's kernel. Nothing is skipped silently.

use std::{process::Command, time::Instant};

use anyhow::{Context as _, Result, ensure};

use crate::{
    answers, cargo,
    check::{self, CheckReport},
    cluster, deploy,
    setup::{self, Need},
    terminal, vm,
};

#[derive(Default, clap::Subcommand)]
enum Suite {
    /// Format and lints, including the kernel half
    Lint,
    /// Unit and property tests: need neither root nor a BPF toolchain
    Unit,
    /// Black-box tests of the command line
    Cli,
    /// Fuzzing of the parsers of external input
    Fuzz,
    /// Tests on this kernel, in the lab: need root
    Kernel,
    /// Many moves under churn, none of which may hit another connection: needs root
    Moves {
        /// Number of moves by SOCK_DESTROY; each other mechanism makes a fifth of it
        #[arg(long, value_name = "COUNT", default_value_t = 100_000)]
        moves: u32,
    },
    /// A table of what each step does to real servers and clients: needs root
    Steps,
    /// Responses with pauses, none of which may be cut off, directly and behind proxies: needs root
    Answers(answers::Args),
    /// All except `moves`, `steps`, `deploy`, `cluster` and `vm`, with a short run of `answers`
    #[default]
    All,
    /// Overlays, chart, alerts and dashboard, checked with helm and kustomize (built on first use)
    /// and promtool
    Deploy,
    /// The manifests in a real Kubernetes, which is built on first use: needs root
    Cluster(cluster::CheckArgs),
    /// The agent on other kernels under qemu: needs neither root nor KVM
    Vm(vm::Machines),
}

struct Section {
    name: &'static str,
    command: Command,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// One suite [default: all]
    #[command(subcommand)]
    suite: Option<Suite>,
}

pub(crate) fn run(arguments: Args) -> Result<()> {
    let sections = match arguments.suite.unwrap_or_default() {
        Suite::Lint => lint()?,
        Suite::Unit => unit(),
        Suite::Cli => cli()?,
        Suite::Fuzz => vec![fuzz()?],
        Suite::Kernel => kernel()?,
        Suite::Moves { moves: count } => vec![moves(count)?],
        Suite::Steps => return steps(),
        Suite::Answers(options) => return answers::run(&options),
        Suite::Deploy => return deploy::check(),
        Suite::Cluster(options) => return cluster::check(options),
        Suite::Vm(options) => return vm::run(&options),
        Suite::All => {
            let kernel = kernel()?;
            let suites = [lint()?, unit(), cli()?, vec![fuzz()?], kernel];
            suites.into_iter().flatten().collect()
        }
    };
    let reports: Vec<_> = sections.into_iter().map(Section::run).collect();
    check::summarize("Summary", &reports)
}

fn lint() -> Result<Vec<Section>> {
    setup::ensure(&[Need::Lints])?;
    let clippy = |name, what: &str| {
        let mut section = section(name, &format!("clippy --workspace {what} -- -D warnings"));
        // Clippy would build the kernel half once more, in a folder of its own.
        section.command.env("AYA_BUILD_SKIP", "1");
        section
    };
    Ok(vec![
        section("format", "fmt --all --check"),
        clippy("lints", "--all-targets"),
        // `test = false` excludes these from --all-targets.
        clippy(
            "lints of what that leaves out",
            "--test kernel --test lab --test tidy",
        ),
        section("layers, imports and words", "test --workspace --test tidy"),
    ])
}

fn unit() -> Vec<Section> {
    let mut sections = vec![
        section("unit and property tests", "test --workspace --lib --bins"),
        section(
            "properties of decisions",
            "test --workspace --test balance --test cluster --test cooldowns --test decide --test drain \
             --test frames --test pods --test services --test views",
        ),
        section("simulated clusters", "test --workspace --test simulate"),
        section("examples in the docs", "test --workspace --doc"),
    ];
    if !setup::kernel_is_ready() {
        println!("no BPF toolchain: these tests build the agent without its kernel half");
        for section in &mut sections {
            section.command.env("AYA_BUILD_SKIP", "1");
        }
    }
    sections
}

fn cli() -> Result<Vec<Section>> {
    setup::ensure(&[Need::Kernel, Need::Host])?;
    Ok(vec![section(
        "command line, manifests",
        "test --workspace --test cli --test deploy",
    )])
}

/// A short run; for a long one use `cargo xtask fuzz --seconds 3600`.
fn fuzz() -> Result<Section> {
    setup::ensure(&[Need::Fuzzer])?;
    Ok(section("fuzzing", "xtask fuzz --seconds 8"))
}

fn kernel() -> Result<Vec<Section>> {
    setup::needs_this_kernel()?;
    setup::ensure(&[Need::Kernel, Need::Host, Need::Answers, Need::Calls])?;
    let mut sections = vec![
        section("the lab", "test --workspace --test lab"),
        section("unit tests as root", "test --workspace --lib -- --ignored"),
        kernel_tests("kernel", "--skip scale::"),
        // These print measurements.
        kernel_tests("kernel, at scale", "--nocapture scale::"),
        // With the agent that the kernel tests have built: no release build is needed here.
        section(
            "answers with pauses",
            "xtask test answers --answers 400 --longest 3 --agent target/debug/rebalancer",
        ),
        section(
            "the bench runs (its numbers are not valid)",
            "xtask bench accept --rounds 1 --connections 1000 --agent target/debug/rebalancer",
        ),
    ];
    let go = setup::go_program()?;
    for section in &mut sections {
        section.command.env("REBALANCER_TEST_GO", &go);
    }
    Ok(sections)
}

/// The kernel tests that `filter` selects, one at a time.
fn kernel_tests(name: &'static str, filter: &str) -> Section {
    let run = "test --workspace --test kernel -- --test-threads=1";
    section(name, &format!("{run} {filter}"))
}

fn moves(count: u32) -> Result<Section> {
    setup::needs_this_kernel()?;
    setup::ensure(&[Need::Kernel, Need::Host])?;
    let mut section = kernel_tests("moves", "--nocapture scale::moves::");
    let count = count.to_string();
    section.command.env("REBALANCER_TEST_MOVES", count);
    Ok(section)
}

/// The table of steps: rebuilds xtask with the client libraries that only this suite needs and runs
/// it.
#[cfg(not(feature = "steps"))]
fn steps() -> Result<()> {
    setup::ensure(&[Need::Kernel, Need::Host, Need::Steps])?;
    let run = "run --package xtask --features steps -- test steps";
    let status = cargo().args(run.split(' ')).status()?;
    ensure!(status.success(), "cargo xtask test steps failed, see above");
    Ok(())
}

#[cfg(feature = "steps")]
use crate::steps::run as steps;

/// A section that runs `cargo` with `arguments`. Tests always use `--workspace`: with `-p` cargo
/// resolves features differently and rebuilds the agent and its kernel half.
fn section(name: &'static str, arguments: &str) -> Section {
    let mut command = cargo();
    command.args(arguments.split(' '));
    Section { name, command }
}

impl Section {
    /// Runs it without capturing its output.
    fn run(mut self) -> CheckReport {
        terminal::heading(format!("── {} ──", self.name));
        let started = Instant::now();
        let outcome = self.command.status().context("cargo").and_then(|status| {
            ensure!(status.success(), "see above");
            Ok(String::new())
        });
        CheckReport::new(self.name, started.elapsed(), outcome)
    }
}
