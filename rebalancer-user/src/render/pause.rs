//! A pause, as it is asked for through the agent's socket.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PauseWish {
    /// How long.
    pub milliseconds: u64,
    /// Why.
    pub reason: Option<String>,
}

/// What the agent did.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PauseAnswer {
    /// When it ends by itself.
    pub until: Timestamp,
    /// Moves that waited and were called back.
    pub recalled: usize,
    /// Why a restart of the agent would end it, if so.
    pub not_kept: Option<String>,
}
