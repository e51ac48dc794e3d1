//! `cargo xtask test vm`: the agent on other kernels than this machine's. Each is Debian's own, booted
//! by qemu in software, so that neither root nor a CPU's help is needed, with a root that holds the
//! release agent, the essential part of the kernel tests, and what the lab runs.

mod abilities;
mod archive;
mod guest;
mod kernels;
mod machine;
mod systemd;

use std::{fmt, fs::File, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use fs_err as fs;
use rustix::fs::{FlockOperation, flock};

use crate::{
    build,
    progress::Step,
    setup::{self, Need},
    terminal, word,
};

use abilities::Row;
use guest::Guest;
use kernels::Kernel;

/// The first that the agent refuses, then long-term ones and the newest.
const USUAL: [&str; 6] = ["5.10", "6.1", "6.12", "6.18", "7.2", "7.3"];

/// What to boot.
#[derive(clap::Args)]
pub(crate) struct Machines {
    /// Debian's kernels, each by the beginning of its version [default: 5.10 6.1 6.12 6.18 7.2 7.3]
    #[arg(value_name = "KERNEL")]
    kernels: Vec<String>,
    /// How much the kernel forbids even to root; several by commas, each kernel is booted with each
    #[arg(long, value_enum, value_delimiter = ',', default_value = "none")]
    lockdown: Vec<Lockdown>,
    /// Where cgroup v2 is; several by commas
    #[arg(long, value_enum, value_delimiter = ',', default_value = "v2")]
    cgroup: Vec<Cgroup>,
    /// Yama's ptrace_scope, 0 to 3; several by commas [default: the kernel's own]
    #[arg(long, value_name = "SCOPE", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(0..=3))]
    yama: Vec<u8>,
    /// Boot a Debian 13 with systemd instead, and try the unit of deploy/systemd there; needs root
    #[arg(long, conflicts_with_all = ["kernels", "kernel_package"])]
    systemd: bool,
    /// A kernel from this Debian package instead; given again for its modules, if they are apart
    #[arg(long, value_name = "PATH")]
    kernel_package: Vec<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Lockdown {
    None,
    Integrity,
    Confidentiality,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cgroup {
    /// Alone
    V2,
    /// In `unified`, beside the hierarchies of v1
    Hybrid,
}

/// How one kernel is booted.
#[derive(Clone, Copy)]
struct Boot<'a> {
    kernel: &'a Kernel,
    lockdown: Lockdown,
    cgroup: Cgroup,
    /// None: the kernel's own.
    yama: Option<u8>,
}

impl Machines {
    /// Each kernel with each lockdown, each place of cgroup v2 and each scope of Yama.
    fn boots<'a>(&self, kernels: &'a [Kernel]) -> Vec<Boot<'a>> {
        let scopes = match &self.yama[..] {
            [] => vec![None],
            scopes => scopes.iter().copied().map(Some).collect(),
        };
        let mut boots = Vec::new();
        for kernel in kernels {
            for &lockdown in &self.lockdown {
                for &cgroup in &self.cgroup {
                    boots.extend(scopes.iter().map(|&yama| Boot {
                        kernel,
                        lockdown,
                        cgroup,
                        yama,
                    }));
                }
            }
        }
        boots
    }
}

pub(crate) fn run(options: &Machines) -> Result<()> {
    setup::ensure(&[Need::Kernel, Need::Host, Need::Machines, Need::Calls])?;
    let folder = folder()?;
    let turn = File::open(&folder).with_context(|| folder.display().to_string())?;
    flock(&turn, FlockOperation::NonBlockingLockExclusive)
        .context("another `cargo xtask test vm` is at work in this folder")?;
    if options.systemd {
        setup::ensure(&[Need::Debian])?;
        return systemd::run(&build::agent()?, &folder);
    }
    terminal::heading("Kernels");
    let kernels = kernels(options)?;
    terminal::heading("What they run");
    let guest = Guest::make(&build::agent()?, &folder)?;
    terminal::heading("Machines");
    let mut rows = Vec::new();
    let boots = options.boots(&kernels);
    println!("  {} machines, two to five minutes each", boots.len());
    for boot in boots {
        rows.push(run_one(boot, &guest)?);
        // Written as it grows: a run of all takes long.
        let results = folder.join("results.md");
        fs::write(&results, abilities::table(&rows))?;
    }
    terminal::heading("Results");
    print!("{}", abilities::table(&rows));
    match rows.iter().filter(|row| row.failed()).count() {
        0 => Ok(()),
        count => bail!("{count} of {} machines failed: see above", rows.len()),
    }
}

/// Where what takes long to get stays.
fn folder() -> Result<PathBuf> {
    let folder = build::target().join("vm");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn kernels(options: &Machines) -> Result<Vec<Kernel>> {
    let folder = folder()?;
    if !options.kernel_package.is_empty() {
        if !options.kernels.is_empty() {
            bail!("--kernel-package is a kernel by itself: name no other");
        }
        return Ok(vec![Kernel::unpack(&options.kernel_package, &folder)?]);
    }
    let archive = archive::Archive::open(&folder)?;
    let named: Vec<&str> = match &options.kernels[..] {
        [] => USUAL.to_vec(),
        named => named.iter().map(String::as_str).collect(),
    };
    let fetch = |version| Kernel::unpack(&archive.fetch(version)?, &folder);
    named.into_iter().map(fetch).collect()
}

fn run_one(boot: Boot<'_>, guest: &Guest) -> Result<Row> {
    let step = Step::start(&boot.to_string());
    let log = folder()?.join(format!("{boot}.log").replace(", ", "-").replace(' ', "-"));
    let initramfs = guest.for_kernel(boot.kernel)?;
    let said = machine::run(boot, &initramfs, &log, &|line| step.update(line))?;
    let row = Row::judge(&boot, &said);
    step.end(!row.failed());
    if row.failed() {
        println!("    its console: {}", log.display());
    } else {
        let _gone = fs::remove_file(&log);
    }
    Ok(row)
}

impl fmt::Display for Boot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kernel.release)?;
        match self.lockdown {
            Lockdown::None => {}
            level => write!(f, ", lockdown {}", word(level))?,
        }
        if self.cgroup == Cgroup::Hybrid {
            f.write_str(", hybrid cgroups")?;
        }
        match self.yama {
            Some(scope) => write!(f, ", Yama {scope}"),
            None => Ok(()),
        }
    }
}
