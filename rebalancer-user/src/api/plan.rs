//! A plan.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::SocketAddr,
};

use serde::Serialize;

use super::{
    envelope::{Notation, Origin, write_observed},
    order::{Sort, sorted},
};
use crate::{
    plan::{Decision, Forecast, Move, Plan, Reason, Recall, Verdict},
    policy::{RuleName, Step, When},
    snapshot::{Connection, Cookie, EndpointKey, Snapshot, in_nanoseconds},
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PlanBody<'a> {
    overdue: u64,
    budget_left: u64,
    forecasts: Vec<WithText<&'a Forecast>>,
    /// Moves under way that are to be ended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    recalls: Vec<RecallItem>,
    skipped: BTreeMap<&'static str, u64>,
    items: Vec<DecisionItem<'a>>,
}

#[derive(Serialize)]
struct RecallItem {
    id: String,
    /// As a stable word.
    cause: &'static str,
    why: String,
}

/// Numbers, and what they are in words.
#[derive(Serialize)]
pub(super) struct WithText<T> {
    #[serde(flatten)]
    numbers: T,
    text: String,
}

impl<T: ToString> WithText<T> {
    pub(super) fn of(numbers: T) -> Self {
        let text = numbers.to_string();
        Self { numbers, text }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DecisionItem<'a> {
    id: String,
    endpoint: Option<EndpointKey>,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    rule: Option<&'a str>,
    place: Option<u64>,
    /// The pod that is moved from, as `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
    verdict: &'static str,
    /// Why it is skipped, as a stable word.
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    why: String,
    #[serde(rename = "move", skip_serializing_if = "Option::is_none")]
    chosen: Option<MoveItem>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MoveItem {
    mode: &'static str,
    reasons: Vec<ReasonItem>,
    steps: Vec<StepItem>,
    at_end: &'static str,
    /// Only once HTTP/1 is detected on it.
    only_http1: bool,
}

/// Of a drain, the value is the time that is left.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ReasonItem {
    reason: &'static str,
    unit: &'static str,
    value: u64,
    limit: u64,
    max: u64,
    /// Of an excess, what each endpoint would hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    mean: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StepItem {
    step: &'static str,
    when: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_for_nanoseconds: Option<u64>,
    timeout_nanoseconds: u64,
}

/// Writes a plan of `snapshot`.
pub fn write_plan(
    out: &mut impl Write,
    notation: Notation,
    plan: &Plan,
    snapshot: &Snapshot,
    origin: &Origin,
) -> io::Result<()> {
    let known = by_cookie(snapshot);
    let body = PlanBody {
        overdue: plan.overdue(),
        budget_left: plan.budget_left(),
        forecasts: plan.forecasts().iter().map(WithText::of).collect(),
        recalls: plan.recalls().iter().map(recall_item).collect(),
        skipped: plan.skipped(),
        items: in_order(plan)
            .into_iter()
            .map(|decision| decision_item(decision, known.get(&decision.cookie).copied()))
            .collect(),
    };
    write_observed(out, notation, "Plan", snapshot.taken, origin, body)
}

fn recall_item(Recall { cookie, why }: &Recall) -> RecallItem {
    RecallItem {
        id: cookie.to_string(),
        cause: why.as_str(),
        why: why.to_string(),
    }
}

pub(super) fn decision_item<'a>(
    decision: Decision<'a>,
    connection: Option<&Connection>,
) -> DecisionItem<'a> {
    let (verdict, cause, why, chosen) = match decision.verdict {
        Verdict::Move(chosen) => ("Move", None, chosen.why(), Some(move_item(chosen))),
        Verdict::Skipped(skipped) => ("Skip", Some(skipped.as_str()), skipped.to_string(), None),
    };
    DecisionItem {
        id: decision.cookie.to_string(),
        endpoint: connection.map(|c| c.endpoint),
        local: connection.map(|c| c.local),
        peer: connection.map(|c| c.remote),
        rule: decision.rule.map(RuleName::as_str),
        place: decision.place,
        pod: match decision.verdict {
            Verdict::Move(chosen) => chosen.pod(),
            Verdict::Skipped(_) => None,
        },
        verdict,
        cause,
        why,
        chosen,
    }
}

fn move_item(chosen: &Move) -> MoveItem {
    MoveItem {
        mode: chosen.mode().as_str(),
        reasons: chosen.reasons().iter().map(|r| reason_item(*r)).collect(),
        steps: chosen.steps().iter().map(|step| step_item(*step)).collect(),
        at_end: chosen.at_end().as_str(),
        only_http1: chosen.is_sniffed(),
    }
}

pub(super) fn reason_item(reason: Reason) -> ReasonItem {
    let mut mean = None;
    let (unit, [value, limit, max]) = match reason {
        Reason::Age { value, limit, max } => {
            ("nanoseconds", [value, limit, max].map(in_nanoseconds))
        }
        Reason::Bytes { value, limit, max } => ("bytes", [value.0, limit.0, max.0]),
        Reason::Rate {
            value, limit, max, ..
        } => ("bytesPerSecond", [value.0, limit.0, max.0]),
        Reason::Drain { left, .. } => ("nanoseconds", [in_nanoseconds(left), 0, 0]),
        Reason::Balance {
            by,
            load,
            stop,
            mean: of_all,
            ..
        } => {
            mean = Some(of_all);
            (by.unit(), [load, stop, stop])
        }
    };
    ReasonItem {
        reason: reason.as_str(),
        unit,
        value,
        limit,
        max,
        mean,
    }
}

fn step_item(step: Step) -> StepItem {
    let (when, idle_for) = match step.when() {
        When::Quiet { idle_for } => ("Quiet", Some(in_nanoseconds(idle_for))),
        When::AtOnce => ("AtOnce", None),
    };
    StepItem {
        step: step.kind().as_str(),
        when,
        idle_for_nanoseconds: idle_for,
        timeout_nanoseconds: in_nanoseconds(step.timeout()),
    }
}

/// The decisions by their places; those without one last, by cookie.
pub(crate) fn in_order(plan: &Plan) -> Vec<Decision<'_>> {
    let mut decisions: Vec<Decision<'_>> = plan.decisions().collect();
    decisions.sort_by_key(|d| (d.place.is_none(), d.place, d.cookie));
    // Two modes have two budgets, so one may wait while one of a later place moves: moves first.
    decisions.sort_by_key(|d| matches!(d.verdict, Verdict::Skipped(_)));
    decisions
}

pub(crate) fn by_cookie(snapshot: &Snapshot) -> BTreeMap<Cookie, &Connection> {
    let mut known = BTreeMap::new();
    for connection in sorted(snapshot, Sort::Endpoint) {
        known.entry(connection.cookie).or_insert(connection);
    }
    known
}
