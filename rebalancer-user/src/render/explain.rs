//! Writes the explanation of one connection.

use std::io::{self, Write};

use serde::Serialize;

use super::{
    Form, Notation, Origin,
    json::{state_name, write as write_json},
    names::service_names,
    plan::{DecisionItem, ReasonItem, decision_item, load_unit, reason_item},
    service_facts::described,
    table::{age, size},
};
use crate::{
    plan::{Explanation, FillTest, LoadComparison, Reason, Test, Verdict},
    snapshot::{Cookie, ServiceName, Snapshot},
};

/// As lines for people: the connection, rules, limits, guards, decision, what it needs.
fn text(out: &mut impl Write, explained: &Explanation<'_>, snapshot: &Snapshot) -> io::Result<()> {
    let c = explained.connection;
    let at_least = if c.adopted { "at least " } else { "" };
    let mut line = |what: &str, text: String| writeln!(out, "{what:<10}{text}");
    line("id", c.cookie.to_string())?;
    line("peer", c.remote.to_string())?;
    let netns = c.endpoint.netns.0;
    line("local", format!("{}, network namespace {netns}", c.local))?;
    if let Some(pod) = explained.who.pod() {
        line("pod", format!("{}/{}", pod.namespace, pod.pod))?;
        if pod.services.is_some() {
            let services = service_names(pod);
            let none = ["none"];
            let shown = if services.is_empty() {
                &none[..]
            } else {
                &services
            };
            line("services", shown.join(", "))?;
            for at in pod.services.iter().flatten() {
                let name = ServiceName {
                    namespace: pod.namespace.clone(),
                    name: at.name.clone(),
                };
                let facts = snapshot.services.get(&name);
                let facts = facts.map_or_else(|| "not known".to_owned(), described);
                line("service", format!("{}: {facts}", at.name))?;
            }
        }
    }
    line("state", state_name(c.state))?;
    let age = age(snapshot.taken.since(c.opened));
    line("age", format!("{at_least}{age}"))?;
    let [bytes_in, bytes_out] = [size(c.bytes_in), size(c.bytes_out)];
    line("bytes", format!("{bytes_in} in, {bytes_out} out"))?;
    for (rule, miss) in &explained.rules {
        let name = rule.name();
        line(
            "rule",
            match miss {
                Some(miss) if miss.is_sure() => format!("not {name}: {miss}"),
                Some(miss) => format!("{name}, perhaps: {miss}"),
                None => format!("{name}: matches"),
            },
        )?;
    }
    for measure in &explained.measures {
        line("limit", format!("{}: {measure}", standing(*measure)))?;
    }
    if let Some(unknown) = explained.unknown {
        line("limit", format!("unknown: {unknown}"))?;
    }
    if let Some(standing) = explained.balance {
        line("balance", standing.to_string())?;
    }
    for (whom, test) in &explained.returns {
        let Test {
            moves,
            returned,
            elsewhere,
            ..
        } = test;
        line(
            "returns",
            format!(
                "{returned} of {moves} moves of {whom} came back to this endpoint, {elsewhere} were \
                 seen at another"
            ),
        )?;
    }
    if let Some(effort) = &explained.effort {
        line("moves", effort_text(effort))?;
    }
    for guard in &explained.guards {
        line("guard", format!("{}: {guard}", guard.as_str()))?;
    }
    line(
        "decision",
        match &explained.decision.verdict {
            Verdict::Move(chosen) => {
                let place = explained.decision.place.unwrap_or_default();
                let mode = chosen.mode().as_str();
                let sniffed = if chosen.is_sniffed() {
                    ", once HTTP/1 is detected on it"
                } else {
                    ""
                };
                format!("move ({mode}), number {place} of those to move{sniffed}")
            }
            Verdict::Skipped(skipped) => format!("skipped({}): {skipped}", skipped.as_str()),
        },
    )?;
    explained
        .needs()
        .map_or(Ok(()), |needs| line("needs", needs))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    rules: Vec<RuleItem<'a>>,
    limits: Vec<LimitItem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    balance: Option<BalanceItem>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    returns: Vec<ReturnItem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    effort: Option<EffortItem>,
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
struct BalanceItem {
    unit: &'static str,
    endpoints: u32,
    load: u64,
    mean: u64,
    stop: u64,
    start: Option<u64>,
    text: String,
}

impl BalanceItem {
    fn of(standing: LoadComparison) -> Self {
        Self {
            unit: load_unit(standing.by),
            endpoints: standing.endpoints,
            load: standing.load,
            mean: standing.mean,
            stop: standing.stop,
            start: standing.start,
            text: standing.to_string(),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReturnItem {
    whom: String,
    moves: u64,
    returned: u64,
    siblings: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EffortItem {
    moves: u64,
    missing_percent: u64,
    holds: u32,
    text: String,
}

impl EffortItem {
    fn of(effort: &FillTest) -> Self {
        Self {
            moves: effort.moves,
            missing_percent: effort.missing_percent(),
            holds: effort.hold.times,
            text: effort_text(effort),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GuardItem {
    cause: &'static str,
    why: String,
    needs: String,
}

/// What is said of a connection, in a form.
///
/// # Errors
/// What writing says.
pub fn explanation(
    out: &mut impl Write,
    form: Form,
    explained: &Explanation<'_>,
    snapshot: &Snapshot,
    origin: &Origin,
) -> io::Result<()> {
    match form.notation() {
        None => text(out, explained, snapshot),
        Some(notation) => data(out, notation, explained, snapshot, origin),
    }
}

/// That there is no such connection.
pub fn not_tracked(id: Cookie) -> String {
    format!("no connection {id} is tracked: it has ended, or was never recorded")
}

/// For programs.
fn data(
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
        balance: explained.balance.map(BalanceItem::of),
        returns: explained
            .returns
            .iter()
            .map(|(whom, test)| ReturnItem {
                whom: whom.to_string(),
                moves: test.moves,
                returned: test.returned,
                siblings: test.siblings,
            })
            .collect(),
        effort: explained.effort.as_ref().map(EffortItem::of),
        guards: explained
            .guards
            .iter()
            .map(|guard| GuardItem {
                cause: guard.as_str(),
                why: guard.to_string(),
                needs: guard.needs(),
            })
            .collect(),
        decision: decision_item(&explained.decision, Some(explained.connection)),
        needs: explained.needs(),
    };
    write_json(out, notation, "Explanation", snapshot, origin, body)
}

fn effort_text(effort: &FillTest) -> String {
    format!(
        "{} since the emptiest endpoint lacked {} % of the mean",
        effort.moves,
        effort.missing_percent()
    )
}

fn standing(reason: Reason) -> &'static str {
    if reason.overdue() {
        "overdue"
    } else if reason.exceeded() {
        "exceeded"
    } else {
        "within"
    }
}
