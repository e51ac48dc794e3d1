//! Reports and views between simulated agents and their coordinator: by the real merge and the real intervals.

use std::{collections::BTreeMap, fs, time::Duration};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rebalancer_core::views::{
    Merger, Publisher, Report, ReportSchedule, ServiceReport, VIEW_COUNTS_FOR, View, Views,
};

/// How often the coordinator merges.
const MERGE_EVERY: Duration = Duration::from_secs(2);

/// What lies between a node and the coordinator.
#[derive(Clone, Copy)]
pub(crate) struct Delivery {
    /// The most that a write takes to arrive; it takes at least half of it.
    pub(crate) delay: Duration,
    /// Of 1, how many writes fail; a report is written again with the next look, views once they are due.
    pub(crate) lost: f64,
}

/// What it has cost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) reports: u64,
    pub(crate) views: u64,
    pub(crate) report_bytes: u64,
    pub(crate) view_bytes: u64,
    /// CPU time in which the coordinator merges and takes in reports.
    pub(crate) merging: Duration,
    pub(crate) longest_merge: Duration,
}

enum Letter {
    Report(usize, Report),
    Views(usize, Vec<View>),
}

#[derive(Default)]
struct Node {
    offered: Vec<ServiceReport>,
    schedule: ReportSchedule,
    /// The views that have arrived, and when.
    views: Option<(Vec<View>, Duration)>,
}

pub(crate) struct Exchange {
    delivery: Delivery,
    nodes: Vec<Node>,
    merger: Merger,
    publisher: Publisher,
    /// Writes that are under way, by the time of their arrival and their number.
    letters: BTreeMap<(Duration, u64), Letter>,
    number: u64,
    merged: Duration,
    random: ChaCha8Rng,
    pub(crate) traffic: Traffic,
}

impl Exchange {
    pub(crate) fn new(nodes: usize, delivery: Delivery, seed: u64) -> Self {
        Self {
            delivery,
            nodes: (0..nodes).map(|_| Node::default()).collect(),
            merger: Merger::default(),
            publisher: Publisher::default(),
            letters: BTreeMap::new(),
            number: 0,
            merged: Duration::ZERO,
            random: ChaCha8Rng::seed_from_u64(seed),
            traffic: Traffic::default(),
        }
    }

    /// What the endpoints of a node hold as of its latest pass.
    pub(crate) fn offer(&mut self, node: usize, services: Vec<ServiceReport>) {
        self.nodes[node].offered = services;
    }

    /// What a node knows of the others.
    pub(crate) fn views(&self, node: usize, now: Duration) -> Views {
        let Some((views, at)) = &self.nodes[node].views else {
            return Views::Awaited;
        };
        let left = VIEW_COUNTS_FOR.saturating_sub(now.saturating_sub(*at));
        if left.is_zero() {
            return Views::Expired;
        }
        Views::valid(views.clone(), left)
    }

    /// A second has passed: writes arrive, those that are due are made, and reports are merged.
    pub(crate) fn second(&mut self, now: Duration) {
        while let Some(letter) = self.letters.first_entry()
            && letter.key().0 <= now
        {
            match letter.remove() {
                Letter::Report(node, report) => {
                    let began = cpu_time();
                    self.merger.report(&name(node), report, true, now);
                    self.traffic.merging += cpu_time().saturating_sub(began);
                }
                Letter::Views(node, views) => self.nodes[node].views = Some((views, now)),
            }
        }
        for index in 0..self.nodes.len() {
            let node = &self.nodes[index];
            if !node.schedule.is_due(&node.offered, now) || self.is_lost() {
                continue;
            }
            let node = &mut self.nodes[index];
            let report = Report::of(node.schedule.sequence() + 1, node.offered.clone());
            node.schedule.written(report.clone(), now);
            self.traffic.reports += 1;
            self.traffic.report_bytes += size(&report);
            self.send(now, Letter::Report(index, report));
        }
        if now.saturating_sub(self.merged) >= MERGE_EVERY {
            self.merged = now;
            self.merge(now);
        }
    }

    fn merge(&mut self, now: Duration) {
        let began = cpu_time();
        let views = self.merger.views(now);
        let due = self.publisher.take_due(views, now);
        let took = cpu_time().saturating_sub(began);
        self.traffic.merging += took;
        self.traffic.longest_merge = self.traffic.longest_merge.max(took);
        for (name, views) in due {
            if self.is_lost() {
                self.publisher.failed(&name);
                continue;
            }
            self.traffic.views += 1;
            self.traffic.view_bytes += size(&views);
            if let Ok(node) = name.parse() {
                self.send(now, Letter::Views(node, views));
            }
        }
    }

    fn is_lost(&mut self) -> bool {
        self.delivery.lost > 0.0 && self.random.random_bool(self.delivery.lost)
    }

    fn send(&mut self, now: Duration, letter: Letter) {
        let share = self.random.random_range(0.5..1.0);
        let at = now + self.delivery.delay.mul_f64(share);
        self.number += 1;
        self.letters.insert((at, self.number), letter);
    }
}

fn name(node: usize) -> String {
    node.to_string()
}

fn size(of: &impl serde::Serialize) -> u64 {
    serde_json::to_vec(of).map_or(0, |json| json.len() as u64)
}

/// What this thread has had of a CPU, whatever else runs; proc(5), `schedstat`.
fn cpu_time() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text.split(' ').next().unwrap_or_default();
    Duration::from_nanos(first.parse().unwrap_or_default())
}
