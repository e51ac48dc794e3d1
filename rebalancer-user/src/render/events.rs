//! What happened in an agent: as it travels through its socket, a line of JSON for each, and for
//! people.

use std::{
    io::{self, Write},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    read::{ReadError, parse},
    table::age,
};
use crate::policy::visible;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Happened {
    /// Its number in its run, from 1, without gaps.
    pub seq: u64,
    /// The run of the agent in which it happened: another for each start.
    pub run: String,
    /// When.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum What {
    /// A connection would be moved, if the mode did not forbid it.
    Told(About),
    /// A move began.
    Started(About),
    /// A move ended.
    #[serde(rename_all = "camelCase")]
    Ended {
        /// Which.
        #[serde(flatten)]
        about: About,
        /// The step at which it ended; none if it was not looked at, or all had passed.
        step: Option<String>,
        /// The outcome's word.
        outcome: String,
        /// The outcome in words, which go on from "the move".
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
        /// When the pause ends by itself.
        until: Timestamp,
        /// Why, in the operator's words.
        reason: Option<String>,
    },
    /// Moves go on.
    Resumed {
        /// `asked` or `expired`.
        cause: String,
    },
    /// Moves have not helped: for a time nothing more is moved there.
    #[serde(rename_all = "camelCase")]
    Held {
        /// Whose connections, and where.
        of: String,
        /// What the evidence shows, in a word: `returns` or `futile`.
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
    /// To a follower: so many happened before this that it came too late for.
    Missed {
        /// How many.
        count: u64,
    },
}

/// Which connection, and why.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct About {
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

impl What {
    /// A stable word.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Told(_) => "told",
            Self::Started(_) => "started",
            Self::Ended { .. } => "ended",
            Self::PolicyLoaded { .. } => "policyLoaded",
            Self::PolicyRefused { .. } => "policyRefused",
            Self::Paused { .. } => "paused",
            Self::Resumed { .. } => "resumed",
            Self::Held { .. } => "held",
            Self::ListingFailed { .. } => "listingFailed",
            Self::ListingRecovered => "listingRecovered",
            Self::Missed { .. } => "missed",
        }
    }
}

/// As a line of JSON; also how it travels.
pub fn event(out: &mut impl Write, happened: &Happened) -> io::Result<()> {
    serde_json::to_writer(&mut *out, happened)?;
    writeln!(out)
}

/// Reads a line that [`event`] has written.
///
/// # Errors
/// Why it is none, with the path of the field.
pub fn read_event(line: &[u8]) -> Result<Happened, ReadError> {
    parse(line)
}

/// The head of a table of events.
pub fn events_head(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{:<20}  {:<16}  DETAIL", "TIME", "EVENT")
}

/// A line of that table. Lines come one by one, so that their columns are of fixed widths.
pub fn event_row(out: &mut impl Write, happened: &Happened) -> io::Result<()> {
    let detail = visible(&detail(&happened.what));
    let (at, what) = (happened.at, happened.what.as_str());
    writeln!(out, "{at:<20.0}  {what:<16}  {detail}")
}

fn detail(what: &What) -> String {
    match what {
        What::Told(about) => format!("{} would be moved: {}", place(about), about.why),
        What::Started(about) => format!("{}: {}", place(about), about.why),
        What::Ended {
            about,
            step,
            outcome: _,
            detail,
            waited_seconds,
        } => {
            let step = step.as_ref().map_or(String::new(), |s| format!(" at {s}"));
            format!(
                "{}: the move {detail}{step}, after {waited_seconds:.1}s",
                place(about)
            )
        }
        What::PolicyLoaded { mode, rules } => format!("mode {mode}, rules: {rules}"),
        What::PolicyRefused { error } => {
            let first = error.lines().next().unwrap_or_default();
            format!("the previous one stays in effect: {first}")
        }
        What::Paused { until, reason } => {
            let why = reason.as_ref().map_or(String::new(), |r| format!(": {r}"));
            format!("until {until:.0}{why}")
        }
        What::Resumed { cause } => match cause.as_str() {
            "expired" => "the pause has expired".to_owned(),
            _ => "requested by an operator".to_owned(),
        },
        What::Held {
            of,
            cause: _,
            why,
            for_seconds,
        } => {
            let time = age(Duration::try_from_secs_f64(*for_seconds).unwrap_or_default());
            format!("{of}: on cooldown for {time}: {why}")
        }
        What::ListingFailed { error } => format!("nothing is moved: {error}"),
        What::ListingRecovered => "moves resumed".to_owned(),
        What::Missed { count } => format!("missed {count} events before this one"),
    }
}

fn place(about: &About) -> String {
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

    fn happened(what: What) -> Happened {
        Happened {
            seq: 7,
            run: "1-2".to_owned(),
            at: "2026-01-02T03:04:05.678Z".parse().unwrap(),
            what,
        }
    }

    fn about() -> About {
        About {
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

    #[test]
    fn what_is_written_is_read_again_and_is_one_line() {
        let until = "2026-01-02T04:04:05Z".parse().unwrap();
        let all = [
            What::Told(about()),
            What::Started(about()),
            What::Ended {
                about: about(),
                step: Some("Reset".to_owned()),
                outcome: "reset".to_owned(),
                detail: "reset it".to_owned(),
                waited_seconds: 0.25,
            },
            What::PolicyLoaded {
                mode: "DryRun".to_owned(),
                rules: 2,
            },
            What::PolicyRefused {
                error: "a: b\n  remedy: \u{1b}[31m".to_owned(),
            },
            What::Paused {
                until,
                reason: Some("an incident".to_owned()),
            },
            What::Resumed {
                cause: "asked".to_owned(),
            },
            What::Held {
                of: "rule web".to_owned(),
                cause: "returns".to_owned(),
                why: "6 of 6 came back".to_owned(),
                for_seconds: 600.0,
            },
            What::ListingFailed {
                error: "no".to_owned(),
            },
            What::ListingRecovered,
            What::Missed { count: 3 },
        ];
        for what in all {
            let word = what.as_str();
            let happened = happened(what);
            let mut line = Vec::new();
            event(&mut line, &happened).unwrap();
            let text = String::from_utf8(line.clone()).unwrap();
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(text.contains(&format!("\"type\":\"{word}\"")), "{text}");
            assert_eq!(read_event(&line).unwrap(), happened);
            let mut row = Vec::new();
            event_row(&mut row, &happened).unwrap();
            let row = String::from_utf8(row).unwrap();
            assert_eq!(row.lines().count(), 1, "{row}");
            assert!(row.contains(word) && !row.contains('\u{1b}'), "{row}");
        }
        assert!(read_event(b"{}").is_err());
    }

    #[test]
    fn a_row_says_when_what_and_why() {
        let mut row = Vec::new();
        event_row(&mut row, &happened(What::Started(about()))).unwrap();
        assert_eq!(
            String::from_utf8(row).unwrap(),
            "2026-01-02T03:04:05Z  started           1f (10.0.0.1:80 from 10.0.0.2:4000), rule \
             web: age 2s of 1s\n"
        );
    }
}
