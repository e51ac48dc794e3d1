//! The agent's loop: at every interval list, decide, move; in between, take in how moves ended.
//!
//! It joins the other modules and holds no policy of its own.

mod backoff;
mod drains;
mod event_recorder;
mod events;
mod fact;
mod health;
mod journal;
mod kept;
mod log;
mod looking;
mod metrics;
mod mover;
mod mover_signs;
mod numbers;
mod own_file;
mod pass;
mod pause;
mod policy_file;
mod published;
mod questions;
mod reload;
mod scope;
mod serve;
mod service_manager;
mod services;
mod start;
mod state;
mod unnamed;

pub use event_recorder::report_refusal;
pub use kept::forget_kept;
pub use pause::{LONGEST as LONGEST_PAUSE, LONGEST_REASON as LONGEST_PAUSE_REASON, forget_pause};
pub use policy_file::{Content, read as read_policy};
pub use serve::{LONGEST_DRAIN, Offer, SHORTEST_DRAIN};

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Instant};

use anyhow::Context as _;
use clap::ValueEnum;
use rebalancer_common::Fault;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{
        mpsc::{Receiver, UnboundedReceiver, UnboundedSender},
        watch,
    },
    time::{MissedTickBehavior, interval},
};
use tracing::info;

use self::{
    backoff::Backoff,
    drains::Drains,
    event_recorder::EventRecorder,
    fact::{Fact, ResumeCause},
    journal::Journal,
    kept::SavedLedger,
    looking::{Looking, Observed},
    mover::MoverFactory,
    pass::Look,
    pause::Pause,
    policy_file::PolicyFile,
    published::Published,
    questions::{Inspection, Question},
    unnamed::Unnamed,
};
use crate::{
    bpf::{EmptyEndpoints, Kernel, KernelLog, Sends, Tracker},
    counting::{Counting, CountingReport},
    host::CgroupTree,
    http::Server,
    kubernetes::{Access, EventWriter, Exchange, Names, PodAt},
    moves::{Done, Mechanism, Mover},
    plan::Ledger,
    policy::{Mode, Policy},
    snapshot::KernelTime,
    walking::Account,
};

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
    /// Also report moves as Kubernetes Events.
    pub move_events: bool,
    /// Whether tracking continues when the agent is stopped by a signal.
    pub on_exit: OnExit,
    /// Folder of the agent's socket.
    pub run_dir: PathBuf,
    /// Where metrics and health are also served.
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

/// Whether tracking continues when the agent is stopped by SIGTERM or SIGINT. SIGKILL always keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnExit {
    /// Remove everything from the kernel
    Remove,
    /// Continue tracking, until `rebalancer uninstall`
    Keep,
}

/// Everything that can happen to the agent.
enum Event {
    Tick,
    Done(Box<Done>),
    Observed(Box<Observed>),
    Counting(CountingReport),
    KernelSpoke,
    Reload,
    LookAtPolicy,
    PauseOver,
    PodLeaves,
    DrainPass,
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
    let writer = EventWriter::connect(&options.names, options.own.clone()).await?;
    let event_recorder = EventRecorder::new(writer, options.move_events);
    let exchange = Exchange::connect(&options.names).await?;
    let (mut agent, mut inbox) = Agent::start(options, loaded, (names, exchange), event_recorder)?;
    service_manager::ready(&agent.policy);
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
            observed = inbox.observed.recv() => {
                Event::Observed(Box::new(observed.context("the observing thread has panicked")?))
            }
            Some(report) = inbox.counting.recv() => Event::Counting(report),
            () = kernel_spoke(&mut inbox.kernel_log) => Event::KernelSpoke,
            _ = ticks.tick() => Event::Tick,
            _ = looks.tick() => Event::LookAtPolicy,
            () = agent.pause.over() => Event::PauseOver,
            () = pod_leaves(agent.names.as_ref()) => Event::PodLeaves,
            () = at(agent.drains.pass) => Event::DrainPass,
            // Last: however much is asked, the rest is done.
            Some(asked) = inbox.asked.recv() => Event::Asked(Box::new(asked)),
        };
        match event {
            Event::Tick => agent.tick(),
            Event::Done(done) => agent.done(&done),
            Event::Observed(observed) => agent.observed(*observed),
            Event::Counting(report) => agent.journal.record(Fact::Counting(&report)),
            Event::KernelSpoke => {} // flushed already, by the `log` crate
            Event::Reload | Event::LookAtPolicy => {
                agent.look_at_namespace();
                let changed = agent.policy_file.changed();
                if (changed || matches!(event, Event::Reload)) && agent.reload() {
                    service_manager::ready(&agent.policy);
                    ticks = agent.ticks();
                }
            }
            Event::PodLeaves => agent.pod_leaves(),
            Event::DrainPass => agent.drain(),
            Event::PauseOver => drop(agent.resume_moves(ResumeCause::Expired)),
            Event::Asked(question) => agent.asked(*question),
            Event::Stop(signal) => {
                info!(signal, "stopping");
                break;
            }
        }
    }
    service_manager::stopping();
    agent.stop(&mut inbox);
    Ok(())
}

/// The sources of the events that the loop waits for.
struct Inbox {
    kernel_log: Option<KernelLog>,
    done: UnboundedReceiver<Done>,
    observed: UnboundedReceiver<Observed>,
    counting: UnboundedReceiver<CountingReport>,
    asked: Receiver<Question>,
}

struct Agent {
    // Dropped in this order: first the server, so that there are no more requests, then
    // the mover, then tracking.
    _server: Server,
    mover: Option<Mover>,
    /// What the next one is made with; none where this node cannot reset.
    factory: Option<MoverFactory>,
    /// From when a rule asks for it.
    counting: Option<Counting>,
    counting_reports: UnboundedSender<CountingReport>,
    count_despite_fionread: bool,
    ramp: bool,
    kernel: Arc<Kernel>,
    /// The program that counts and follows sends, for both threads that ask for it.
    sends: Arc<Sends>,
    looking: Looking,
    /// The observation under way.
    look: Option<Look>,
    pass_is_due: bool,
    drains: Drains,
    /// Requests that wait for the next observation.
    waiting: Vec<Inspection>,
    /// The next observation is over all processes.
    everywhere: bool,
    tracker: Tracker,
    /// On a plain host there are none.
    names: Option<Names>,
    /// That of the agents, whose annotation pauses all of them.
    namespace: Option<String>,
    /// With the other nodes; on a plain host there are none.
    exchange: Option<Exchange>,
    /// Nothing is exchanged, which was reported.
    is_cut_off: bool,
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
    journal: Journal,
    publish: watch::Sender<Arc<Published>>,
    ledger: Ledger,
    saved: SavedLedger,
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
    fn ticks(&self) -> tokio::time::Interval {
        let mut ticks = interval(self.policy.interval());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    }

    fn publish(&self) {
        let published = (self.journal).published(&self.policy, &self.ledger, self.now);
        self.publish.send_replace(Arc::new(published));
    }

    /// Ends the moves that wait, without harm, and reports them.
    fn stop(mut self, inbox: &mut Inbox) {
        self.end_mover();
        while let Ok(done) = inbox.done.try_recv() {
            self.done(&done);
        }
        self.saved.write(&self.ledger, &self.policy_text, self.now);
        self.counting = None;
        while let Ok(report) = inbox.counting.try_recv() {
            self.journal.record(Fact::Counting(&report));
        }
        if self.on_exit == OnExit::Keep {
            let pins = self.tracker.pins().display();
            info!(%pins, "tracking continues, for the next agent; `rebalancer uninstall` removes it");
        }
    }
}

/// Waits until another pod of this node is being deleted, or a Service sends no new connections to it any more.
async fn pod_leaves(names: Option<&Names>) {
    match names {
        Some(names) => names.pod_leaves().await,
        None => std::future::pending().await,
    }
}

/// Waits until then.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits for messages of the kernel half and hands them to the `log` crate.
async fn kernel_spoke(log: &mut Option<KernelLog>) {
    match log {
        Some(log) => log.pass_on().await,
        None => std::future::pending().await,
    }
}
