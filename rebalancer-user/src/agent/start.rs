//! How the agent starts: what this node can do is tried, and tracking is taken over or begun.

use std::{
    collections::BTreeMap,
    iter,
    path::Path,
    sync::{Arc, mpsc::channel},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rebalancer_common::{EndpointKey, EndpointSums};
use tokio::sync::{mpsc::unbounded_channel, watch};
use tracing::{debug, info, warn};

use super::{
    Agent, Inbox, Loaded, OnExit, Options,
    backoff::Backoff,
    drains::Drains,
    event_recorder::EventRecorder,
    fact::Fact,
    journal::Journal,
    kept::SavedLedger,
    looking::Looking,
    mover::MoverFactory,
    mover_signs::MoverSigns,
    numbers::Numbers,
    pass::{read_cgroups, room},
    pause::Pause,
    policy_file::{Content, PolicyFile},
    reload::on_this_node,
    scope,
    serve::serve,
    state::AgentState,
    unnamed::Unnamed,
};
use crate::{
    abilities::{Tried, try_sniffing, try_tracking},
    bpf::{self, EmptyEndpoints, Inherited, Kernel, Lifetime, Sends, Tracker, Walker},
    host::{self, CgroupTree},
    http::RunDir,
    kubernetes::{Ask, Exchange, Names, process_in_pod},
    moves::{self, Mechanism},
    observe::Observer,
    policy::Mode,
    snapshot::KernelTime,
    walking::Account,
};

/// How long the start waits for the readers that a killed agent has left.
const WAKING: Duration = Duration::from_secs(2);

/// How long ours may not be the last program on the cgroup after it was attached again: two agents that
/// both want to be last would otherwise replace each other at every interval. Meanwhile closes may go
/// unseen; the walk still shows which connections have ended.
const BEHIND_OURS: Duration = Duration::from_secs(10);
/// The longest such time; it doubles each time ours has to be attached again.
const BEHIND_OURS_MOST: Duration = Duration::from_secs(3600);

impl Agent {
    pub(super) fn start(
        options: Options,
        loaded: Loaded,
        (names, exchange): (Option<Names>, Option<Exchange>),
        event_recorder: EventRecorder,
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
        // After the pins: the error of a second agent names the first agent, not its socket.
        let run_dir = RunDir::take(&options.run_dir)?;
        let mut walker = Walker::open(Arc::clone(&kernel), tracker.pins())?;
        let before = bpf::read_endpoints(tracker.pins())?;
        let lacks = abilities(&mut walker, options.cgroup.is_some())?;
        let mechanism = mechanism(options.mechanism);
        tracker.track(wanted)?;
        forget_trials(&before, tracker.pins());
        let adopted = walker.adopt(tracker.within()?, room(&policy, 0))?;
        if let Err(error) = wake_left(&mut walker, tracker.pins()) {
            warn!(
                error = format!("{error:#}"),
                "could not wake the readers that a killed agent has left"
            );
        }
        let mut mode = options.mode;
        if mechanism.is_none() {
            mode = mode.safest(Mode::DryRun);
        }
        let sends = Arc::new(Sends::new(Arc::clone(&kernel), tracker.pins().to_owned()));
        let (report, done) = unbounded_channel();
        let factory = mechanism.map(|mechanism| {
            MoverFactory::new(Arc::clone(&kernel), Arc::clone(&sends), mechanism, report)
        });
        let mover = factory
            .as_ref()
            .map(|factory| factory.start(tracker.pins()))
            .transpose()
            .context("starting the moving thread")?;
        let kernel_log = tracker
            .take_log()
            .context("reading the log of the kernel half")?;
        let state = AgentState::new(
            options.policy_file.display().to_string(),
            options.mode,
            mechanism,
            lacks,
            &tracker,
            MoverSigns::of(mover.as_ref(), 0),
        );
        let endpoints_most = bpf::endpoints_capacity(tracker.pins()).unwrap_or_default();
        let mut journal = Journal::new(state, Numbers::new(endpoints_most), event_recorder);
        let mut unnamed = Unnamed::unless(names.is_some(), options.names.ask);
        if let Some(cgroup) = unnamed.as_ref().and_then(Unnamed::look) {
            journal.record(Fact::PodsWithoutNames { cgroup: &cgroup });
            mode = mode.safest(Mode::DryRun);
            unnamed = None;
        }
        if options.names.ask == Ask::Off && process_in_pod().is_some() {
            warn!(
                "there are pods on this node, and --kubernetes=off disables every Kubernetes guard, \
                 including excludeNamespaces and opt-outs"
            );
        }
        let mode_of_file = policy.mode();
        let policy = on_this_node(policy.with_mode_at_most(mode), names.is_some());
        journal.record(Fact::PolicyLoaded {
            mode: mode_of_file,
            policy: &policy,
            first: true,
        });
        let pause = Pause::resume(&options.run_dir);
        if let Some(paused) = pause.now() {
            journal.record(Fact::StillPaused { paused });
        }
        let (saved, ledger) = SavedLedger::resume(&options.run_dir, &text);
        let first = journal.published(&policy, &ledger, KernelTime::default());
        let (publish, published) = watch::channel(Arc::new(first));
        let socket = run_dir.socket();
        let (server, asked) = serve(run_dir, options.offer, &published, journal.events())?;
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
        let (looking, observed) =
            Looking::start(Observer::new(walker)).context("starting the observing thread")?;
        let (counting_reports, counting) = unbounded_channel();
        let agent = Self {
            _server: server,
            mover,
            factory,
            counting: None,
            counting_reports,
            count_despite_fionread: options.count_despite_fionread,
            ramp: options.ramp,
            kernel,
            sends,
            looking,
            look: None,
            pass_is_due: false,
            drains: Drains::default(),
            waiting: Vec::new(),
            everywhere: false,
            tracker,
            names,
            namespace: options.own.map(|own| own.namespace),
            exchange,
            is_cut_off: false,
            unnamed,
            cgroups,
            policy,
            on_exit: options.on_exit,
            mode,
            reload: options.reload,
            pause,
            policy_file,
            journal,
            publish,
            ledger,
            saved,
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
            observed,
            counting,
            asked,
        };
        Ok((agent, inbox))
    }
}

/// What this node lacks of what is tried on connections of our own. Below another `cgroup` they are not recorded, and so not tried.
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

/// Wakes the readers of sockets that a killed agent has left in the socket hash, before others join.
fn wake_left(walker: &mut Walker, pins: &Path) -> anyhow::Result<()> {
    let left = bpf::left_joined(pins)?;
    if left.is_empty() {
        return Ok(());
    }
    let (sender, woken) = channel();
    moves::wake(walker, &left, move |cookie| {
        // Nobody waits any more for one whose lock was held.
        let _late = sender.send(cookie);
    })?;
    let until = Instant::now() + WAKING;
    let next = || woken.recv_timeout(until.saturating_duration_since(Instant::now()));
    let woken = iter::from_fn(|| next().ok()).count();
    info!(
        left = left.len(),
        woken, "woke the readers that a killed agent has left"
    );
    Ok(bpf::forget_joined(pins, &left)?)
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
