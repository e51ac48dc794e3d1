//! The explanation of one connection.

use std::io::{self, Write};

use serde::Serialize;

use super::{
    envelope::{Notation, Origin, write_observed},
    plan::{DecisionItem, ReasonItem, WithText, decision_item, reason_item},
};
use crate::{
    plan::{Explanation, FillTest, LoadComparison, Reason},
    snapshot::Snapshot,
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    rules: Vec<RuleItem<'a>>,
    limits: Vec<LimitItem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    balance: Option<WithText<LoadComparison>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    returns: Vec<ReturnItem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fill: Option<FillItem>,
    guards: Vec<GuardItem>,
    decision: DecisionItem<'a>,
    needs: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RuleItem<'a> {
    rule: &'a str,
    matches: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    why_not: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LimitItem {
    #[serde(flatten)]
    reason: ReasonItem,
    standing: &'static str,
    text: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReturnItem {
    subject: String,
    moves: u64,
    returned: u64,
    siblings: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FillItem {
    moves: u64,
    missing_percent: u64,
    holds: u32,
    text: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GuardItem {
    cause: &'static str,
    why: String,
    needs: String,
}

/// Writes what is known of a connection, and what is decided.
pub fn write_explanation(
    out: &mut impl Write,
    notation: Notation,
    explained: &Explanation<'_>,
    snapshot: &Snapshot,
    origin: &Origin,
) -> io::Result<()> {
    let limit = |measure: &Reason| LimitItem {
        reason: reason_item(*measure),
        standing: standing(*measure),
        text: measure.to_string(),
    };
    let body = Body {
        rules: explained
            .rules
            .iter()
            .map(|(rule, miss)| RuleItem {
                rule: rule.name().as_str(),
                matches: miss.is_none(),
                why_not: miss.as_ref().map(ToString::to_string),
            })
            .collect(),
        limits: explained.measures.iter().map(limit).collect(),
        unknown: explained.unknown.map(|unknown| unknown.to_string()),
        balance: explained.balance.map(WithText::of),
        returns: explained
            .returns
            .iter()
            .map(|(subject, test)| ReturnItem {
                subject: subject.to_string(),
                moves: test.moves,
                returned: test.returned,
                siblings: test.siblings,
            })
            .collect(),
        fill: explained.fill.as_ref().map(|effort| FillItem {
            moves: effort.moves,
            missing_percent: effort.missing_percent(),
            holds: effort.hold.times,
            text: effort_text(effort),
        }),
        guards: explained
            .guards
            .iter()
            .map(|guard| GuardItem {
                cause: guard.as_str(),
                why: guard.to_string(),
                needs: guard.needs(),
            })
            .collect(),
        decision: decision_item(explained.decision, Some(explained.connection)),
        needs: explained.needs(),
    };
    write_observed(out, notation, "Explanation", snapshot.taken, origin, body)
}

/// What the moves of a group have achieved, as a phrase.
pub(crate) fn effort_text(effort: &FillTest) -> String {
    format!(
        "{} since the emptiest endpoint lacked {} % of the mean",
        effort.moves,
        effort.missing_percent()
    )
}

/// How a connection compares with a limit, as a stable word.
pub(crate) fn standing(reason: Reason) -> &'static str {
    if reason.overdue() {
        "overdue"
    } else if reason.exceeded() {
        "exceeded"
    } else {
        "within"
    }
}
