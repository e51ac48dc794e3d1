//! `cargo xtask setup`: finds out what is missing, says what it will install, installs it and
//! looks again. Every other command begins with [`ensure`], which is silent and quick where
//! all is there.

mod apt;
mod components;
mod go;
mod host;
mod kernel;
mod machine;
pub(crate) mod servers;

use std::time::Instant;

use anyhow::{Result, bail};

use crate::terminal;

pub(crate) use go::build as go_build;
pub(crate) use host::find;
pub(crate) use machine::{KEYS, architecture, needs_this_kernel};

/// A part of what this project needs from the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Whatever builds the kernel half: a compiler with a BPF core, and the linker.
    Kernel,
    /// The programs of the lab, the demo and the tests.
    Host,
    /// What the cluster's programs are made of and its nodes run; large, so only for the commands
    /// that want a cluster.
    Cluster,
    /// What checks the manifests beyond kubectl; only for the commands that want it.
    Deploy,
    /// clippy and rustfmt.
    Lints,
    /// A C++ compiler: libFuzzer is built with the fuzzers.
    Fuzzer,
    /// The servers of the table of steps.
    Steps,
    /// What boots other kernels; only for the command that does.
    Machines,
    /// The proxies of the answers with pauses.
    Answers,
}

/// What the command `setup` brings: all but what a single command installs by itself.
const ALL: [Need; 4] = [Need::Kernel, Need::Host, Need::Lints, Need::Fuzzer];

/// One thing that was looked for.
struct Finding {
    what: &'static str,
    /// What is there, or what is wrong.
    state: Result<String, String>,
    /// Packages that would bring it, where apt has it.
    packages: Vec<&'static str>,
}

impl Need {
    fn look(self) -> Vec<Finding> {
        match self {
            Self::Kernel => kernel::look(),
            Self::Host => host::look(),
            Self::Cluster => {
                let mut findings = host::look_for_cluster();
                findings.push(go::look());
                findings
            }
            Self::Deploy => vec![
                go::look(),
                host::look_for(("promtool", "prometheus", "alert rules and dashboards")),
            ],
            Self::Lints => vec![components::look()],
            Self::Fuzzer => vec![host::look_for(("c++", "g++", "the fuzzers"))],
            Self::Steps => servers::look(),
            Self::Machines => host::look_for_machines(),
            Self::Answers => vec![host::look_for((
                "haproxy",
                "haproxy",
                "answers behind a proxy",
            ))],
        }
    }

    /// What packages alone do not bring. Called with the packages installed.
    fn complete(self) -> Result<()> {
        match self {
            Self::Kernel => kernel::complete(),
            Self::Host | Self::Fuzzer | Self::Steps | Self::Machines | Self::Answers => Ok(()),
            Self::Cluster | Self::Deploy => go::complete(),
            Self::Lints => components::complete(),
        }
    }
}

/// The command: shows everything, and installs what is missing.
pub(crate) fn run() -> Result<()> {
    let started = Instant::now();
    terminal::heading("What is there");
    let missing = show(&ALL);
    if missing.is_empty() {
        kernel::record()?;
        println!("\nNothing to do.");
        return Ok(());
    }
    install(&missing)?;
    terminal::heading("What is there now");
    if !show(&ALL).is_empty() {
        bail!("setup ran, and yet something is missing: see above");
    }
    kernel::record()?;
    println!(
        "\n{} in {:.0} s.",
        terminal::green("Ready"),
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// What every other command calls first: sets up what it needs and is not there.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let missing: Vec<Need> = needs.iter().copied().filter(|need| lacks(*need)).collect();
    if !missing.is_empty() {
        terminal::heading("What is there");
        let missing = show(&missing);
        install(&missing)?;
        if let Some(finding) = missing
            .iter()
            .flat_map(|need| need.look())
            .find(|finding| finding.state.is_err())
        {
            bail!(
                "{}: {}",
                finding.what,
                finding.state.unwrap_or_else(|problem| problem)
            );
        }
    }
    if needs.contains(&Need::Kernel) {
        kernel::record()?;
    }
    Ok(())
}

/// Whether the kernel half can be built as things are; installs nothing.
pub(crate) fn kernel_is_ready() -> bool {
    !lacks(Need::Kernel) && kernel::record().is_ok()
}

fn lacks(need: Need) -> bool {
    need.look().iter().any(|finding| finding.state.is_err())
}

/// Prints what was found; returns the needs that are not met.
fn show(needs: &[Need]) -> Vec<Need> {
    let mut missing = Vec::new();
    for need in needs {
        for Finding { what, state, .. } in need.look() {
            match state {
                Ok(found) => terminal::check(true, what, &found),
                Err(problem) => {
                    terminal::check(false, what, &problem);
                    if !missing.contains(need) {
                        missing.push(*need);
                    }
                }
            }
        }
    }
    missing
}

fn install(missing: &[Need]) -> Result<()> {
    terminal::heading("Installing");
    let mut packages: Vec<&str> = missing
        .iter()
        .flat_map(|need| need.look())
        .filter(|finding| finding.state.is_err())
        .flat_map(|finding| finding.packages)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    apt::install(&packages)?;
    for need in missing {
        need.complete()?;
    }
    Ok(())
}
