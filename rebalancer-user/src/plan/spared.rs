//! Why a connection is left.

use std::time::Duration;

use super::{Outcome, Reason};
use crate::snapshot::TcpState;

/// Why a connection is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spared {
    /// The snapshot has its cookie more than once: which is meant is not known.
    Duplicate,
    /// A move of it has been started and not ended.
    InFlight,
    /// No rule matches it.
    NoRule,
    /// The policy or its rule is disabled.
    Disabled,
    /// Not in a state to be moved.
    NotEstablished {
        /// Its state.
        state: TcpState,
    },
    /// No process holds it.
    NotAccepted,
    /// A subflow of an MPTCP connection: without it its client would be stranded.
    Mptcp,
    /// A port of the node's own services, not in `guards.allowSystemPorts`.
    SystemPort {
        /// The port.
        port: u16,
        /// Who it belongs to.
        protocol: &'static str,
    },
    /// A port of a protocol that keeps a session's state in its connection.
    StatefulPort {
        /// The port.
        port: u16,
        /// The protocol.
        protocol: &'static str,
    },
    /// Younger than `guards.minAge`.
    MinAge {
        /// Its age.
        age: Duration,
        /// The guard's.
        min: Duration,
    },
    /// No limit is exceeded.
    WithinLimits {
        /// The limit that it is nearest to.
        nearest: Reason,
    },
    /// A move of it ended less than [`super::HOLD`] ago.
    Held {
        /// How it ended.
        after: Outcome,
        /// Until it may be chosen again.
        left: Duration,
    },
    /// In dry run, and told already.
    DryRun,
    /// As many moves as are allowed are in flight.
    MaxInFlight {
        /// The bound.
        max: u64,
    },
    /// The window's moves are used up.
    Budget {
        /// The bound.
        per_node: u64,
        /// Over this time.
        window: Duration,
    },
}

impl Spared {
    /// A stable word, for logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Duplicate => "duplicate",
            Self::InFlight => "inFlight",
            Self::NoRule => "noRule",
            Self::Disabled => "disabled",
            Self::NotEstablished { .. } => "notEstablished",
            Self::NotAccepted => "notAccepted",
            Self::Mptcp => "mptcp",
            Self::SystemPort { .. } => "systemPort",
            Self::StatefulPort { .. } => "statefulPort",
            Self::MinAge { .. } => "minAge",
            Self::WithinLimits { .. } => "withinLimits",
            Self::Held { after, .. } => match after {
                Outcome::GaveUp => "gaveUp",
                Outcome::Refused(_) => "refused",
                Outcome::Failed(_) => "failed",
                Outcome::LeftByItself | Outcome::Closed | Outcome::Reset | Outcome::GoneBefore => {
                    "moved"
                }
            },
            Self::DryRun => "dryRun",
            Self::MaxInFlight { .. } => "maxInFlight",
            Self::Budget { .. } => "budget",
        }
    }
}
