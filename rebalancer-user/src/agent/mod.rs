//! The agent's loop: at every interval list, decide, move; in between, take in how moves ended.
//!
//! It joins the other modules and holds no policy of its own.

mod backoff;
mod event_recorder;
mod events;
mod health;
mod kept;
mod metrics;
mod mover;
mod own_file;
mod pause;
mod policy_file;
mod report;
mod scope;
mod serve;
mod services;
mod state;
mod unnamed;

pub use event_recorder::announce_refusal;
pub use kept::forget_kept;
pub use pause::{LONGEST as LONGEST_PAUSE, LONGEST_REASON as LONGEST_PAUSE_REASON, forget_pause};
pub use policy_file::{Content, read as read_policy};
pub use serve::Offer;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rebalancer_common::{EndpointKey, EndpointSums, Fault};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{
        mpsc::{Receiver, UnboundedReceiver, unbounded_channel},
        watch,
    },
    time::{MissedTickBehavior, interval},
};
use tracing::{debug, error, info, warn};

use self::{
    backoff::Backoff,
    event_recorder::Announce,
    kept::{Kept, unsure_before},
    mover::{Making, MoverSigns},
    pause::Pause,
    policy_file::PolicyFile,
    serve::{Published, Question, Trial, serve},
    state::AgentState,
    unnamed::Unnamed,
};
use crate::{
    abilities::{Tried, try_sniffing, try_tracking},
    bpf::{
        self, Adopt, EmptyEndpoints, Inherited, Kernel, KernelLog, Lifetime, Tracker, Walker,
        Watcher,
    },
    counting::Counting,
    host::{self, CgroupPaths, CgroupTree},
    http::{RunDir, Server},
    kubernetes::{Access, Announcer, Ask, Names, PodAt, process_in_pod},
    moves::{self, Done, Mechanism, Mover, Order},
    observe::{Observation, Observer, locate},
    plan::{Ledger, Move, Outcome, Recall, Refusal, decide, explain},
    policy::{Mode, Policy, RuleName, StepKind},
    render::{self, Form, Origin, Source},
    snapshot::{CgroupId, Cookie, KernelTime, Snapshot},
    walking::Account,
};

/// How often endpoints that have gone are forgotten.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

/// How long ours may not be the last program on the cgroup after it was attached again: two agents that
/// both want to be last would otherwise replace each other at every interval. Meanwhile closes may go
/// unseen; the walk still shows what has gone.
const BEHIND_OURS: Duration = Duration::from_secs(10);
/// The longest such time; it doubles each time ours has to be attached again.
const BEHIND_OURS_MOST: Duration = Duration::from_secs(3600);

/// How to run.
pub struct Options {
    /// Folder for the pins.
    pub pins: PathBuf,
    /// Cgroup to attach to instead of the root.
    pub cgroup: Option<PathBuf>,
    /// How to ask for names of pods and Services.
    pub names: Access,
    /// The pod that this is, for Events about it.
    pub own: Option<PodAt>,
    /// Also tell of moves by Events.
    pub move_events: bool,
    /// What becomes of tracking when the agent is told to stop.
    pub on_exit: OnExit,
    /// Folder for the socket on which the agent is asked.
    pub run_dir: PathBuf,
    /// Where metrics and health are offered beside.
    pub offer: Offer,
    /// Do no more than this.
    pub mode: Mode,
    /// How to reset, instead of the best that this node has.
    pub mechanism: Option<Mechanism>,
    /// The policy's file: read again when it changes, and on SIGHUP.
    pub policy_file: PathBuf,
    /// Let budgets grow once a rule is enforced that was not before.
    pub ramp: bool,
    /// Count sends also where the kernel then answers a server's FIONREAD wrongly.
    pub count_despite_fionread: bool,
    /// Reads it.
    pub reload: Box<dyn Fn() -> Reading>,
}

/// One read of the policy's file.
pub struct Reading {
    /// What it held.
    pub content: Content,
    /// The policy, if that is a valid one.
    pub loaded: anyhow::Result<Loaded>,
}

/// A policy as it was read.
pub struct Loaded {
    /// The policy.
    pub policy: Policy,
    /// What it was read from.
    pub text: Arc<str>,
}

/// What becomes of tracking when the agent is told to stop. A kill leaves it in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExit {
    /// Nothing stays in the kernel.
    Remove,
    /// It goes on, and the next agent takes it over.
    Keep,
}

/// Everything that can happen to the agent.
enum Event {
    Tick,
    Done(Box<Done>),
    KernelSpoke,
    Reload,
    LookAtPolicy,
    PauseOver,
    Asked(Box<Question>),
    Stop(&'static str),
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(options: Options, loaded: Loaded) -> anyhow::Result<()> {
    // Before anything is in the kernel: from here on a signal is a clean stop.
    let mut term = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut hup = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
    let stabilization_window = loaded.policy.guards().stabilization_window();
    let names = Names::connect(
        &options.names,
        options.cgroup.as_deref(),
        stabilization_window,
    )
    .await?;
    let announcer = Announcer::connect(&options.names, options.own.clone()).await?;
    let event_recorder = Announce::new(announcer, options.move_events);
    let (mut agent, mut inbox) = Agent::start(options, loaded, names, event_recorder)?;
    let mut ticks = agent.ticks();
    let mut looks = interval(policy_file::EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            biased;
            _ = term.recv() => Event::Stop("SIGTERM"),
            _ = int.recv() => Event::Stop("SIGINT"),
            _ = hup.recv() => Event::Reload,
            Some(done) = inbox.done.recv() => Event::Done(Box::new(done)),
            () = kernel_spoke(&mut inbox.kernel_log) => Event::KernelSpoke,
            _ = ticks.tick() => Event::Tick,
            _ = looks.tick() => Event::LookAtPolicy,
            () = agent.pause.over() => Event::PauseOver,
            // Last: however much is asked, the rest is done.
            Some(asked) = inbox.asked.recv() => Event::Asked(Box::new(asked)),
        };
        match event {
            Event::Tick => agent.tick(),
            Event::Done(done) => agent.done(*done),
            Event::KernelSpoke => {} // flushed already, by the `log` crate
            Event::Reload | Event::LookAtPolicy => {
                let changed = agent.policy_file.changed();
                if (changed || matches!(event, Event::Reload)) && agent.reload() {
                    ticks = agent.ticks();
                }
            }
            Event::PauseOver => drop(agent.go_on("expired")),
            Event::Asked(question) => agent.asked(*question),
            Event::Stop(signal) => {
                info!(signal, "stopping");
                break;
            }
        }
    }
    agent.stop(&mut inbox.done);
    Ok(())
}

/// What was seen, how long it took to walk, and how long the next pass waits for it.
struct Looks {
    observation: Observation,
    took: Duration,
    put_off: Duration,
}

/// From where the agent hears.
struct Inbox {
    kernel_log: Option<KernelLog>,
    done: UnboundedReceiver<Done>,
    asked: Receiver<Question>,
}

struct Agent {
    // Dropped in this order: first nobody asks, then nothing is moved any more, then nothing is
    // tracked.
    _server: Server,
    mover: Option<Mover>,
    /// What the next one is made with; none where this node cannot reset.
    making: Option<Making>,
    /// From when a rule asks for it.
    counting: Option<Counting>,
    count_despite_fionread: bool,
    ramp: bool,
    kernel: Arc<Kernel>,
    observer: Observer,
    tracker: Tracker,
    /// On a plain host there are none.
    names: Option<Names>,
    /// Whether it is a plain host.
    unnamed: Option<Unnamed>,
    cgroups: CgroupTree,
    policy: Policy,
    on_exit: OnExit,
    /// The most that the flag and this node's abilities allow.
    mode: Mode,
    pause: Pause,
    policy_file: PolicyFile,
    reload: Box<dyn Fn() -> Reading>,
    state: AgentState,
    event_recorder: Announce,
    publish: watch::Sender<Arc<Published>>,
    ledger: Ledger,
    for_next: Kept,
    policy_text: Arc<str>,
    /// The first listing whose names were fresh.
    named_since: Option<KernelTime>,
    now: KernelTime,
    faults: BTreeMap<Fault, u64>,
    /// Connections recorded, as of the last pass.
    recorded: u64,
    /// What walking has taken.
    walking: Account,
    /// No pass before, so that walking takes no more than its share.
    next_pass: Instant,
    empty_endpoints: EmptyEndpoints,
    /// When to look again whether our program is the last.
    last: Backoff,
    /// When the last housekeeping was.
    kept: KernelTime,
}

impl Agent {
    fn start(
        options: Options,
        loaded: Loaded,
        names: Option<Names>,
        event_recorder: Announce,
    ) -> anyhow::Result<(Self, Inbox)> {
        let Loaded { policy, text } = loaded;
        let content = Content::of(Some(text.as_bytes()));
        let policy_file = PolicyFile::new(options.policy_file.clone(), content);
        host::raise_memlock();
        host::raise_descriptors();
        let kernel = Arc::new(Kernel::read()?);
        let cgroups = CgroupTree::find(options.cgroup.as_deref())?;
        let wanted = scope::tracking(policy.track(), &read_cgroups(&policy, &cgroups));
        let mut tracker = Tracker::start(
            &kernel,
            &options.pins,
            options.cgroup.as_deref(),
            wanted.to_try(),
            Lifetime::Pins,
        )?;
        if let Inherited::Replaced(why) = tracker.inherited() {
            let pins = options.pins.display();
            warn!(%pins, why, "could not reuse the previous agent's maps; replaced them, ages restart");
        }
        // After the pins: a second agent on them is told of the first, not of its socket.
        let run_dir = RunDir::take(&options.run_dir)?;
        let mut walker = Walker::open(Arc::clone(&kernel), tracker.pins())?;
        let before = bpf::read_endpoints(tracker.pins())?;
        let lacks = abilities(&mut walker, options.cgroup.is_some())?;
        let mechanism = mechanism(options.mechanism);
        tracker.track(wanted)?;
        forget_trials(&before, tracker.pins());
        let adopted = walker.adopt(tracker.within()?, room(&policy, 0))?;
        let mut mode = options.mode;
        if mechanism.is_none() {
            mode = mode.safest(Mode::DryRun);
        }
        let (tell, done) = unbounded_channel();
        let making = mechanism.map(|mechanism| Making::new(Arc::clone(&kernel), mechanism, tell));
        let mover = making
            .as_ref()
            .map(|making| making.start(tracker.pins()))
            .transpose()
            .context("starting the moving thread")?;
        let kernel_log = tracker
            .take_log()
            .context("reading the log of the kernel half")?;
        let mut state = AgentState::new(
            options.policy_file.display().to_string(),
            options.mode,
            mechanism,
            lacks,
            &tracker,
        );
        state.mover_signs(MoverSigns::of(mover.as_ref(), 0));
        state.policy_loaded(&policy);
        let pause = Pause::resume(&options.run_dir);
        if let Some(paused) = pause.now() {
            state.paused(paused.clone());
        }
        let mut unnamed = Unnamed::unless(names.is_some(), options.names.ask);
        if let Some(pod) = unnamed.as_ref().and_then(Unnamed::look) {
            warn_of_pods(&pod);
            state.pods_without_names();
            mode = mode.safest(Mode::DryRun);
            unnamed = None;
        }
        if options.names.ask == Ask::Off && process_in_pod().is_some() {
            warn!(
                "there are pods on this node, and --kubernetes=off disables every Kubernetes guard, \
                 including excludeNamespaces and opt-outs"
            );
        }
        let policy = on_this_node(policy.with_mode_at_most(mode), names.is_some());
        let (for_next, ledger) = Kept::resume(&options.run_dir, &text);
        let first = state.status(&policy, &ledger, KernelTime::default());
        let (publish, published) = watch::channel(Arc::new(first));
        let socket = run_dir.socket();
        let (server, asked) = serve(run_dir, options.offer, &published, state.events())?;
        // From here on it runs. Had it failed before, what a former agent had tracked would stay.
        tracker.outlive(options.on_exit == OnExit::Keep);
        kernel.forget_types();
        info!(
            version = env!("CARGO_PKG_VERSION"),
            pid = std::process::id(),
            mode = policy.mode().as_str(),
            reset_by = mechanism.map_or("nothing", Mechanism::as_str),
            rules = policy.rules().len(),
            interval = ?policy.interval(),
            cgroup = %tracker.cgroup().display(),
            pins = %tracker.pins().display(),
            socket = %socket.display(),
            adopted,
            kubernetes = names.is_some(),
            taken_over = *tracker.inherited() == Inherited::TakenOver,
            "started"
        );
        let walking = Account::new(kernel.walked());
        let agent = Self {
            _server: server,
            mover,
            making,
            counting: None,
            count_despite_fionread: options.count_despite_fionread,
            ramp: options.ramp,
            kernel,
            observer: Observer::new(walker),
            tracker,
            names,
            unnamed,
            cgroups,
            policy,
            on_exit: options.on_exit,
            mode,
            reload: options.reload,
            pause,
            policy_file,
            state,
            event_recorder,
            publish,
            ledger,
            for_next,
            policy_text: text,
            named_since: None,
            now: KernelTime::default(),
            faults: BTreeMap::new(),
            recorded: 0,
            walking,
            next_pass: Instant::now(),
            empty_endpoints: EmptyEndpoints::default(),
            last: Backoff::new(BEHIND_OURS, BEHIND_OURS_MOST),
            kept: KernelTime::default(),
        };
        let inbox = Inbox {
            kernel_log,
            done,
            asked,
        };
        Ok((agent, inbox))
    }

    fn ticks(&self) -> tokio::time::Interval {
        let mut ticks = interval(self.policy.interval());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    }

    /// List, decide, move; and let others know how it stands.
    fn tick(&mut self) {
        if Instant::now() < self.next_pass {
            return;
        }
        self.state.pass_begins();
        self.tend_mover(Instant::now());
        self.pass();
        self.event_recorder.write(Instant::now());
        self.state.pass_ends();
        self.publish();
    }

    fn asked(&mut self, question: Question) {
        // Who asked may be gone.
        match question {
            Question::Dump(tell) => drop(tell.send(self.look_now())),
            Question::Plan(trial, tell) => {
                let looked = self.look_now();
                drop(tell.send(looked.map(|snapshot| {
                    let plan = decide(&self.tried(trial), &snapshot, &self.ledger, snapshot.taken);
                    (snapshot, plan)
                })));
            }
            Question::Explain(trial, id, form, tell) => {
                let looked = self.look_now();
                drop(tell.send(
                    looked.and_then(|snapshot| {
                        self.explained(&self.tried(trial), &snapshot, id, form)
                    }),
                ));
            }
            Question::Cooldowns(tell) => {
                let now = kept::now();
                drop(tell.send((self.ledger.cooldowns(now), now)));
            }
            Question::ClearCooldowns(rule, tell) => drop(tell.send(self.clear_cooldowns(rule))),
            Question::Pause(time, why, tell) => drop(tell.send(self.pause_moves(time, why))),
            Question::Resume(tell) => drop(tell.send(self.go_on("asked"))),
        }
    }

    /// Lets be tried again what was in vain; how many cooldowns that ends.
    fn clear_cooldowns(&mut self, rule: Option<RuleName>) -> usize {
        let cleared = self.ledger.clear_cooldowns(rule.as_ref(), kept::now());
        for one in &cleared {
            info!(of = %one.of, cause = one.cause, times = one.times, "cooldown cleared");
        }
        if !cleared.is_empty() {
            self.for_next.changed();
        }
        cleared.len()
    }

    fn publish(&self) {
        let status = self.state.status(&self.policy, &self.ledger, self.now);
        self.publish.send_replace(Arc::new(status));
    }

    /// For somebody who asks: nothing is done about what is seen.
    fn look_now(&mut self) -> Result<Snapshot, String> {
        // Another policy may name cgroups, and people want to see them.
        let paths = self.cgroups.read();
        let looked = self.look(&paths).map_err(|error| error.to_string())?;
        Ok(looked.observation.snapshot)
    }

    /// The policy by which somebody wants to know what would be done.
    fn tried(&self, trial: Trial) -> Policy {
        let policy = match trial.policy {
            None => self.policy.clone(),
            Some(policy) if self.names.is_some() => policy.with_kubernetes_defaults(),
            Some(policy) => policy,
        };
        policy.with_mode_at_most(trial.mode.unwrap_or(Mode::Enforce).safest(self.mode))
    }

    fn explained(
        &self,
        policy: &Policy,
        snapshot: &Snapshot,
        id: Cookie,
        form: Form,
    ) -> Result<Option<Vec<u8>>, String> {
        let Some(explained) = explain(policy, snapshot, &self.ledger, snapshot.taken, id) else {
            return Ok(None);
        };
        let mut text = Vec::new();
        render::explanation(
            &mut text,
            form,
            &explained,
            snapshot,
            &Origin::here(Source::Agent),
        )
        .map_err(|error| error.to_string())?;
        Ok(Some(text))
    }

    /// Walks, and names what is found.
    ///
    /// The cgroups were read before: what is accepted in one made since then is of no known one.
    fn look(&mut self, paths: &CgroupPaths) -> Result<Looks, bpf::Error> {
        self.exclude(paths);
        let began = Instant::now();
        let (mut observation, put_off) = self.observe()?;
        let took = began.elapsed();
        self.report_faults(&observation);
        locate(&mut observation.snapshot, paths);
        self.keep_house(&observation);
        self.leave_out(&mut observation, paths);
        if let Some(names) = &mut self.names {
            names.name(&mut observation.snapshot);
            unsure_before(&mut observation.snapshot, &mut self.named_since);
        }
        Ok(Looks {
            observation,
            took,
            put_off,
        })
    }

    fn pass(&mut self) {
        self.keep_tracking();
        let paths = read_cgroups(&self.policy, &self.cgroups);
        let Looks {
            observation,
            took,
            put_off,
        } = match self.look(&paths) {
            Ok(looks) => looks,
            Err(error) => {
                self.state.pass_failed(&error);
                return error!(%error, "pass failed, nothing is moved");
            }
        };
        self.look_for_pods(&observation.snapshot);
        let snapshot = &observation.snapshot;
        self.now = snapshot.taken;
        self.ledger.observe(&self.policy, snapshot);
        if self.ramp {
            self.ledger.enforce(&self.policy, self.now);
        }
        let plan = decide(&self.policy, snapshot, &self.ledger, self.now);
        debug!(
            connections = snapshot.connections.len(),
            endpoints = snapshot.endpoints.len(),
            moves = plan.moves().count(),
            overdue = plan.overdue(),
            budget_left = plan.budget_left(),
            skipped = ?plan.skipped(),
            files = observation.files,
            unseen = observation.unseen,
            naming = ?snapshot.naming,
            "listed"
        );
        let of: BTreeMap<Cookie, (u32, CgroupId)> = snapshot
            .connections
            .iter()
            .map(|c| (c.cookie, (c.device, c.cgroup)))
            .collect();
        for recall in plan.recalls() {
            self.recall(recall);
        }
        let paused = self.pause.now().is_some();
        for chosen in plan.moves().filter(|_| !paused) {
            match chosen.mode() {
                Mode::Enforce => {
                    // A plan chooses among what it was given.
                    if let Some((device, cgroup)) = of.get(&chosen.cookie()) {
                        self.event_recorder.started(chosen, snapshot);
                        self.order(chosen, *device, *cgroup);
                    }
                }
                Mode::DryRun | Mode::Disabled => {
                    report::would_move(chosen);
                    self.state.told(chosen);
                    self.ledger.said(chosen, self.now);
                    self.for_next.changed();
                }
            }
        }
        self.count(snapshot);
        for hold in self.ledger.take_new_holds() {
            self.state.held(&hold);
            self.for_next.changed();
        }
        self.ledger
            .prune(snapshot, self.policy.budget().window(), self.now);
        self.for_next
            .write_if_due(&self.ledger, &self.policy_text, self.now);
        self.state
            .passed(&observation, &plan, &self.ledger, took, put_off);
    }

    /// Walks, and puts off the next pass if that, or what others have walked since the last, took long.
    fn observe(&mut self) -> Result<(Observation, Duration), bpf::Error> {
        let adopt = Adopt::Below {
            cgroup: self.tracker.within()?,
            room: room(&self.policy, self.recorded),
        };
        let observation = self.observer.observe(adopt)?;
        let put_off = self.walking.passed(self.kernel.walked());
        self.next_pass = Instant::now() + put_off;
        self.recorded = observation.snapshot.connections.len() as u64;
        Ok((observation, put_off))
    }

    /// A pod may come to what was a plain host: from then on nothing is moved.
    fn look_for_pods(&mut self, snapshot: &Snapshot) {
        let unnamed = self.unnamed.as_mut();
        let Some(pod) = unnamed.and_then(|unnamed| unnamed.look_at_new(snapshot)) else {
            return;
        };
        warn_of_pods(&pod);
        self.unnamed = None;
        self.state.pods_without_names();
        self.mode = self.mode.safest(Mode::DryRun);
        self.policy = self.policy.clone().with_mode_at_most(self.mode);
        if let Some(mover) = &self.mover {
            mover.recall_all("pods are here whose names are not known");
        }
    }

    /// Says which connections are to be counted on; a thread does it.
    fn count(&mut self, snapshot: &Snapshot) {
        if self.counting.is_none() && Counting::is_asked(&self.policy) {
            let pins = self.tracker.pins().to_owned();
            self.counting =
                Counting::start(Arc::clone(&self.kernel), pins, self.count_despite_fionread)
                    .inspect_err(|error| error!(%error, "starting the counting thread"))
                    .ok();
        }
        if let Some(counting) = &self.counting {
            counting.ask(&self.policy, snapshot);
        }
    }

    fn order(&mut self, chosen: &Move, device: u32, cgroup: CgroupId) {
        self.ledger.started(chosen, self.now);
        self.for_next.changed();
        self.state.started(chosen);
        let order = Order {
            chosen: chosen.clone(),
            device,
            cgroup,
        };
        let making = self.making.as_ref();
        let ordered = match &self.mover {
            Some(_) if making.is_some_and(|m| m.is_unanswered(chosen.cookie())) => {
                Err(Refusal::Unanswered)
            }
            Some(mover) => mover.order(order),
            None => Err(Refusal::NoMechanism),
        };
        if let Err(why) = ordered {
            self.ended(chosen, None, Outcome::Refused(why), Duration::ZERO);
        }
    }

    fn recall(&self, Recall { cookie, why }: &Recall) {
        debug!(%cookie, cause = why.as_str(), %why, "recalling a move");
        if let Some(mover) = &self.mover {
            mover.recall(*cookie, why.to_string());
        }
    }

    fn done(
        &mut self,
        Done {
            chosen,
            outcome,
            step,
            waited,
            since_look,
            ..
        }: Done,
    ) {
        if let Some(time) = since_look {
            debug!(cookie = %chosen.cookie(), us = time.as_micros() as u64, "from the last look to the end of the step");
        }
        self.ended(&chosen, step, outcome, waited);
        self.publish();
    }

    fn ended(&mut self, chosen: &Move, step: Option<StepKind>, outcome: Outcome, waited: Duration) {
        report::moved(chosen, &outcome, waited);
        self.event_recorder.ended(chosen, &outcome);
        self.state.ended(chosen, step, &outcome, waited);
        self.ledger
            .ended_after(chosen.cookie(), outcome, waited, self.now);
        self.for_next.changed();
    }

    /// Whether there is a new policy. A refused one changes nothing. Under a new one the moves that
    /// wait are called back, and those connections are judged again like any other.
    fn reload(&mut self) -> bool {
        let Reading { content, loaded } = (self.reload)();
        self.policy_file.was_read(content);
        let reloaded = match loaded {
            Ok(Loaded { policy, text }) => {
                self.state.policy_loaded(&policy);
                if *text != *self.policy_text {
                    self.ledger.forget_told();
                    self.policy_text = text;
                }
                let paths = read_cgroups(&policy, &self.cgroups);
                let tracking = scope::tracking(policy.track(), &paths);
                if let Err(error) = self.tracker.track(tracking) {
                    error!(%error, "could not update the kernel half; it keeps its previous settings");
                }
                // What is there already gets its record, or loses it.
                self.observer.look_everywhere();
                let stabilization_window = policy.guards().stabilization_window();
                if let Some(Err(error)) = self
                    .names
                    .as_mut()
                    .map(|names| names.stabilization_window(stabilization_window))
                {
                    error!(%error, "could not change how often the API server is asked; names may be stale in between");
                }
                self.policy =
                    on_this_node(policy.with_mode_at_most(self.mode), self.names.is_some());
                if let Some(mover) = &self.mover {
                    mover.recall_all("the policy was replaced");
                }
                let mode = self.policy.mode().as_str();
                info!(mode, rules = self.policy.rules().len(), "policy reloaded");
                true
            }
            Err(error) => {
                let error = format!("{error:#}");
                self.state.policy_refused(error.clone());
                self.event_recorder.policy_refused(&error, Instant::now());
                error!(error, "policy refused, keeping the last valid one");
                false
            }
        };
        self.publish();
        reloaded
    }

    /// Repairs what others, or a shortage, have done to tracking, and forgets what has gone.
    fn keep_tracking(&mut self) {
        let now = Instant::now();
        if !self.last.is_due(now) {
            return;
        }
        match self.tracker.stay_last() {
            Ok(false) => self.last.intact(),
            Ok(true) => {
                let next = self.last.repaired(now);
                self.state.attached_again();
                warn!(
                    ?next,
                    "another sock_ops program was attached after ours; attached ours again, after it"
                );
            }
            Err(error) => {
                warn!(%error, "cannot check whether our program is the last one attached")
            }
        }
    }

    /// Forgets what has gone.
    fn keep_house(&mut self, observation: &Observation) {
        let now = observation.snapshot.taken;
        if now.since(self.kept) < HOUSEKEEPING {
            return;
        }
        self.kept = now;
        let empty = &observation.empty_endpoints;
        match self.empty_endpoints.forget(self.tracker.pins(), empty) {
            Ok(0) => {}
            Ok(count) => debug!(count, "removed endpoints without listeners and connections"),
            Err(error) => warn!(%error, "could not remove endpoints from the map"),
        }
    }

    /// Tells the kernel half of cgroups that have come and gone.
    fn exclude(&mut self, paths: &CgroupPaths) {
        let Some(excluded) = scope::excluded(self.policy.track(), paths) else {
            return;
        };
        if let Err(error) = self.tracker.exclude(excluded) {
            warn!(%error, "could not update the excluded cgroups in the kernel");
        }
    }

    /// Leaves out what has a record that the policy does not want: its cgroup was not known when it
    /// was made, or the policy was another. The kernel frees it with its socket.
    fn leave_out(
        &self,
        Observation {
            snapshot,
            listeners,
            ..
        }: &mut Observation,
        paths: &CgroupPaths,
    ) {
        let track = self.policy.track();
        snapshot.connections.retain(|c| {
            let wanted = track.loopback() || !c.remote.ip().is_loopback();
            wanted && scope::covers(track, c.cgroup_path.as_ref())
        });
        listeners.retain(|(_, id)| scope::covers(track, paths.get(id)));
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
            }
        }
        if observation.invalid > 0 {
            warn!(count = observation.invalid, "skipped invalid records");
        }
    }

    /// Ends the moves that wait, without harm, and says so.
    fn stop(mut self, done: &mut UnboundedReceiver<Done>) {
        self.end_mover();
        while let Ok(done) = done.try_recv() {
            self.done(done);
        }
        self.for_next
            .write(&self.ledger, &self.policy_text, self.now);
        if self.on_exit == OnExit::Keep {
            let pins = self.tracker.pins().display();
            info!(%pins, "tracking continues, for the next agent; `rebalancer uninstall` removes it");
        }
    }
}

/// What sniffs victims. Without it the agent moves what rules vouch for.
fn watcher(kernel: &Kernel, pins: &Path) -> Option<Watcher> {
    let opened = Watcher::open(kernel, pins);
    let opened = opened.inspect_err(|error| {
        warn!(%error, "protocol detection is unavailable: only rules that set onReconnect move connections");
    });
    opened.ok()
}

/// What this node lacks, by ability, each with why: what tracking and moving stand on is tried on
/// connections of our own. Below another `cgroup` they are not recorded, and so not tried.
///
/// # Errors
/// It lacks what the agent cannot run without.
fn abilities(walker: &mut Walker, cgroup: bool) -> anyhow::Result<BTreeMap<String, String>> {
    let mut tried = Vec::new();
    if !cgroup {
        match try_tracking(walker) {
            Ok(tracking) => tried.extend(tracking),
            Err(error) => warn!(%error, "cannot open a connection of our own to test tracking"),
        }
    }
    tried.push(try_sniffing(walker));
    let mut lacks = BTreeMap::new();
    for Tried { ability, seen } in tried {
        let Err(why) = seen else { continue };
        if ability.is_needed() {
            anyhow::bail!("{}: {why}\n  remedy: {}", ability.name(), ability.remedy());
        }
        let (name, without) = (ability.name(), ability.remedy());
        warn!(
            ability = name,
            why, without, "a feature is not available on this node"
        );
        lacks.insert(name.to_owned(), why);
    }
    Ok(lacks)
}

/// What was tried on connections of our own is nobody's endpoint: those that are new and empty.
fn forget_trials(before: &BTreeMap<EndpointKey, EndpointSums>, pins: &Path) {
    let forget = || {
        let mut trials = bpf::read_endpoints(pins)?;
        trials
            .retain(|key, sums| !before.contains_key(key) && sums.open == 0 && sums.listeners == 0);
        bpf::remove_endpoints(pins, trials)
    };
    if let Err(error) = forget() {
        debug!(%error, "endpoints of our own test connections stay for a minute");
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
                    "falling back to a less preferred reset mechanism"
                );
            }
            Some(mechanism)
        }
        Err(why) => {
            let why = why.join("; ");
            warn!(why, "no reset mechanism works on this node: dry runs only");
            None
        }
    }
}

fn warn_of_pods(cgroup: &str) {
    error!(
        cgroup,
        "there are pods on this node, but no access to the API server: which connections to skip is \
         unknown, so dry runs only. Start the agent with a token or --kubeconfig and \
         --kubernetes=on; or, if no Kubernetes guard is needed, with --kubernetes=off"
    );
}

/// The policy as it is meant where there are names, or none.
fn on_this_node(policy: Policy, named: bool) -> Policy {
    if named {
        return policy.with_kubernetes_defaults();
    }
    for rule in policy.rules_for_pods() {
        let rule = rule.name().as_str();
        warn!(
            rule,
            "the rule selects pods by name: without Kubernetes it matches nothing"
        );
    }
    policy
}

/// How many connections may be recorded beside those that are.
fn room(policy: &Policy, recorded: u64) -> u64 {
    u64::from(policy.track().max_per_node().get()).saturating_sub(recorded)
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
