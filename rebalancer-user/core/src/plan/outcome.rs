//! What became of a move.

use std::{fmt, time::Duration};

/// What became of a move. Every move started gets one. Shown as a phrase that goes on from
/// "the move".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The client or the server ended it while the move waited.
    LeftByItself,
    /// The server closed it when asked to.
    Closed,
    /// It was reset.
    Reset,
    /// It was gone before the move touched it.
    GoneBefore,
    /// No step's condition came true in its time; the connection lives.
    GaveUp,
    /// A guard or budget of the executor forbade it, by its word; the connection lives.
    Refused(&'static str),
    /// What it was chosen for did not hold any more while it waited, and why; the connection lives,
    /// and is judged like any other.
    Recalled(String),
    /// A step was tried and did not work, and why.
    Failed(String),
}

impl Outcome {
    /// A stable word, for logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::LeftByItself => "leftByItself",
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::GoneBefore => "goneBefore",
            Self::GaveUp => "gaveUp",
            Self::Refused(_) => "refused",
            Self::Recalled(_) => "recalled",
            Self::Failed(_) => "failed",
        }
    }

    /// Whether the connection lives on.
    pub fn leaves_it(&self) -> bool {
        match self {
            Self::GaveUp | Self::Refused(_) | Self::Recalled(_) | Self::Failed(_) => true,
            Self::LeftByItself | Self::Closed | Self::Reset | Self::GoneBefore => false,
        }
    }

    /// Whether nothing was done to the connection, so that the budget is given back.
    pub fn harmless(&self) -> bool {
        match self {
            Self::GoneBefore | Self::GaveUp | Self::Refused(_) | Self::Recalled(_) => true,
            // It left while a step waited, perhaps because of it: counted, to be safe.
            Self::LeftByItself => false,
            Self::Closed | Self::Reset | Self::Failed(_) => false,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeftByItself => f.write_str("ended as it left by itself"),
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

/// One whose client says nothing for so long is not waited for to be heard.
pub const SILENT: Duration = Duration::from_secs(15);

/// Why a connection is not moved for what it was heard to speak, where its rule does not say what
/// its end means. On HTTP/1 nothing is lost at a moment at which all that was asked is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/2: a slow call hides behind the answers to fast ones.
    Http2,
    /// TLS: whatever is in it.
    Tls,
    /// It has become a WebSocket, a tunnel, or what else its client asked for by HTTP/1: no end of it
    /// is one at which nothing is lost.
    Upgraded,
    /// Another protocol than HTTP/1.
    Unknown,
    /// Nothing for too long.
    Silent,
    /// This agent cannot hear it: it may not put its programs on its cgroup, or has none.
    CannotSniff,
}

impl Protocol {
    const ALL: [Self; 6] = [
        Self::Http2,
        Self::Tls,
        Self::Upgraded,
        Self::Unknown,
        Self::Silent,
        Self::CannotSniff,
    ];

    /// A stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http2 => "http2",
            Self::Tls => "tls",
            Self::Upgraded => "upgraded",
            Self::Unknown => "protocolUnknown",
            Self::Silent => "silent",
            Self::CannotSniff => "cannotSniff",
        }
    }

    /// The outcome that says so.
    pub fn refusal(self) -> Outcome {
        Outcome::Refused(self.as_str())
    }

    /// What an outcome says of it.
    pub(super) fn of(outcome: &Outcome) -> Option<Self> {
        let Outcome::Refused(word) = outcome else {
            return None;
        };
        Self::ALL
            .into_iter()
            .find(|speech| speech.as_str() == *word)
    }

    /// Whether it stays so for as long as the connection lives.
    pub(super) fn lasts(self) -> bool {
        matches!(self, Self::Http2 | Self::Tls | Self::Upgraded)
    }
}
