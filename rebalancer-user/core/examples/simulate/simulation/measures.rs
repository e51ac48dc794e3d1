//! What is measured of a run.

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

/// The state when the first agent takes a snapshot.
#[derive(Clone)]
pub(crate) struct Sample {
    /// Time since the start.
    pub(crate) at: Duration,
    /// The load of the hottest endpoint, relative to the mean.
    pub(crate) hottest: f64,
    /// No endpoint is above the mean plus the tolerance, none below what random placement explains, and
    /// no client is about to reconnect.
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

/// The start of a move.
#[derive(Clone, Copy)]
pub(crate) struct Start {
    pub(crate) at: KernelTime,
    pub(crate) node: usize,
    pub(crate) client: IpAddr,
}

impl Start {
    /// Time since the start of the run.
    pub(crate) fn after_start(&self) -> Duration {
        self.at.since(START)
    }
}

/// The events of one run.
pub(crate) struct Run {
    pub(crate) samples: Vec<Sample>,
    pub(crate) starts: Vec<Start>,
    /// How often connections were skipped, by reason, over all plans.
    pub(crate) skipped: BTreeMap<&'static str, u64>,
    interval: Duration,
    judged: KernelTime,
    while_balanced: u64,
    tolerance: Percent,
    /// The loads that had to be balanced.
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

    /// The least number of moves that balances it; for a run in which nothing was moved.
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

/// The results of one run.
#[derive(Clone, Copy)]
pub(crate) struct Measures {
    pub(crate) moves: f64,
    /// The least number of moves that random placement allows.
    pub(crate) least: f64,
    /// Intervals in which moves were started.
    pub(crate) rounds: f64,
    /// Time until it was first balanced; `None` if it never was.
    pub(crate) seconds: Option<f64>,
    /// Moves started when none was needed.
    pub(crate) while_balanced: f64,
    /// The largest share of the moves that one client had.
    pub(crate) worst_client: f64,
    /// When the last move started.
    pub(crate) last_move: f64,
    /// The load of the hottest endpoint at the end, relative to the mean.
    pub(crate) hottest: f64,
}
