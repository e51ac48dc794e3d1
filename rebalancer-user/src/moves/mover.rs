//! The thread that moves: one state per move until its outcome.

use std::{
    collections::BTreeMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;

use super::{
    Mechanism,
    notices::Notices,
    owners::Owners,
    pulse::{Health, Pulse, Recall},
    sniffer::Sniffer,
    victim::{Inside, Next, Order, Victim},
};
use crate::{
    bpf::{Capture, Sends, Walker},
    host::{CgroupMounts, Diag, netns::enter},
    plan::{Move, Outcome, Refusal},
    policy::StepKind,
    snapshot::{Cookie, Netns, TcpState},
    walking::Pace,
};

/// How often a waiting move's socket is looked at. A look costs some 20 microseconds.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How old the knowledge of a socket's owners may be when a step is taken. To find them again takes a walk
/// over all processes.
const OWNERS_KNOWN_FOR: Duration = Duration::from_secs(1);

/// Orders that may wait for the thread; more are refused.
const QUEUE: usize = 1024;

/// How long the thread may take to end its moves. One that hangs is abandoned.
const END_WITHIN: Duration = Duration::from_secs(10);

/// A move's end.
#[derive(Clone, Debug)]
pub struct Done {
    /// What the plan chose.
    pub chosen: Move,
    /// How it ended.
    pub outcome: Outcome,
    /// The step at which it ended; none if it was not looked at, or all had passed.
    pub step: Option<StepKind>,
    /// The guard that would have refused it, if guards were not ignored.
    pub ignored: Option<Refusal>,
    /// From the order to the outcome.
    pub waited: Duration,
    /// From the last look at the connection to the end of the last step, if one was taken.
    pub since_look: Option<Duration>,
}

/// The step at which each move under way is, shared with the moving thread.
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
    orders: Option<SyncSender<Box<Order>>>,
    /// Closed once the thread has ended.
    ended: Receiver<()>,
    steps: Steps,
    pulse: Pulse,
}

impl Mover {
    /// Starts the thread. Each order gets exactly one [`Done`].
    ///
    /// `walker` finds the holders of sockets, and reads sequence numbers and which side sent last;
    /// `mechanism` resets; `capture` sniffs, and without it rules without `onReconnect` move nothing; without
    /// `sends` no client is asked to leave.
    pub fn start(
        walker: Walker,
        capture: Option<Capture>,
        sends: Option<Arc<Sends>>,
        mechanism: Mechanism,
        done: UnboundedSender<Done>,
    ) -> io::Result<Self> {
        let (orders, queue) = sync_channel(QUEUE);
        let (still_there, ended) = sync_channel(0);
        let (steps, pulse) = (Steps::default(), Pulse::default());
        let published = steps.clone();
        let beat = pulse.clone();
        thread::Builder::new()
            .name("mover".to_owned())
            .spawn(move || {
                // However it ends, also by a panic.
                let _end = EndSignal(beat.clone(), still_there);
                MoverThread {
                    walker,
                    sniffer: Sniffer::new(capture),
                    notices: Notices::new(sends),
                    mechanism,
                    mounts: CgroupMounts::read_or_none(),
                    owners: Owners::default(),
                    pace: Pace::default(),
                    victims: BTreeMap::new(),
                    done,
                    steps: published,
                    pulse: beat,
                }
                .run(&queue);
            })?;
        Ok(Self {
            orders: Some(orders),
            ended,
            steps,
            pulse,
        })
    }

    /// The step at which each move is.
    pub fn steps(&self) -> Steps {
        self.steps.clone()
    }

    /// The thread's signs of life.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Hands over a move.
    ///
    /// # Errors
    /// Why the thread cannot take it; there will be no [`Done`].
    pub fn order(&self, order: Order) -> Result<(), Refusal> {
        let orders = self.orders.as_ref().ok_or_else(|| self.refusal())?;
        if let Some(refusal) = self.pulse.health(Instant::now()).refusal() {
            return Err(refusal);
        }
        let cookie = order.chosen.cookie();
        self.pulse.ordered(&order.chosen);
        orders.try_send(Box::new(order)).map_err(|error| {
            self.pulse.ended(cookie);
            match error {
                TrySendError::Full(_) => Refusal::QueueFull,
                TrySendError::Disconnected(_) => Refusal::MoverEnded,
            }
        })
    }

    fn refusal(&self) -> Refusal {
        let refusal = self.pulse.health(Instant::now()).refusal();
        refusal.unwrap_or(Refusal::MoverEnded)
    }

    /// Abandons the thread, if it is stuck or has ended and was not abandoned before. From then on it
    /// reports nothing and takes no orders.
    pub fn give_up(&mut self, now: Instant) -> Option<GivenUp> {
        self.orders.as_ref()?;
        let health = self.pulse.health(now);
        health.refusal()?;
        let moves = self.pulse.give_up(now);
        self.orders = None;
        Some(GivenUp { health, moves })
    }

    /// Whether it was abandoned, and takes no orders.
    pub fn is_given_up(&self) -> bool {
        self.orders.is_none()
    }

    /// Ends the move of `cookie` if nothing was done to the connection yet; one that was asked to
    /// close, or sent resets, ends as its present step does. Also while the thread is stuck: nothing
    /// more is done before it has seen this.
    pub fn recall(&self, cookie: Cookie, why: String) {
        self.pulse.recall(cookie, why);
    }

    /// Ends every move that was ordered and has not ended, without harm; as soon as [`Self::recall`].
    pub fn recall_all(&self, why: &'static str) {
        self.pulse.recall_all(why);
    }

    /// Ends the thread, and without harm what waits. Returns the moves whose end it did not
    /// report, because it hangs.
    pub fn end(&mut self) -> Vec<(Move, Outcome)> {
        if let Some(given_up) = self.give_up(Instant::now()) {
            return given_up.moves;
        }
        if self.orders.take().is_none() {
            return Vec::new();
        }
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(END_WITHIN) {
            tracing::error!(
                seconds = END_WITHIN.as_secs(),
                "the moving thread is stuck and was abandoned: this process exits once the kernel has \
                 answered it"
            );
        }
        self.pulse.give_up(Instant::now())
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        self.end();
    }
}

/// A thread that was abandoned.
#[derive(Debug)]
pub struct GivenUp {
    /// Why.
    pub health: Health,
    /// Its moves, and what is known of them.
    pub moves: Vec<(Move, Outcome)>,
}

/// Signals the end of the thread when it is dropped.
struct EndSignal(
    Pulse,
    #[expect(dead_code, reason = "closed when it is dropped")] SyncSender<()>,
);

impl Drop for EndSignal {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!("the moving thread panicked");
        }
        self.0.has_ended();
    }
}

/// What the thread owns.
struct MoverThread {
    walker: Walker,
    sniffer: Sniffer,
    notices: Notices,
    mechanism: Mechanism,
    mounts: CgroupMounts,
    owners: Owners,
    pace: Pace,
    victims: BTreeMap<Cookie, Victim>,
    done: UnboundedSender<Done>,
    steps: Steps,
    pulse: Pulse,
}

impl MoverThread {
    fn run(mut self, queue: &Receiver<Box<Order>>) {
        while !self.pulse.is_given_up() {
            self.pulse.idles();
            let next = if self.victims.is_empty() {
                queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                queue.recv_timeout(LOOK_EVERY)
            };
            match next {
                Ok(order) => {
                    self.accept(*order);
                    while let Ok(order) = queue.try_recv() {
                        self.accept(*order);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.take_recalls();
            self.look_at_all();
            // Their processes are held by descriptors.
            self.owners
                .keep(|cookie| self.victims.contains_key(&cookie));
            self.publish_steps();
        }
        let shutdown = Outcome::Refused(Refusal::Shutdown);
        for (cookie, mut victim) in std::mem::take(&mut self.victims) {
            if self.leave(cookie) {
                victim.was_notified();
            }
            // The agent has reported the others when it abandoned this thread.
            if !self.pulse.is_given_up() || self.pulse.at() == Some(cookie) {
                self.end(victim, shutdown.clone());
            }
        }
    }

    fn end(&mut self, victim: Victim, end: Outcome) {
        let (cookie, netns) = (victim.cookie(), victim.chosen.endpoint().netns);
        let owners = &self.owners;
        self.pulse.works_on(Some(cookie), Instant::now());
        let outcome = victim.ended(end, |id| {
            let target = owners
                .open_netns(netns, [cookie].into_iter())
                .ok_or_else(|| {
                    io::Error::other("its network namespace can no longer be entered")
                })?;
            enter(&target, || Diag::open()?.look(id))?
        });
        self.report(victim, outcome);
    }

    fn accept(&mut self, order: Order) {
        if order.chosen.gives_notice() {
            self.notices.prepare();
        }
        let victim = Victim::new(order, Instant::now());
        if let Some(twice) = self.victims.insert(victim.cookie(), victim) {
            self.report(twice, Outcome::Refused(Refusal::OrderedTwice));
        }
    }

    fn take_recalls(&mut self) {
        let known = |cookie| self.victims.contains_key(&cookie);
        for (cookie, recall) in self.pulse.take_recalls(known) {
            // What was asked to leave meanwhile is finished.
            if self.leave(cookie)
                && let Some(victim) = self.victims.get_mut(&cookie)
            {
                victim.was_notified();
            }
            let ends = match &recall {
                Recall::Now(_) => true,
                Recall::IfUntouched(_) => self.victims.get_mut(&cookie).is_some_and(Victim::recall),
            };
            let Some(victim) = ends.then(|| self.victims.remove(&cookie)).flatten() else {
                continue;
            };
            match recall {
                Recall::Now(why) => self.end(victim, Outcome::Recalled(why.to_owned())),
                Recall::IfUntouched(why) => self.report(victim, Outcome::Recalled(why)),
            }
        }
    }

    /// Has a socket leave the socket hash, if it has joined. Returns whether its client was notified.
    fn leave(&mut self, cookie: Cookie) -> bool {
        if !self.notices.has_joined(cookie) {
            return false;
        }
        self.pulse.works_on(Some(cookie), Instant::now());
        let owners = self.owners.known(cookie);
        self.notices.leave(cookie, owners, &mut self.sniffer)
    }

    fn publish_steps(&self) {
        let steps = self.victims.iter();
        let steps = steps.filter_map(|(cookie, victim)| Some((*cookie, victim.step_kind()?)));
        *self.steps.0.lock().unwrap_or_else(PoisonError::into_inner) = steps.collect();
    }

    fn look_at_all(&mut self) {
        // Of each that is new.
        self.find_owners(Duration::MAX, &self.cookies());
        let mut by_netns: BTreeMap<Netns, Vec<Cookie>> = BTreeMap::new();
        for (cookie, victim) in &self.victims {
            by_netns
                .entry(victim.chosen.endpoint().netns)
                .or_default()
                .push(*cookie);
        }
        for (netns, cookies) in by_netns {
            for (cookie, next) in self.look_at(netns, &cookies) {
                let Next::End(outcome) = next else { continue };
                if let Some(victim) = self.victims.remove(&cookie) {
                    self.report(victim, outcome);
                }
            }
        }
    }

    fn cookies(&self) -> Vec<Cookie> {
        self.victims.keys().copied().collect()
    }

    /// Looks for the owners of those whose owners were not looked for within `age`.
    fn find_owners(&mut self, age: Duration, cookies: &[Cookie]) {
        let old = self.owners.older_than(age, cookies.iter().copied());
        if old.is_empty() {
            return;
        }
        let Self {
            owners,
            walker,
            mounts,
            pace,
            ..
        } = self;
        match owners.refresh(walker, &old, mounts) {
            Ok(cpu) => pace.walked(cpu, Instant::now()),
            // Connections without owners are not moved, with that reason.
            Err(error) => {
                tracing::warn!(%error, "cannot find the holders of the connections to be moved");
            }
        }
    }

    /// Those whose owners were found recently enough to take a step. Where walks are expensive the others wait
    /// for the next walk, which is for all moves, because others will be ready soon.
    fn with_known_owners(&mut self, mut ready: Vec<Cookie>) -> Vec<Cookie> {
        let old = |owners: &Owners, ready: &[Cookie]| {
            owners.older_than(OWNERS_KNOWN_FOR, ready.iter().copied())
        };
        if !old(&self.owners, &ready).is_empty() && self.pace.may_walk(Instant::now()) {
            self.find_owners(Duration::ZERO, &self.cookies());
        }
        let old = old(&self.owners, &ready);
        ready.retain(|cookie| !old.contains(cookie));
        ready
    }

    /// Looks at the moves of one namespace, and takes the steps whose time has come.
    fn look_at(&mut self, netns: Netns, cookies: &[Cookie]) -> Vec<(Cookie, Next)> {
        let looked = self.inside(netns, cookies, |victim, inside| victim.look(inside));
        let (ready, mut next): (Vec<_>, Vec<_>) = looked
            .into_iter()
            .partition(|(_, next)| matches!(next, Next::Act));
        let ready = ready.into_iter().map(|(cookie, _)| cookie).collect();
        // Before the last look, so that no time passes after it.
        let ready = self.with_known_owners(ready);
        if !ready.is_empty() {
            next.extend(self.inside(netns, &ready, |victim, inside| victim.act(inside)));
        }
        next
    }

    /// Does something for each of these moves, from inside their network namespace.
    fn inside(
        &mut self,
        netns: Netns,
        cookies: &[Cookie],
        each: impl Fn(&mut Victim, &mut Inside<'_>) -> Next,
    ) -> Vec<(Cookie, Next)> {
        let all = |outcome: Outcome| {
            cookies
                .iter()
                .map(|cookie| (*cookie, Next::End(outcome.clone())))
                .collect()
        };
        self.pulse.works_on(None, Instant::now());
        let open = |owners: &Owners| owners.open_netns(netns, cookies.iter().copied());
        let Some(target) = open(&self.owners).or_else(|| {
            // Its holder may have ended since, and another have it.
            self.find_owners(Duration::ZERO, cookies);
            open(&self.owners)
        }) else {
            return self.unreachable(cookies);
        };
        let Self {
            walker,
            sniffer,
            notices,
            mechanism,
            owners,
            pace,
            victims,
            pulse,
            ..
        } = self;
        let may_walk = pace.may_walk(Instant::now());
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
                sniffer,
                notices,
                pulse,
                may_act: true,
            };
            let mut next = Vec::with_capacity(cookies.len());
            for cookie in cookies {
                let Some(victim) = victims.get_mut(cookie) else {
                    continue;
                };
                if pulse.is_given_up() {
                    return Vec::new();
                }
                pulse.works_on(Some(*cookie), Instant::now());
                // Whether it is quiet may take a walk over this process.
                let old = owners.older_than(OWNERS_KNOWN_FOR, [*cookie].into_iter());
                inside.may_act = may_walk || old.is_empty();
                next.push((*cookie, without_panic(|| each(victim, &mut inside))));
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

    /// No owner leads to the namespace. The connections have ended if their pod was deleted; but a socket in
    /// flight between processes has no owner at this moment.
    fn unreachable(&mut self, cookies: &[Cookie]) -> Vec<(Cookie, Next)> {
        let end = |cookie: &Cookie| {
            let victim = self.victims.get(cookie)?;
            let outcome = match self.owners.state(*cookie) {
                Some(TcpState::Established) => victim.out_of_reach(),
                state => victim.gone(state),
            };
            Some((*cookie, Next::End(outcome)))
        };
        cookies.iter().filter_map(end).collect()
    }

    fn report(&mut self, victim: Victim, outcome: Outcome) {
        let cookie = victim.cookie();
        // Reported as one that lives, it was notified at the last moment, and leaves by itself.
        self.leave(cookie);
        self.sniffer.stop(cookie);
        let waited = victim.ordered.elapsed();
        let step = victim.step_kind();
        if !self.pulse.ended(cookie) {
            return; // reported by the agent when it abandoned this thread
        }
        // An agent without a receiver is exiting.
        let _agent_is_gone = self.done.send(Done {
            chosen: victim.chosen,
            outcome,
            step,
            ignored: victim.ignored,
            waited,
            since_look: victim.since_look,
        });
    }
}

/// A defect in one move must not end the agent, nor the other moves.
fn without_panic(work: impl FnOnce() -> Next) -> Next {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Next::End(Outcome::Failed("panic".to_owned())))
}
