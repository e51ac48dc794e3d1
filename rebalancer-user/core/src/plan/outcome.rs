//! What became of a move.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::Refusal;
use crate::text::visible;

/// What became of a move. Every move started gets one. Shown as a phrase that goes on from
/// "the move".
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// The client or the server ended it while the move waited.
    LeftByItself,
    /// Its client was asked to leave, and left once its calls were done.
    Noticed,
    /// The server closed it when asked to.
    Closed,
    /// It was reset.
    Reset,
    /// It was gone before the move touched it.
    GoneBefore,
    /// No step's condition came true in its time; the connection lives.
    GaveUp,
    /// A guard or budget of the executor forbade it; the connection lives.
    Refused(Refusal),
    /// What it was chosen for did not hold any more while it waited, and why; the connection lives,
    /// and is judged like any other.
    Recalled(String),
    /// A step was tried and did not work, and why.
    #[serde(deserialize_with = "shown")]
    Failed(String),
}

impl Outcome {
    /// A stable word, for logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::LeftByItself => "leftByItself",
            Self::Noticed => "noticed",
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::GoneBefore => "goneBefore",
            Self::GaveUp => "gaveUp",
            Self::Refused(_) => "refused",
            Self::Recalled(_) => "recalled",
            Self::Failed(_) => "failed",
        }
    }

    /// Why it was refused, if it was.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused(refusal) => Some(*refusal),
            _ => None,
        }
    }

    /// Whether it was made: the connection has ended because of it.
    pub fn is_made(&self) -> bool {
        matches!(self, Self::Noticed | Self::Closed | Self::Reset)
    }

    /// Whether the connection lives on.
    pub fn leaves_it(&self) -> bool {
        match self {
            Self::GaveUp | Self::Refused(_) | Self::Recalled(_) | Self::Failed(_) => true,
            Self::LeftByItself | Self::Noticed | Self::Closed | Self::Reset | Self::GoneBefore => {
                false
            }
        }
    }

    /// Whether nothing was done to the connection, so that the budget is given back.
    pub fn harmless(&self) -> bool {
        match self {
            Self::GoneBefore | Self::GaveUp | Self::Refused(_) | Self::Recalled(_) => true,
            // It left while a step waited, perhaps because of it: counted, to be safe.
            Self::LeftByItself => false,
            Self::Noticed | Self::Closed | Self::Reset | Self::Failed(_) => false,
        }
    }
}

/// Words of a file, without what could command a terminal.
fn shown<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(|text| visible(&text))
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeftByItself => f.write_str("ended as it left by itself"),
            Self::Noticed => f.write_str("asked its client to leave, which did"),
            Self::Closed => f.write_str("closed it"),
            Self::Reset => f.write_str("reset it"),
            Self::GoneBefore => f.write_str("found it gone"),
            Self::GaveUp => f.write_str("gave up, as no step could act in time"),
            Self::Refused(why) => write!(f, "was refused: {why}"),
            Self::Recalled(why) => write!(f, "was recalled: {why}"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// A client that sends nothing for this long is not waited for: its protocol cannot be detected.
pub const SILENT: Duration = Duration::from_secs(15);
