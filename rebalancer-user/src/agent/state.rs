//! What the agent remembers for its status. Nothing is decided by it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rebalancer_common::Fault;

use super::{
    fact::{Fact, Pass},
    mover_signs::MoverSigns,
    numbers::Numbers,
    published::{Beat, Published},
    services::by_service,
};
use crate::{
    api::{
        BudgetStatus, CapacityStatus, ClusterStatus, EventDrain, InFlightStatus, ModeStatus,
        Origin, PassStatus, PausedStatus, PolicyStatus, RampStatus, RefusedStatus, ServiceItem,
        ShareStatus, Source, Status,
    },
    bpf::Tracker,
    moves::Mechanism,
    plan::{Balanced, Charge, ClusterShare, Ledger, Ramp},
    policy::{Mode, Policy, Rule},
    snapshot::{Cookie, KernelTime},
    views::Views,
};

/// What was, and how often.
pub(super) struct AgentState {
    node: String,
    up_since: Timestamp,
    policy_file: String,
    policy_mode: Mode,
    loaded_at: Timestamp,
    refused: Option<RefusedStatus>,
    flag: Mode,
    mechanism: Option<Mechanism>,
    /// Abilities that this node lacks, each with why.
    lacks: BTreeMap<String, String>,
    pods_without_names: bool,
    pins: String,
    cgroup: String,
    attached_again: u64,
    /// When the last pass began.
    began: Timestamp,
    last_pass: Option<PassStatus>,
    pass_error: Option<String>,
    /// As of the last pass.
    tracked: u64,
    faults: BTreeMap<Fault, u64>,
    services: Arc<Vec<ServiceItem>>,
    /// Why nothing is exchanged with other nodes, if that is so.
    trouble: Option<String>,
    /// What is known of the other nodes.
    views: Views,
    /// The groups that are balanced by what is known of the other nodes.
    shares: Vec<(Balanced, ClusterShare)>,
    drains: Vec<EventDrain>,
    started: Instant,
    /// When the last pass ended, well or not.
    beat: Option<Instant>,
    paused: Option<PausedStatus>,
    mover: MoverSigns,
}

impl AgentState {
    pub(super) fn new(
        policy_file: String,
        flag: Mode,
        mechanism: Option<Mechanism>,
        lacks: BTreeMap<String, String>,
        tracker: &Tracker,
        mover: MoverSigns,
    ) -> Self {
        let Origin {
            node, generated_at, ..
        } = Origin::here(Source::Agent);
        Self {
            node,
            up_since: generated_at,
            policy_file,
            policy_mode: Mode::default(),
            loaded_at: generated_at,
            refused: None,
            flag,
            mechanism,
            pods_without_names: false,
            lacks,
            pins: tracker.pins().display().to_string(),
            cgroup: tracker.cgroup().display().to_string(),
            attached_again: 0,
            began: generated_at,
            last_pass: None,
            pass_error: None,
            tracked: 0,
            faults: BTreeMap::new(),
            services: Arc::default(),
            trouble: None,
            views: Views::Off,
            shares: Vec::new(),
            drains: Vec::new(),
            started: Instant::now(),
            beat: None,
            paused: None,
            mover,
        }
    }

    pub(super) fn up_since(&self) -> Timestamp {
        self.up_since
    }

    /// Whether the last pass could not list.
    pub(super) fn listing_failed(&self) -> bool {
        self.pass_error.is_some()
    }

    pub(super) fn pass_began(&mut self) {
        self.began = Timestamp::now();
    }

    pub(super) fn pass_ended(&mut self) {
        self.beat = Some(Instant::now());
    }

    pub(super) fn record(&mut self, fact: Fact<'_>) {
        match fact {
            Fact::PolicyLoaded { mode, .. } => {
                self.policy_mode = mode;
                self.loaded_at = Timestamp::now();
                self.refused = None;
            }
            Fact::PolicyRefused { error } => {
                self.refused = Some(RefusedStatus {
                    at: Timestamp::now(),
                    error: error.to_owned(),
                });
            }
            Fact::PodsWithoutNames { .. } => self.pods_without_names = true,
            Fact::Paused { paused, .. } | Fact::StillPaused { paused } => {
                self.paused = Some(paused.clone());
            }
            Fact::Resumed { .. } => self.paused = None,
            Fact::Passed(pass) => self.passed(pass),
            Fact::ListingFailed { error, .. } => self.pass_error = Some(error.to_string()),
            Fact::ListingRecovered => self.pass_error = None,
            Fact::MoverReplaced { signs } => self.mover = signs,
            Fact::AttachedAgain { .. } => self.attached_again += 1,
            Fact::ExchangeChanged { trouble } => self.trouble = trouble.map(str::to_owned),
            // Their numbers are in the metrics, or read when the status is made.
            Fact::WouldMove { .. }
            | Fact::MoveStarted { .. }
            | Fact::MoveRecalled(_)
            | Fact::MoveEnded { .. }
            | Fact::DrainBegan(_)
            | Fact::DrainEnded { .. }
            | Fact::DrainTooShort(_)
            | Fact::CooldownStarted(_)
            | Fact::CooldownCleared(_)
            | Fact::MoverLost { .. }
            | Fact::MoverAnswered { .. }
            | Fact::Counting(_)
            | Fact::CountingNotStarted { .. }
            | Fact::KernelFault { .. }
            | Fact::InvalidRecords { .. } => {}
        }
    }

    fn passed(
        &mut self,
        Pass {
            observation,
            plan,
            ledger,
            duration,
            put_off,
            ..
        }: Pass<'_>,
    ) {
        let snapshot = &observation.snapshot;
        let skipped = plan.skipped().into_iter();
        let in_flight = ledger.moves_in_flight().map(|(_, _, of)| of.endpoint);
        self.services = Arc::new(by_service(snapshot, plan, in_flight));
        self.views.clone_from(&snapshot.views);
        let balanced = plan.balanced().iter();
        let shares = balanced.filter_map(|balanced| Some((balanced.clone(), balanced.cluster?)));
        self.shares = shares.collect();
        let drained = plan.drained().iter();
        self.drains = drained
            .map(|drained| EventDrain::of(drained, None))
            .collect();
        self.tracked = u64::try_from(snapshot.connections.len()).unwrap_or(u64::MAX);
        self.faults.clone_from(&observation.faults);
        self.last_pass = Some(PassStatus {
            at: self.began,
            duration_seconds: duration.as_secs_f64(),
            descriptors: observation.files,
            unseen: observation.unseen,
            next_after_seconds: put_off.as_secs_f64(),
            connections: snapshot.connections.len(),
            endpoints: snapshot.endpoints.len(),
            moves: plan.moves().count(),
            overdue: plan.overdue(),
            skipped: skipped.map(|(why, n)| (why.to_owned(), n)).collect(),
        });
    }

    /// How this node takes part in the balance across nodes; none if there is nobody to exchange with.
    fn cluster(&self, policy: &Policy) -> Option<ClusterStatus> {
        let views = self.views.state()?;
        let budget = policy.budget().per_service();
        let share = |(balanced, cluster): &(Balanced, ClusterShare)| {
            let budget = budget.of(cluster.connections);
            ShareStatus {
                service: balanced.group.to_string(),
                rule: balanced.rule.to_string(),
                endpoints: balanced.facts.map_or(0, |facts| facts.endpoints),
                mean: balanced.facts.map_or(0, |facts| facts.mean()),
                excess: cluster.excess,
                moves: cluster.share.of(budget),
                budget,
            }
        };
        Some(ClusterStatus {
            views: views.to_owned(),
            trouble: self.trouble.clone(),
            shares: self.shares.iter().map(share).collect(),
        })
    }

    /// All of it, with what the loop knows; `now` is when the last snapshot was taken.
    pub(super) fn published(
        &self,
        numbers: &Numbers,
        policy: &Policy,
        ledger: &Ledger,
        now: KernelTime,
    ) -> Published {
        // Of two clocks: what was a while ago by the kernel's is as long ago by the node's.
        let pass_at = self.began;
        let ago = |time: Duration| pass_at.checked_sub(time).unwrap_or(pass_at);
        let ahead = |time: Duration| pass_at.checked_add(time).unwrap_or(pass_at);
        let fault = |(fault, n): (&Fault, &u64)| (fault.text().to_owned(), *n);
        let in_flight = |(cookie, began, of): (Cookie, KernelTime, &Charge)| InFlightStatus {
            id: cookie.to_string(),
            rule: of.rule.to_string(),
            step: None,
            since: ago(now.since(began)),
        };
        let budget = policy.budget();
        let (window, per_node) = (budget.window(), budget.per_node().of(self.tracked));
        let ramp = |rule: &Rule| {
            let ramp = Ramp::of(policy, rule, ledger, now)?;
            Some(RampStatus {
                rule: rule.name().to_string(),
                parts: ramp.parts(),
                whole_at: ahead(ramp.whole_in),
            })
        };
        let budget_of = |mode: Mode| {
            let used = ledger.spent(mode, window, now);
            BudgetStatus {
                mode: mode.as_str().to_owned(),
                per_node,
                window_seconds: window.as_secs_f64(),
                used,
                left: per_node.saturating_sub(used),
                refills_at: ledger.refills_in(mode, window, now).map(ahead),
            }
        };
        let mut budgets = vec![budget_of(Mode::Enforce), budget_of(Mode::DryRun)];
        if policy.mode() != Mode::Enforce {
            budgets.reverse();
        }
        let status = Status {
            node: self.node.clone(),
            generated_at: Timestamp::now(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            up_since: self.up_since,
            mode: self.mode(policy.mode()),
            policy: PolicyStatus {
                file: self.policy_file.clone(),
                loaded_at: self.loaded_at,
                rules: policy.rules().len(),
                refused: self.refused.clone(),
            },
            mover: self.mover.status(Instant::now()),
            reset_mechanism: self.mechanism.map(|m| m.as_str().to_owned()),
            pins: self.pins.clone(),
            cgroup: self.cgroup.clone(),
            attached_again: self.attached_again,
            interval_seconds: policy.interval().as_secs_f64(),
            paused: self.paused.clone(),
            cluster: self.cluster(policy),
            last_pass: self.last_pass.clone(),
            pass_error: self.pass_error.clone(),
            capacity: CapacityStatus {
                max_per_endpoint: policy.track().max_per_endpoint().get(),
                max_per_node: policy.track().max_per_node().get(),
                refused: [Fault::OverCap, Fault::OverNodeCap]
                    .iter()
                    .filter_map(|fault| self.faults.get(fault))
                    .sum(),
            },
            kernel_faults: self.faults.iter().map(fault).collect(),
            lacks: self.lacks.clone(),
            budgets,
            ramps: policy.rules().iter().filter_map(ramp).collect(),
            max_in_flight: budget.max_in_flight().get().into(),
            in_flight: ledger.moves_in_flight().map(in_flight).collect(),
            drains: self.drains.clone(),
            ended: numbers.by_outcome(),
            reported_in_dry_run: numbers.reported_in_dry_run(),
        };
        Published {
            status,
            numbers: numbers.clone(),
            services: Arc::clone(&self.services),
            mover: self.mover.clone(),
            beat: Beat {
                started: self.started,
                last: self.beat,
                interval: policy.interval(),
            },
        }
    }

    fn mode(&self, effective: Mode) -> ModeStatus {
        let dry_if = |limited| if limited { Mode::DryRun } else { Mode::Enforce };
        let limits = [
            ("policy", self.policy_mode),
            ("flag", self.flag),
            ("noMechanism", dry_if(self.mechanism.is_none())),
            ("podsWithoutNames", dry_if(self.pods_without_names)),
        ];
        let limits = limits
            .iter()
            .filter(|(_, most)| *most == effective && effective != Mode::Enforce);
        ModeStatus {
            effective: effective.as_str().to_owned(),
            policy: self.policy_mode.as_str().to_owned(),
            flag: self.flag.as_str().to_owned(),
            limited_by: limits.map(|(by, _)| (*by).to_owned()).collect(),
        }
    }
}
