//! Counts the sends of the connections that a rule with `count: Messages` is for.
//!
//! A thread adds sockets to a sockhash map, on which an sk_msg program counts, and removes them when no rule
//! asks for it. It never waits for a connection, nor for a socket's lock: `joining` does. A
//! connection that cannot be added is left alone, and the reason is reported. Nothing is loaded before a rule
//! asks for it.
//!
//! A socket is added by a duplicate of its server's descriptor, which is found as for a move: by one walk
//! over all processes for all new connections.
//!
//! On some kernels FIONREAD returns 0 on such a socket while it has unread data
//! ([`Fionread::Wrong`]). Nothing is counted on those, unless the agent was started to do so.

mod joining;
mod probe;
mod refused;

pub use probe::probe;
pub use refused::NotCounted;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Instant,
};

use tokio::sync::mpsc::UnboundedSender;

use self::{
    joining::{Joined, Joining},
    refused::RETRY_AFTER,
};
use crate::{
    bpf::{self, Fionread, Kernel, MessageCounter, Reason, Sends, Walker, fionread},
    host::CgroupMounts,
    moves::Owners,
    policy::{Count, Mode, Policy},
    snapshot::{CgroupId, Connection, Cookie, Netns, Snapshot, TcpState},
};

/// The state of a socket that was reset or destroyed while its process still holds it.
const CLOSED: TcpState = TcpState::Other(7);

/// A connection to count on.
struct Wanted {
    cookie: Cookie,
    netns: Netns,
    cgroup: CgroupId,
    state: TcpState,
    mptcp: bool,
}

/// What the counting thread reports.
#[derive(Debug)]
pub enum CountingReport {
    /// Counting is possible, and a rule asks for it.
    Started(Fionread),
    /// On this kernel FIONREAD would be wrong on counted sockets, so nothing is counted.
    WrongFionread,
    /// This node cannot count, with the error.
    Unavailable(String),
    /// Connections were added or removed.
    Changed {
        /// How many were added.
        joined: usize,
        /// How many were removed.
        left: usize,
        /// How many are counted on.
        all: usize,
    },
    /// The sends of connections are not counted.
    NotCounted {
        /// Why.
        reason: NotCounted,
        /// One of them.
        cookie: Cookie,
        /// How many there are.
        new: u64,
        /// How many there were for this reason since a rule asked for counting.
        total: u64,
    },
    /// The holders of new sockets were not found; it is tried again.
    NoHolders(bpf::Error),
    /// A connection is still counted, though no rule asks for it.
    StillCounted(Cookie, io::Error),
    /// No rule asks for counting, and nothing is counted from now on.
    Stopped {
        /// How many connections were removed.
        left: usize,
    },
    /// The thread panicked.
    Panicked,
}

/// Handle of the counting thread. Dropping it ends the thread, and all counting with it.
pub struct Counting {
    asks: Option<SyncSender<Option<Vec<Wanted>>>>,
    thread: Option<thread::JoinHandle<()>>,
    reports: UnboundedSender<CountingReport>,
}

impl Counting {
    /// Whether a rule of this policy asks for it. One that is disabled does not.
    pub fn is_asked(policy: &Policy) -> bool {
        let asks = |rule| policy.mode_of(rule) != Mode::Disabled;
        let mut rules = policy.rules().iter();
        rules.any(|rule| rule.count() == Some(Count::Messages) && asks(rule))
    }

    /// Starts the thread; the records are those pinned under `pins`.
    /// `anywhere`: also on a kernel that then answers FIONREAD wrongly.
    pub fn start(
        kernel: Arc<Kernel>,
        pins: PathBuf,
        sends: Arc<Sends>,
        anywhere: bool,
        reports: UnboundedSender<CountingReport>,
    ) -> io::Result<Self> {
        let of_thread = reports.clone();
        // One that waits is enough: the next interval's asks for the same, and knows more.
        let (asks, queue) = sync_channel(1);
        let thread = thread::Builder::new()
            .name("counting".to_owned())
            .spawn(move || {
                CountingThread {
                    kernel,
                    pins,
                    sends,
                    anywhere,
                    reports: of_thread,
                    mounts: CgroupMounts::read_or_none(),
                    counter: Counter::Closed,
                    misled: BTreeSet::new(),
                    joined: BTreeSet::new(),
                    refused: BTreeMap::new(),
                    reported: BTreeMap::new(),
                }
                .run(&queue);
            })?;
        Ok(Self {
            asks: Some(asks),
            thread: Some(thread),
            reports,
        })
    }

    /// Says which connections are to be counted on, from now on those and no others. Does not
    /// wait: a busy thread gets the next interval's request.
    pub fn ask(&self, policy: &Policy, snapshot: &Snapshot) {
        let asked = Self::is_asked(policy).then(|| {
            let wanted = |c: &&Connection| {
                policy.matching_rule(c, snapshot).is_some_and(|rule| {
                    rule.count() == Some(Count::Messages) && policy.mode_of(rule) != Mode::Disabled
                })
            };
            snapshot
                .connections
                .iter()
                .filter(wanted)
                .map(Wanted::from)
                .collect()
        });
        if let Some(asks) = &self.asks {
            let _busy = asks.try_send(asked);
        }
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.asks = None;
        if let Some(Err(_)) = self.thread.take().map(thread::JoinHandle::join) {
            report(&self.reports, CountingReport::Panicked);
        }
    }
}

/// An agent without a receiver is exiting.
fn report(reports: &UnboundedSender<CountingReport>, what: CountingReport) {
    let _agent_is_gone = reports.send(what);
}

impl From<&Connection> for Wanted {
    fn from(c: &Connection) -> Self {
        Self {
            cookie: c.cookie,
            netns: c.endpoint.netns,
            cgroup: c.cgroup,
            state: c.state,
            mptcp: c.mptcp,
        }
    }
}

/// The kernel's side of it.
enum Counter {
    /// No rule asks.
    Closed,
    Open(Box<Open>),
    /// This kernel cannot, and that was reported.
    Unavailable,
}

struct Open {
    counter: Arc<MessageCounter>,
    walker: Walker,
    joining: Joining,
    fionread: Fionread,
}

impl Open {
    /// Removes these. Returns those that were removed; the others were closed, and removed by the
    /// kernel.
    fn leave(
        &self,
        cookies: &[Cookie],
        reports: &UnboundedSender<CountingReport>,
    ) -> BTreeSet<Cookie> {
        let mut left = BTreeSet::new();
        for cookie in cookies {
            match self.counter.leave(*cookie, Reason::Count) {
                Ok(true) => {
                    left.insert(*cookie);
                }
                Ok(false) => {}
                // It is removed with the map, at the latest.
                Err(error) => report(reports, CountingReport::StillCounted(*cookie, error)),
            }
        }
        left
    }

    /// Has the readers of those that have left look again, where FIONREAD has misled them.
    fn signal(&mut self, left: &BTreeSet<Cookie>, owners: &Owners) {
        for cookie in left {
            let owners = owners.of(*cookie).to_vec();
            self.joining.signal(&self.counter, *cookie, owners);
            self.counter.woken(*cookie);
        }
    }

    /// Those of them that must be signalled.
    fn misled(&self, left: BTreeSet<Cookie>) -> BTreeSet<Cookie> {
        match self.fionread {
            Fionread::Right => {
                left.into_iter()
                    .for_each(|cookie| self.counter.woken(cookie));
                BTreeSet::new()
            }
            Fionread::Wrong => left,
        }
    }
}

/// What the thread owns.
struct CountingThread {
    kernel: Arc<Kernel>,
    pins: PathBuf,
    sends: Arc<Sends>,
    anywhere: bool,
    reports: UnboundedSender<CountingReport>,
    mounts: CgroupMounts,
    counter: Counter,
    joined: BTreeSet<Cookie>,
    /// Sockets that have left and whose readers are still to be woken.
    misled: BTreeSet<Cookie>,
    refused: BTreeMap<Cookie, (NotCounted, Instant)>,
    /// How many were refused, by reason, since a rule asked for counting.
    reported: BTreeMap<NotCounted, u64>,
}

impl CountingThread {
    fn run(mut self, queue: &Receiver<Option<Vec<Wanted>>>) {
        while let Ok(asked) = queue.recv() {
            match asked {
                Some(wanted) => self.count_on(wanted),
                None => self.close(),
            }
        }
        self.close();
    }

    fn count_on(&mut self, wanted: Vec<Wanted>) {
        if matches!(self.counter, Counter::Closed) {
            self.counter = self.open();
        }
        let Counter::Open(open) = &mut self.counter else {
            return;
        };
        let late = open.joining.late();
        self.note(late, 0, Instant::now());
        let Counter::Open(open) = &mut self.counter else {
            return;
        };
        let asked: BTreeSet<Cookie> = wanted.iter().map(|w| w.cookie).collect();
        let gone: Vec<Cookie> = self.joined.difference(&asked).copied().collect();
        let left = open.leave(&gone, &self.reports);
        let all_left = left.len();
        self.misled.extend(open.misled(left));
        let misled = &mut self.misled;
        self.joined.retain(|cookie| asked.contains(cookie));
        self.refused.retain(|cookie, _| asked.contains(cookie));
        let now = Instant::now();
        let is_new = |w: &Wanted| {
            !self.joined.contains(&w.cookie)
                && !open.joining.awaits(w.cookie)
                && self.refused.get(&w.cookie).is_none_or(|(why, at)| {
                    why.may_pass() && now.duration_since(*at) >= RETRY_AFTER
                })
        };
        let mut results = Vec::new();
        let mut new = Vec::new();
        for wanted in wanted.into_iter().filter(is_new) {
            match wanted.skipped() {
                Some(why) => results.push((wanted.cookie, Err(why))),
                None => new.push(wanted),
            }
        }
        let new_ones = new.iter().map(|w| w.cookie);
        let cookies: BTreeSet<Cookie> = new_ones.chain(misled.iter().copied()).collect();
        if !cookies.is_empty() {
            match Owners::find(&mut open.walker, &cookies, &self.mounts) {
                Ok(owners) => {
                    open.signal(&std::mem::take(misled), &owners);
                    for wanted in new {
                        let cookie = wanted.cookie;
                        // One that has ended is not reported.
                        if owners.state(cookie).is_none_or(|state| state == CLOSED) {
                            continue;
                        }
                        let owners = owners.of(cookie).to_vec();
                        let joined = open.joining.join(&open.counter, wanted, owners);
                        results.push((cookie, joined));
                    }
                }
                Err(error) => report(&self.reports, CountingReport::NoHolders(error)),
            }
        }
        self.note(results, all_left, now);
    }

    /// Records and reports the results of new connections.
    fn note(&mut self, results: Vec<Joined>, left: usize, now: Instant) {
        let (mut joined, mut not) = (0, BTreeMap::<NotCounted, (Cookie, u64)>::new());
        for (cookie, result) in results {
            match result {
                Ok(()) => {
                    joined += 1;
                    self.refused.remove(&cookie);
                    self.joined.insert(cookie);
                }
                Err(why) => {
                    let before = self.refused.insert(cookie, (why, now));
                    // Tried again, with the same result.
                    if before.is_none_or(|(known, _)| known != why) {
                        not.entry(why).or_insert((cookie, 0)).1 += 1;
                    }
                }
            }
        }
        if joined > 0 || left > 0 {
            let all = self.joined.len();
            report(&self.reports, CountingReport::Changed { joined, left, all });
        }
        for (reason, (cookie, new)) in not {
            let total = self.reported.entry(reason).or_default();
            *total += new;
            let not_counted = CountingReport::NotCounted {
                reason,
                cookie,
                new,
                total: *total,
            };
            report(&self.reports, not_counted);
        }
    }

    fn open(&self) -> Counter {
        let opened = self
            .sends
            .open()
            .map_err(anyhow::Error::from)
            .and_then(|counter| {
                Ok(Open {
                    fionread: fionread(&counter)?,
                    counter,
                    walker: Walker::open(Arc::clone(&self.kernel), &self.pins)?,
                    joining: Joining::new(),
                })
            });
        self.kernel.forget_types();
        match opened {
            Ok(open) if open.fionread == Fionread::Wrong && !self.anywhere => {
                report(&self.reports, CountingReport::WrongFionread);
                Counter::Unavailable
            }
            Ok(open) => {
                report(&self.reports, CountingReport::Started(open.fionread));
                Counter::Open(Box::new(open))
            }
            Err(error) => {
                let error = format!("{error:#}");
                report(&self.reports, CountingReport::Unavailable(error));
                Counter::Unavailable
            }
        }
    }

    /// Removes all, and unloads.
    fn close(&mut self) {
        if let Counter::Open(open) = &mut self.counter {
            let all: Vec<Cookie> = std::mem::take(&mut self.joined).into_iter().collect();
            let left = open.leave(&all, &self.reports);
            let all_left = left.len();
            self.misled.extend(open.misled(left));
            if !self.misled.is_empty() {
                match Owners::find(&mut open.walker, &self.misled, &self.mounts) {
                    Ok(owners) => open.signal(&std::mem::take(&mut self.misled), &owners),
                    Err(error) => report(&self.reports, CountingReport::NoHolders(error)),
                }
            }
            report(&self.reports, CountingReport::Stopped { left: all_left });
        }
        self.counter = Counter::Closed;
        self.refused.clear();
        self.reported.clear();
    }
}

impl Wanted {
    /// Why it cannot be counted, as far as the snapshot shows.
    fn skipped(&self) -> Option<NotCounted> {
        if self.mptcp {
            Some(NotCounted::Mptcp)
        } else if self.state != TcpState::Established {
            Some(NotCounted::NotEstablished)
        } else {
            None
        }
    }
}
