//! The thread that moves: one state per move until its outcome.

use std::{
    collections::BTreeMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;

use super::{
    Mechanism,
    active::{Active, Inside, Next},
    diag::Diag,
    owner::Owners,
    process::Cgroups,
    watch::Watches,
};
use crate::{
    bpf::{Walker, Watcher},
    netns::enter,
    plan::{Move, Outcome},
    policy::StepKind,
    snapshot::{CgroupId, Cookie, Netns, TcpState},
};

/// How often a waiting move's socket is looked at. A look costs some 20 microseconds.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How old may be what is known of a socket's owners when its move's step is taken. To look for
/// them anew is a walk over all processes.
const OWNERS_KNOWN_FOR: Duration = Duration::from_secs(1);

/// Orders that may wait for the thread; more are refused, not queued without end.
const QUEUE: usize = 1024;

/// One move to make.
#[derive(Clone, Debug)]
pub struct Order {
    /// What the plan chose.
    pub chosen: Move,
    /// The interface that its socket is bound to, or 0.
    pub device: u32,
    /// The cgroup of its socket.
    pub cgroup: CgroupId,
}

/// A move's end.
#[derive(Clone, Debug)]
pub struct Done {
    /// What the plan chose.
    pub chosen: Move,
    /// What became of it.
    pub outcome: Outcome,
    /// The step that was its turn when it ended; none if it was not looked at, or all had passed.
    pub step: Option<StepKind>,
    /// The guard that would have refused it, if it was told to ignore guards.
    pub ignored: Option<&'static str>,
    /// From the order to the outcome.
    pub waited: Duration,
}

/// What the thread is told.
enum Request {
    Order(Box<Order>),
    /// End all moves that wait.
    Recall,
}

/// The step at which each move under way is, for whoever is asked. Shared with the moving thread.
#[derive(Clone, Debug, Default)]
pub struct Steps(Arc<Mutex<BTreeMap<Cookie, StepKind>>>);

impl Steps {
    /// The step of the move of `cookie`; `None` if it is not under way, or not looked at yet.
    pub fn of(&self, cookie: Cookie) -> Option<StepKind> {
        let steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        steps.get(&cookie).copied()
    }
}

/// Handle of the moving thread. Dropping it ends the thread; moves that wait end without harm.
pub struct Mover {
    requests: Option<SyncSender<Request>>,
    thread: Option<thread::JoinHandle<()>>,
    steps: Steps,
}

impl Mover {
    /// Starts the thread. Each order gets exactly one [`Done`].
    ///
    /// `walker` finds who holds a socket, answers who spoke last when the clock's ticks cannot, and
    /// tells sequence numbers; `mechanism` is how it resets; `watcher` hears what victims speak, and without it none is moved
    /// whose rule does not say what its end means.
    pub fn start(
        walker: Walker,
        watcher: Option<Watcher>,
        mechanism: Mechanism,
        done: UnboundedSender<Done>,
    ) -> io::Result<Self> {
        let (requests, queue) = sync_channel(QUEUE);
        let steps = Steps::default();
        let told = steps.clone();
        let thread = thread::Builder::new()
            .name("mover".to_owned())
            .spawn(move || {
                Room {
                    walker,
                    watches: Watches::new(watcher),
                    mechanism,
                    cgroups: Cgroups::read(),
                    owners: Owners::default(),
                    active: BTreeMap::new(),
                    done,
                    steps: told,
                }
                .run(&queue);
            })?;
        Ok(Self {
            requests: Some(requests),
            thread: Some(thread),
            steps,
        })
    }

    /// The step at which each move is.
    pub fn steps(&self) -> Steps {
        self.steps.clone()
    }

    /// Hands over a move. `false`: the thread cannot take it, and there will be no [`Done`].
    pub fn order(&self, order: Order) -> bool {
        self.requests
            .as_ref()
            .is_some_and(|requests| requests.try_send(Request::Order(Box::new(order))).is_ok())
    }

    /// Ends every move that was ordered and has not ended, without harm: the policy that chose them
    /// is no longer in force. Waits while the thread is busy.
    pub fn recall(&self) {
        if let Some(requests) = &self.requests {
            // It fails only if the thread has ended, and then no move waits.
            let _no_thread = requests.send(Request::Recall);
        }
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(Err(_)) = self.thread.take().map(thread::JoinHandle::join) {
            tracing::error!("the moving thread panicked");
        }
    }
}

/// What the thread owns.
struct Room {
    walker: Walker,
    watches: Watches,
    mechanism: Mechanism,
    cgroups: Cgroups,
    owners: Owners,
    active: BTreeMap<Cookie, Active>,
    done: UnboundedSender<Done>,
    steps: Steps,
}

impl Room {
    fn run(mut self, queue: &Receiver<Request>) {
        loop {
            let next = if self.active.is_empty() {
                queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                queue.recv_timeout(LOOK_EVERY)
            };
            match next {
                Ok(request) => {
                    self.accept(request);
                    while let Ok(request) = queue.try_recv() {
                        self.accept(request);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.look_at_all();
            self.tell_steps();
        }
        self.end_all(&Outcome::Refused("shutdown"));
    }

    fn end_all(&mut self, end: &Outcome) {
        for (_, active) in std::mem::take(&mut self.active) {
            let netns = active.chosen.endpoint().netns;
            let namespaces = &mut self.namespaces;
            let outcome = active.ended(end.clone(), |id| {
                let target = namespaces.open(netns).ok_or_else(|| {
                    io::Error::other("nothing leads to its network namespace any more")
                })?;
                enter(&target, || Diag::open()?.look(id))?
            });
            self.tell(active, outcome);
        }
    }

    fn accept(&mut self, request: Request) {
        let order = match request {
            Request::Order(order) => order,
            Request::Recall => return self.end_all(&Outcome::Recalled),
        };
        let active = Active::new(*order, Instant::now());
        if let Some(twice) = self.active.insert(active.cookie(), active) {
            self.tell(twice, Outcome::Refused("orderedTwice"));
        }
    }

    fn tell_steps(&self) {
        let steps = self.active.iter();
        let steps = steps.filter_map(|(cookie, active)| Some((*cookie, active.step_kind()?)));
        *self.steps.0.lock().unwrap_or_else(PoisonError::into_inner) = steps.collect();
    }

    fn look_at_all(&mut self) {
        self.owners.keep(|cookie| self.active.contains_key(&cookie));
        // Of each that is new.
        self.know_owners(Duration::MAX, &self.cookies());
        let mut by_netns: BTreeMap<Netns, Vec<Cookie>> = BTreeMap::new();
        for (cookie, active) in &self.active {
            by_netns
                .entry(active.chosen.endpoint().netns)
                .or_default()
                .push(*cookie);
        }
        for (netns, cookies) in by_netns {
            for (cookie, next) in self.look_at(netns, &cookies) {
                let Next::End(outcome) = next else { continue };
                if let Some(active) = self.active.remove(&cookie) {
                    self.tell(active, outcome);
                }
            }
        }
    }

    fn cookies(&self) -> Vec<Cookie> {
        self.active.keys().copied().collect()
    }

    /// Looks for the owners of those whose owners were not looked for within `age`.
    fn know_owners(&mut self, age: Duration, cookies: &[Cookie]) {
        let old = self.owners.older_than(age, cookies.iter().copied());
        if old.is_empty() {
            return;
        }
        let Self {
            owners,
            walker,
            cgroups,
            ..
        } = self;
        if let Err(error) = owners.refresh(walker, &old, cgroups) {
            // Those without owners are not moved, and say so.
            tracing::warn!(%error, "cannot tell who holds the connections that are to be moved");
        }
    }

    /// Looks at the moves of one namespace, and takes the steps whose time has come.
    fn look_at(&mut self, netns: Netns, cookies: &[Cookie]) -> Vec<(Cookie, Next)> {
        let looked = self.inside(netns, cookies, |active, inside| active.look(inside));
        let (ready, mut next): (Vec<_>, Vec<_>) = looked
            .into_iter()
            .partition(|(_, next)| matches!(next, Next::Act));
        let ready: Vec<Cookie> = ready.into_iter().map(|(cookie, _)| cookie).collect();
        if !ready.is_empty() {
            // Before the last look, so that nothing takes time after it.
            self.know_owners(OWNERS_KNOWN_FOR, &ready);
            next.extend(self.inside(netns, &ready, |active, inside| active.act(inside)));
        }
        next
    }

    /// Does something for each of these moves, from inside their network namespace.
    fn inside(
        &mut self,
        netns: Netns,
        cookies: &[Cookie],
        each: impl Fn(&mut Active, &mut Inside<'_>) -> Next,
    ) -> Vec<(Cookie, Next)> {
        let all = |outcome: Outcome| {
            cookies
                .iter()
                .map(|cookie| (*cookie, Next::End(outcome.clone())))
                .collect()
        };
        let Some(target) = self.owners.open_netns(netns, cookies.iter().copied()) else {
            return self.unreachable(cookies);
        };
        let Self {
            walker,
            watches,
            mechanism,
            owners,
            active,
            ..
        } = self;
        let work = || {
            let diag = match Diag::open() {
                Ok(diag) => diag,
                Err(e) => return all(Outcome::Failed(format!("sock_diag: {e}"))),
            };
            let mut inside = Inside {
                netns,
                diag: &diag,
                walker,
                owners,
                mechanism: *mechanism,
                watches,
            };
            let mut next = Vec::with_capacity(cookies.len());
            for cookie in cookies {
                if let Some(active) = active.get_mut(cookie) {
                    next.push((*cookie, without_panic(|| each(active, &mut inside))));
                }
            }
            next
        };
        match enter(&target, work) {
            Ok(next) => next,
            Err(e) => all(Outcome::Failed(format!(
                "entering the network namespace: {e}"
            ))),
        }
    }

    /// Nobody who holds one of them leads to the namespace. A pod that was deleted has taken its
    /// connections along; but one that is in flight between processes is held by none just now.
    fn unreachable(&mut self, cookies: &[Cookie]) -> Vec<(Cookie, Next)> {
        self.know_owners(OWNERS_KNOWN_FOR, cookies);
        let end = |cookie: &Cookie| {
            let active = self.active.get(cookie)?;
            let outcome = match self.owners.state(*cookie) {
                Some(TcpState::Established) => active.out_of_reach(),
                state => active.gone(state),
            };
            Some((*cookie, Next::End(outcome)))
        };
        cookies.iter().filter_map(end).collect()
    }

    fn tell(&mut self, mut active: Active, outcome: Outcome) {
        let cookie = active.cookie();
        let lives = outcome.leaves_it();
        let watch = active.take_watch();
        self.watches
            .end(watch, cookie, lives, &mut self.walker, &self.cgroups);
        let waited = active.ordered.elapsed();
        let step = active.step_kind();
        // The agent that does not listen any more is on its way out.
        let _agent_is_gone = self.done.send(Done {
            chosen: active.chosen,
            outcome,
            step,
            ignored: active.ignored,
            waited,
        });
    }
}

/// A defect in one move must not end the agent, nor the other moves.
fn without_panic(work: impl FnOnce() -> Next) -> Next {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Next::End(Outcome::Failed("panic".to_owned())))
}
