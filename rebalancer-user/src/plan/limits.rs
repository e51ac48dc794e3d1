//! A connection measured against its rule's limits.

use std::time::Duration;

use crate::snapshot::Bytes;

/// One limit and the value held against it. `limit` is the connection's own, jitter taken off;
/// `max` is the rule's; 0 < `limit` ≤ `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Time since accept.
    Age {
        /// At the moment of the decision; a lower bound if adopted.
        value: Duration,
        /// The connection's own limit.
        limit: Duration,
        /// The rule's limit.
        max: Duration,
    },
    /// Bytes both ways.
    Bytes {
        /// When listed.
        value: Bytes,
        /// The connection's own limit.
        limit: Bytes,
        /// The rule's limit.
        max: Bytes,
    },
}

impl Reason {
    /// A stable word, for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Age { .. } => "age",
            Self::Bytes { .. } => "bytes",
        }
    }
}
