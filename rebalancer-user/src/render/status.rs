//! What an agent says of itself: as it travels through its socket, and for people.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Notation,
    json::{API_VERSION, write_value},
    read::{ReadError, check_kind, parse},
    table::age,
};
use crate::policy::visible;

const STATUS: &str = "Status";

/// An agent at one moment.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The node's host name.
    pub node: String,
    /// When this was said.
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
    /// Moves that ended since the agent started, by outcome.
    pub ended: BTreeMap<String, u64>,
    /// Connections told in dry run since the agent started.
    pub told_in_dry_run: u64,
}

/// How much an agent may do, and by whom.
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
    /// When it ends by itself.
    pub until: Timestamp,
    /// Why, in the operator's words.
    pub reason: Option<String>,
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
    /// Moves chosen, or told in dry run.
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

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    api_version: &'static str,
    kind: &'static str,
    #[serde(flatten)]
    status: &'a Status,
}

/// For programs; also how it travels.
pub fn status(out: &mut impl Write, notation: Notation, status: &Status) -> io::Result<()> {
    let envelope = Envelope {
        api_version: API_VERSION,
        kind: STATUS,
        status,
    };
    write_value(out, notation, &envelope)
}

/// Reads what [`status`] has written as JSON.
///
/// # Errors
/// Why it is none, with the path of the field.
pub fn read_status(text: &[u8]) -> Result<Status, ReadError> {
    check_kind(text, STATUS)?;
    parse(text)
}

/// As lines for people; times as they are seen at `now`.
pub fn status_table(out: &mut impl Write, status: &Status, now: Timestamp) -> io::Result<()> {
    let mut line = |what: &str, text: String| writeln!(out, "{what:<12}{text}");
    let ago = |at: Timestamp| format!("{} ago", age(between(at, now)));
    line(
        "agent",
        format!(
            "{}, pid {}, on {}, up {} (since {:.0})",
            status.version,
            status.pid,
            status.node,
            age(between(status.up_since, now)),
            status.up_since,
        ),
    )?;
    line("mode", mode(&status.mode))?;
    if let Some(paused) = &status.paused {
        let left = age(between(now, paused.until));
        let reason = paused.reason.as_deref().map(visible);
        let why = reason.map_or(String::new(), |reason| format!(": {reason}"));
        let text = format!(
            "since {}, for {left} more (until {:.0}){why}; `rebalancer resume` ends the pause",
            ago(paused.since),
            paused.until
        );
        line("paused", text)?;
    }
    let policy = &status.policy;
    line(
        "policy",
        format!(
            "{}: valid, {} rule{}, loaded {}",
            policy.file,
            policy.rules,
            if policy.rules == 1 { "" } else { "s" },
            ago(policy.loaded_at)
        ),
    )?;
    if let Some(refused) = &policy.refused {
        let error = refused.error.trim_end().replace('\n', "\n            ");
        let when = ago(refused.at);
        let text = format!(
            "the reload {when} was refused, the previous policy stays in effect:\n            {error}"
        );
        line("", text)?;
    }
    let mechanism = status.reset_mechanism.as_deref();
    line(
        "reset by",
        mechanism
            .unwrap_or("nothing: no mechanism works on this node")
            .to_owned(),
    )?;
    if let Some(text) = status.mover.as_ref().and_then(mover) {
        line("mover", text)?;
    }
    line("pins", status.pins.clone())?;
    let again = match status.attached_again {
        0 => String::new(),
        n => format!(", attached again {n} times, after other programs"),
    };
    line("cgroup", format!("{}{again}", status.cgroup))?;
    let every = span(status.interval_seconds);
    match &status.last_pass {
        None => line("pass", format!("every {every}; none yet"))?,
        Some(pass) => {
            let stretched = if pass.next_after_seconds > status.interval_seconds {
                format!(
                    ", stretched to {} so that the walk takes at most 2 % of a CPU",
                    span(pass.next_after_seconds)
                )
            } else {
                String::new()
            };
            let text = format!(
                "every {every}{stretched}; the last {}, in {}, over {} descriptors",
                ago(pass.at),
                span(pass.duration_seconds),
                pass.descriptors
            );
            line("pass", text)?;
            let unseen = match pass.unseen {
                0 => String::new(),
                n => format!(", {n} connections that no descriptor leads to"),
            };
            let text = format!(
                "{} connections, {} endpoints{unseen}",
                pass.connections, pass.endpoints
            );
            line("tracked", text)?;
        }
    }
    if let Some(error) = &status.pass_error {
        line("", format!("a later pass failed: {error}"))?;
    }
    let CapacityStatus {
        max_per_endpoint,
        max_per_node,
        refused,
    } = status.capacity;
    let text = format!(
        "{max_per_endpoint} connections per endpoint, {max_per_node} on the node; {refused} not recorded because of it"
    );
    line("capacity", text)?;
    line("faults", sums(&status.kernel_faults, "none"))?;
    for (ability, why) in &status.lacks {
        line(
            "lacks",
            format!("{ability}: {why} (see `rebalancer doctor`)"),
        )?;
    }
    if let Some(pass) = &status.last_pass {
        line("skipped", sums(&pass.skipped, "none"))?;
        line(
            "to move",
            format!("{}, {} overdue", pass.moves, pass.overdue),
        )?;
    }
    for budget in &status.budgets {
        let refills = match budget.refills_at {
            Some(at) => format!(", the next is available in {}", age(between(now, at))),
            None => String::new(),
        };
        let text = format!(
            "{}: {} of {} used in {}, {} left{refills}",
            budget.mode,
            budget.used,
            budget.per_node,
            span(budget.window_seconds),
            budget.left
        );
        line("budget", text)?;
    }
    for RampStatus {
        rule,
        parts,
        whole_at,
    } in &status.ramps
    {
        let whole = age(between(now, *whole_at));
        line(
            "ramp",
            format!("rule {rule} has 1/{parts} of its budgets, all of them in {whole}"),
        )?;
    }
    let text = format!("{} of {}", status.in_flight.len(), status.max_in_flight);
    line("in flight", text)?;
    for InFlightStatus {
        id,
        rule,
        step,
        since,
    } in &status.in_flight
    {
        let step = step.as_deref().unwrap_or("not started");
        line(
            "",
            format!(
                "{id}, rule {rule}, {step}, since {}",
                age(between(*since, now))
            ),
        )?;
    }
    line("ended", sums(&status.ended, "no move yet"))?;
    if status.told_in_dry_run > 0 {
        line("told", format!("{} in dry run", status.told_in_dry_run))?;
    }
    Ok(())
}

/// `None`: there is nothing to say of it.
fn mover(mover: &MoverStatus) -> Option<String> {
    let replaced = match mover.replaced {
        0 => None,
        1 => Some("replaced once".to_owned()),
        n => Some(format!("replaced {n} times")),
    };
    let state = match mover.state.as_str() {
        "fine" if replaced.is_none() => return None,
        "stuck" => {
            let at = match &mover.at {
                Some(id) => format!(" at connection {id}"),
                None => String::new(),
            };
            let time = span(mover.stuck_seconds.unwrap_or_default());
            format!("stuck for {time}{at}, because the kernel does not answer: nothing is moved")
        }
        "ended" => "panicked: nothing is moved".to_owned(),
        other => other.to_owned(),
    };
    let parts: Vec<String> = [Some(state), replaced].into_iter().flatten().collect();
    Some(parts.join("; "))
}

fn mode(mode: &ModeStatus) -> String {
    let why = |by: &String| {
        match by.as_str() {
        "policy" => format!("the policy says {}", mode.policy),
        "flag" => format!("--mode {}", mode.flag),
        "noMechanism" => "no reset mechanism works here".to_owned(),
        "podsWithoutNames" => {
            "there are pods on this node, and the API server is not asked about them: start it with \
             a token or --kubeconfig and --kubernetes=on, or with --kubernetes=off if nothing of \
             Kubernetes is to skip them"
                .to_owned()
        }
        other => other.to_owned(),
    }
    };
    let whys: Vec<String> = mode.limited_by.iter().map(why).collect();
    match whys.as_slice() {
        [] => mode.effective.clone(),
        whys => format!("{} ({})", mode.effective, whys.join(", ")),
    }
}

fn sums(counts: &BTreeMap<String, u64>, none: &str) -> String {
    let words: Vec<String> = counts
        .iter()
        .map(|(word, n)| format!("{n} {word}"))
        .collect();
    match words.as_slice() {
        [] => none.to_owned(),
        words => words.join(", "),
    }
}

/// Zero if `later` is the earlier: clocks are set back.
pub(super) fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    later
        .duration_since(earlier)
        .try_into()
        .unwrap_or(Duration::ZERO)
}

/// A time that may be much below a second. What makes no sense as a time is none.
fn span(seconds: f64) -> String {
    let time = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    match time.as_micros() {
        micros @ 0..1_000 => format!("{micros}us"),
        1_000..1_000_000 => format!("{:.1}ms", time.as_secs_f64() * 1000.0),
        _ => age(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_says_what_limits_it_and_what_to_do() {
        let said = |limited_by: &str| {
            mode(&ModeStatus {
                effective: "DryRun".to_owned(),
                policy: "Enforce".to_owned(),
                flag: "Enforce".to_owned(),
                limited_by: vec![limited_by.to_owned()],
            })
        };
        assert_eq!(
            said("noMechanism"),
            "DryRun (no reset mechanism works here)"
        );
        let pods = said("podsWithoutNames");
        assert!(
            pods.starts_with("DryRun (there are pods on this node"),
            "{pods}"
        );
        assert!(pods.contains("--kubernetes=on") && pods.contains("--kubernetes=off"));
    }

    #[test]
    fn a_mover_is_told_of_if_there_is_something_to_say() {
        let of = |state: &str, stuck_seconds, at: Option<&str>, replaced| {
            mover(&MoverStatus {
                state: state.to_owned(),
                stuck_seconds,
                at: at.map(str::to_owned),
                replaced,
            })
        };
        assert_eq!(of("fine", None, None, 0), None);
        let again = "fine; replaced 2 times".to_owned();
        assert_eq!(of("fine", None, None, 2), Some(again));
        let stuck = of("stuck", Some(42.0), Some("7"), 0).unwrap();
        assert!(
            stuck.starts_with("stuck for 42s at connection 7"),
            "{stuck}"
        );
        let ended = of("ended", None, None, 0).unwrap();
        assert!(ended.contains("nothing is moved"), "{ended}");
    }
}
