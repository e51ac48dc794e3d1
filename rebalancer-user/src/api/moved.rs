//! The results of `rebalancer move`.

use std::{
    io::{self, Write},
    net::SocketAddr,
    time::Duration,
};

use serde::Serialize;

use super::envelope::{Notation, Origin, write_observed};
use crate::{
    plan::{Outcome, Refusal, SkipReason},
    snapshot::{Connection, Cookie, Snapshot, in_nanoseconds},
};

/// One connection that was asked for.
#[derive(Clone, Debug)]
pub struct Moved<'a> {
    /// As it was asked for.
    pub id: Cookie,
    /// The connection, if there is one.
    pub connection: Option<&'a Connection>,
    /// The result.
    pub end: End,
    /// Guards that would have skipped it and were ignored, in words.
    pub ignored: Vec<String>,
}

/// The result for a connection that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// No connection has this id.
    NotFound,
    /// A guard skipped it.
    SkipReason(SkipReason),
    /// It would be moved, but this is a dry run.
    WouldMove,
    /// The move was made and ended so.
    Ended {
        /// How it ended.
        outcome: Outcome,
        /// From the order to the outcome.
        waited: Duration,
    },
}

impl End {
    /// A stable word.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NotFound => "notFound",
            Self::SkipReason(_) => "skipped",
            Self::WouldMove => "wouldMove",
            Self::Ended { outcome, .. } => outcome.as_str(),
        }
    }

    /// Whether what was asked for was done.
    pub fn is_moved(&self) -> bool {
        match self {
            Self::WouldMove => true,
            Self::Ended { outcome, .. } => outcome.is_made(),
            Self::NotFound | Self::SkipReason(_) => false,
        }
    }

    /// The result, as a phrase.
    pub(crate) fn detail(&self) -> String {
        match self {
            Self::NotFound => "no connection has this id".to_owned(),
            Self::SkipReason(skipped) => skipped.to_string(),
            Self::WouldMove => "it would be moved".to_owned(),
            Self::Ended { outcome, .. } => format!("the move {outcome}"),
        }
    }
}

#[derive(Serialize)]
struct Body {
    items: Vec<Item>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    local: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<SocketAddr>,
    outcome: &'static str,
    /// Why it is skipped or refused, as a stable word.
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    detail: String,
    ignored: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waited_nanoseconds: Option<u64>,
}

/// Writes the result of each, in the order asked for.
pub fn write_moved(
    out: &mut impl Write,
    notation: Notation,
    moved: &[Moved<'_>],
    snapshot: &Snapshot,
    origin: &Origin,
) -> io::Result<()> {
    let items = moved.iter().map(item).collect();
    write_observed(
        out,
        notation,
        "MoveList",
        snapshot.taken,
        origin,
        Body { items },
    )
}

fn item(one: &Moved<'_>) -> Item {
    Item {
        id: one.id.to_string(),
        local: one.connection.map(|c| c.local),
        peer: one.connection.map(|c| c.remote),
        outcome: one.end.as_str(),
        cause: match &one.end {
            End::SkipReason(skipped) => Some(skipped.as_str()),
            End::Ended { outcome, .. } => outcome.refusal().map(Refusal::as_str),
            _ => None,
        },
        detail: one.end.detail(),
        ignored: one.ignored.clone(),
        waited_nanoseconds: match &one.end {
            End::Ended { waited, .. } => Some(in_nanoseconds(*waited)),
            _ => None,
        },
    }
}
