//! Events of an agent, a line of JSON each.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use super::parse::{ReadError, parse};
use crate::{
    plan::{DrainCause, Drained, TooShort},
    snapshot::Identity,
};

/// An event.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Its number in its run, from 1, without gaps.
    pub seq: u64,
    /// The run of the agent in which it happened: another for each start.
    pub run: String,
    /// When.
    pub at: Timestamp,
    /// Its kind, with its fields.
    #[serde(flatten)]
    pub what: EventKind,
}

/// The kinds of events.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, IntoStaticStr)]
#[serde(tag = "type", rename_all = "camelCase")]
#[strum(serialize_all = "camelCase")]
pub enum EventKind {
    /// A connection would be moved, if the mode did not forbid it.
    WouldMove(EventMove),
    /// A move began.
    Started(EventMove),
    /// A move ended.
    #[serde(rename_all = "camelCase")]
    Ended {
        /// Which.
        #[serde(flatten)]
        about: EventMove,
        /// The step at which it ended; none if it was not looked at, or all had passed.
        step: Option<String>,
        /// The outcome's word.
        outcome: String,
        /// The outcome in words, which continue "the move".
        detail: String,
        /// From the order to the outcome.
        waited_seconds: f64,
    },
    /// A policy is in effect.
    PolicyLoaded {
        /// The mode in effect.
        mode: String,
        /// Its rules.
        rules: usize,
    },
    /// A policy was refused; the one before it stays.
    PolicyRefused {
        /// Why.
        error: String,
    },
    /// An operator has paused moves.
    #[serde(rename_all = "camelCase")]
    Paused {
        /// When the pause expires; none if it lasts for as long as the namespace's annotation is there.
        until: Option<Timestamp>,
        /// Why, in the operator's words.
        reason: Option<String>,
    },
    /// Moves have resumed.
    Resumed {
        /// `asked`, `expired`, or `annotation`.
        cause: String,
    },
    /// The connections of an endpoint begin to leave.
    DrainBegan(EventDrain),
    /// It is empty, or its time is over.
    DrainEnded(EventDrain),
    /// A pod is being deleted that stops too soon to be drained.
    DrainTooShort(EventDrain),
    /// Moves did not help: nothing more is moved there for some time.
    #[serde(rename_all = "camelCase")]
    Held {
        /// Whose connections, and where.
        of: String,
        /// The kind of evidence: `returns` or `fillFailed`.
        cause: String,
        /// The evidence, in numbers.
        why: String,
        /// For how long.
        for_seconds: f64,
    },
    /// A pass could not list; nothing is moved until one can.
    ListingFailed {
        /// Why.
        error: String,
    },
    /// A pass could list again.
    ListingRecovered,
    /// The moving thread was lost; the moves that it had have ended.
    MoverLost {
        /// `stuck` or `panicked`.
        cause: String,
        /// The connection at which it is stuck, if that is known.
        connection: Option<String>,
    },
    /// Another moving thread was started.
    MoverReplaced,
    /// To a follower: this many events before this one are no longer available.
    Missed {
        /// How many.
        count: u64,
    },
}

/// The connection of a move, and the reasons.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventMove {
    /// The connection.
    pub id: String,
    /// The rule that asks for it.
    pub rule: String,
    /// The limits exceeded, by their words, the most exceeded first.
    pub reasons: Vec<String>,
    /// The same in words.
    pub why: String,
    /// The mode.
    pub mode: String,
    /// The server's address.
    pub local: String,
    /// The client's address.
    pub peer: String,
    /// The pod that accepted it, if it is known.
    pub pod: Option<String>,
}

/// How the drain of an endpoint stands.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventDrain {
    /// Its pod, as `namespace/name`; null on a plain host.
    pub pod: Option<String>,
    /// Why: `terminating`, `removed`, `unready` or `requested`.
    pub cause: String,
    /// The endpoint's port.
    pub port: u16,
    /// The rule that drains it.
    pub rule: String,
    /// Its connections by why they have not left; empty if all have.
    pub connections: BTreeMap<String, u64>,
    /// Since it began.
    pub took_seconds: f64,
    /// Until its containers are asked to stop, or the drain ends.
    pub left_seconds: f64,
    /// The sleep of a `preStop` hook that would have been enough, if it was too short.
    pub enough_seconds: Option<u64>,
}

impl EventDrain {
    /// Of one that is under way or has ended; and the sleep of a `preStop` hook that would have been enough.
    pub fn of(drained: &Drained, enough: Option<Duration>) -> Self {
        let states = drained.connections.iter();
        Self {
            pod: drained.who.pod().map(Identity::full_name),
            cause: drained.cause.as_str().to_owned(),
            port: drained.endpoint.port,
            rule: drained.rule.to_string(),
            connections: states.map(|(state, n)| ((*state).to_owned(), *n)).collect(),
            took_seconds: drained.took.as_secs_f64(),
            left_seconds: drained.left.as_secs_f64(),
            enough_seconds: enough.map(|enough| enough.as_secs()),
        }
    }

    /// Of one for which there is no time.
    pub fn too_short(short: &TooShort) -> Self {
        Self {
            pod: short.who.pod().map(Identity::full_name),
            cause: DrainCause::Terminating.as_str().to_owned(),
            port: short.endpoint.port,
            rule: short.rule.to_string(),
            connections: [("noTimeToDrain".to_owned(), short.connections)].into(),
            took_seconds: 0.0,
            left_seconds: short.stops_after.as_secs_f64(),
            enough_seconds: Some(short.enough.as_secs()),
        }
    }
}

impl EventKind {
    /// A stable word.
    pub fn as_str(&self) -> &'static str {
        self.into()
    }
}

/// Writes it as a line of JSON.
pub fn write_event(out: &mut impl Write, happened: &Event) -> io::Result<()> {
    serde_json::to_writer(&mut *out, happened)?;
    writeln!(out)
}

/// Reads a line that [`write_event`] has written.
///
/// # Errors
/// Why it is invalid, with the path of the field.
pub fn read_event(line: &[u8]) -> Result<Event, ReadError> {
    parse(line)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn happened(what: EventKind) -> Event {
        Event {
            seq: 7,
            run: "1-2".to_owned(),
            at: "2026-01-02T03:04:05.678Z".parse().unwrap(),
            what,
        }
    }

    fn about() -> EventMove {
        EventMove {
            id: "1f".to_owned(),
            rule: "web".to_owned(),
            reasons: vec!["age".to_owned()],
            why: "age 2s of 1s".to_owned(),
            mode: "Enforce".to_owned(),
            local: "10.0.0.1:80".to_owned(),
            peer: "10.0.0.2:4000".to_owned(),
            pod: None,
        }
    }

    fn drain(connections: &[(&str, u64)]) -> EventDrain {
        let own = |(state, n): &(&str, u64)| ((*state).to_owned(), *n);
        EventDrain {
            pod: Some("shop/web-0".to_owned()),
            cause: "terminating".to_owned(),
            port: 8080,
            rule: "web".to_owned(),
            connections: connections.iter().map(own).collect(),
            took_seconds: 0.5,
            left_seconds: 15.0,
            enough_seconds: connections.is_empty().then_some(20),
        }
    }

    /// One of each kind.
    pub(crate) fn one_of_each() -> Vec<Event> {
        let until = "2026-01-02T04:04:05Z".parse().unwrap();
        let all = [
            EventKind::WouldMove(about()),
            EventKind::Started(about()),
            EventKind::Ended {
                about: about(),
                step: Some("Reset".to_owned()),
                outcome: "reset".to_owned(),
                detail: "reset it".to_owned(),
                waited_seconds: 0.25,
            },
            EventKind::PolicyLoaded {
                mode: "DryRun".to_owned(),
                rules: 2,
            },
            EventKind::PolicyRefused {
                error: "a: b\n  remedy: \u{1b}[31m".to_owned(),
            },
            EventKind::Paused {
                until: Some(until),
                reason: Some("an incident".to_owned()),
            },
            EventKind::Resumed {
                cause: "asked".to_owned(),
            },
            EventKind::DrainBegan(drain(&[("drainedLater", 40)])),
            EventKind::DrainEnded(drain(&[("inFlight", 1), ("tls", 2)])),
            EventKind::DrainEnded(drain(&[])),
            EventKind::DrainTooShort(drain(&[("noTimeToDrain", 3)])),
            EventKind::Held {
                of: "rule web".to_owned(),
                cause: "returns".to_owned(),
                why: "6 of 6 came back".to_owned(),
                for_seconds: 600.0,
            },
            EventKind::ListingFailed {
                error: "no".to_owned(),
            },
            EventKind::ListingRecovered,
            EventKind::MoverLost {
                cause: "stuck".to_owned(),
                connection: Some("1f".to_owned()),
            },
            EventKind::MoverReplaced,
            EventKind::Missed { count: 3 },
        ];
        all.into_iter().map(happened).collect()
    }

    #[test]
    fn what_is_written_is_read_again_and_is_one_line() {
        for happened in one_of_each() {
            let word = happened.what.as_str();
            let mut line = Vec::new();
            write_event(&mut line, &happened).unwrap();
            let text = String::from_utf8(line.clone()).unwrap();
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(text.contains(&format!("\"type\":\"{word}\"")), "{text}");
            assert_eq!(read_event(&line).unwrap(), happened);
        }
        assert!(read_event(b"{}").is_err());
    }
}
