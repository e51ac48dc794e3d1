//! Adds sockets to the map, and wakes the readers of those that have left, on a thread of its own, which
//! alone waits for their locks.
//!
//! A socket's lock may be held for any time, see `moves::pulse`. A thread that waits for too long is
//! abandoned with that socket, and another one continues with the others; its result still counts once the
//! kernel has answered.

use std::{
    collections::BTreeSet,
    io,
    os::fd::AsFd as _,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use rustix::io::Errno;

use super::{NotCounted, Wanted};
use crate::{
    bpf::{Joiner, MessageCounter, Reason},
    host::{Owner, option, signal_readable, with_duplicate},
    moves::stranger,
    plan::Refusal,
    snapshot::Cookie,
};

/// It takes microseconds, unless the lock is held.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Most threads that may wait at one time; then no other socket is added.
const MOST_STUCK: usize = 4;

/// Whether a socket was added.
pub(super) type Joined = (Cookie, Result<(), NotCounted>);

/// What is done with a socket, through one of its owners.
enum Work {
    Join(Wanted),
    /// It has left.
    Signal(Cookie),
}

type Job = (Work, Vec<Owner>);

/// What became of a socket; `None`: it was signalled.
type Done = (Cookie, Option<Result<(), NotCounted>>);

/// Handle of the thread. Dropping it ends the thread, and the abandoned ones once the kernel has answered.
pub(super) struct Joining {
    jobs: Option<Sender<Job>>,
    sender: Sender<Done>,
    results: Receiver<Done>,
    /// Results of abandoned threads.
    late: Vec<Done>,
    /// The sockets that abandoned threads wait for.
    stuck: BTreeSet<Cookie>,
}

impl Joining {
    pub(super) fn new() -> Self {
        let (sender, results) = channel();
        Self {
            jobs: None,
            sender,
            results,
            late: Vec::new(),
            stuck: BTreeSet::new(),
        }
    }

    /// Whether a thread waits for its lock.
    pub(super) fn awaits(&self, cookie: Cookie) -> bool {
        self.stuck.contains(&cookie)
    }

    /// Results of abandoned threads since the last call.
    pub(super) fn late(&mut self) -> Vec<Joined> {
        self.late.extend(self.results.try_iter());
        for (cookie, _) in &self.late {
            self.stuck.remove(cookie);
        }
        let late = std::mem::take(&mut self.late).into_iter();
        late.filter_map(|(cookie, joined)| Some((cookie, joined?)))
            .collect()
    }

    /// Adds a socket, through one of its owners.
    pub(super) fn join(
        &mut self,
        counter: &MessageCounter,
        wanted: Wanted,
        owners: Vec<Owner>,
    ) -> Result<(), NotCounted> {
        let cookie = wanted.cookie;
        let joined = self.work(counter, cookie, Work::Join(wanted), owners)?;
        joined.unwrap_or(Ok(()))
    }

    /// Has the readers of a socket that has left look again.
    pub(super) fn signal(&mut self, counter: &MessageCounter, cookie: Cookie, owners: Vec<Owner>) {
        // It may be closed.
        let _not_signalled = self.work(counter, cookie, Work::Signal(cookie), owners);
    }

    fn work(
        &mut self,
        counter: &MessageCounter,
        cookie: Cookie,
        work: Work,
        owners: Vec<Owner>,
    ) -> Result<Option<Result<(), NotCounted>>, NotCounted> {
        if self.stuck.len() >= MOST_STUCK {
            return Err(NotCounted::Refused(Refusal::Unanswered));
        }
        let jobs = match self.jobs.take() {
            Some(jobs) => jobs,
            None => start(counter, self.sender.clone()).map_err(|e| NotCounted::by_kernel(&e))?,
        };
        // It fails only if the thread has ended, and then there is no result.
        let _no_thread = jobs.send((work, owners));
        match self.wait_for(cookie) {
            Some(joined) => {
                self.jobs = Some(jobs);
                Ok(joined)
            }
            None => {
                self.stuck.insert(cookie);
                Err(NotCounted::Refused(Refusal::Unanswered))
            }
        }
    }

    /// `None`: the kernel does not answer.
    fn wait_for(&mut self, cookie: Cookie) -> Option<Option<Result<(), NotCounted>>> {
        let until = Instant::now() + ANSWER_WITHIN;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.results.recv_timeout(left).ok()? {
                (of, joined) if of == cookie => return Some(joined),
                late => self.late.push(late),
            }
        }
    }
}

/// Starts a thread that adds one socket after the other.
fn start(counter: &MessageCounter, sender: Sender<Done>) -> io::Result<Sender<Job>> {
    let mut joiner = counter.joiner()?;
    let (jobs, queue) = channel::<Job>();
    thread::Builder::new()
        .name("joining".to_owned())
        .spawn(move || {
            for (work, owners) in queue {
                let done = match work {
                    Work::Join(wanted) => (wanted.cookie, Some(wanted.join(&owners, &mut joiner))),
                    Work::Signal(cookie) => {
                        // It may have been closed.
                        let _done =
                            with_duplicate(&owners, cookie, |socket| Ok(signal_readable(socket)));
                        (cookie, None)
                    }
                };
                if sender.send(done).is_err() {
                    return; // counting has ended
                }
            }
        })?;
    Ok(jobs)
}

impl Wanted {
    fn join(&self, owners: &[Owner], joiner: &mut Joiner) -> Result<(), NotCounted> {
        let facts = owners.iter().map(|owner| owner.facts);
        if let Some(guard) = stranger(facts, self.netns, self.cgroup) {
            return Err(NotCounted::Refused(guard));
        }
        // The duplicate is closed at once, as until then the server's own close sends no FIN.
        let joined = with_duplicate(owners, self.cookie, |socket| {
            // 0 without an upper layer protocol (kernel TLS), else its name.
            let has_ulp =
                option(&socket, libc::IPPROTO_TCP, libc::TCP_ULP).is_ok_and(|ulp| ulp != 0);
            Ok(if has_ulp {
                Err(NotCounted::KernelTls)
            } else {
                joiner
                    .join(self.cookie, socket.as_fd(), Reason::Count)
                    .map_err(|e| NotCounted::by_kernel(&e))
            })
        });
        joined.unwrap_or_else(|error| {
            Err(match error {
                // Its process has exited or closed it.
                None | Some(Errno::SRCH | Errno::BADF | Errno::STALE) => {
                    NotCounted::Refused(Refusal::OwnerUnknown)
                }
                Some(e) => NotCounted::by_kernel(&e.into()),
            })
        })
    }
}
