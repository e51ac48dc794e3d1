//! Events of an agent as lines of a table.

use std::{
    io::{self, Write},
    time::Duration,
};

use super::units::age;
use crate::{
    api::{Event, EventDrain, EventKind, EventMove},
    text::visible,
};

/// The head of a table of events.
pub fn events_head(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{:<20}  {:<16}  DETAIL", "TIME", "EVENT")
}

/// A line of that table. Lines come one by one, so that their columns are of fixed widths.
pub fn event_row(out: &mut impl Write, happened: &Event) -> io::Result<()> {
    let detail = visible(&detail(&happened.what));
    let (at, what) = (happened.at, happened.what.as_str());
    writeln!(out, "{at:<20.0}  {what:<16}  {detail}")
}

fn detail(what: &EventKind) -> String {
    match what {
        EventKind::WouldMove(about) => format!("{} would be moved: {}", place(about), about.why),
        EventKind::Started(about) => format!("{}: {}", place(about), about.why),
        EventKind::Ended {
            about,
            step,
            outcome: _,
            detail,
            waited_seconds,
        } => {
            let step = step
                .as_ref()
                .map_or(String::new(), |s| format!(" (step {s})"));
            format!(
                "{}: the move {detail}{step}, after {waited_seconds:.1}s",
                place(about)
            )
        }
        EventKind::PolicyLoaded { mode, rules } => format!("mode {mode}, rules: {rules}"),
        EventKind::PolicyRefused { error } => {
            let first = error.lines().next().unwrap_or_default();
            format!("the previous one stays in effect: {first}")
        }
        EventKind::Paused { until, reason } => {
            let why = reason.as_ref().map_or(String::new(), |r| format!(": {r}"));
            match until {
                Some(until) => format!("until {until:.0}{why}"),
                None => format!("all nodes, by the annotation of the namespace{why}"),
            }
        }
        EventKind::Resumed { cause } => match cause.as_str() {
            "expired" => "the pause has expired".to_owned(),
            "annotation" => "the annotation of the namespace is gone".to_owned(),
            _ => "requested by an operator".to_owned(),
        },
        EventKind::DrainBegan(drain) => drain_under_way(drain),
        EventKind::DrainEnded(drain) if drain.connections.is_empty() => {
            format!("{}, all have left", drained(drain))
        }
        EventKind::DrainEnded(drain) => {
            let end = match drain.cause.as_str() {
                "terminating" => "they break off",
                _ => "they stay",
            };
            format!(
                "{}: {}; {end}{}",
                drained(drain),
                states(drain),
                enough(drain)
            )
        }
        EventKind::DrainTooShort(drain) => {
            let left = drain.left_seconds;
            format!(
                "{}; it is asked to stop after {left:.0}s, too soon{}",
                drained(drain),
                enough(drain)
            )
        }
        EventKind::Held {
            of,
            cause: _,
            why,
            for_seconds,
        } => {
            let time = age(Duration::try_from_secs_f64(*for_seconds).unwrap_or_default());
            format!("{of}: on cooldown for {time}: {why}")
        }
        EventKind::ListingFailed { error } => format!("nothing is moved: {error}"),
        EventKind::ListingRecovered => "moves resumed".to_owned(),
        EventKind::MoverLost { cause, connection } => {
            let at = connection.as_ref();
            let at = at.map_or(String::new(), |id| format!(", at connection {id}"));
            format!("the moving thread: {cause}{at}")
        }
        EventKind::MoverReplaced => "moves resumed, by another thread".to_owned(),
        EventKind::Missed { count } => format!("missed {count} events before this one"),
    }
}

/// How one stands.
pub(super) fn drain_under_way(drain: &EventDrain) -> String {
    let left = drain.left_seconds;
    let ends = match drain.cause.as_str() {
        "terminating" => "it is asked to stop in",
        _ => "they have",
    };
    format!("{}; {ends} {left:.0}s", drained(drain))
}

fn drained(drain: &EventDrain) -> String {
    let EventDrain {
        pod,
        port,
        rule,
        cause,
        ..
    } = drain;
    let connections: u64 = drain.connections.values().sum();
    let pod = pod.as_ref().map_or(String::new(), |pod| format!("{pod} "));
    format!("{pod}port {port}, rule {rule}, {cause}: {connections} connections")
}

fn states(drain: &EventDrain) -> String {
    let states = drain.connections.iter();
    let states: Vec<String> = states.map(|(state, n)| format!("{n} {state}")).collect();
    states.join(", ")
}

fn enough(drain: &EventDrain) -> String {
    let enough = drain.enough_seconds;
    enough.map_or(String::new(), |seconds| {
        format!("; preStop: {{sleep: {{seconds: {seconds}}}}} would be enough")
    })
}

fn place(about: &EventMove) -> String {
    let pod = about.pod.as_ref();
    let at = pod.map_or(String::new(), |pod| format!(" of {pod}"));
    format!(
        "{} ({} from {}{at}), rule {}",
        about.id, about.local, about.peer, about.rule
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::one_of_each;

    fn shown(happened: &Event) -> String {
        let mut row = Vec::new();
        event_row(&mut row, happened).unwrap();
        String::from_utf8(row).unwrap()
    }

    #[test]
    fn a_row_is_one_line_with_when_what_and_why() {
        let all = one_of_each();
        for happened in &all {
            let row = shown(happened);
            assert_eq!(row.lines().count(), 1, "{row}");
            assert!(
                row.contains(happened.what.as_str()) && !row.contains('\u{1b}'),
                "{row}"
            );
        }
        let started = all
            .iter()
            .find(|one| matches!(one.what, EventKind::Started(_)));
        assert_eq!(
            shown(started.unwrap()),
            "2026-01-02T03:04:05Z  started           1f (10.0.0.1:80 from 10.0.0.2:4000), rule \
             web: age 2s of 1s\n"
        );
    }
}
