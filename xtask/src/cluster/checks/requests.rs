//! How often the API server is asked for the exchange of reports and views: by its own counts, beside what the
//! intervals of agents and coordinators come to.

use std::{
    collections::BTreeMap,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    Outcome, State,
    balance::{REPORT_EVERY, ROUNDS, balanced_by, ended},
    disruptions::{begin, ends, memory},
};
use crate::cluster::kubectl;

/// What is counted may differ by so much from what is expected.
const DIFFERS: f64 = 0.2;
/// The slow balance goes on for longer than it is counted.
const COUNTED: Duration = Duration::from_secs(66);
const SLOWLY: u32 = 30;

/// As in `rebalancer_core::views`; a test compares them.
const REPORT_AT_LEAST_EVERY: Duration = Duration::from_secs(30);
/// Likewise.
const VIEW_AGAIN_AFTER: Duration = Duration::from_secs(20);

/// A kind of request, as the API server's metric has it.
#[derive(Clone, Copy)]
struct Kind {
    what: &'static str,
    resource: &'static str,
    subresource: &'static str,
    verb: &'static str,
}

const REPORTS: Kind = Kind {
    what: "reports",
    resource: "nodebalances",
    subresource: "",
    verb: "APPLY",
};
const VIEWS: Kind = Kind {
    what: "views",
    subresource: "status",
    verb: "PATCH",
    ..REPORTS
};
const LEASES_READ: Kind = Kind {
    what: "leases read",
    resource: "leases",
    verb: "GET",
    ..REPORTS
};
const LEASES_WRITTEN: Kind = Kind {
    what: "leases written",
    verb: "PUT",
    ..LEASES_READ
};

/// How often a kind of request is made: every so many seconds by each node, and so often a second beside.
struct Rate {
    kind: Kind,
    every: f64,
    beside: f64,
}

/// What is expected, `report` and `view` being the least times between two of a node. A report is written at the first
/// look after its time: looks are a second apart, and one comes just too early, as the time counts from the end of a
/// write. A view is written at the first merge after its time; merges are two seconds apart, so one in the middle.
fn expected(report: Duration, view: Duration) -> [Rate; 4] {
    let (report, view) = (report.as_secs_f64(), view.as_secs_f64());
    let (look, merge) = (1.0, 2.0);
    // Two coordinators read the lease every two seconds, and the one that leads writes it.
    let lease = 2.0;
    // Each kubelet writes its node's lease every ten seconds, and so does the API server its own.
    let kubelet = 10.0;
    let rate = |kind, every, beside| Rate {
        kind,
        every,
        beside,
    };
    [
        rate(REPORTS, report + look, 0.0),
        rate(VIEWS, view + merge / 2.0, 0.0),
        rate(LEASES_READ, f64::INFINITY, 2.0 / lease),
        rate(LEASES_WRITTEN, kubelet, 1.0 / lease + 1.0 / kubelet),
    ]
}

/// All is balanced and nothing changes: a report says once in a while that the node lives, and a view is given again
/// long before it expires.
fn resting() -> [Rate; 4] {
    expected(REPORT_AT_LEAST_EVERY, VIEW_AGAIN_AFTER)
}

/// All loads change all the time: what has changed is reported and given as often as it may be.
fn balancing() -> [Rate; 4] {
    expected(REPORT_EVERY, REPORT_EVERY)
}

/// The API server's counts of requests, by resource, subresource and verb.
struct Counts {
    at: Instant,
    counts: BTreeMap<[String; 3], f64>,
}

impl Counts {
    fn read() -> Result<Self> {
        let metrics = kubectl::run("get --raw /metrics")?;
        let at = Instant::now();
        let mut counts = BTreeMap::new();
        for line in metrics.lines() {
            let Some(rest) = line.strip_prefix("apiserver_request_total{") else {
                continue;
            };
            let (labels, count) = rest.rsplit_once("} ").context("a metric's value")?;
            let of_exchange = ["resource", "subresource", "verb"].map(|name| label(labels, name));
            let count: f64 = count.parse().context("a metric's value")?;
            *counts.entry(of_exchange).or_default() += count;
        }
        Ok(Self { at, counts })
    }

    fn of(&self, kind: Kind) -> f64 {
        let key = [kind.resource, kind.subresource, kind.verb].map(str::to_owned);
        self.counts.get(&key).copied().unwrap_or(0.0)
    }

    /// The rates since then, beside what is expected of so many nodes.
    fn compared(&self, expected: &[Rate], nodes: usize) -> Result<String> {
        let now = Self::read()?;
        let seconds = now.at.duration_since(self.at).as_secs_f64();
        let mut found = Vec::new();
        let mut wrong = Vec::new();
        for Rate {
            kind,
            every,
            beside,
        } in expected
        {
            let nodes = nodes as f64;
            let count = now.of(*kind) - self.of(*kind);
            let due = (nodes / every + beside) * seconds;
            let text = if every.is_finite() && *beside == 0.0 {
                let per_node = |count: f64| count / seconds / nodes;
                let (is, due) = (per_node(count), per_node(due));
                format!("{} {is:.3}/s and node ({due:.3} expected)", kind.what)
            } else {
                let (is, due) = (count / seconds, due / seconds);
                format!("{} {is:.2}/s ({due:.2} expected)", kind.what)
            };
            if (count - due).abs() > due * DIFFERS {
                wrong.push(text.clone());
            }
            found.push(text);
        }
        let found = format!("in {seconds:.0} s: {}", found.join(", "));
        ensure!(
            wrong.is_empty(),
            "the API server counts other rates than the intervals come to: {}; all {found}",
            wrong.join(", ")
        );
        Ok(found)
    }
}

/// The value of a label; none if there is no such.
fn label(labels: &str, name: &str) -> String {
    let mut all = labels.split("\",").filter_map(|one| one.split_once("=\""));
    let found = all.find(|(key, _)| *key == name);
    found.map_or(String::new(), |(_, value)| {
        value.trim_end_matches('"').to_owned()
    })
}

/// Waits for the last moves: what chance may explain is even to the check before, and an agent may still move some of it.
fn settled() -> Result<()> {
    let quiet = REPORT_EVERY * 2;
    let mut before = ended()?;
    for _ in 0..ROUNDS {
        sleep(quiet);
        let now = ended()?;
        if now == before {
            return Ok(());
        }
        before = now;
    }
    let seconds = (quiet * ROUNDS).as_secs();
    bail!("still moves {seconds} s after all was balanced");
}

/// Nothing is moved, and the API server is asked as often as the intervals say.
pub(super) fn at_rest(state: &mut State) -> Outcome {
    settled()?;
    let (before, counts) = (ended()?, Counts::read()?);
    let began = Instant::now();
    while began.elapsed() < state.rest {
        sleep(REPORT_EVERY.min(state.rest.saturating_sub(began.elapsed())));
        let (moves, seconds) = (ended()? - before, began.elapsed().as_secs());
        ensure!(
            moves == 0,
            "{moves} moves within {seconds} s though all was balanced"
        );
    }
    let rest = began.elapsed().as_secs();
    let requests = counts.compared(&resting(), state.cluster.nodes.len())?;
    Ok(format!("no move in {rest} s; {requests}"))
}

/// A balance that takes longer than it is counted.
pub(super) fn while_balancing(state: &mut State) -> Outcome {
    let nodes: Vec<String> = state.nodes().collect();
    begin(&nodes, &balanced_by(SLOWLY))?;
    let memory = memory(&nodes)?;
    // Until all nodes have reported the new endpoints.
    sleep(REPORT_EVERY);
    let counts = Counts::read()?;
    sleep(COUNTED);
    let requests = counts.compared(&balancing(), nodes.len())?;
    Ok(format!("{requests}; {}", ends(&nodes, memory)?))
}

#[cfg(test)]
mod tests {
    use rebalancer_core::views;

    use super::*;

    #[test]
    fn the_intervals_are_those_of_the_program() {
        assert_eq!(REPORT_EVERY, views::REPORT_EVERY);
        assert_eq!(REPORT_AT_LEAST_EVERY, views::REPORT_AT_LEAST_EVERY);
        assert_eq!(VIEW_AGAIN_AFTER, views::VIEW_AGAIN_AFTER);
    }

    #[test]
    fn labels_are_read() {
        let labels = r#"code="200",resource="leases",subresource="",verb="GET""#;
        let of = |name| label(labels, name);
        assert_eq!(
            ["resource", "verb", "subresource", "none"].map(of),
            ["leases", "GET", "", ""]
        );
    }
}
