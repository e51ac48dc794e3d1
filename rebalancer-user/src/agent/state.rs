//! What the agent remembers to tell of itself. Nothing is decided by it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rebalancer_common::Fault;

use super::{
    events::{Events, about, ended},
    health::Beat,
    metrics::Numbers,
    mover::MoverSigns,
    report,
    serve::Published,
    services::by_service,
};
use crate::{
    bpf::{self, Tracker},
    moves::Mechanism,
    observe::Observation,
    plan::{Charge, Ledger, Move, NewHold, Outcome, Plan, Ramp},
    policy::{Mode, Policy, Rule, StepKind},
    render::{
        BudgetStatus, CapacityStatus, InFlightStatus, ModeStatus, Origin, PassStatus, PausedStatus,
        PolicyStatus, RampStatus, RefusedStatus, ServiceItem, Source, Status, What,
    },
    snapshot::{Cookie, KernelTime},
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
    began: (Timestamp, Instant),
    last_pass: Option<PassStatus>,
    pass_error: Option<String>,
    /// As of the last pass.
    tracked: u64,
    faults: BTreeMap<Fault, u64>,
    numbers: Numbers,
    services: Arc<Vec<ServiceItem>>,
    events: Events,
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
    ) -> Self {
        let endpoints_most = bpf::endpoints_capacity(tracker.pins());
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
            began: (generated_at, Instant::now()),
            last_pass: None,
            pass_error: None,
            tracked: 0,
            faults: BTreeMap::new(),
            numbers: Numbers::new(endpoints_most.unwrap_or_default()),
            services: Arc::default(),
            events: Events::new(generated_at),
            started: Instant::now(),
            beat: None,
            paused: None,
            mover: MoverSigns::default(),
        }
    }

    /// There is a moving thread, another one than before.
    pub(super) fn mover_signs(&mut self, mover: MoverSigns) {
        self.mover = mover;
    }

    /// What happened lately.
    pub(super) fn events(&self) -> Events {
        self.events.clone()
    }

    /// As the file says, before anything else bounds its mode.
    pub(super) fn policy_loaded(&mut self, policy: &Policy) {
        self.events.add(What::PolicyLoaded {
            mode: policy.mode().as_str().to_owned(),
            rules: policy.rules().len(),
        });
        self.policy_mode = policy.mode();
        self.loaded_at = Timestamp::now();
        self.refused = None;
        self.numbers.loaded(true);
    }

    pub(super) fn policy_refused(&mut self, error: String) {
        let at = Timestamp::now();
        self.events.add(What::PolicyRefused {
            error: error.clone(),
        });
        self.refused = Some(RefusedStatus { at, error });
        self.numbers.loaded(false);
    }

    /// There are pods, and nobody is asked what skips them.
    pub(super) fn pods_without_names(&mut self) {
        self.pods_without_names = true;
    }

    pub(super) fn attached_again(&mut self) {
        self.attached_again += 1;
    }

    pub(super) fn pass_begins(&mut self) {
        self.began = (Timestamp::now(), Instant::now());
    }

    /// It ended, well or not: the loop lives.
    pub(super) fn pass_ends(&mut self) {
        self.beat = Some(Instant::now());
    }

    pub(super) fn pass_failed(&mut self, error: &bpf::Error) {
        let error = error.to_string();
        // Once, and not at every interval.
        if self.pass_error.is_none() {
            self.events.add(What::ListingFailed {
                error: error.clone(),
            });
        }
        self.pass_error = Some(error);
        self.numbers.failed();
    }

    /// A pass listed `observation` within `listing`; the next is `put_off` for what walking took.
    pub(super) fn passed(
        &mut self,
        observation: &Observation,
        plan: &Plan,
        ledger: &Ledger,
        listing: Duration,
        put_off: Duration,
    ) {
        let (at, began) = self.began;
        let snapshot = &observation.snapshot;
        let skipped = plan.skipped().into_iter();
        if self.pass_error.take().is_some() {
            self.events.add(What::ListingRecovered);
        }
        self.numbers.passed(observation, listing);
        self.numbers.decided(plan, ledger);
        let in_flight = ledger.moves_in_flight().map(|(_, _, of)| of.endpoint);
        self.services = Arc::new(by_service(&observation.snapshot, plan, in_flight));
        self.tracked = u64::try_from(snapshot.connections.len()).unwrap_or(u64::MAX);
        self.faults.clone_from(&observation.faults);
        self.last_pass = Some(PassStatus {
            at,
            duration_seconds: began.elapsed().as_secs_f64(),
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

    pub(super) fn held(&mut self, hold: &NewHold) {
        self.events.add(report::held(hold));
    }

    pub(super) fn told(&mut self, chosen: &Move) {
        self.numbers.told(chosen);
        self.events.add(What::Told(about(chosen)));
    }

    pub(super) fn paused(&mut self, paused: PausedStatus) {
        self.events.add(What::Paused {
            until: paused.until,
            reason: paused.reason.clone(),
        });
        self.paused = Some(paused);
    }

    /// `why`: it was `asked` for, or the pause has `expired`.
    pub(super) fn resumed(&mut self, why: &str) {
        self.events.add(What::Resumed {
            why: why.to_owned(),
        });
        self.paused = None;
    }

    pub(super) fn started(&mut self, chosen: &Move) {
        self.events.add(What::Started(about(chosen)));
    }

    pub(super) fn ended(
        &mut self,
        chosen: &Move,
        step: Option<StepKind>,
        outcome: &Outcome,
        waited: Duration,
    ) {
        self.numbers.ended(chosen, step, outcome, waited);
        self.events.add(ended(chosen, step, outcome, waited));
    }

    /// All of it, with what the loop goes by; `now` is when the last snapshot was taken.
    pub(super) fn status(&self, policy: &Policy, ledger: &Ledger, now: KernelTime) -> Published {
        let said_at = Timestamp::now();
        // Of two clocks: what was a while ago by the kernel's is as long ago by the node's.
        let (pass_at, _) = self.began;
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
            generated_at: said_at,
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
            ended: self.numbers.by_outcome(),
            told_in_dry_run: self.numbers.told_in_all(),
        };
        Published {
            status,
            numbers: self.numbers.clone(),
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
