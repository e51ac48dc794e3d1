//! `rebalancer policy`: look at a policy file without an agent.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Subcommand;

use crate::policy;

/// Look at a policy file.
#[derive(Subcommand)]
pub(super) enum Policy {
    /// Say whether a policy file is valid; if not, where and what to write instead.
    Check {
        /// The file; `-` is standard input.
        file: PathBuf,
    },
    /// Print the effective whole of a policy file, with each default marked.
    Explain {
        /// The file; `-` is standard input.
        file: PathBuf,
    },
    /// Print the JSON Schema of policy files, for editors.
    Schema,
}

impl Policy {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Check { file } => {
                let policy = load(&file)?;
                let rules = policy.rules().len();
                println!(
                    "{}: valid, mode {}, {rules} rule{}",
                    name(&file),
                    policy.mode().as_str(),
                    if rules == 1 { "" } else { "s" },
                );
                Ok(())
            }
            Self::Explain { file } => print(&policy::explain(&name(&file), &read(&file)?)?),
            Self::Schema => print(&format!("{}\n", policy::schema())),
        }
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("writing to stdout")
}

/// Reads and checks a policy file.
pub(super) fn load(file: &Path) -> anyhow::Result<policy::Policy> {
    Ok(policy::parse(&name(file), &read(file)?)?)
}

fn read(file: &Path) -> anyhow::Result<String> {
    let name = name(file);
    let bytes = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).map(String::into_bytes)
    } else {
        std::fs::read(file)
    }
    .with_context(|| format!("reading the policy {name}"))?;
    String::from_utf8(bytes).with_context(|| format!("{name}: not UTF-8 text"))
}

pub(super) fn name(file: &Path) -> String {
    if file == Path::new("-") {
        "stdin".to_owned()
    } else {
        file.display().to_string()
    }
}
