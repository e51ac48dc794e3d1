//! `cargo xtask fuzz`: the doors for input from outside, fed with made-up bytes by libFuzzer.
//!
//! What each door must hold is in rebalancer-user/src/fuzzing.rs; the seeds are in
//! rebalancer-user/fuzz/corpus. New inputs that reach more are kept under target/fuzz, so that a
//! long run goes on where the last one stopped.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{
    cargo, progress, root,
    setup::{self, Need},
    terminal,
};

/// A door for input from outside.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// The text of a policy
    Policy,
    /// What the kernel's iterator wrote
    Records,
    /// Answers of sock_diag
    Netlink,
    /// The kernel's types
    Btf,
    /// A saved dump, for `plan --snapshot`
    Dump,
    /// What two ends of a connection say
    Exchange,
}

/// One input larger than this is of no use: the time goes into its size.
const LARGEST: usize = 16 * 1024;

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Records => "records",
            Self::Netlink => "netlink",
            Self::Btf => "btf",
            Self::Dump => "dump",
            Self::Exchange => "exchange",
        }
    }
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which door; all of them, one after the other, if none is named
    #[arg(value_enum)]
    targets: Vec<Target>,
    /// How long for each
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

pub(crate) fn run(arguments: &Args) -> Result<()> {
    let targets = match &arguments.targets[..] {
        [] => Target::value_variants(),
        some => some,
    };
    setup::ensure(&[Need::Fuzzer])?;
    let programs = build()?;
    for target in targets {
        let found = feed(*target, arguments.seconds, &programs)?;
        terminal::check(true, target.name(), &found);
    }
    Ok(())
}

/// Builds the fuzzers; their folder.
///
/// The wrapper counts branches in the workspace's own crates. A profile or flags of their own
/// would build every dependency once more.
fn build() -> Result<PathBuf> {
    let mut command = cargo();
    command
        .args(["build", "--package", "rebalancer-fuzz", "--bins"])
        .args(["--features", "libfuzzer"])
        .env(
            "RUSTC_WORKSPACE_WRAPPER",
            root().join("rebalancer-user/fuzz/instrument"),
        )
        // The kernel half is not fuzzed: the kernel's verifier has the last word on it.
        .env("AYA_BUILD_SKIP", "1");
    progress::run("building the fuzzers", &mut command)?;
    Ok(root().join("target/debug"))
}

/// Runs one; what it has to say at its end.
fn feed(target: Target, seconds: u32, programs: &std::path::Path) -> Result<String> {
    let name = target.name();
    let folder = root().join("target/fuzz").join(name);
    let kept = folder.join("corpus");
    fs::create_dir_all(&kept).with_context(|| kept.display().to_string())?;
    let mut command = Command::new(programs.join(format!("fuzz-{name}")));
    command
        .current_dir(&folder) // a crash leaves its input here
        .arg(&kept)
        .arg(root().join("rebalancer-user/fuzz/corpus").join(name))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={LARGEST}"))
        .args(["-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1"])
        .env("RUST_BACKTRACE", "0");
    if target == Target::Policy {
        let words = root().join("rebalancer-user/fuzz/policy.dict");
        command.arg(format!("-dict={}", words.display()));
    }
    let label = format!("feeding {name} for {seconds} s");
    let said = progress::run_for_output(&label, &mut command)
        .with_context(|| format!("the input is in {}", folder.display()))?;
    summary(&said).with_context(|| format!("{name} ended without saying what it did"))
}

/// What libFuzzer prints at its end, in one line.
fn summary(said: &[String]) -> Result<String> {
    let number = |name: &str| {
        said.iter()
            .find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
    };
    let Some(runs) = number("stat::number_of_executed_units:") else {
        bail!("no statistics in its output");
    };
    let reached = said
        .iter()
        .rev()
        .find_map(|line| line.split_once("cov: ")?.1.split(' ').next())
        .unwrap_or("?");
    if runs == 0 || reached == "0" {
        bail!("it reached nothing: {runs} inputs");
    }
    Ok(format!(
        "{runs} inputs, {reached} branches reached, none broke it"
    ))
}
