//! The command line: what an operator types, and the exit codes that scripts rely on.
//!
//! Data goes to stdout, all else to stderr. 0 ok, 1 error, 2 usage, 3 invalid policy,
//! 4 privilege, 5 no agent, 6 not all agents have answered (`kubectl rebalancer`).

mod agent;
mod bugreport;
mod cooldowns;
#[cfg(feature = "kubernetes")]
mod coordinator;
mod doctor;
mod drain;
mod dump;
mod events;
mod explain;
mod input;
mod kubectl;
mod log;
mod manual;
mod masked;
mod move_;
mod names;
mod pause;
mod plan;
mod policy;
mod probe;
mod records;
mod running;
mod status;
mod top;
mod uninstall;

use std::{
    io::{self, StdoutLock, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};

#[cfg(feature = "kubernetes")]
use crate::kubernetes;
use crate::{
    bpf, host,
    policy::{Mode, PolicyErrors, parse_duration},
};

/// Where the agent looks for its policy.
const DEFAULT_POLICY: &str = "/etc/rebalancer/policy.yaml";

/// Rebalances long-lived TCP connections across the replicas of a service: ends those that are too
/// old or too large, so that their clients reconnect.
#[derive(Parser)]
#[command(
    name = "rebalancer",
    version,
    propagate_version = true,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Agent(agent::Agent),
    Bugreport(bugreport::Bugreport),
    #[command(subcommand)]
    Cooldowns(cooldowns::Cooldowns),
    #[cfg(feature = "kubernetes")]
    Coordinator(coordinator::Coordinator),
    #[cfg(feature = "kubernetes")]
    /// Print the CustomResourceDefinition of NodeBalance, for `kubectl apply -f -`.
    ///
    /// It is part of deploy/components/coordinator and of the chart.
    Crd,
    Doctor(doctor::Doctor),
    Drain(drain::Drain),
    Dump(dump::Dump),
    Events(events::Events),
    Move(move_::Move),
    Pause(pause::Pause),
    Plan(plan::Plan),
    Probe(probe::Probe),
    Resume(pause::Resume),
    Status(status::Status),
    Explain(explain::Explain),
    #[command(subcommand)]
    Policy(policy::Policy),
    Top(top::Top),
    Uninstall(uninstall::Uninstall),
    Completions(manual::Completions),
    Man(manual::Man),
}

/// Where the kernel side is.
#[derive(Args, Clone, Debug)]
pub(crate) struct KernelArgs {
    /// Directory on a bpffs in which the agent's maps are pinned.
    #[arg(long, value_name = "PATH", default_value = bpf::DEFAULT_DIR)]
    pins: PathBuf,
    /// Cgroup v2 directory to attach to instead of the hierarchy's root, for nodes in a private
    /// cgroup namespace.
    #[arg(long, value_name = "PATH", env = "REBALANCER_CGROUP")]
    cgroup: Option<PathBuf>,
    /// Directory of the agent's socket [default: /run/ and the last component of --pins].
    #[arg(long, value_name = "PATH")]
    run_dir: Option<PathBuf>,
}

impl KernelArgs {
    fn run_dir(&self) -> PathBuf {
        self.run_dir.clone().unwrap_or_else(|| {
            let name = self.pins.file_name();
            Path::new("/run").join(name.unwrap_or("rebalancer".as_ref()))
        })
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeArg {
    /// Move nothing, and report no moves.
    #[value(name = "Disabled")]
    Disabled,
    /// Report what would be moved, and move nothing.
    #[value(name = "DryRun", alias = "dry-run")]
    DryRun,
    /// Move, as far as the policy allows.
    #[value(name = "Enforce")]
    Enforce,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Disabled => Self::Disabled,
            ModeArg::DryRun => Self::DryRun,
            ModeArg::Enforce => Self::Enforce,
        }
    }
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text).map_err(|e| format!("{}: {}", e.what, e.remedy))?;
    if duration.is_zero() {
        return Err("must be more than 0".to_owned());
    }
    Ok(duration)
}

/// Parses the command line, runs the command, and says what went wrong.
pub fn main() -> ExitCode {
    let name = std::env::args_os().next().map(PathBuf::from);
    let name = name.as_deref().and_then(Path::file_name);
    if name.is_some_and(|name| name == kubectl::PLUGIN) {
        return ended(kubectl::Plugin::parse().run());
    }
    let command = Cli::parse().command;
    // Before there are threads. Without it some names stay unknown, and `doctor` says why.
    let _own_view_stays = host::enter_cgroup_namespace_of_process_1();
    ended(match command {
        Command::Agent(agent) => agent.run(),
        Command::Bugreport(bugreport) => bugreport.run(),
        Command::Cooldowns(cooldowns) => cooldowns.run(),
        #[cfg(feature = "kubernetes")]
        Command::Coordinator(coordinator) => coordinator.run(),
        #[cfg(feature = "kubernetes")]
        Command::Crd => print(|out| out.write_all(kubernetes::definition().as_bytes())),
        Command::Doctor(doctor) => doctor.run(),
        Command::Drain(drain) => drain.run(),
        Command::Dump(dump) => dump.run(),
        Command::Events(events) => events.run(),
        Command::Move(chosen) => chosen.run(),
        Command::Pause(pause) => pause.run(),
        Command::Plan(plan) => plan.run(),
        Command::Probe(probe) => probe.run(),
        Command::Resume(resume) => resume.run(),
        Command::Status(status) => status.run(),
        Command::Explain(explain) => explain.run(),
        Command::Policy(policy) => policy.run(),
        Command::Top(top) => top.run(),
        Command::Uninstall(uninstall) => uninstall.run(),
        Command::Completions(completions) => completions.run(),
        Command::Man(man) => man.run(),
    })
}

fn ended(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            note(message(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Writes to stdout.
fn print(write: impl FnOnce(&mut StdoutLock<'_>) -> io::Result<()>) -> anyhow::Result<()> {
    write(&mut io::stdout().lock()).context("writing to stdout")
}

/// Says something on stderr. A reader that is gone is no reason to end otherwise.
pub(crate) fn note(text: impl std::fmt::Display) {
    let _nobody_reads = writeln!(io::stderr(), "{text}");
}

/// A policy's errors are already in the form of a compiler's; others get a prefix.
fn message(error: &anyhow::Error) -> String {
    match error.downcast_ref::<PolicyErrors>() {
        Some(errors) => errors.to_string(),
        None => format!("error: {error:#}"),
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<PolicyErrors>().is_some() {
        return 3;
    }
    if error.downcast_ref::<kubectl::Unanswered>().is_some() {
        return 6;
    }
    match error.downcast_ref::<running::NotAsked>() {
        Some(running::NotAsked::Privilege { .. }) => return 4,
        Some(running::NotAsked::NoAgent { .. }) => return 5,
        Some(running::NotAsked::Other { .. }) | None => {}
    }
    match error.downcast_ref::<bpf::Error>() {
        Some(bpf::Error::Privilege(_)) => 4,
        Some(bpf::Error::NoPins { .. }) => 5,
        _ => 1,
    }
}

/// The reader of our output has seen enough (`| head`): not an error.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Fails with exit code 4 unless this process may use BPF.
pub(crate) fn need_privilege() -> Result<(), bpf::Error> {
    match host::missing_capabilities() {
        missing if missing.is_empty() => Ok(()),
        missing => Err(bpf::Error::Privilege(missing)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
