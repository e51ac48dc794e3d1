//! What the coordinator makes of the reports of all nodes.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Generation, Key, REPORT_COUNTS_FOR, REPORT_REMOVED_AFTER, Report, ServiceReport, Share, Sums,
    View,
};

/// The latest report of each node. Times are on the coordinator's clock, since any moment.
#[derive(Clone, Debug, Default)]
pub struct Merger {
    nodes: BTreeMap<String, Node>,
}

#[derive(Clone, Debug)]
struct Node {
    report: Report,
    /// When it was first seen.
    seen: Duration,
    /// When it was last seen to change. How old it was when first seen is not known.
    changed: Option<Duration>,
}

impl Node {
    fn counts(&self, now: Duration) -> bool {
        let is_recent = |at| now.saturating_sub(at) < REPORT_COUNTS_FOR;
        self.changed.is_some_and(is_recent)
    }
}

/// A node's report of one Service, its numbers checked.
struct Part<'a> {
    node: &'a str,
    report: ServiceReport,
}

/// Nodes whose reports add up: they know the same set of endpoints.
type SameSet<'a> = (&'a Key, Generation, u32);

impl Merger {
    /// Takes in a node's report as it is at `now`; `is_news`: it was written just now, as far as is known.
    /// The same again is no sign of life.
    pub fn report(&mut self, node: &str, report: Report, is_news: bool, now: Duration) {
        match self.nodes.get_mut(node) {
            Some(known) if known.report == report => {}
            Some(known) => {
                known.report = report;
                known.changed = Some(now);
            }
            None => {
                let new = Node {
                    report,
                    seen: now,
                    changed: is_news.then_some(now),
                };
                self.nodes.insert(node.to_owned(), new);
            }
        }
    }

    /// Forgets a node that is gone.
    pub fn remove(&mut self, node: &str) {
        self.nodes.remove(node);
    }

    /// How long ago each node's report changed, if that is known.
    pub fn ages(&self, now: Duration) -> impl Iterator<Item = (&str, Option<Duration>)> {
        let age = move |node: &Node| Some(now.saturating_sub(node.changed?));
        self.nodes
            .iter()
            .map(move |(name, node)| (&**name, age(node)))
    }

    /// Nodes that have not reported for so long that their objects are to be removed.
    pub fn gone(&self, now: Duration) -> impl Iterator<Item = &str> {
        let is_gone = move |node: &Node| {
            let last = node.changed.unwrap_or(node.seen);
            now.saturating_sub(last) >= REPORT_REMOVED_AFTER
        };
        let gone = self.nodes.iter().filter(move |(_, node)| is_gone(node));
        gone.map(|(name, _)| &**name)
    }

    /// What each node should know now, in the order of its report. Without a view are Services of which
    /// not every ready endpoint was reported.
    pub fn views(&self, now: Duration) -> BTreeMap<String, Vec<View>> {
        let mut sets: BTreeMap<SameSet<'_>, Vec<Part<'_>>> = BTreeMap::new();
        let mut views = BTreeMap::new();
        for (name, node) in self.nodes.iter().filter(|(_, node)| node.counts(now)) {
            views.insert(name.clone(), Vec::new());
            for service in &node.report.services {
                if let Some(report) = service.checked() {
                    let set = (&service.key, service.generation, service.ready);
                    let node = name.as_str();
                    sets.entry(set).or_default().push(Part { node, report });
                }
            }
        }
        for ((key, generation, ready), mut parts) in sets {
            // One node's first word of a Service counts.
            parts.dedup_by(|later, first| later.node == first.node);
            let endpoints: usize = parts.iter().map(|part| part.report.loads.len()).sum();
            if u32::try_from(endpoints) != Ok(ready) {
                continue;
            }
            for (node, view) in of_nodes((key, generation, ready), &parts) {
                views.entry(node.to_owned()).or_default().push(view);
            }
        }
        views
    }
}

fn of_nodes<'a>(
    (key, generation, endpoints): SameSet<'_>,
    parts: &[Part<'a>],
) -> Vec<(&'a str, View)> {
    let mut sums = Sums::default();
    parts.iter().for_each(|part| sums.add(part.report.sums));
    let mut largest: Vec<u64> = parts.iter().map(|part| part.report.sums.largest).collect();
    largest.sort_unstable_by(|a, b| b.cmp(a));
    let others = |part: &Part<'a>| {
        let own = part.report.sums;
        Sums {
            total: sums.total.saturating_sub(own.total),
            squares: sums.squares.saturating_sub(own.squares),
            largest: if own.largest < sums.largest {
                sums.largest
            } else {
                largest.get(1).copied().unwrap_or(0)
            },
        }
    };
    let mean = sums.total / u64::from(endpoints.max(1));
    let loads = || {
        parts
            .iter()
            .flat_map(|part| part.report.loads.iter().copied())
    };
    let excess = |part: &Part<'a>| {
        let above = part
            .report
            .loads
            .iter()
            .map(|load| load.saturating_sub(mean));
        (part.node, above.fold(0, u64::saturating_add))
    };
    let excesses: Vec<(&str, u64)> = parts.iter().map(excess).collect();
    let shares: BTreeMap<&str, Share> = Share::by_weight(&excesses).into_iter().collect();
    let connections = parts.iter().map(|part| part.report.connections);
    let moving = parts.iter().map(|part| part.report.moving);
    let view = View {
        key: key.clone(),
        generation,
        endpoints,
        sums,
        mean,
        least: loads().min().unwrap_or(0),
        most: loads().max().unwrap_or(0),
        moving: moving.fold(0, u64::saturating_add),
        connections: connections.fold(0, u64::saturating_add),
        others: None,
        elsewhere: 0,
        filled: 0,
        full: 0,
        excess: 0,
        share: Share::default(),
    };
    let filled = |loads: &mut dyn Iterator<Item = u64>| {
        let filled = |(filled, full): (u64, u32), load: u64| {
            (
                filled.saturating_add(load.min(mean)),
                full.saturating_add((load >= mean).into()),
            )
        };
        loads.fold((0, 0), filled)
    };
    let all = filled(&mut loads());
    let of_node = |((node, excess), part): ((&'a str, u64), &Part<'a>)| {
        let here = filled(&mut part.report.loads.iter().copied());
        let view = View {
            others: Some(others(part)),
            elsewhere: view.connections.saturating_sub(part.report.connections),
            filled: all.0.saturating_sub(here.0),
            full: all.1.saturating_sub(here.1),
            excess,
            share: shares.get(node).copied().unwrap_or_default(),
            ..view.clone()
        };
        (node, view)
    };
    excesses.into_iter().zip(parts).map(of_node).collect()
}
