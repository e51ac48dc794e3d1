//! `cargo xtask`: sets the machine up, builds, tests and demonstrates. Nothing here ships.

mod build;
mod lab_command;
mod progress;
mod setup;
mod terminal;

use std::{path::PathBuf, process::ExitCode};

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
    /// Install what building, testing and the lab need; does nothing where all is there
    Setup,
    /// Build the release agent: one binary with the kernel half inside
    Build,
    /// A small network with a client, a node with kube-proxy's rules, and pods
    #[command(subcommand)]
    Lab(lab_command::Action),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Task::Setup => setup::run(),
        Task::Build => build::run().map(drop),
        Task::Lab(action) => lab_command::run(&action),
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
