//! What travels over the agent's socket in a request.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    api::{DrainEndpoint, DrainTarget, Form},
    policy::{Mode, RuleName},
};

/// Asks for a plan of this moment, or for the explanation of one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlanRequest {
    /// A policy to try; the agent's own, if there is none.
    pub policy: Option<PolicyText>,
    /// Do no more than this.
    pub mode: Option<Mode>,
    /// The form of the answer.
    pub form: Form,
    /// The connection, by its cookie in hexadecimal.
    pub connection: Option<String>,
}

/// A policy, and what it is called in its errors.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyText {
    /// The file that it was read from.
    pub name: String,
    /// What it held.
    pub text: String,
}

/// Asks for a pause.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PauseRequest {
    /// How long.
    pub milliseconds: u64,
    /// Why.
    pub reason: Option<String>,
}

/// What the agent did.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PauseAnswer {
    /// When it expires.
    pub until: Timestamp,
    /// Moves that waited and were called back.
    pub recalled: usize,
    /// Why a restart of the agent would end it, if so.
    pub not_kept: Option<String>,
}

/// Asks for the cooldowns that last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CooldownsRequest {
    /// The form of the answer.
    pub form: Form,
}

/// Asks to end cooldowns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClearRequest {
    /// Those of this rule; all, if it is null.
    pub rule: Option<RuleName>,
}

/// Asks for endpoints to be drained.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DrainRequest {
    /// Which.
    pub target: DrainTarget,
    /// How long that may take.
    pub milliseconds: u64,
    /// Only to say what it would do.
    pub dry_run: bool,
}

/// What is drained, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainAnswer {
    /// The run of the agent.
    pub run: String,
    /// The number of its newest event: what follows are events of the drain, among others.
    pub after: u64,
    /// The endpoints.
    pub endpoints: Vec<DrainEndpoint>,
}

/// Asks for a drain to end.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CancelDrainRequest {
    /// That which was asked for by this.
    pub target: DrainTarget,
}
