//! What is measured of a run, and its mean and spread over many.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use rebalancer_core::{plan::Plan, policy::Percent, snapshot::KernelTime};

use super::{
    oracle,
    scenario::Scenario,
    world::{START, World},
};

/// How it stood when the first agent listed.
#[derive(Clone)]
pub(crate) struct Sample {
    /// Since the start.
    pub(crate) at: Duration,
    /// The most that one endpoint holds, of the mean.
    pub(crate) hottest: f64,
    /// No endpoint holds more than the mean and the tolerance, none so little that chance does not
    /// explain it, and no client is away.
    pub(crate) balanced: bool,
}

impl Sample {
    pub(super) fn of(world: &World, tolerance: Percent) -> Self {
        let facts = oracle::facts(&world.loads());
        let mean = facts.sum.total as f64 / f64::from(facts.endpoints.max(1));
        Self {
            at: world.now.since(START),
            hottest: if mean > 0.0 {
                facts.most as f64 / mean
            } else {
                1.0
            },
            balanced: facts.most <= facts.stop(tolerance)
                && !facts.one_is_empty()
                && !world.is_someone_away(),
        }
    }
}

/// A move, as it was begun.
#[derive(Clone, Copy)]
pub(crate) struct Start {
    pub(crate) at: KernelTime,
    pub(crate) node: usize,
    pub(crate) client: IpAddr,
}

impl Start {
    /// When, since the start of the run.
    pub(crate) fn after_start(&self) -> Duration {
        self.at.since(START)
    }
}

/// What happened in one run.
pub(crate) struct Run {
    pub(crate) samples: Vec<Sample>,
    pub(crate) starts: Vec<Start>,
    /// Why connections were skipped, and how often, over all plans.
    pub(crate) skipped: BTreeMap<&'static str, u64>,
    interval: Duration,
    judged: KernelTime,
    while_balanced: u64,
    tolerance: Percent,
    /// What had to be balanced.
    task: Option<Vec<Vec<u64>>>,
}

impl Run {
    pub(super) fn new(scenario: &Scenario, tolerance: Percent, judged: KernelTime) -> Self {
        Self {
            samples: Vec::new(),
            starts: Vec::new(),
            skipped: BTreeMap::new(),
            interval: scenario.interval,
            judged,
            while_balanced: 0,
            tolerance,
            task: None,
        }
    }

    pub(super) fn sample(&mut self, sample: Sample, world: &World) {
        if self.task.is_none() && world.now >= self.judged {
            self.task = Some(world.loads());
        }
        self.samples.push(sample);
    }

    pub(super) fn planned(&mut self, plan: &Plan, starts: Vec<Start>, before: &Sample) {
        for (why, count) in plan.skipped() {
            *self.skipped.entry(why).or_default() += count;
        }
        for start in starts {
            let early = start.at < self.judged;
            self.while_balanced += u64::from(early || before.balanced);
            self.starts.push(start);
        }
    }

    pub(super) fn has_moved_at(&self, node: usize) -> bool {
        self.starts.iter().any(|start| start.node == node)
    }

    /// The least moves that what had to be balanced takes; of a run in which nothing was moved.
    pub(crate) fn least(&self, seed: u64) -> f64 {
        let task = self.task.as_ref();
        task.map_or(0.0, |loads| oracle::least(loads, self.tolerance, seed))
    }

    /// `least`: see [`Run::least`].
    pub(crate) fn measures(&self, least: f64) -> Measures {
        let judged = self.judged.since(START);
        let after = || self.samples.iter().filter(|sample| sample.at >= judged);
        let rounds: BTreeSet<u128> = self
            .starts
            .iter()
            .map(|start| start.at.since(START).as_nanos() / self.interval.as_nanos())
            .collect();
        let mut by_client: BTreeMap<IpAddr, u64> = BTreeMap::new();
        for start in &self.starts {
            *by_client.entry(start.client).or_default() += 1;
        }
        let moves = self.starts.len() as f64;
        let most = by_client.values().max().copied().unwrap_or(0) as f64;
        Measures {
            moves,
            least,
            rounds: rounds.len() as f64,
            seconds: after()
                .find(|sample| sample.balanced)
                .map(|sample| (sample.at - judged).as_secs_f64()),
            while_balanced: self.while_balanced as f64,
            worst_client: if moves > 0.0 { most / moves } else { 0.0 },
            last_move: self
                .starts
                .iter()
                .map(|start| start.at.since(self.judged).as_secs_f64())
                .fold(0.0, f64::max),
            hottest: self.samples.last().map_or(0.0, |sample| sample.hottest),
        }
    }
}

/// What one run comes to.
#[derive(Clone, Copy)]
pub(crate) struct Measures {
    pub(crate) moves: f64,
    /// The least that random placement allows.
    pub(crate) least: f64,
    /// Intervals in which moves were begun.
    pub(crate) rounds: f64,
    /// Until it was balanced for the first time; none if it never was.
    pub(crate) seconds: Option<f64>,
    /// Moves begun when nothing was to be done.
    pub(crate) while_balanced: f64,
    /// The share of the moves of the client that had most.
    pub(crate) worst_client: f64,
    /// When the last move began.
    pub(crate) last_move: f64,
    /// The most that one endpoint holds at the end, of the mean.
    pub(crate) hottest: f64,
}
