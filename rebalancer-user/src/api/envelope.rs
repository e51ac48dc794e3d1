//! What every document has around its body, and how it is written.

use std::io::{self, Write};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::snapshot::KernelTime;

pub(super) const API_VERSION: &str = "rebalancer.dev/v1alpha1";

/// The two notations of one structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// Indented JSON.
    Json,
    /// YAML.
    Yaml,
}

/// The form of an output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum Form {
    /// One line each, the most important columns.
    #[default]
    Table,
    /// One line each, all columns.
    Wide,
    /// For programs.
    Json,
    /// The same as JSON.
    Yaml,
}

impl Form {
    /// How it is written for programs; `None` if it is for people.
    pub fn notation(self) -> Option<Notation> {
        match self {
            Self::Json => Some(Notation::Json),
            Self::Yaml => Some(Notation::Yaml),
            Self::Table | Self::Wide => None,
        }
    }
}

/// Whose records a snapshot shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// Those of the agent that runs.
    Agent,
    /// Those that continue without an agent, by its pins.
    Pins,
    /// Only those made during this call.
    ThisCall,
}

/// Where and when a snapshot was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// The node's host name.
    pub node: String,
    /// When, by the node's clock.
    pub generated_at: jiff::Timestamp,
    /// Whose records it shows.
    pub source: Source,
}

impl Origin {
    /// This node, now.
    pub fn here(source: Source) -> Self {
        Self {
            node: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            generated_at: jiff::Timestamp::now(),
            source,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<T> {
    api_version: &'static str,
    kind: &'static str,
    #[serde(flatten)]
    body: T,
}

/// A body that was computed from a snapshot.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Observed<'a, T> {
    #[serde(flatten)]
    origin: &'a Origin,
    /// `CLOCK_MONOTONIC` when the snapshot was taken.
    taken_nanoseconds: KernelTime,
    #[serde(flatten)]
    body: T,
}

impl<T: Serialize> Envelope<T> {
    fn of(kind: &'static str, body: T) -> Self {
        let api_version = API_VERSION;
        Self {
            api_version,
            kind,
            body,
        }
    }
}

/// A document of this kind as JSON without whitespace, for large files.
pub(super) fn compact(kind: &'static str, body: impl Serialize) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Envelope::of(kind, body))
}

/// Writes a document of this kind.
pub(super) fn write(
    out: &mut impl Write,
    notation: Notation,
    kind: &'static str,
    body: impl Serialize,
) -> io::Result<()> {
    let value = Envelope::of(kind, body);
    match notation {
        Notation::Json => {
            serde_json::to_writer_pretty(&mut *out, &value)?;
            writeln!(out)
        }
        Notation::Yaml => serde_saphyr::to_io_writer(out, &value).map_err(io::Error::other),
    }
}

/// Writes a document that was computed from a snapshot taken then.
pub(super) fn write_observed(
    out: &mut impl Write,
    notation: Notation,
    kind: &'static str,
    taken: KernelTime,
    origin: &Origin,
    body: impl Serialize,
) -> io::Result<()> {
    let body = Observed {
        origin,
        taken_nanoseconds: taken,
        body,
    };
    write(out, notation, kind, body)
}
