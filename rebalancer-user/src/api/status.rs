//! The state of an agent.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    envelope::{Notation, write},
    events::EventDrain,
    parse::{ReadError, check_kind, parse},
};

const STATUS: &str = "Status";

/// An agent at one moment.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The node's host name.
    pub node: String,
    /// When this was written.
    pub generated_at: Timestamp,
    /// The agent's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When it began to track.
    pub up_since: Timestamp,
    /// How much it may do.
    pub mode: ModeStatus,
    /// What it goes by.
    pub policy: PolicyStatus,
    /// The thread that moves; none if this node cannot reset.
    pub mover: Option<MoverStatus>,
    /// How it resets; none if this node cannot.
    pub reset_mechanism: Option<String>,
    /// Where its maps are pinned.
    pub pins: String,
    /// The cgroup that its program is attached to.
    pub cgroup: String,
    /// How often it had to attach again behind another program.
    pub attached_again: u64,
    /// Time from one pass to the next.
    pub interval_seconds: f64,
    /// The pause of moves, if an operator has asked for one.
    pub paused: Option<PausedStatus>,
    /// The balance across nodes; none if there is nobody to exchange reports with.
    #[serde(default)]
    pub cluster: Option<ClusterStatus>,
    /// The last pass; none before the first.
    pub last_pass: Option<PassStatus>,
    /// Why the last pass could not be made, if so.
    pub pass_error: Option<String>,
    /// What bounds the records.
    pub capacity: CapacityStatus,
    /// What went wrong in the kernel half since tracking began, by kind.
    pub kernel_faults: BTreeMap<String, u64>,
    /// Abilities that this node lacks, as tried when the agent started, each with why.
    #[serde(default)]
    pub lacks: BTreeMap<String, String>,
    /// The budgets, of the mode in effect first.
    pub budgets: Vec<BudgetStatus>,
    /// Rules that have only a part of the budgets yet, as they have not been enforced for long.
    #[serde(default)]
    pub ramps: Vec<RampStatus>,
    /// The most moves that may be under way.
    pub max_in_flight: u64,
    /// Moves under way.
    pub in_flight: Vec<InFlightStatus>,
    /// The endpoints that are drained.
    #[serde(default)]
    pub drains: Vec<EventDrain>,
    /// Moves that ended since the agent started, by outcome.
    pub ended: BTreeMap<String, u64>,
    /// Moves reported in dry run since the agent started.
    pub reported_in_dry_run: u64,
}

/// How much an agent may do, and what limits it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ModeStatus {
    /// The safest of those below.
    pub effective: String,
    /// The policy's.
    pub policy: String,
    /// The most that the command line allows.
    pub flag: String,
    /// What keeps it from more: `policy`, `flag`, `noMechanism`, `podsWithoutNames`.
    pub limited_by: Vec<String>,
}

/// The thread that moves.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MoverStatus {
    /// `fine`, `stuck` or `ended`.
    pub state: String,
    /// For how long the kernel has not answered it, if it is stuck.
    pub stuck_seconds: Option<f64>,
    /// The connection at which it is stuck, if it is at one.
    pub at: Option<String>,
    /// How often another took over from one that was stuck or had ended.
    pub replaced: u64,
}

/// An agent's policy.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// The file.
    pub file: String,
    /// When what is in effect was read.
    pub loaded_at: Timestamp,
    /// Its rules.
    pub rules: usize,
    /// The last reload, if it was refused: what was read before stays in effect.
    pub refused: Option<RefusedStatus>,
}

/// A reload that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedStatus {
    /// When.
    pub at: Timestamp,
    /// Why.
    pub error: String,
}

/// A pause: nothing new is moved.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PausedStatus {
    /// When it began.
    pub since: Timestamp,
    /// When it expires; none if it lasts for as long as the annotation is there.
    pub until: Option<Timestamp>,
    /// Why, in the operator's words.
    pub reason: Option<String>,
    /// Who has asked for it.
    #[serde(default)]
    pub by: PausedBy,
}

/// Who has paused moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PausedBy {
    /// An operator on this node, by `rebalancer pause`.
    #[default]
    Operator,
    /// The annotation `rebalancer.dev/paused` of the agents' namespace, for all nodes.
    Namespace,
}

impl PausedBy {
    /// The command that ends such a pause.
    pub fn ends_by(self) -> &'static str {
        match self {
            Self::Operator => "`rebalancer resume`",
            Self::Namespace => "`kubectl annotate namespace NAME rebalancer.dev/paused-`",
        }
    }

    /// As a stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Namespace => "namespace",
        }
    }
}

/// How a node takes part in the balance across nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// What is known of the other nodes: `awaited`, `expired` or `valid`.
    pub views: String,
    /// Why this node's report or views are not exchanged, if so.
    pub trouble: Option<String>,
    /// Its part in each Service that is balanced across nodes.
    pub shares: Vec<ShareStatus>,
}

/// A node's part in the balance of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShareStatus {
    /// The Service and its endpoints' port.
    pub service: String,
    /// The rule.
    pub rule: String,
    /// Ready endpoints on all nodes.
    pub endpoints: u32,
    /// What each would hold, in the unit of the rule's `balance.by`, as the next.
    pub mean: u64,
    /// What this node's endpoints hold above it.
    pub excess: u64,
    /// Moves that this node may make within the window.
    pub moves: u64,
    /// Of so many of all nodes.
    pub budget: u64,
}

/// One pass: list, decide, order.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PassStatus {
    /// When it began.
    pub at: Timestamp,
    /// How long it took in all.
    pub duration_seconds: f64,
    /// Open descriptors that it walked over.
    pub descriptors: u64,
    /// Connections recorded that no descriptor leads to: not accepted yet, in flight between
    /// processes, or held by io_uring alone. They are not moved.
    pub unseen: u64,
    /// The next pass begins no earlier, so that walking takes no more than 2 % of a CPU: by this pass,
    /// and since the one before it by the moving thread and by counting.
    pub next_after_seconds: f64,
    /// Connections listed.
    pub connections: usize,
    /// Endpoints known.
    pub endpoints: usize,
    /// Moves chosen, or reported in dry run.
    pub moves: usize,
    /// Connections beyond their rule's limit that no guard skips.
    pub overdue: u64,
    /// Connections skipped, by the reason's word.
    pub skipped: BTreeMap<String, u64>,
}

/// What bounds the records.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CapacityStatus {
    /// Most connections recorded for one endpoint.
    pub max_per_endpoint: u32,
    /// Most connections recorded on the node.
    pub max_per_node: u32,
    /// Connections not recorded for either, since tracking began.
    pub refused: u64,
}

/// The budget of one mode.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BudgetStatus {
    /// The mode: dry runs have a budget of their own.
    pub mode: String,
    /// Moves in each window.
    pub per_node: u64,
    /// The window.
    pub window_seconds: f64,
    /// Moves that count now.
    pub used: u64,
    /// Moves that may still be started.
    pub left: u64,
    /// When the first of those used is forgotten; none if none is used.
    pub refills_at: Option<Timestamp>,
}

/// A rule that has only a part of the budgets yet.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RampStatus {
    /// The rule.
    pub rule: String,
    /// One of so many parts.
    pub parts: u64,
    /// When it will have the whole.
    pub whole_at: Timestamp,
}

/// A move under way.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InFlightStatus {
    /// The connection.
    pub id: String,
    /// The rule that asks for it.
    pub rule: String,
    /// The step that is its turn; none if it has not been looked at yet.
    pub step: Option<String>,
    /// When it began.
    pub since: Timestamp,
}

/// Writes it.
pub fn write_status(out: &mut impl Write, notation: Notation, status: &Status) -> io::Result<()> {
    write(out, notation, STATUS, status)
}

/// Reads what [`write_status`] has written as JSON.
///
/// # Errors
/// Why it is invalid, with the path of the field.
pub fn read_status(text: &[u8]) -> Result<Status, ReadError> {
    check_kind(text, STATUS)?;
    parse(text)
}

/// One of an agent that is at work, for tests.
#[cfg(test)]
pub(crate) fn sample() -> Status {
    let text = r#"{
        "apiVersion": "rebalancer.dev/v1alpha1", "kind": "Status", "node": "n",
        "generatedAt": "2026-01-02T03:04:05Z", "version": "1.2.3", "pid": 1,
        "upSince": "2026-01-02T03:04:05Z",
        "mode": {"effective": "Enforce", "policy": "Enforce", "flag": "Enforce",
                 "limitedBy": []},
        "policy": {"file": "f", "loadedAt": "2026-01-02T03:04:05Z", "rules": 1},
        "pins": "p", "cgroup": "c", "attachedAgain": 0, "intervalSeconds": 5.0,
        "lastPass": {"at": "2026-01-02T03:04:05Z", "durationSeconds": 1.0,
                     "descriptors": 1, "unseen": 0, "nextAfterSeconds": 1.0, "connections": 2, "endpoints": 1,
                     "moves": 0, "overdue": 0, "skipped": {"noRule": 2}},
        "capacity": {"maxPerEndpoint": 10, "maxPerNode": 100, "refused": 0}, "kernelFaults": {},
        "budgets": [{"mode": "Enforce", "perNode": 10, "windowSeconds": 60.0, "used": 1, "left": 9,
                     "refillsAt": null}],
        "maxInFlight": 3, "inFlight": [], "ended": {}, "reportedInDryRun": 0
    }"#;
    read_status(text.as_bytes()).unwrap()
}
