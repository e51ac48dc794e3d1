//! Hears what a victim speaks before anything is done to it, where its rule does not say.
//!
//! On HTTP/1 a quiet moment is one at which nothing is lost. On HTTP/2 a slow call hides behind the
//! answers to fast ones, and inside TLS nobody knows. So a socket filter is put on the victim's own
//! socket, and taken off when its move ends: it hears how what the client sends begins. It drops
//! nothing, and no other connection pays for it.
//!
//! What begins tells all only after a rest, when everything that was asked is answered. In the middle
//! of something nothing is told: a body looks like anything.

use std::{
    collections::BTreeSet,
    io::{self, Read as _, Write as _},
    os::fd::AsRawFd as _,
    path::Path,
    time::{Duration, Instant},
};

use rebalancer_common::{Beginning, Heard};
use rustix::{fd::AsFd, io::Errno};

use super::{
    owner::{Owner, Owners},
    process::Cgroups,
    sys::{Filter, filter, set_option},
};
use crate::{
    bpf::{self, Kernel, Walker, Watcher},
    pair::Pair,
    plan::{Outcome, Speech},
    snapshot::Cookie,
};

/// One that says nothing for so long is left, lest the idle keep others from being moved. The plan
/// chooses none that was silent before, so that this is for the few that fall silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// So often it must be heard to begin otherwise: one segment may have overtaken another, or be the
/// body that its server has asked for.
const STRANGE: u32 = 2;

/// What a victim speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    /// HTTP/1, or the rule vouches for it: it may go when it is quiet.
    Fine,
    /// It has not been heard yet.
    Unknown,
    /// Something else.
    Not(Speech),
}

/// One victim's watch.
pub(super) enum Watch {
    /// Its rule says what its end means.
    Needless,
    /// To be put on as soon as its holder is known.
    Wanted,
    /// On.
    On(Box<On>),
}

/// A filter that is on a socket.
pub(super) struct On {
    /// When it was last at rest with nothing heard since; without it, in the middle of something.
    rest: Option<Instant>,
    /// The last that it was heard to begin is a request of HTTP/1.
    fine: bool,
    /// How often it was heard to begin otherwise.
    strange: u32,
    holder: Owner,
}

impl Watch {
    pub(super) fn is_wanted(&self) -> bool {
        matches!(self, Self::Wanted)
    }

    /// Whether it is on in the middle of something, and to be heard anew from the next rest.
    pub(super) fn waits_for_rest(&self) -> bool {
        matches!(self, Self::On(on) if on.rest.is_none())
    }

    /// It is at rest, and nothing was heard since.
    pub(super) fn rests(&mut self, now: Instant) {
        if let Self::On(on) = self {
            on.rest = Some(now);
        }
    }
}

/// What is watched.
pub(super) struct Watches {
    watcher: Option<Watcher>,
}

impl Watches {
    pub(super) fn new(watcher: Option<Watcher>) -> Self {
        Self { watcher }
    }

    /// Puts the filter on. `Ok(None)`: not at this moment.
    pub(super) fn begin(
        &mut self,
        cookie: Cookie,
        owners: &[Owner],
    ) -> Result<Option<Watch>, Outcome> {
        let watcher = self.watcher.as_mut().ok_or(Speech::Unheard.refusal())?;
        for owner in owners {
            match put_on(watcher, owner, cookie) {
                Ok(true) => {}
                Ok(false) => return Err(Speech::OwnFilter.refusal()),
                Err(Errno::PERM | Errno::ACCESS) => return Err(Speech::Unheard.refusal()),
                // As many are watched as can be.
                Err(Errno::TOOBIG) => return Ok(None),
                // Process or descriptor are not what they were.
                Err(Errno::SRCH | Errno::BADF | Errno::STALE) => continue,
                Err(e) => return Err(Outcome::Failed(format!("watching what it speaks: {e}"))),
            }
            return Ok(Some(Watch::On(Box::new(On {
                rest: None,
                fine: false,
                strange: 0,
                holder: owner.clone(),
            }))));
        }
        Ok(None)
    }

    /// What is known by now.
    pub(super) fn speaks(&self, watch: &mut Watch, cookie: Cookie, now: Instant) -> Speaks {
        let on = match watch {
            Watch::Needless => return Speaks::Fine,
            Watch::Wanted => return Speaks::Unknown,
            Watch::On(on) => on,
        };
        let heard = self.watcher.as_ref().and_then(|all| all.heard(cookie));
        on.take_in(heard.unwrap_or_default(), now)
    }

    /// What was heard is forgotten. If the connection is still at rest then, what comes next begins
    /// something.
    pub(super) fn hear_anew(&mut self, cookie: Cookie) -> bool {
        let again = self.watcher.as_mut().map(|watcher| watcher.watch(cookie));
        matches!(again, Some(Ok(())))
    }

    /// Takes the filter off. A connection that `lives` is looked for wherever it is held now.
    pub(super) fn end(
        &mut self,
        watch: Watch,
        cookie: Cookie,
        lives: bool,
        walker: &mut Walker,
        cgroups: &Cgroups,
    ) {
        let Watch::On(on) = watch else { return };
        let off = take_off(&on.holder, cookie).is_ok()
            || lives && take_off_wherever(cookie, walker, cgroups);
        if off || !lives {
            self.forget(cookie);
        } else {
            // What is remembered of it lets the next agent, or `uninstall`, try again.
            tracing::warn!(%cookie, "its filter could not be taken off: it is watched until it ends");
        }
    }

    fn forget(&mut self, cookie: Cookie) {
        if let Some(watcher) = &mut self.watcher {
            watcher.forget(cookie);
        }
    }
}

impl On {
    fn take_in(&mut self, heard: Heard, now: Instant) -> Speaks {
        let known = if self.fine {
            Speaks::Fine
        } else {
            Speaks::Unknown
        };
        let Some(rest) = self.rest else {
            return known;
        };
        let strange = match heard.first() {
            // What it begins next is heard as well: it may become a WebSocket.
            Some(Beginning::Http1) => {
                self.fine = true;
                self.rest = None;
                return Speaks::Fine;
            }
            Some(Beginning::Http2) => Speech::Http2,
            Some(Beginning::Tls) => Speech::Tls,
            Some(Beginning::Other) => Speech::Unknown,
            None if !self.fine && now.duration_since(rest) >= PATIENCE => {
                return Speaks::Not(Speech::Silent);
            }
            None => return known,
        };
        self.fine = false;
        self.rest = None;
        self.strange += 1;
        if self.strange < STRANGE {
            Speaks::Unknown
        } else {
            Speaks::Not(strange)
        }
    }
}

/// A connection that an agent was about to move when it ended.
#[derive(Debug)]
pub struct Left {
    /// The connection.
    pub cookie: Cookie,
    /// Why it could not be left alone; it is watched until it ends.
    pub failed: Option<String>,
}

/// Takes off what an agent that was killed has left on, and forgets it; what has gone by itself is
/// among what is told. Only for who is alone on these pins, and before records are removed.
///
/// Each look at a connection may hang: `turns_to` is told of it before. Those that are `unanswered`
/// are known to, and stay as they are.
pub fn take_off_left(
    walker: &mut Walker,
    unanswered: &BTreeSet<Cookie>,
    turns_to: &dyn Fn(Cookie),
) -> Result<Vec<Left>, bpf::Error> {
    let watched: BTreeSet<Cookie> = bpf::read_watched(walker.pins())?
        .into_iter()
        .filter(|cookie| !unanswered.contains(cookie))
        .collect();
    if watched.is_empty() {
        return Ok(Vec::new());
    }
    let owners = Owners::find(walker, &watched, &Cgroups::read())?;
    let left: Vec<Left> = watched
        .into_iter()
        .map(|cookie| {
            // What nobody holds has ended, or is in flight between processes.
            let held = owners.any_of(cookie);
            turns_to(cookie);
            let off = held.is_empty() || held.iter().any(|owner| take_off(owner, cookie).is_ok());
            Left {
                cookie,
                failed: (!off).then(|| "none of its holders can be reached".to_owned()),
            }
        })
        .collect();
    let done = left.iter().filter(|one| one.failed.is_none());
    bpf::forget_watched(walker.pins(), done.map(|one| one.cookie))?;
    Ok(left)
}

/// Of those `watched`, what no listing shows and nobody is about to move: a connection whose filter
/// could not be taken off, and that has gone since. The filter of one that lives and was not listed
/// stays on it and finds nothing to write to.
pub fn gone(
    watched: Vec<Cookie>,
    listed: &BTreeSet<Cookie>,
    in_flight: &BTreeSet<Cookie>,
) -> Vec<Cookie> {
    let is_gone = |cookie: &Cookie| !listed.contains(cookie) && !in_flight.contains(cookie);
    watched.into_iter().filter(is_gone).collect()
}

/// Hears a request of HTTP/1 on a connection of our own, or says why not.
pub fn probe_hearing(kernel: &Kernel, pins: &Path) -> Result<(), String> {
    let mut watcher = Watcher::open(kernel, pins).map_err(|e| e.to_string())?;
    let heard = hear_own(&mut watcher).map_err(|e| format!("on a connection of our own: {e}"))?;
    match heard.first() {
        Some(Beginning::Http1) => Ok(()),
        other => Err(format!("a request of our own was heard as {other:?}")),
    }
}

fn hear_own(watcher: &mut Watcher) -> io::Result<Heard> {
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
    let mut pair = Pair::connect()?;
    put_on_socket(watcher, &pair.server, pair.cookie)?;
    pair.client.write_all(REQUEST)?;
    pair.server.read_exact(&mut [0; REQUEST.len()])?;
    let heard = watcher.heard(pair.cookie).unwrap_or_default();
    watcher.forget(pair.cookie);
    Ok(heard)
}

/// `false`: the application has a filter of its own there, which ours would replace.
fn put_on(watcher: &mut Watcher, owner: &Owner, cookie: Cookie) -> Result<bool, Errno> {
    put_on_socket(watcher, owner.duplicate(cookie)?, cookie)
}

fn put_on_socket(watcher: &mut Watcher, socket: impl AsFd, cookie: Cookie) -> Result<bool, Errno> {
    if filter(&socket)? != Filter::None {
        return Ok(false);
    }
    watcher.watch(cookie).map_err(|e| errno(&e))?;
    let Some(program) = watcher.program() else {
        watcher.forget(cookie);
        return Err(Errno::NOENT);
    };
    let program = program.as_fd().as_raw_fd();
    let put = set_option(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, program);
    if let Err(e) = put {
        watcher.forget(cookie);
        return Err(errno(&e));
    }
    Ok(true)
}

/// Leaves alone a filter that the application has put in the place of ours meanwhile.
fn take_off(owner: &Owner, cookie: Cookie) -> Result<(), Errno> {
    let socket = owner.duplicate(cookie)?;
    if filter(&socket)? != Filter::Ebpf {
        return Ok(());
    }
    let off = set_option(&socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0);
    off.map_err(|e| errno(&e))
}

/// Its holder has ended, or its descriptor has another number: looks for whoever has it now.
fn take_off_wherever(cookie: Cookie, walker: &mut Walker, cgroups: &Cgroups) -> bool {
    let Ok(owners) = Owners::find(walker, &[cookie].into(), cgroups) else {
        return false;
    };
    let mut owners = owners.any_of(cookie).iter();
    owners.any(|owner| take_off(owner, cookie).is_ok())
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A watch on a socket that nobody looks at.
    fn on(rest: Option<Instant>) -> On {
        On {
            rest,
            fine: false,
            strange: 0,
            holder: Owner::own(0),
        }
    }

    const NOTHING: Heard = Heard { first: 0 };

    fn begins(first: Beginning) -> Heard {
        Heard {
            first: first as u32,
        }
    }

    #[test]
    fn in_the_middle_of_something_nothing_is_told() {
        let now = Instant::now();
        let mut on = on(None);
        for first in [Beginning::Http1, Beginning::Http2, Beginning::Other] {
            assert_eq!(on.take_in(begins(first), now), Speaks::Unknown);
        }
        assert_eq!(on.take_in(NOTHING, now + 10 * PATIENCE), Speaks::Unknown);
    }

    #[test]
    fn a_request_of_http_1_from_rest_is_enough() {
        let now = Instant::now();
        let mut on = on(Some(now));
        assert_eq!(on.take_in(NOTHING, now), Speaks::Unknown);
        assert_eq!(on.take_in(begins(Beginning::Http1), now), Speaks::Fine);
        on.rest = Some(now);
        assert_eq!(on.take_in(NOTHING, now + 10 * PATIENCE), Speaks::Fine);
    }

    #[test]
    fn what_becomes_something_else_is_not_fine_any_more() {
        let now = Instant::now();
        let mut on = on(Some(now));
        assert_eq!(on.take_in(begins(Beginning::Http1), now), Speaks::Fine);
        on.rest = Some(now);
        assert_eq!(on.take_in(begins(Beginning::Other), now), Speaks::Unknown);
        on.rest = Some(now);
        let unknown = Speaks::Not(Speech::Unknown);
        assert_eq!(on.take_in(begins(Beginning::Other), now), unknown);
    }

    #[test]
    fn what_begins_otherwise_twice_is_spared() {
        let now = Instant::now();
        for (first, speech) in [
            (Beginning::Http2, Speech::Http2),
            (Beginning::Tls, Speech::Tls),
            (Beginning::Other, Speech::Unknown),
        ] {
            let mut on = on(Some(now));
            assert_eq!(on.take_in(begins(first), now), Speaks::Unknown);
            // Not before it has been at rest again.
            assert_eq!(on.take_in(begins(first), now), Speaks::Unknown);
            on.rest = Some(now);
            assert_eq!(on.take_in(begins(first), now), Speaks::Not(speech));
        }
    }

    #[test]
    fn what_no_listing_shows_is_forgotten_unless_it_is_being_moved() {
        let cookies = |all: &[u64]| all.iter().copied().map(Cookie).collect::<Vec<_>>();
        let set = |all| cookies(all).into_iter().collect::<BTreeSet<_>>();
        let (listed, in_flight) = (set(&[1, 2]), set(&[2, 3]));
        let forgotten = gone(cookies(&[1, 2, 3, 4]), &listed, &in_flight);
        assert_eq!(forgotten, cookies(&[4]));
    }

    #[test]
    fn silence_counts_from_the_last_rest() {
        let now = Instant::now();
        let mut on = on(Some(now));
        let almost = now + PATIENCE - Duration::from_millis(1);
        assert_eq!(on.take_in(NOTHING, almost), Speaks::Unknown);
        let silent = Speaks::Not(Speech::Silent);
        assert_eq!(on.take_in(NOTHING, now + PATIENCE), silent);
    }
}
