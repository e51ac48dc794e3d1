//! `rebalancer policy`: works on policy files, without an agent.

use std::{
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Subcommand;

use super::{note, print};
use crate::{
    agent::read_policy,
    policy::{self, LARGEST_FILE},
};

/// Validate, explain and document policies.
#[derive(Subcommand)]
pub(super) enum Policy {
    /// Validate a policy file, and report each error with its position and a remedy.
    Check {
        /// The file; `-` is standard input.
        file: PathBuf,
    },
    /// Print the effective policy, with each default marked.
    Explain {
        /// The file; `-` is standard input.
        file: PathBuf,
    },
    /// Print the JSON Schema of policy files, for editors.
    Schema,
    /// Print the policy reference as Markdown: every field, its type and default, and what it means.
    Reference,
}

impl Policy {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let text = match self {
            Self::Check { file } => {
                let (policy, _) = load(&file)?;
                note_rules_for_pods(&policy);
                let rules = policy.rules().len();
                format!(
                    "{}: valid, mode {}, {rules} rule{}",
                    name(&file),
                    policy.mode().as_str(),
                    if rules == 1 { "" } else { "s" },
                )
            }
            Self::Explain { file } => policy::explain(&name(&file), &text(&file, read(&file))?)?,
            Self::Schema => policy::schema(),
            Self::Reference => policy::reference(),
        };
        print(|out| writeln!(out, "{}", text.trim_end()))
    }
}

/// Reads and parses a policy file; returns its text too.
pub(super) fn load(file: &Path) -> anyhow::Result<(policy::Policy, String)> {
    parse_bytes(file, read(file))
}

/// Parses the bytes of a policy file; returns the text too.
pub(super) fn parse_bytes(
    file: &Path,
    read: io::Result<Vec<u8>>,
) -> anyhow::Result<(policy::Policy, String)> {
    let text = text(file, read)?;
    Ok((policy::parse(&name(file), &text)?, text))
}

/// Notes which rules match nothing without Kubernetes.
pub(super) fn note_rules_for_pods(policy: &policy::Policy) {
    for rule in policy.rules_for_pods() {
        note(format_args!(
            "note: rule {} names Services, namespaces or pods: without Kubernetes it matches nothing",
            rule.name()
        ));
    }
}

fn text(file: &Path, read: io::Result<Vec<u8>>) -> anyhow::Result<String> {
    let name = name(file);
    let bytes = read.with_context(|| format!("reading the policy {name}"))?;
    if bytes.len() as u64 > LARGEST_FILE {
        bail!(
            "{name}: larger than {} MiB, the most that is read",
            LARGEST_FILE >> 20
        );
    }
    String::from_utf8(bytes).with_context(|| format!("{name}: not UTF-8 text; save it as UTF-8"))
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    if file != Path::new("-") {
        return read_policy(file);
    }
    let mut bytes = Vec::new();
    io::stdin().take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The name of the file in messages.
pub(super) fn name(file: &Path) -> String {
    if file == Path::new("-") {
        "stdin".to_owned()
    } else {
        file.display().to_string()
    }
}
