//! The agent's loop: at every interval list, decide, move; in between, hear what became of moves.
//!
//! It joins the other modules and holds no policy of its own.

mod report;
mod scope;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use rebalancer_common::Fault;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::{MissedTickBehavior, interval},
};
use tracing::{debug, error, info, warn};

use crate::{
    bpf::{self, CgroupPaths, CgroupTree, Kernel, KernelLog, Lister, Tracker},
    moves::{self, Done, Mechanism, Mover, Order},
    netns::Namespaces,
    observe::{Observation, locate, observe},
    plan::{Ledger, Move, Outcome, decide},
    policy::{Mode, Policy},
    snapshot::{CgroupId, Cookie, KernelTime},
};

use scope::Scope;

/// How often what has gone is forgotten, and what went unrecorded is looked for: both walk every
/// network namespace.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

/// How to run.
pub struct Options {
    /// Folder for the pins.
    pub pins: PathBuf,
    /// Cgroup to attach to instead of the root.
    pub cgroup: Option<PathBuf>,
    /// Do no more than this.
    pub mode: Mode,
    /// How to reset, instead of the best that this node has.
    pub mechanism: Option<Mechanism>,
    /// Reads the policy again, on SIGHUP.
    pub reload: Box<dyn Fn() -> anyhow::Result<Policy>>,
}

/// Everything that can happen to the agent.
enum Event {
    Tick,
    Done(Done),
    KernelSpoke,
    Reload,
    Stop(&'static str),
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(options: Options, policy: Policy) -> anyhow::Result<()> {
    // Before anything is in the kernel: from here on a signal is a clean stop.
    let mut term = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut hup = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
    let (mut agent, mut kernel_log, mut done) = Agent::start(options, policy)?;
    let mut ticks = agent.ticks();
    loop {
        let event = tokio::select! {
            biased;
            _ = term.recv() => Event::Stop("SIGTERM"),
            _ = int.recv() => Event::Stop("SIGINT"),
            _ = hup.recv() => Event::Reload,
            Some(done) = done.recv() => Event::Done(done),
            () = kernel_spoke(&mut kernel_log) => Event::KernelSpoke,
            _ = ticks.tick() => Event::Tick,
        };
        match event {
            Event::Tick => agent.tick(),
            Event::Done(done) => agent.done(done),
            Event::KernelSpoke => {} // flushed already, by the `log` crate
            Event::Reload => {
                if agent.reload() {
                    ticks = agent.ticks();
                }
            }
            Event::Stop(signal) => {
                info!(signal, "stopping");
                break;
            }
        }
    }
    agent.stop(&mut done);
    Ok(())
}

struct Agent {
    // Dropped in this order: first nothing is moved any more, then nothing is tracked.
    mover: Option<Mover>,
    lister: Lister,
    tracker: Tracker,
    cgroups: CgroupTree,
    policy: Policy,
    scope: Scope,
    /// The most that the flag and this node's abilities allow.
    mode: Mode,
    reload: Box<dyn Fn() -> anyhow::Result<Policy>>,
    ledger: Ledger,
    now: KernelTime,
    faults: BTreeMap<Fault, u64>,
    /// Something went unrecorded: look for it at the next interval.
    adopt_again: bool,
    /// When the last housekeeping was.
    kept: KernelTime,
}

impl Agent {
    fn start(
        options: Options,
        policy: Policy,
    ) -> anyhow::Result<(Self, Option<KernelLog>, UnboundedReceiver<Done>)> {
        bpf::raise_memlock();
        let kernel = Arc::new(Kernel::read()?);
        let cgroups = CgroupTree::find(options.cgroup.as_deref())?;
        let scope = Scope::of(&policy);
        let mut tracker = Tracker::start(
            &kernel,
            &options.pins,
            options.cgroup.as_deref(),
            scope.tracking(&policy, &read_cgroups(&policy, &cgroups)),
        )?;
        if tracker.replaced_stale_pins() {
            warn!(pins = %options.pins.display(), "replaced pins that a killed agent had left");
        }
        let adopted = tracker.adopt()?;
        if adopted.not_entered > 0 {
            warn!(
                count = adopted.not_entered,
                "network namespaces could not be entered: their older connections are not tracked"
            );
        }
        let lister = Lister::open(Arc::clone(&kernel), tracker.pins())?;
        let mut mode = options.mode;
        let mechanism = mechanism(options.mechanism);
        if mechanism.is_none() {
            mode = mode.safest(Mode::DryRun);
        }
        let (tell, done) = unbounded_channel();
        // The mover asks the kernel by itself, so it has its own iterator and memory.
        let lister_of_mover = Lister::open(kernel, tracker.pins())?;
        let mover = mechanism
            .map(|mechanism| Mover::start(lister_of_mover, mechanism, tell))
            .transpose()
            .context("starting the moving thread")?;
        let kernel_log = tracker.take_log().context("listening to the kernel half")?;
        let policy = policy.with_mode_at_most(mode);
        bpf::return_memory();
        info!(
            version = env!("CARGO_PKG_VERSION"),
            pid = std::process::id(),
            mode = policy.mode().as_str(),
            reset_by = mechanism.map_or("nothing", Mechanism::as_str),
            rules = policy.rules().len(),
            interval = ?policy.interval(),
            cgroup = %tracker.cgroup().display(),
            pins = %tracker.pins().display(),
            adopted_from = adopted.namespaces,
            "started"
        );
        let agent = Self {
            mover,
            lister,
            tracker,
            cgroups,
            policy,
            scope,
            mode,
            reload: options.reload,
            ledger: Ledger::default(),
            now: KernelTime::default(),
            faults: BTreeMap::new(),
            adopt_again: false,
            kept: KernelTime::default(),
        };
        Ok((agent, kernel_log, done))
    }

    fn ticks(&self) -> tokio::time::Interval {
        let mut ticks = interval(self.policy.interval());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    }

    /// List, decide, move.
    fn tick(&mut self) {
        self.keep_tracking();
        // Before the listing: what is accepted in a cgroup made since then is of no known one.
        let paths = read_cgroups(&self.policy, &self.cgroups);
        let new_cgroups = self.classify(&paths);
        let mut observation = match observe(&mut self.lister) {
            Ok(observation) => observation,
            Err(error) => return error!(%error, "no listing in this interval, nothing is moved"),
        };
        self.report_faults(&observation);
        locate(&mut observation.snapshot, &paths);
        self.leave_out(&mut observation, &paths, new_cgroups);
        let snapshot = &observation.snapshot;
        self.now = snapshot.taken;
        self.ledger.observe(&self.policy, snapshot);
        let plan = decide(&self.policy, snapshot, &self.ledger, self.now);
        debug!(
            connections = snapshot.connections.len(),
            endpoints = snapshot.endpoints.len(),
            moves = plan.moves().count(),
            overdue = plan.overdue(),
            budget_left = plan.budget_left(),
            spared = ?plan.spared(),
            longest = ?observation.longest,
            "listed"
        );
        let of: BTreeMap<Cookie, (u32, CgroupId)> = snapshot
            .connections
            .iter()
            .map(|c| (c.cookie, (c.device, c.cgroup)))
            .collect();
        for chosen in plan.moves() {
            match chosen.mode() {
                Mode::Enforce => {
                    // A plan chooses among what it was given.
                    if let Some((device, cgroup)) = of.get(&chosen.cookie()) {
                        self.order(chosen, *device, *cgroup);
                    }
                }
                Mode::DryRun | Mode::Disabled => {
                    report::would_move(chosen);
                    self.ledger.said(chosen, self.now);
                }
            }
        }
        self.ledger
            .prune(snapshot, self.policy.budget().window(), self.now);
    }

    fn order(&mut self, chosen: &Move, device: u32, cgroup: CgroupId) {
        self.ledger.started(chosen, self.now);
        let order = Order {
            chosen: chosen.clone(),
            device,
            cgroup,
        };
        if !self.mover.as_ref().is_some_and(|mover| mover.order(order)) {
            self.ended(chosen, Outcome::Refused("queueFull"), Duration::ZERO);
        }
    }

    fn done(
        &mut self,
        Done {
            chosen,
            outcome,
            waited,
            ..
        }: Done,
    ) {
        self.ended(&chosen, outcome, waited);
    }

    fn ended(&mut self, chosen: &Move, outcome: Outcome, waited: Duration) {
        report::moved(chosen, &outcome, waited);
        self.ledger.ended(chosen.cookie(), outcome, self.now);
    }

    /// Whether there is a new policy. A refused one changes nothing.
    fn reload(&mut self) -> bool {
        match (self.reload)() {
            Ok(policy) => {
                let scope = Scope::of(&policy);
                let tracking = scope.tracking(&policy, &read_cgroups(&policy, &self.cgroups));
                match self.tracker.track(tracking) {
                    // What is there already is recorded, or not, as the new policy says; and cgroups
                    // that this has told of are not new to the next interval.
                    Ok(()) => self.adopt(),
                    Err(error) => error!(%error, "the kernel half keeps its settings"),
                }
                self.scope = scope;
                self.policy = policy.with_mode_at_most(self.mode);
                let mode = self.policy.mode().as_str();
                info!(mode, rules = self.policy.rules().len(), "policy reloaded");
                true
            }
            Err(error) => {
                error!(
                    error = format!("{error:#}"),
                    "policy refused, the last good one stays"
                );
                false
            }
        }
    }

    /// Repairs what others, or a shortage, have done to tracking, and forgets what has gone.
    fn keep_tracking(&mut self) {
        let wiped = self.tracker.stay_last().unwrap_or_else(|error| {
            warn!(%error, "cannot tell whether our program is the last");
            false
        });
        if wiped {
            warn!("another sock_ops program was attached behind ours: attached again behind it");
        }
        let due = self.now.since(self.kept) >= HOUSEKEEPING;
        if wiped || (due && std::mem::take(&mut self.adopt_again)) {
            self.adopt();
        }
        if due {
            self.kept = self.now;
            match bpf::forget_endpoints(self.tracker.pins(), &Namespaces::default().all()) {
                Ok(0) => {}
                Ok(count) => debug!(count, "forgot endpoints of namespaces that have gone"),
                Err(error) => warn!(%error, "endpoints that have gone stay in the map"),
            }
        }
    }

    fn adopt(&self) {
        if let Err(error) = self.tracker.adopt() {
            warn!(%error, "what went unrecorded stays so");
        }
    }

    /// Tells the kernel half of cgroups that have come and gone; whether there were any.
    fn classify(&mut self, paths: &CgroupPaths) -> bool {
        let Some(classes) = self.scope.classes(paths) else {
            return false;
        };
        self.tracker.classify(classes).unwrap_or_else(|error| {
            warn!(%error, "what new cgroups are excluded or named is not known in the kernel");
            false
        })
    }

    /// Leaves out what was recorded only because its cgroup was not known yet, and has its record
    /// removed.
    fn leave_out(
        &self,
        Observation {
            snapshot,
            listeners,
            ..
        }: &mut Observation,
        paths: &CgroupPaths,
        new_cgroups: bool,
    ) {
        let all = snapshot.connections.len() + listeners.len();
        snapshot
            .connections
            .retain(|c| self.scope.covers(c.endpoint.port, c.cgroup_path.as_ref()));
        listeners.retain(|(port, id)| self.scope.covers(*port, paths.get(id)));
        let count = all - snapshot.connections.len() - listeners.len();
        if count > 0 && new_cgroups {
            debug!(
                count,
                "removing records of cgroups that are not to be recorded"
            );
            self.adopt();
        }
    }

    fn report_faults(&mut self, observation: &Observation) {
        for (fault, count) in &observation.faults {
            let before = self.faults.insert(*fault, *count).unwrap_or(0);
            if *count > before {
                warn!(
                    fault = fault.text(),
                    new = count - before,
                    total = count,
                    "kernel fault"
                );
                self.adopt_again |= fault.leaves_unrecorded();
            }
        }
        if observation.invalid > 0 {
            warn!(
                count = observation.invalid,
                "records that make no sense were skipped"
            );
        }
    }

    /// Ends the moves that wait, without harm, and says so.
    fn stop(mut self, done: &mut UnboundedReceiver<Done>) {
        self.mover = None;
        while let Ok(done) = done.try_recv() {
            self.done(done);
        }
    }
}

/// How this node resets, `forced` or found; `None`, and why, if it cannot.
fn mechanism(forced: Option<Mechanism>) -> Option<Mechanism> {
    let found = match forced {
        Some(mechanism) => moves::probe(mechanism)
            .map(|()| (mechanism, Vec::new()))
            .map_err(|why| vec![format!("{mechanism}: {why}")]),
        None => moves::find_mechanism(),
    };
    match found {
        Ok((mechanism, why_no_better)) => {
            if !why_no_better.is_empty() {
                info!(
                    mechanism = mechanism.as_str(),
                    why = why_no_better.join("; "),
                    "resets are made by second best means"
                );
            }
            Some(mechanism)
        }
        Err(why) => {
            let why = why.join("; ");
            warn!(why, "this node cannot reset connections: only dry runs");
            None
        }
    }
}

/// The cgroups that are there; none if the policy names none, as walking them costs.
fn read_cgroups(policy: &Policy, cgroups: &CgroupTree) -> CgroupPaths {
    if policy.names_cgroups() {
        cgroups.read()
    } else {
        CgroupPaths::new()
    }
}

/// Waits for messages of the kernel half and hands them to the `log` crate.
async fn kernel_spoke(log: &mut Option<KernelLog>) {
    match log {
        Some(log) => log.pass_on().await,
        None => std::future::pending().await,
    }
}
