//! What the agent shall be able to do on a kernel, the tests that show it, and the table of both.

use std::collections::BTreeMap;

use serde_json::Value;

#[cfg(test)]
use super::Kernel;
use super::{Boot, Cgroup, Lockdown};
use crate::word;

/// An ability.
struct Ability {
    name: &'static str,
    /// What `rebalancer doctor` calls it, where a kernel may lack it and the agent goes without.
    asked: Option<&'static str>,
    /// Pass where it is there.
    tests: &'static [&'static str],
    /// Pass in any case.
    always: &'static [&'static str],
}

const fn ability(name: &'static str, tests: &'static [&'static str]) -> Ability {
    Ability {
        name,
        asked: None,
        tests,
        always: &[],
    }
}

const fn asked(name: &'static str, asked: &'static str, tests: &'static [&'static str]) -> Ability {
    Ability {
        asked: Some(asked),
        ..ability(name, tests)
    }
}

const ABILITIES: [Ability; 15] = [
    ability(
        "runs, leaves nothing",
        &["life::sigterm_leaves_nothing_in_the_kernel"],
    ),
    ability(
        "adopts what is older",
        &["tracking::a_connection_older_than_the_agent_is_adopted_once_and_counted_as_closed_once"],
    ),
    ability(
        "records",
        &[
            "tracking::listeners_are_endpoints_before_any_connection",
            "tracking::a_connection_is_shown_with_peer_state_age_and_namespace",
        ],
    ),
    asked(
        "sees closes",
        "seeing closes",
        &["bytes::short_connections_are_counted_like_long_ones"],
    ),
    ability(
        "walk exact under churn",
        &["scale::churn::sums_are_exact_at_the_highest_connection_rate"],
    ),
    ability(
        "bytes as ss",
        &["bytes::bytes_of_request_traffic_match_ss_live_and_final"],
    ),
    asked(
        "SOCK_DESTROY",
        "reset by SOCK_DESTROY",
        &["mechanisms::sock_destroy_resets_only_its_connection"],
    ),
    asked(
        "by descriptor",
        "reset by the server's descriptor",
        &["mechanisms::abort_resets_only_its_connection"],
    ),
    asked(
        "raw RST",
        "reset by a raw segment",
        &["mechanisms::raw_resets_only_its_connection"],
    ),
    asked(
        "sniffs HTTP/1, skips HTTP/2",
        "protocol detection",
        &[
            "sniffing::an_answered_http_1_connection_is_moved_and_others_are_not_sniffed",
            "sniffing::other_protocols_than_http_1_are_skipped_and_no_longer_sniffed",
        ],
    ),
    Ability {
        always: &["messages::nothing_is_counted_on_a_kernel_with_wrong_fionread"],
        ..asked(
            "counts",
            "counting sends",
            &[
                "messages::sends_of_known_sizes_are_counted_exactly_and_other_connections_run_nothing",
            ],
        )
    },
    asked(
        "notice over HTTP/2",
        "notice over HTTP/2",
        &["notice::no_program_runs_for_what_is_not_moved"],
    ),
    ability(
        "is succeeded after kill -9",
        &["life::a_killed_agent_is_succeeded_and_ages_survive"],
    ),
    ability(
        "beside a neighbour",
        &["neighbours::sock_ops_programs_attached_before_and_below_ours_do_not_interfere"],
    ),
    ability(
        "uninstalls",
        &["life::tracking_that_is_kept_outlives_a_clean_stop_until_it_is_uninstalled"],
    ),
];

/// The tests that a machine runs.
pub(super) fn tests() -> impl Iterator<Item = &'static str> {
    ABILITIES
        .iter()
        .flat_map(|ability| ability.tests.iter().chain(ability.always).copied())
}

/// How an ability stands on a kernel.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Works,
    /// Not available, and the agent reports why.
    Refused(String),
    Failed(String),
    /// Not asked, as the agent itself is refused.
    Unasked,
}

/// What one machine showed.
pub(super) struct Row {
    machine: String,
    verdicts: Vec<Verdict>,
}

impl Row {
    /// From what the machine said.
    pub(super) fn judge(boot: &Boot<'_>, said: &[String]) -> Self {
        let mut verdicts = verdicts(said);
        // What it was booted for is what it says to be.
        let booted = said.iter().find(|line| line.starts_with("booted "));
        let booted = booted.map_or("it did not boot", String::as_str);
        if !is_as_asked(booted, boot) {
            verdicts[0] = Verdict::Failed(format!("another machine than was asked for: {booted}"));
        }
        Self {
            machine: boot.to_string(),
            verdicts,
        }
    }

    pub(super) fn failed(&self) -> bool {
        self.verdicts
            .iter()
            .any(|verdict| matches!(verdict, Verdict::Failed(_)))
    }
}

fn is_as_asked(booted: &str, boot: &Boot<'_>) -> bool {
    let locked = booted.contains(&format!("[{}]", word(boot.lockdown)));
    let beside_v1 = !booted.contains(" 0 hierarchies of cgroup v1");
    let scoped = |scope| booted.contains(&format!("; Yama {scope};"));
    // A kernel without that security module has no lockdown at all.
    (locked || boot.lockdown == Lockdown::None && !booted.contains('['))
        && beside_v1 == (boot.cgroup == Cgroup::Hybrid)
        && boot.yama.is_none_or(scoped)
}

fn verdicts(said: &[String]) -> Vec<Verdict> {
    let word = |name: &str| {
        let mut words = said
            .iter()
            .map(|line| line.split_once(' ').unwrap_or((line, "")));
        words.find_map(|(first, rest)| (first == name).then_some(rest))
    };
    let whole = said.iter().any(|line| line == "end");
    let cut = || {
        let last = said.last().map_or("nothing", String::as_str);
        Verdict::Failed(format!("the machine ended early; it last said: {last}"))
    };
    let left = word("left").is_none_or(|left| !left.is_empty());
    if let Some(refusal) = word("refused") {
        let first = match refusal
            .split_once("error: ")
            .and_then(|(code, why)| Some((code, why.split_once("  remedy: ")?.0)))
        {
            Some(("1 ", why)) if whole && !left => Verdict::Refused(why.trim().to_owned()),
            _ => Verdict::Failed(format!(
                "not refused as it should be (left behind: {left}): {refusal}"
            )),
        };
        let others = ABILITIES.iter().skip(1).map(|_| Verdict::Unasked);
        return [first].into_iter().chain(others).collect();
    }
    let diagnosis: Value = word("doctor")
        .and_then(|json| serde_json::from_str(json).ok())
        .unwrap_or_default();
    let lacks: BTreeMap<&str, &str> = diagnosis["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|finding| finding["level"] != "ok" && finding["remedy"].is_string())
        .filter_map(|finding| Some((finding["what"].as_str()?, finding["found"].as_str()?)))
        .collect();
    let passed = |test: &str| {
        said.iter()
            .any(|line| line.strip_prefix("passed ") == Some(test))
    };
    let failure = |test: &str| {
        let failure = said.iter().find(|line| {
            line.strip_prefix("failed ")
                .is_some_and(|it| it.starts_with(test))
        });
        failure.map_or_else(cut, |failure| Verdict::Failed(failure.clone()))
    };
    let mut verdicts: Vec<Verdict> = ABILITIES
        .iter()
        .map(|ability| {
            let refused = ability.asked.and_then(|asked| lacks.get(asked));
            let needed = if refused.is_some() {
                &[][..]
            } else {
                ability.tests
            };
            match needed
                .iter()
                .chain(ability.always)
                .find(|test| !passed(test))
            {
                Some(test) => failure(test),
                None => refused.map_or(Verdict::Works, |why| Verdict::Refused((*why).to_owned())),
            }
        })
        .collect();
    if word("ran") != Some("0") || left {
        verdicts[0] = Verdict::Failed(format!(
            "ran: {:?}; left behind: {:?}",
            word("ran"),
            word("left")
        ));
    }
    verdicts
}

/// The table, in Markdown, and below it what its numbers stand for.
pub(super) fn table(rows: &[Row]) -> String {
    let mut notes: Vec<String> = Vec::new();
    let mut note = |text: &str| {
        let known = notes.iter().position(|it| it == text);
        1 + known.unwrap_or_else(|| {
            notes.push(text.to_owned());
            notes.len() - 1
        })
    };
    let names = ABILITIES.each_ref().map(|ability| ability.name);
    let mut table = format!(
        "| Linux | {} |\n|---|{}\n",
        names.join(" | "),
        "---|".repeat(names.len())
    );
    for row in rows {
        let cells: Vec<String> = row
            .verdicts
            .iter()
            .map(|verdict| match verdict {
                Verdict::Works => "ok".to_owned(),
                Verdict::Refused(why) => format!("refused ({})", note(why)),
                Verdict::Failed(why) => format!("FAILED ({})", note(why)),
                Verdict::Unasked => "–".to_owned(),
            })
            .collect();
        table.push_str(&format!("| {} | {} |\n", row.machine, cells.join(" | ")));
    }
    for (number, note) in notes.iter().enumerate() {
        table.push_str(&format!("\n({}) {note}\n", number + 1));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_passed() -> Vec<String> {
        let head = ["booted 6.1", "doctor {}", "ran 0", "left"].map(str::to_owned);
        let passed = tests().map(|test| format!("passed {test}"));
        head.into_iter()
            .chain(passed)
            .chain(["end".to_owned()])
            .collect()
    }

    fn at(verdicts: &[Verdict], name: &str) -> String {
        let place = ABILITIES.iter().position(|ability| ability.name == name);
        format!("{:?}", verdicts[place.expect("an ability")])
    }

    #[test]
    fn only_what_passed_works() {
        let said = all_passed();
        assert!(
            verdicts(&said)
                .iter()
                .all(|verdict| *verdict == Verdict::Works)
        );
        for (place, line) in said.iter().enumerate().skip(2) {
            if line == "end" {
                continue;
            }
            let mut less = said.clone();
            less.remove(place);
            let failed = verdicts(&less)
                .iter()
                .any(|it| matches!(it, Verdict::Failed(_)));
            assert!(failed, "without {line}");
        }
    }

    #[test]
    fn a_refusal_needs_its_reason_and_leaves_nothing() {
        let refusal = "refused 1 error: this kernel rejects the program walk: why   remedy: that ";
        let said = |left: &str| ["doctor {}", refusal, left, "end"].map(str::to_owned);
        let refused = verdicts(&said("left"));
        assert_eq!(
            refused[0],
            Verdict::Refused("this kernel rejects the program walk: why".to_owned())
        );
        assert!(matches!(
            verdicts(&said("left rebalancer"))[0],
            Verdict::Failed(_)
        ));
        let killed = ["refused 139", "left", "end"].map(str::to_owned);
        assert!(matches!(verdicts(&killed)[0], Verdict::Failed(_)));
    }

    #[test]
    fn what_the_doctor_finds_missing_is_refused_and_its_test_may_fail() {
        let finding = r#"doctor {"items":[{"what":"counting sends","level":"warning","found":"FIONREAD","remedy":"x"}]}"#;
        let mut said = all_passed();
        said[1] = finding.to_owned();
        said.retain(|line| !line.contains("sends_of_known_sizes"));
        assert_eq!(at(&verdicts(&said), "counts"), r#"Refused("FIONREAD")"#);
        said.retain(|line| !line.contains("wrong_fionread"));
        assert!(at(&verdicts(&said), "counts").starts_with("Failed"));
    }

    #[test]
    fn a_guest_must_report_the_options_that_it_was_booted_with() {
        let kernel = Kernel {
            release: "6.12".to_owned(),
            image: "/vmlinuz".into(),
            modules: "/".into(),
        };
        let is_as_asked = |booted: &str, lockdown, cgroup, yama| {
            let kernel = &kernel;
            let boot = Boot {
                kernel,
                lockdown,
                cgroup,
                yama,
            };
            is_as_asked(booted, &boot)
        };
        let integrity = "booted 6.12; lockdown none [integrity] confidentiality; 12 hierarchies of cgroup v1; Yama 1; nf_tables";
        let plain = "booted 6.1; lockdown [none] integrity confidentiality; 0 hierarchies of cgroup v1; Yama 3; nf_tables";
        let rows = [
            (integrity, Lockdown::Integrity, Cgroup::Hybrid, None, true),
            (
                integrity,
                Lockdown::Integrity,
                Cgroup::Hybrid,
                Some(2),
                false,
            ),
            (
                integrity,
                Lockdown::Confidentiality,
                Cgroup::Hybrid,
                None,
                false,
            ),
            (integrity, Lockdown::Integrity, Cgroup::V2, None, false),
            (plain, Lockdown::None, Cgroup::V2, None, true),
            (plain, Lockdown::None, Cgroup::V2, Some(3), true),
            (plain, Lockdown::Integrity, Cgroup::V2, None, false),
            (
                "it did not boot",
                Lockdown::Integrity,
                Cgroup::V2,
                None,
                false,
            ),
        ];
        for (booted, lockdown, cgroup, yama, expected) in rows {
            let found = is_as_asked(booted, lockdown, cgroup, yama);
            assert_eq!(found, expected, "{booted}, {yama:?}");
        }
    }
}
