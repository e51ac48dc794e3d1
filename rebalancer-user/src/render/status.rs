//! The state of an agent as lines for people.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use jiff::Timestamp;

use super::{
    events::drain_under_way,
    units::{age, between, counted, span},
};
use crate::{
    api::{
        CapacityStatus, InFlightStatus, ModeStatus, MoverStatus, RampStatus, ShareStatus, Status,
    },
    text::visible,
};

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
        let reason = paused.reason.as_deref().map(visible);
        let why = reason.map_or(String::new(), |reason| format!(": {reason}"));
        let since = ago(paused.since);
        let until = match paused.until {
            Some(until) => format!("for {} more (until {until:.0})", age(between(now, until))),
            None => "on all nodes".to_owned(),
        };
        let ends_by = paused.by.ends_by();
        let text = format!("since {since}, {until}{why}; {ends_by} ends the pause");
        line("paused", text)?;
    }
    let policy = &status.policy;
    line(
        "policy",
        format!(
            "{}: valid, {}, loaded {}",
            policy.file,
            counted(policy.rules, "rule"),
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
    if let Some(cluster) = &status.cluster {
        let views = &cluster.views;
        let trouble = cluster.trouble.as_deref().map(visible);
        let why = trouble.map_or(String::new(), |trouble| format!(": {trouble}"));
        line("cluster", format!("views {views}{why}"))?;
        for share in &cluster.shares {
            line("", of_share(share))?;
        }
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
    for drain in &status.drains {
        line("draining", drain_under_way(drain))?;
    }
    line("ended", sums(&status.ended, "no move yet"))?;
    if status.reported_in_dry_run > 0 {
        line(
            "dry run",
            format!("{} moves reported", status.reported_in_dry_run),
        )?;
    }
    Ok(())
}

fn of_share(share: &ShareStatus) -> String {
    let ShareStatus {
        service,
        rule,
        endpoints,
        mean,
        excess,
        moves,
        budget,
    } = share;
    format!(
        "{service}, rule {rule}: {moves} of the {budget} moves in a window are this node's, which holds \
         {excess} above the mean {mean} of {endpoints} endpoints"
    )
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
             a token or --kubeconfig and --kubernetes=on, or with --kubernetes=off if no guard of \
             Kubernetes is needed"
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_says_what_limits_it_and_what_to_do() {
        let shown = |limited_by: &str| {
            mode(&ModeStatus {
                effective: "DryRun".to_owned(),
                policy: "Enforce".to_owned(),
                flag: "Enforce".to_owned(),
                limited_by: vec![limited_by.to_owned()],
            })
        };
        assert_eq!(
            shown("noMechanism"),
            "DryRun (no reset mechanism works here)"
        );
        let pods = shown("podsWithoutNames");
        assert!(
            pods.starts_with("DryRun (there are pods on this node"),
            "{pods}"
        );
        assert!(pods.contains("--kubernetes=on") && pods.contains("--kubernetes=off"));
    }

    #[test]
    fn a_mover_is_shown_unless_it_is_fine_and_was_never_replaced() {
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
