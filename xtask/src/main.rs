//! `cargo xtask`: sets the machine up, builds, tests and demonstrates. Nothing here ships.

mod ab;
mod agent;
mod answers;
mod bench;
mod build;
mod checked;
mod cluster;
mod demo;
mod deploy;
mod fuzz;
mod image;
mod lab_command;
mod paced;
mod progress;
mod server;
mod setup;
mod simulate;
#[cfg(feature = "steps")]
mod steps;
mod terminal;
mod test;
mod vm;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

/// Sets up, builds, tests and demonstrates the rebalancer.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building, testing and the lab need; does nothing if everything is installed
    Setup,
    /// Build the release agent: one binary with the kernel half inside
    Build,
    /// A small network with a client, a node with kube-proxy's rules, and pods
    #[command(subcommand)]
    Lab(lab_command::Action),
    /// Build the agent's OCI image, without a container engine and without a registry
    Image,
    /// Render the manifests of deploy/: each overlay, and the chart with its defaults
    Manifests {
        /// Output directory, created if it does not exist
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// A real Kubernetes in namespaces of this machine
    #[command(subcommand)]
    Cluster(cluster::Action),
    /// Demonstrate the problem with real programs, then fix it, in three acts
    Demo,
    /// Measure what the agent costs
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Simulate clusters around the agent's own decisions: moves, rounds and who is hit, as a table
    Simulate(simulate::Args),
    /// Run all checks, or one suite
    Test(test::Args),
    /// Fuzz the parsers of external input (policies, records, netlink, BTF, dumps) with libFuzzer
    Fuzz(fuzz::Args),
    /// The demo's client: keep-alive connections that think between requests
    #[command(hide = true)]
    PacedClient(paced::Args),
    /// The server of `test answers`: it pauses amid its answers
    #[command(hide = true)]
    AnswersServer(answers::Serving),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Task::Setup => setup::run(),
        Task::Build => build::run().map(drop),
        Task::Lab(action) => lab_command::run(&action),
        Task::Image => image::run(),
        Task::Manifests { folder } => deploy::write(&folder),
        Task::Cluster(action) => cluster::run(&action),
        Task::Demo => demo::run(),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Bench(bench) => bench::run(&bench),
        Task::Simulate(arguments) => simulate::run(&arguments),
        Task::PacedClient(arguments) => paced::run(&arguments),
        Task::AnswersServer(arguments) => answers::serve(&arguments),
        Task::Test(arguments) => test::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{} {error:#}", terminal::red("error:"));
            ExitCode::FAILURE
        }
    }
}

/// The workspace's root: the folder above this crate.
fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .canonicalize()
        .expect("the workspace that this program was built from is still there")
}

/// What takes long to make and stays: each named by what it was made from.
fn cache() -> Result<PathBuf> {
    let caches = std::env::var_os("XDG_CACHE_HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: where shall built programs be kept?")?;
    let cache = caches.join("rebalancer");
    fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    Ok(cache)
}

/// cargo in the workspace's root, in the environment that a plain `cargo build` has: another
/// one would rebuild everything.
fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root()).env_remove("RUSTC_BOOTSTRAP");
    cargo
}
