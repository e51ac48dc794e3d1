//! `cargo xtask setup`: finds what is missing, prints it, installs it and checks again. Every other
//! command starts with [`ensure`], which is silent and quick if nothing is missing.

mod apt;
mod components;
mod go;
mod host;
mod kernel;

use std::{path::Path, time::Instant};

use anyhow::{Context as _, Result, bail};

use crate::terminal;

pub(crate) use go::{build as go_build, program as go_program};
#[cfg(feature = "steps")]
pub(crate) use host::postgres_programs;
pub(crate) use host::{KEYS, find};

/// A group of things that this project needs on the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// What builds the kernel half: a compiler with a BPF core, and the linker.
    Kernel,
    /// The programs of the lab, the demo and the tests.
    Host,
    /// What builds the cluster's programs and runs on its nodes; large, so only for commands that
    /// need a cluster.
    Cluster,
    /// What checks the manifests, in addition to kubectl.
    Deploy,
    /// clippy and rustfmt.
    Lints,
    /// A C++ compiler, which builds libFuzzer.
    Fuzzer,
    /// The servers of the table of steps.
    Steps,
    /// What boots other kernels.
    Machines,
    /// What installs a Debian with systemd for such a machine.
    Debian,
    /// The proxies of the suite `answers`.
    Answers,
    /// What the servers and clients of the cluster's rollouts are written in, beside Go.
    Rollouts,
    /// What builds a server and a client of HTTP/2 for the kernel tests.
    Calls,
}

/// What `setup` installs: everything except what only a single command needs.
const ALL: [Need; 4] = [Need::Kernel, Need::Host, Need::Lints, Need::Fuzzer];

/// The result of looking for one thing.
struct Finding {
    what: &'static str,
    /// What was found, or what is wrong.
    state: Result<String>,
    /// Debian packages that contain it.
    packages: Vec<&'static str>,
}

impl Need {
    fn find(self) -> Vec<Finding> {
        let programs = |these: &[_]| -> Vec<Finding> {
            these.iter().copied().map(host::find_program).collect()
        };
        let with = |mut all: Vec<Finding>, other| {
            all.push(other);
            all
        };
        match self {
            Self::Kernel => kernel::find(),
            Self::Host => programs(&host::LAB),
            Self::Cluster => with(programs(&host::CLUSTER), go::find()),
            Self::Deploy => {
                let promtool = ("promtool", "prometheus", "alert rules and dashboards");
                with(programs(&[promtool]), go::find())
            }
            Self::Lints => vec![components::find()],
            Self::Fuzzer => programs(&[("c++", "g++", "the fuzzers")]),
            Self::Steps => with(programs(&host::SERVERS), host::find_postgres()),
            Self::Machines => programs(&host::MACHINES),
            Self::Debian => programs(&[(
                "debootstrap",
                "debootstrap",
                "a Debian with systemd for machines",
            )]),
            Self::Answers => programs(&[("haproxy", "haproxy", "responses behind a proxy")]),
            Self::Rollouts => programs(&host::ROLLOUTS),
            Self::Calls => vec![go::find()],
        }
    }

    /// Installs what packages do not contain. Called after the packages are installed.
    fn install(self) -> Result<()> {
        match self {
            Self::Kernel => kernel::install(),
            Self::Cluster | Self::Deploy | Self::Calls => go::install(),
            Self::Lints => components::install(),
            // Packages contain all of the others.
            _ => Ok(()),
        }
    }
}

/// Prints what is needed and installs what is missing.
pub(crate) fn run() -> Result<()> {
    let started = Instant::now();
    terminal::heading("Requirements");
    let missing = show(&ALL);
    if missing.is_empty() {
        kernel::record()?;
        println!("\nNothing to do.");
        return Ok(());
    }
    install(&missing)?;
    terminal::heading("Requirements now");
    if !show(&ALL).is_empty() {
        bail!("something is still missing, see above");
    }
    kernel::record()?;
    println!(
        "\n{} in {:.0} s.",
        terminal::green("Ready"),
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Installs those of `needs` that are missing; every other command calls this first.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let missing: Vec<Need> = needs
        .iter()
        .copied()
        .filter(|need| is_missing(*need))
        .collect();
    if !missing.is_empty() {
        terminal::heading("Requirements");
        let missing = show(&missing);
        install(&missing)?;
        for Finding { what, state, .. } in missing.iter().flat_map(|need| need.find()) {
            state.context(what)?;
        }
    }
    if needs.contains(&Need::Kernel) {
        kernel::record()?;
    }
    Ok(())
}

/// Whether the kernel half can be built without installing anything.
pub(crate) fn kernel_is_ready() -> bool {
    !is_missing(Need::Kernel) && kernel::record().is_ok()
}

fn is_missing(need: Need) -> bool {
    need.find().iter().any(|finding| finding.state.is_err())
}

/// Prints what was found and returns the needs that are not met.
fn show(needs: &[Need]) -> Vec<Need> {
    let mut missing = Vec::new();
    for need in needs {
        for Finding { what, state, .. } in need.find() {
            match state {
                Ok(found) => terminal::check(true, what, &found),
                Err(problem) => {
                    terminal::check(false, what, &format!("{problem:#}"));
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
        .flat_map(|need| need.find())
        .filter(|finding| finding.state.is_err())
        .flat_map(|finding| finding.packages)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    apt::install(&packages)?;
    for need in missing {
        need.install()?;
    }
    Ok(())
}

/// Checks for root and BTF, which the kernel tests and the demo need.
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

/// The architecture as Go and OCI registries name it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
