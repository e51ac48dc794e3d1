//! Writes the explanation of one connection.

use std::io::{self, Write};

use super::{
    service_facts::described,
    units::{age, size},
};
use crate::{
    api::{Form, Origin, effort_text, service_names, standing, write_explanation},
    plan::{Explanation, Reason, Test, Verdict},
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
        line("pod", pod.full_name())?;
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
    line("state", c.state.to_string())?;
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
        let phase = if c.adopted && matches!(measure, Reason::Age { .. }) {
            "; older than the agent, so its limit is anywhere up to maxAge"
        } else {
            ""
        };
        line("limit", format!("{}: {measure}{phase}", standing(*measure)))?;
    }
    if let Some(unknown) = explained.unknown {
        line("limit", format!("unknown: {unknown}"))?;
    }
    if let Some(standing) = explained.balance {
        line("balance", standing.to_string())?;
    }
    for (subject, test) in &explained.returns {
        let Test {
            moves,
            returned,
            elsewhere,
            ..
        } = test;
        line(
            "returns",
            format!(
                "{returned} of {moves} moves of {subject} came back to this endpoint, {elsewhere} were \
                 seen at another"
            ),
        )?;
    }
    if let Some(effort) = &explained.fill {
        line("moves", effort_text(effort))?;
    }
    for guard in &explained.guards {
        line("guard", format!("{}: {guard}", guard.as_str()))?;
    }
    line(
        "decision",
        match explained.decision.verdict {
            Verdict::Move(chosen) => {
                let place = explained.decision.place.unwrap_or_default();
                let mode = chosen.mode().as_str();
                let sniffed = match (chosen.is_sniffed(), chosen.gives_notice()) {
                    (false, _) => "",
                    (true, false) => ", once HTTP/1 is detected on it",
                    (true, true) => {
                        ", once HTTP/1 is detected on it, or by the step Notice once HTTP/2 is"
                    }
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

/// The explanation of a connection, in a form.
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
        Some(notation) => write_explanation(out, notation, explained, snapshot, origin),
    }
}

/// That there is no such connection.
pub fn not_tracked(id: Cookie) -> String {
    format!("no connection {id} is tracked: it has ended, or was never recorded")
}
