//! `rebalancer policy`: look at a policy file without an agent.

use std::path::{Path, PathBuf};

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
        }
    }
}

/// Reads and checks a policy file.
pub(super) fn load(file: &Path) -> anyhow::Result<policy::Policy> {
    let name = name(file);
    let bytes = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).map(String::into_bytes)
    } else {
        std::fs::read(file)
    }
    .with_context(|| format!("reading the policy {name}"))?;
    let text = String::from_utf8(bytes).with_context(|| format!("{name}: not UTF-8 text"))?;
    Ok(policy::parse(&name, &text)?)
}

pub(super) fn name(file: &Path) -> String {
    if file == Path::new("-") {
        "stdin".to_owned()
    } else {
        file.display().to_string()
    }
}
