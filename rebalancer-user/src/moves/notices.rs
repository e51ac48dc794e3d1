//! The connections of HTTP/2 whose clients are about to be asked to leave.
//!
//! A connection joins the socket hash at a quiet moment: its next send begins a frame. From there on the
//! program follows its sends by their frames. The client is notified once it is known that the server answers a
//! request that was opened since: then the places are right, and the server has not announced the
//! connection's end itself. Then the socket leaves the hash, as it does whenever it takes too long.
//!
//! On some kernels a socket in a socket hash misleads readers who trust FIONREAD, also after it has left: they
//! are woken while it is there, and once when it leaves.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    ops::RangeInclusive,
    os::fd::AsFd as _,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rebalancer_common::{
    Notice,
    frames::GOAWAY,
    notice::{MIN_SENDS, state},
};
use rustix::io::Errno;

use super::sniffer::Sniffer;
use crate::{
    bpf::{Fionread, Joiner, MessageCounter, Reason, Sends, Walker, fionread},
    host::{Owner, Pair, option, signal_readable, with_duplicate},
    snapshot::Cookie,
};

/// How long a socket may stay in the hash, by whether its readers are misled there.
const STAYS: Duration = Duration::from_secs(5);
const STAYS_MISLED: Duration = Duration::from_secs(2);

/// So far beyond the highest stream that the last look has seen the client may have opened others by the time
/// the server answers: it may answer each before the next look.
const STREAMS_AHEAD: u32 = 1 << 14;

/// How long it stays away before it joins again.
const STAYS_AWAY: Duration = Duration::from_secs(1);

/// The sockets, and the program.
pub(super) struct Notices {
    sends: Option<Arc<Sends>>,
    program: Program,
    joined: BTreeMap<Cookie, Instant>,
}

/// The kernel's side of it.
enum Program {
    /// No move has asked for it.
    Closed,
    Open {
        counter: Arc<MessageCounter>,
        joiner: Joiner,
        fionread: Fionread,
    },
    /// This kernel cannot, and that was reported.
    Unavailable,
}

/// Has a client of our own asked to leave.
///
/// # Errors
/// Why this node cannot do that.
pub fn probe_notice(walker: &mut Walker) -> anyhow::Result<Fionread> {
    /// An acknowledged ping, as a server sends it.
    const SEND: [u8; 17] = [0, 0, 8, 6, 1, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    const MOST_SENDS: u32 = 30;
    let counter = MessageCounter::open(walker.kernel(), walker.pins())?;
    let found = fionread(&counter).context("on a connection of our own")?;
    let mut pair = Pair::connect()?;
    pair.client.set_read_timeout(Some(Duration::from_secs(1)))?;
    let live = walker.read_own(pair.cookie, pair.server.as_fd())?;
    let live = live.context("a connection of our own has no record")?;
    counter.follow(pair.cookie, live.write_seq)?;
    let mut joiner = counter.joiner()?;
    joiner.join(pair.cookie, pair.server.as_fd(), Reason::Notice)?;
    let (mut received, mut expected) = (Vec::new(), Vec::new());
    for sends in 0.. {
        if sends == MIN_SENDS {
            counter.allow_notice(pair.cookie, u32::MAX)?;
        }
        pair.server.write_all(&SEND)?;
        let is_notified = counter
            .notice(pair.cookie)
            .is_some_and(|notice| notice.state == state::NOTIFIED);
        if is_notified {
            expected.extend_from_slice(&GOAWAY);
        }
        expected.extend_from_slice(&SEND);
        while received.len() < expected.len() {
            let mut some = [0; 64];
            let read = pair.client.read(&mut some)?;
            received.extend_from_slice(some.get(..read).unwrap_or_default());
        }
        if is_notified {
            break;
        }
        if sends == MOST_SENDS {
            bail!("a client of our own was not asked to leave");
        }
        // For its acknowledgement.
        thread::sleep(Duration::from_millis(10));
    }
    counter.leave(pair.cookie, Reason::Notice)?;
    counter.woken(pair.cookie);
    if received != expected {
        bail!("a client of our own received other bytes: {received:?}");
    }
    Ok(found)
}

/// Why a socket does not join.
pub(super) enum NotJoined {
    /// Something has changed: it may join later.
    Now,
    /// Not while it lives, and why.
    Ever(String),
}

/// What has become of one that has joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It is followed.
    Followed,
    /// Its client was notified.
    Notified,
    /// It has stayed for too long, or something was sent that the program did not see.
    GivenUp,
    /// Its sends do not parse as frames, so it may not have been between two frames when it joined.
    NoFrames,
}

impl Notices {
    /// Without `sends` nothing can be asked to leave.
    pub(super) fn new(sends: Option<Arc<Sends>>) -> Self {
        Self {
            sends,
            program: Program::Closed,
            joined: BTreeMap::new(),
        }
    }

    /// Loads the program, if it was not tried before. Call it in the agent's own network namespace, as it is
    /// tried on a connection of our own.
    pub(super) fn prepare(&mut self) {
        if !matches!(self.program, Program::Closed) {
            return;
        }
        self.program = match self.open() {
            Ok(open) => open,
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "clients of HTTP/2 cannot be asked to leave: their connections are skipped"
                );
                Program::Unavailable
            }
        };
    }

    fn open(&self) -> anyhow::Result<Program> {
        let sends = self.sends.as_ref();
        let sends =
            sends.ok_or_else(|| anyhow::anyhow!("this command does not load the program"))?;
        let counter = sends.open()?;
        Ok(Program::Open {
            fionread: fionread(&counter)?,
            joiner: counter.joiner()?,
            counter,
        })
    }

    /// Whether clients can be asked to leave here.
    pub(super) fn is_available(&self) -> bool {
        matches!(self.program, Program::Open { .. })
    }

    /// Whether it has joined, and has not left.
    pub(super) fn has_joined(&self, cookie: Cookie) -> bool {
        self.joined.contains_key(&cookie)
    }

    /// Adds a socket that is at rest, with the sequence number of its next send. Waits for its lock.
    pub(super) fn join(
        &mut self,
        cookie: Cookie,
        next: u32,
        owners: &[Owner],
    ) -> Result<(), NotJoined> {
        let Program::Open {
            counter, joiner, ..
        } = &mut self.program
        else {
            return Err(NotJoined::Ever("the program is not loaded".to_owned()));
        };
        let failed = |e: io::Error| NotJoined::Ever(e.to_string());
        counter.follow(cookie, next).map_err(failed)?;
        let joined = with_duplicate(owners, cookie, |socket| {
            // 0 without an upper layer protocol (kernel TLS), else its name. With zero-copy sends, a server
            // would miss their completions.
            let has = |level, name| option(&socket, level, name).is_ok_and(|value| value != 0);
            if has(libc::IPPROTO_TCP, libc::TCP_ULP) || has(libc::SOL_SOCKET, libc::SO_ZEROCOPY) {
                return Err(Errno::BUSY);
            }
            let joined = joiner.join(cookie, socket.as_fd(), Reason::Notice);
            joined.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
        });
        match joined {
            Ok(()) => {
                self.joined.insert(cookie, Instant::now());
                Ok(())
            }
            Err(error) => {
                counter.forget(cookie);
                Err(match error {
                    // Its process has exited or closed it, its client has, or there is no room.
                    None | Some(Errno::SRCH | Errno::BADF | Errno::STALE) => NotJoined::Now,
                    Some(Errno::OPNOTSUPP | Errno::TOOBIG | Errno::NOMEM) => NotJoined::Now,
                    Some(error) => NotJoined::Ever(error.to_string()),
                })
            }
        }
    }

    /// What has become of one that has joined; `opened`: the requests since, as far as they are known. Has its
    /// client notified once the server has answered one of them.
    pub(super) fn progress(
        &mut self,
        cookie: Cookie,
        opened: Option<RangeInclusive<u32>>,
    ) -> Progress {
        let Program::Open {
            counter, fionread, ..
        } = &self.program
        else {
            return Progress::GivenUp;
        };
        let (Some(notice), Some(since)) = (counter.notice(cookie), self.joined.get(&cookie)) else {
            return Progress::GivenUp;
        };
        let stays = match fionread {
            Fionread::Right => STAYS,
            Fionread::Wrong => STAYS_MISLED,
        };
        match notice.state {
            state::NOTIFIED => Progress::Notified,
            state::FOLLOWED if since.elapsed() < stays => {
                if let Some(opened) = &opened
                    && opened.contains(&notice.frames.newest)
                    && let Err(error) =
                        counter.allow_notice(cookie, opened.end().saturating_add(STREAMS_AHEAD))
                {
                    tracing::warn!(%cookie, %error, "could not have a client asked to leave");
                }
                Progress::Followed
            }
            _ => {
                tracing::debug!(%cookie, state = notice.state, ?notice, ?opened, "not asked to leave");
                // These are the values of `frames::Stop`.
                if (state::FOLLOWED + 1..state::NOTIFIED).contains(&notice.state) {
                    Progress::NoFrames
                } else {
                    Progress::GivenUp
                }
            }
        }
    }

    fn notice(&self, cookie: Cookie) -> Option<Notice> {
        match &self.program {
            Program::Open { counter, .. } => counter.notice(cookie),
            Program::Closed | Program::Unavailable => None,
        }
    }

    /// When one that has left may join again.
    pub(super) fn may_join_at(now: Instant) -> Instant {
        now + STAYS_AWAY
    }

    /// Wakes the readers of one that has joined, where they are misled.
    pub(super) fn wake(&self, cookie: Cookie, owners: &[Owner]) {
        let Program::Open { fionread, .. } = &self.program else {
            return;
        };
        if *fionread == Fionread::Wrong {
            // It may have been closed.
            let _done = with_duplicate(owners, cookie, |socket| Ok(signal_readable(socket)));
        }
    }

    /// Removes a socket if it has joined, and wakes its readers. Returns whether its client was notified.
    pub(super) fn leave(
        &mut self,
        cookie: Cookie,
        owners: &[Owner],
        sniffer: &mut Sniffer,
    ) -> bool {
        if self.joined.remove(&cookie).is_none() {
            return false;
        }
        sniffer.stop_following(cookie);
        let Program::Open { counter, .. } = &self.program else {
            return false;
        };
        // First, so that the state that is read below is final.
        counter.disallow_notice(cookie);
        if let Err(error) = counter.leave(cookie, Reason::Notice) {
            tracing::warn!(%cookie, %error, "a connection could not leave the socket hash");
        }
        let notified = self
            .notice(cookie)
            .is_some_and(|of| of.state == state::NOTIFIED);
        counter.forget(cookie);
        self.wake(cookie, owners);
        counter.woken(cookie);
        if notified {
            // Its bytes are of no interest any more, and copying them costs each of its packets.
            sniffer.stop(cookie);
        }
        notified
    }
}
