//! `cargo xtask fuzz`: runs libFuzzer on the parsers of external input.
//!
//! What each target must uphold is in rebalancer-user/src/fuzzing.rs, its seeds are in
//! rebalancer-user/fuzz/corpus. New inputs that reach more code are kept under target/fuzz, so that
//! the next run continues where the last one stopped.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use fs_err as fs;

use crate::{
    build, progress, root,
    setup::{self, Need},
    terminal, word,
};

/// A parser of external input.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// Policy files
    Policy,
    /// Records written by the BPF iterator
    Records,
    /// sock_diag replies
    Netlink,
    /// The kernel's BTF
    Btf,
    /// Saved dumps, for `plan --snapshot`
    Dump,
    /// HTTP/1 bytes of a sniffed connection, in both directions
    Exchange,
    /// HTTP/2 bytes of a server, send by send
    Frames,
}

/// Larger inputs only make runs slower.
const LARGEST: usize = 16 * 1024;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Targets to fuzz, one after the other [default: all]
    #[arg(value_enum)]
    targets: Vec<Target>,
    /// Duration for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

pub(crate) fn run(arguments: &Args) -> Result<()> {
    let targets = match &arguments.targets[..] {
        [] => Target::value_variants(),
        some => some,
    };
    setup::ensure(&[Need::Fuzzer])?;
    let programs = build_all()?;
    for target in targets {
        let name = word(*target);
        let summary = fuzz(&name, arguments.seconds, &programs)?;
        terminal::check(true, &name, &summary);
    }
    Ok(())
}

/// Builds the fuzzers and returns their folder.
///
/// The wrapper instruments the workspace's own crates only. A separate profile or separate flags
/// would rebuild every dependency.
fn build_all() -> Result<PathBuf> {
    let mut command = build::as_for_tests();
    command
        .args(["-p", "rebalancer-fuzz", "--bin", "fuzz-*"])
        .args(["--features", "rebalancer-fuzz/libfuzzer"])
        .env(
            "RUSTC_WORKSPACE_WRAPPER",
            root().join("rebalancer-user/fuzz/instrument"),
        )
        // The kernel half is not fuzzed: the verifier checks it.
        .env("AYA_BUILD_SKIP", "1");
    progress::run("building the fuzzers, about two minutes", &mut command)?;
    Ok(build::target().join("debug"))
}

/// Fuzzes one target and returns a summary.
fn fuzz(name: &str, seconds: u32, programs: &Path) -> Result<String> {
    let folder = build::target().join("fuzz").join(name);
    let kept = folder.join("corpus");
    fs::create_dir_all(&kept)?;
    let mut command = Command::new(programs.join(format!("fuzz-{name}")));
    command
        .current_dir(&folder) // a crash leaves its input here
        .arg(&kept)
        .arg(root().join("rebalancer-user/fuzz/corpus").join(name))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={LARGEST}"))
        .args(["-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1"])
        .env("RUST_BACKTRACE", "0");
    if name == "policy" {
        let words = root().join("rebalancer-user/fuzz/policy.dict");
        command.arg(format!("-dict={}", words.display()));
    }
    let label = format!("fuzzing {name} for {seconds} s");
    let output = progress::run_for_output(&label, &mut command)
        .with_context(|| format!("the input is in {}", folder.display()))?;
    summary(&output).with_context(|| format!("fuzzing {name}"))
}

/// Summarizes libFuzzer's statistics in one line.
fn summary(output: &[String]) -> Result<String> {
    let number = |name: &str| {
        output
            .iter()
            .find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
    };
    let Some(runs) = number("stat::number_of_executed_units:") else {
        bail!("libFuzzer printed no statistics");
    };
    let reached = output
        .iter()
        .rev()
        .find_map(|line| line.split_once("cov: ")?.1.split(' ').next())
        .unwrap_or("?");
    if runs == 0 || reached == "0" {
        bail!("{runs} inputs reached no code");
    }
    Ok(format!(
        "{runs} inputs, {reached} branches reached, no failure"
    ))
}
