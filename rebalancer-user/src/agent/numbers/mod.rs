//! Numbers for monitoring: counted by the loop, published with its status, written out by whoever
//! is asked for them.
//!
//! Nothing is decided by them. No label names a pod, an address or a port; rules are bounded.

mod distribution;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

pub(super) use self::distribution::Distribution;
use super::fact::{Fact, Pass};
use crate::{
    observe::Observation,
    plan::{Ledger, Move, Plan, ReturnCounts},
    policy::{Mode, RuleName, StepKind},
    snapshot::{KernelTime, Naming},
};

/// Rules counted separately since the agent started. A policy has few; one whose rules are renamed again
/// and again must not fill the memory of the agent and of Prometheus.
const MOST_RULES: usize = 512;
/// Pairs of a rule and a Service counted separately in a pass: one rule may match every Service of a node.
const MOST_IMBALANCES: usize = 1024;
/// What all the others are counted as: no rule and no Service has such a name.
const OTHER: &str = "_other";

/// Kernel memory of a record in socket storage, as measured over 50,000.
const RECORD_BYTES: u64 = 384;

/// From a pass over an empty node to one over a million connections.
const PASSES: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
];
/// From a reset at once to the longest steps of a patient rule.
pub(super) const MOVES: &[f64] = &[
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0,
];
/// Seconds: from a moment to a week.
const AGES: &[f64] = &[
    1.0, 10.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 10_800.0, 43_200.0, 86_400.0, 604_800.0,
];
/// From a kibibyte to a tebibyte.
const SIZES: &[f64] = &[
    1024.0,
    16_384.0,
    262_144.0,
    1_048_576.0,
    16_777_216.0,
    268_435_456.0,
    1_073_741_824.0,
    17_179_869_184.0,
    274_877_906_944.0,
    1_099_511_627_776.0,
];

/// Which moves are counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind {
    pub(super) rule: String,
    pub(super) reason: &'static str,
    pub(super) step: &'static str,
    pub(super) mode: &'static str,
    pub(super) outcome: &'static str,
}

/// How unevenly endpoints hold what a rule balances, as ratios to their mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Imbalance {
    /// The one that holds most.
    pub(super) most: f64,
    /// Beyond it moves begin.
    pub(super) start: Option<f64>,
}

/// Drains of endpoints that have ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drains {
    pub(super) ended: u64,
    /// Connections that have left in time.
    pub(super) left: u64,
    /// Those that have not.
    pub(super) leftover: u64,
}

/// All that is counted, and what the last pass saw.
#[derive(Clone, Debug)]
pub(crate) struct Numbers {
    pub(super) moves: BTreeMap<Kind, u64>,
    pub(super) durations: BTreeMap<&'static str, Distribution>,
    pub(super) returns: ReturnCounts,
    /// Drains that have ended, by their cause.
    pub(super) drains: BTreeMap<&'static str, Drains>,
    pub(super) drain_durations: BTreeMap<&'static str, Distribution>,
    /// By rule and Service.
    pub(super) imbalances: BTreeMap<(String, String), Imbalance>,
    pub(super) rules: BTreeSet<String>,
    pub(super) passes: u64,
    pub(super) failed_passes: u64,
    pub(super) loads: u64,
    pub(super) refused_loads: u64,
    pub(super) pass_durations: Distribution,
    pub(super) listings: Distribution,
    pub(super) decisions: Distribution,
    /// Connections skipped by the last pass, by cause; 0 for a cause of a pass before.
    pub(super) skipped: BTreeMap<String, u64>,
    /// Of the last pass.
    pub(super) ages: Distribution,
    pub(super) sizes: Distribution,
    pub(super) endpoints_recorded: u64,
    pub(super) fullest_endpoint: u64,
    pub(super) records: u64,
    pub(super) naming: Naming,
    /// Endpoints that the kernel half can hold.
    pub(super) endpoints_most: u64,
}

/// The outcome of a move that is only reported.
const DRY_RUN: &str = "dryRun";

impl Numbers {
    pub(super) fn new(endpoints_most: u64) -> Self {
        Self {
            moves: BTreeMap::new(),
            durations: BTreeMap::new(),
            returns: ReturnCounts::default(),
            drains: BTreeMap::new(),
            drain_durations: BTreeMap::new(),
            imbalances: BTreeMap::new(),
            rules: BTreeSet::new(),
            passes: 0,
            failed_passes: 0,
            loads: 0,
            refused_loads: 0,
            pass_durations: Distribution::new(PASSES),
            listings: Distribution::new(PASSES),
            decisions: Distribution::new(PASSES),
            skipped: BTreeMap::new(),
            ages: Distribution::new(AGES),
            sizes: Distribution::new(SIZES),
            endpoints_recorded: 0,
            fullest_endpoint: 0,
            records: 0,
            naming: Naming::Off,
            endpoints_most,
        }
    }

    pub(super) fn record(&mut self, fact: &Fact<'_>) {
        match fact {
            Fact::PolicyLoaded { .. } => self.loads += 1,
            Fact::PolicyRefused { .. } => self.refused_loads += 1,
            Fact::Passed(pass) => self.passed(pass),
            Fact::ListingFailed { .. } => self.failed_passes += 1,
            Fact::WouldMove { chosen } => self.count(chosen, None, DRY_RUN),
            Fact::MoveEnded {
                chosen,
                step,
                outcome,
                waited,
            } => {
                self.count(chosen, *step, outcome.as_str());
                let durations = self.durations.entry(outcome.as_str());
                durations
                    .or_insert_with(|| Distribution::new(MOVES))
                    .observe(waited.as_secs_f64());
            }
            Fact::DrainEnded { drained, all } => {
                let drain = self.drains.entry(drained.cause.as_str()).or_default();
                drain.ended += 1;
                drain.left += all.saturating_sub(drained.count());
                drain.leftover += drained.count();
                let durations = self.drain_durations.entry(drained.cause.as_str());
                durations
                    .or_insert_with(|| Distribution::new(MOVES))
                    .observe(drained.took.as_secs_f64());
            }
            // The gauges of these are made of the status.
            Fact::PodsWithoutNames { .. }
            | Fact::Paused { .. }
            | Fact::StillPaused { .. }
            | Fact::Resumed { .. }
            | Fact::ListingRecovered
            | Fact::MoveStarted { .. }
            | Fact::MoveRecalled(_)
            | Fact::DrainBegan(_)
            | Fact::DrainTooShort(_)
            | Fact::CooldownStarted(_)
            | Fact::CooldownCleared(_)
            | Fact::MoverLost { .. }
            | Fact::MoverReplaced { .. }
            | Fact::MoverAnswered { .. }
            | Fact::Counting(_)
            | Fact::CountingNotStarted { .. }
            | Fact::AttachedAgain { .. }
            | Fact::ExchangeChanged { .. }
            | Fact::KernelFault { .. }
            | Fact::InvalidRecords { .. } => {}
        }
    }

    fn passed(&mut self, pass: &Pass<'_>) {
        self.passes += 1;
        let duration = pass.duration.as_secs_f64();
        self.pass_durations.observe(duration);
        self.listings.observe(pass.listing.as_secs_f64());
        self.decisions.observe(pass.deciding.as_secs_f64());
        self.listed(pass.observation);
        self.decided(pass.plan, pass.ledger);
    }

    fn listed(&mut self, observation: &Observation) {
        let snapshot = &observation.snapshot;
        self.naming = snapshot.naming;
        self.ages = Distribution::new(AGES);
        self.sizes = Distribution::new(SIZES);
        let now: KernelTime = snapshot.taken;
        for connection in &snapshot.connections {
            self.ages
                .observe(now.since(connection.opened).as_secs_f64());
            // Exact up to 8 PiB.
            self.sizes.observe(connection.bytes().0 as f64);
        }
        let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        self.records = number(snapshot.connections.len() + observation.listeners.len());
        self.endpoints_recorded = number(snapshot.endpoints.len());
        let open = snapshot.endpoints.values().map(|endpoint| endpoint.open);
        self.fullest_endpoint = open.max().unwrap_or(0);
    }

    /// The balance of endpoints, and where the clients of moves returned to.
    fn decided(&mut self, plan: &Plan, ledger: &Ledger) {
        self.returns = ledger.return_counts();
        // A series that vanished would keep its last value in a query over time.
        self.skipped.values_mut().for_each(|n| *n = 0);
        for (cause, n) in plan.skipped() {
            self.skipped.insert(cause.to_owned(), n);
        }
        self.imbalances.clear();
        for balanced in plan.balanced() {
            let Ok(facts) = balanced.facts else {
                continue; // not all of it is seen
            };
            let mean = facts.mean();
            if mean == 0 {
                continue;
            }
            // Without a Service a group is a port, and that is no label: the worst of them counts.
            let service = balanced.group.service.as_ref();
            let service = service.map(ToString::to_string).unwrap_or_default();
            let ratio = |load: u64| load as f64 / mean as f64;
            let imbalance = Imbalance {
                most: ratio(facts.most),
                // Without one nothing that its endpoints can hold would begin to move.
                start: facts.start(balanced.balance.tolerance()).map(ratio),
            };
            let rule = self.rule(&balanced.rule);
            self.balanced(rule, service, imbalance);
        }
    }

    fn balanced(&mut self, rule: String, service: String, imbalance: Imbalance) {
        let mut key = (rule, service);
        if self.imbalances.len() >= MOST_IMBALANCES && !self.imbalances.contains_key(&key) {
            OTHER.clone_into(&mut key.1);
        }
        let known = self.imbalances.entry(key).or_insert(imbalance);
        if imbalance.most > known.most {
            *known = imbalance;
        }
    }

    fn count(&mut self, chosen: &Move, step: Option<StepKind>, outcome: &'static str) {
        let kind = Kind {
            rule: self.rule(chosen.rule()),
            // The most exceeded.
            reason: chosen.reasons().first().map_or("none", |r| r.as_str()),
            step: step.map_or("none", StepKind::as_str),
            mode: chosen.mode().as_str(),
            outcome,
        };
        *self.moves.entry(kind).or_default() += 1;
    }

    fn rule(&mut self, rule: &RuleName) -> String {
        let name = rule.as_str();
        if !self.rules.contains(name) {
            if self.rules.len() >= MOST_RULES {
                return OTHER.to_owned();
            }
            self.rules.insert(name.to_owned());
        }
        name.to_owned()
    }

    /// Moves that ended, by outcome.
    pub(super) fn by_outcome(&self) -> BTreeMap<String, u64> {
        let mut ended = BTreeMap::new();
        for (kind, count) in &self.moves {
            if kind.outcome != DRY_RUN {
                *ended.entry(kind.outcome.to_owned()).or_default() += count;
            }
        }
        ended
    }

    /// Connections reported in dry run.
    pub(super) fn reported_in_dry_run(&self) -> u64 {
        let reported = self
            .moves
            .iter()
            .filter(|(kind, _)| kind.outcome == DRY_RUN);
        reported.map(|(_, count)| count).sum()
    }

    /// Seconds since the API server's answers; none without Kubernetes.
    pub(super) fn names_stale(&self, up: Duration) -> Option<f64> {
        match self.naming {
            Naming::Off => None,
            Naming::Fresh => Some(0.0),
            Naming::Stale { silent } => Some(silent.unwrap_or(up).as_secs_f64()),
        }
    }

    pub(super) fn kernel_bytes(&self) -> u64 {
        self.records * RECORD_BYTES
    }
}

/// All modes, for a gauge of each.
pub(super) const MODES: [Mode; 3] = [Mode::Disabled, Mode::DryRun, Mode::Enforce];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::decide,
        policy,
        snapshot::sample::{connection, snapshot},
    };

    #[test]
    fn a_cause_that_skips_nothing_any_more_shows_zero() {
        let policy = policy::sample::policy(
            "rules: [{name: web, match: {ports: [{port: 8080}]}, limits: {maxAge: 30s}}]\n",
        );
        let mut numbers = Numbers::new(1);
        let ledger = Ledger::default();
        let mut pass = |connections| {
            let snapshot = snapshot(0, connections);
            let plan = decide(&policy, &snapshot, &ledger, KernelTime(0));
            numbers.decided(&plan, &ledger);
            numbers.skipped.clone()
        };
        let first = pass(vec![connection(1)]);
        assert_eq!(first.values().sum::<u64>(), 1, "{first:?}");
        let second = pass(Vec::new());
        assert!(second.keys().eq(first.keys()) && second.values().all(|n| *n == 0));
    }

    #[test]
    fn services_without_end_are_shown_together_by_the_worst() {
        let mut numbers = Numbers::new(1);
        for n in 0..10 * MOST_IMBALANCES {
            let imbalance = Imbalance {
                most: n as f64,
                start: None,
            };
            numbers.balanced("web".to_owned(), format!("shop/{n:05}"), imbalance);
        }
        assert_eq!(numbers.imbalances.len(), MOST_IMBALANCES + 1);
        let other = &numbers.imbalances[&("web".to_owned(), OTHER.to_owned())];
        assert_eq!(other.most, (10 * MOST_IMBALANCES - 1) as f64);
    }
}
