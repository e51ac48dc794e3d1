//! `cargo xtask test`: the project's checks by section, from those that need nothing to those
//! that need root and this machine's kernel. Nothing is skipped silently.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::{
    answers, cargo, cluster, deploy,
    setup::{self, Need},
    terminal, vm,
};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// Format and lints, of the kernel half too
    Lint,
    /// Unit and property tests: needs neither root nor a BPF toolchain
    Unit,
    /// The command line, as a black box
    Cli,
    /// The parsers of external input, fuzzed
    Fuzz,
    /// On this kernel, in the lab: needs root
    Kernel,
    /// Many moves under churn, each of which must hit its victim and nothing else: needs root
    Moves,
    /// What each step does to real servers and clients, as a table: needs root
    Steps,
    /// Answers with pauses, of which none may be broken off, directly and behind proxies: needs root
    Answers,
    /// All but `moves`, `steps`, `deploy`, `cluster` and `vm`, and a few of `answers`
    All,
    /// Overlays, chart, alerts and dashboard by helm, kustomize and promtool, the first two of which
    /// are built the first time
    Deploy,
    /// The manifests in a real Kubernetes, which is built the first time: needs root
    Cluster,
    /// The agent on other kernels, which qemu boots: needs neither root nor KVM
    Vm,
}

struct Section {
    name: &'static str,
    command: Command,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(value_enum, default_value_t = Suite::All)]
    suite: Suite,
    /// How many moves the suite `moves` makes by SOCK_DESTROY, and a fifth of it by each other
    /// means [default: 100000]
    #[arg(long, value_name = "COUNT")]
    moves: Option<u32>,
    #[command(flatten, next_help_heading = "For the suite answers")]
    answers: answers::Args,
    #[command(flatten, next_help_heading = "For the suite cluster")]
    cluster: cluster::Checking,
    #[command(flatten, next_help_heading = "For the suite vm")]
    vm: vm::Machines,
}

pub(crate) fn run(arguments: &Args) -> Result<()> {
    let suite = arguments.suite;
    if arguments.moves.is_some() && suite != Suite::Moves {
        bail!("--moves is for one suite: cargo xtask test moves --moves COUNT");
    }
    if !arguments.vm.is_empty() && suite != Suite::Vm {
        bail!("kernels are for one suite: cargo xtask test vm KERNEL...");
    }
    if arguments.answers.any() && suite != Suite::Answers {
        bail!("--answers and its like are for one suite: cargo xtask test answers --answers COUNT");
    }
    let sections = match suite {
        Suite::Lint => lint()?,
        Suite::Unit => unit(),
        Suite::Cli => cli()?,
        Suite::Fuzz => vec![fuzz()?],
        Suite::Kernel => kernel()?,
        Suite::Moves => vec![moves(arguments.moves.unwrap_or(100_000))?],
        Suite::Steps => return steps(),
        Suite::Answers => return answers::run(&arguments.answers),
        Suite::Deploy => return deploy::check(),
        Suite::Cluster => return cluster::check(arguments.cluster),
        Suite::Vm => return vm::run(&arguments.vm),
        Suite::All => {
            let kernel = kernel()?;
            lint()?
                .into_iter()
                .chain(unit())
                .chain(cli()?)
                .chain([fuzz()?])
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
        // Not among all targets, as a plain `cargo test` leaves it out.
        section(
            "lints of the kernel tests",
            &[
                "clippy",
                "--workspace",
                "--test",
                "kernel",
                "--test",
                "lab",
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
            &[
                "test",
                "--workspace",
                "--test",
                "decide",
                "--test",
                "balance",
            ],
        ),
        section(
            "simulated clusters",
            &["test", "--workspace", "--test", "simulate"],
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
    let tests = ["cli", "deploy"].map(|test| ["--test", test]);
    let agent = ["test", "--workspace"];
    Ok(vec![section(
        "command line, manifests",
        &[&agent[..], tests.as_flattened()].concat(),
    )])
}

/// A short run: a long one is `cargo xtask fuzz --seconds 3600`.
fn fuzz() -> Result<Section> {
    setup::ensure(&[Need::Fuzzer])?;
    Ok(section("fuzzing", &["xtask", "fuzz", "--seconds", "8"]))
}

fn kernel() -> Result<Vec<Section>> {
    setup::needs_this_kernel()?;
    setup::ensure(&[Need::Kernel, Need::Host, Need::Answers])?;
    Ok(vec![
        section("the lab", &["test", "--workspace", "--test", "lab"]),
        section(
            "unit tests as root",
            &["test", "--workspace", "--lib", "--", "--ignored"],
        ),
        section("kernel", &[&KERNEL[..], &["--skip", SCALE]].concat()),
        // It measures as well: its words are shown.
        section(
            "kernel, at scale",
            &[&KERNEL[..], &["--nocapture", SCALE]].concat(),
        ),
        section(
            "answers with pauses",
            &[
                "xtask",
                "test",
                "answers",
                "--answers",
                "400",
                "--longest",
                "3",
                "--agent",
                BUILT,
            ],
        ),
        section(
            "the bench runs (its numbers say nothing)",
            &[
                "xtask",
                "bench",
                "accept",
                "--rounds",
                "1",
                "--connections",
                "1000",
                "--agent",
                BUILT,
            ],
        ),
    ])
}

/// The agent, built by what runs before; a release build is for numbers that mean something.
const BUILT: &str = "target/debug/rebalancer";

/// The kernel tests, one by one; what follows chooses among them.
const KERNEL: [&str; 6] = [
    "test",
    "--workspace",
    "--test",
    "kernel",
    "--",
    "--test-threads=1",
];
/// Those that do much.
const SCALE: &str = "scale::";

fn moves(count: u32) -> Result<Section> {
    setup::needs_this_kernel()?;
    setup::ensure(&[Need::Kernel, Need::Host])?;
    let mut section = section(
        "moves",
        &[&KERNEL[..], &["--nocapture", "scale::moves::"]].concat(),
    );
    section
        .command
        .env("REBALANCER_TEST_MOVES", count.to_string());
    Ok(section)
}

/// The table of steps, by this program built once more with the clients that only it needs.
#[cfg(not(feature = "steps"))]
fn steps() -> Result<()> {
    setup::ensure(&[Need::Kernel, Need::Host, Need::Steps])?;
    let again = ["run", "--package", "xtask", "--features", "steps", "--"];
    let status = cargo().args(again).args(["test", "steps"]).status()?;
    if !status.success() {
        bail!("cargo xtask test steps: see above");
    }
    Ok(())
}

#[cfg(feature = "steps")]
use crate::steps::run as steps;

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
