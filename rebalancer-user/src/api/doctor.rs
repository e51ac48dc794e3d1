//! What `rebalancer doctor` finds on a node.

use std::io::{self, Write};

use jiff::Timestamp;
use serde::Serialize;

use super::envelope::{Notation, write};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Level {
    /// Nothing is missing.
    Ok,
    /// The agent runs, but not with all that it can do.
    Warning,
    /// The agent cannot run, or cannot move.
    Failed,
}

/// One thing that was looked at or tried.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// A few words, stable.
    pub what: &'static str,
    /// How much it matters.
    pub level: Level,
    /// What was found, or why it does not work.
    pub found: String,
    /// What its absence costs; none if the level is [`Level::Ok`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<String>,
    /// What would enable it; none if the level is [`Level::Ok`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// All findings on one node. Kernel and distribution are for information: every ability is tried.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnosis {
    /// The node's host name.
    pub node: String,
    /// When this was written.
    pub generated_at: Timestamp,
    /// The version of this program.
    pub version: &'static str,
    /// As `uname -r` prints it.
    pub kernel: String,
    /// As `/etc/os-release` of the node has it; none if that cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distribution: Option<String>,
    /// In the order of the table.
    pub items: Vec<Finding>,
}

/// Writes a diagnosis.
pub fn write_diagnosis(
    out: &mut impl Write,
    notation: Notation,
    diagnosis: &Diagnosis,
) -> io::Result<()> {
    write(out, notation, "Diagnosis", diagnosis)
}
