//! `cargo xtask`: sets up the machine, builds, tests and demonstrates. Not shipped.

mod ab;
mod agent;
mod answers;
mod bench;
mod build;
mod check;
mod cluster;
mod demo;
mod deploy;
mod fuzz;
mod image;
mod keepalive_client;
mod lab_command;
mod lines;
mod policy;
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
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use fs_err as fs;

/// Sets up, builds, tests and demonstrates the rebalancer.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building, testing and the lab need, if it is missing
    Setup,
    /// Build the release agent: one binary with the kernel half inside
    Build,
    /// Manage labs: a client, a node with kube-proxy's rules, and pods in network namespaces
    #[command(subcommand)]
    Lab(lab_command::Action),
    /// Build the agent's OCI image; needs no container engine and no registry
    Image,
    /// Render the manifests of deploy/: each overlay, and the chart with its defaults
    Manifests {
        /// Output directory, created if it does not exist
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Manage a real Kubernetes cluster in namespaces of this machine
    #[command(subcommand)]
    Cluster(cluster::Action),
    /// Demonstrate the problem with real programs, then fix it, in three acts
    Demo,
    /// Measure what the agent costs
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Run the agent's decisions in simulated clusters and print moves and rounds as a table
    Simulate(simulate::Args),
    /// Run all checks, or one suite
    Test(test::Args),
    /// Fuzz the parsers of external input (policies, records, netlink, BTF, dumps) with libFuzzer
    Fuzz(fuzz::Args),
    /// The demo's client: keep-alive connections with think time between requests
    #[command(hide = true)]
    KeepaliveClient(keepalive_client::Args),
    /// The server of `test answers`, which pauses within its responses
    #[command(hide = true)]
    AnswersServer(answers::ServerArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
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
        Task::KeepaliveClient(arguments) => keepalive_client::run(&arguments),
        Task::AnswersServer(arguments) => answers::serve(&arguments),
        Task::Test(arguments) => test::run(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{} {error:#}", terminal::red("error:"));
            ExitCode::FAILURE
        }
    }
}

/// The workspace's root folder.
fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .canonicalize()
        .expect("the workspace that this program was built from exists")
}

/// The cache folder for programs that take long to build; each is named by a hash of its sources.
fn cache() -> Result<PathBuf> {
    let caches = std::env::var_os("XDG_CACHE_HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .context("cannot choose a cache folder: set XDG_CACHE_HOME or HOME")?;
    let cache = caches.join("rebalancer");
    fs::create_dir_all(&cache)?;
    Ok(cache)
}

/// Where what is built from these sources with these options is in the cache.
fn cached(name: &str, options: &str, sources: &[PathBuf]) -> Result<PathBuf> {
    let mut made_from = options.as_bytes().to_vec();
    for file in sources {
        made_from.extend(fs::read(file)?);
    }
    Ok(cache()?.join(format!("{name}-{}", &image::hex(&made_from)[..16])))
}

/// Makes a file or a folder, unless it is there already. It has another name until it is complete.
fn once(done: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if done.exists() {
        return Ok(());
    }
    let partial = done.with_extension("partial");
    let _none_was_left = fs::remove_dir_all(&partial);
    make(&partial)?;
    fs::rename(&partial, done)?;
    Ok(())
}

/// The word for a value on the command line.
fn word(value: impl ValueEnum) -> String {
    let value = value.to_possible_value().expect("no value is skipped");
    value.get_name().to_owned()
}

/// cargo in the workspace's root, in the same environment as a plain `cargo build`: a different one
/// would rebuild everything.
fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root()).env_remove("RUSTC_BOOTSTRAP");
    cargo
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
