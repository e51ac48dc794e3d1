//! Hears what a victim speaks before anything is done to it, where its rule does not say.
//!
//! On HTTP/1 a quiet moment is one at which nothing is lost. On HTTP/2 a slow call hides behind the
//! answers to fast ones, and inside TLS nobody knows. So a socket filter is put on the victim's own
//! socket, and taken off when its move ends: it hears how what the client sends begins. It drops
//! nothing, and no other connection pays for it.

use std::{
    collections::BTreeMap,
    io,
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use rebalancer_common::{Beginning, Heard, Listed};
use rustix::{fd::AsFd, io::Errno};

use super::{
    Inode, SocketId,
    diag::Diag,
    owner::{Owner, Owners},
    process::Cgroups,
    sys::{has_filter, set_option},
};
use crate::{
    bpf::{self, Lister, Watcher},
    netns::{Namespaces, enter},
    observe,
    plan::{Outcome, Speech},
    snapshot::{Cookie, EndpointKey, Netns},
};

/// For so long nothing must have been heard of one that is idle among others that speak HTTP/1.
const IDLE: Duration = Duration::from_secs(5);

/// One that says nothing for so long is left, lest the idle keep others from being moved.
const SILENT: Duration = Duration::from_secs(15);

/// Endpoints of which is remembered what was spoken there. It is learned again at the next move.
const MOST_ENDPOINTS: usize = 4_096;

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
    since: Instant,
    /// What is heard since is the beginning of a request.
    from_rest: bool,
    inode: Inode,
    holder: Owner,
}

impl Watch {
    pub(super) fn is_wanted(&self) -> bool {
        matches!(self, Self::Wanted)
    }

    /// It was put on in the middle of something, as far as is known.
    pub(super) fn is_amid(&self) -> bool {
        matches!(self, Self::On(on) if !on.from_rest)
    }

    /// What is heard from now on begins something.
    pub(super) fn is_from_rest(&mut self) {
        if let Self::On(on) = self {
            on.from_rest = true;
        }
    }
}

/// What is watched, and what was heard where.
pub(super) struct Watches {
    watcher: Option<Watcher>,
    spoken: BTreeMap<EndpointKey, Spoken>,
}

/// What was heard at an endpoint so far.
#[derive(Clone, Copy, Default)]
struct Spoken {
    http1: bool,
    else_too: bool,
}

impl Watches {
    pub(super) fn new(watcher: Option<Watcher>) -> Self {
        Self {
            watcher,
            spoken: BTreeMap::new(),
        }
    }

    /// Puts the filter on. `Ok(None)`: its holder changed in this moment.
    pub(super) fn begin(
        &mut self,
        cookie: Cookie,
        inode: Inode,
        owners: &[Owner],
    ) -> Result<Option<Watch>, Outcome> {
        let watcher = self.watcher.as_mut().ok_or(Speech::Unknown.refusal())?;
        for owner in owners {
            match put_on(watcher, owner, cookie) {
                Ok(true) => {}
                Ok(false) => return Err(Speech::OwnFilter.refusal()),
                Err(Errno::SRCH | Errno::BADF | Errno::STALE) => continue,
                Err(e) => return Err(Outcome::Failed(format!("watching what it speaks: {e}"))),
            }
            return Ok(Some(Watch::On(Box::new(On {
                since: Instant::now(),
                from_rest: false,
                inode,
                holder: owner.clone(),
            }))));
        }
        Ok(None)
    }

    /// What is known by now.
    pub(super) fn speaks(&mut self, watch: &Watch, cookie: Cookie, at: EndpointKey) -> Speaks {
        let on = match watch {
            Watch::Needless => return Speaks::Fine,
            Watch::Wanted => return Speaks::Unknown,
            Watch::On(on) => on,
        };
        let heard = self.watcher.as_ref().and_then(|all| all.heard(cookie));
        let heard = heard.unwrap_or_default();
        let speaks = told_by(heard, on.from_rest);
        if speaks != Speaks::Unknown {
            self.learn(at, speaks);
            return speaks;
        }
        let silent = on.since.elapsed();
        let spoken = self.spoken.get(&at).copied().unwrap_or_default();
        if heard.first().is_some() {
            Speaks::Unknown
        } else if silent >= IDLE && spoken.http1 && !spoken.else_too {
            Speaks::Fine
        } else if silent >= SILENT {
            Speaks::Not(Speech::Unknown)
        } else {
            Speaks::Unknown
        }
    }

    /// What was heard is forgotten. If the connection is still at rest then, what comes next begins
    /// something.
    pub(super) fn hear_anew(&mut self, cookie: Cookie) -> bool {
        let again = self.watcher.as_mut().map(|watcher| watcher.watch(cookie));
        matches!(again, Some(Ok(())))
    }

    fn learn(&mut self, endpoint: EndpointKey, speaks: Speaks) {
        if self.spoken.len() >= MOST_ENDPOINTS && !self.spoken.contains_key(&endpoint) {
            self.spoken.clear();
        }
        let spoken = self.spoken.entry(endpoint).or_default();
        match speaks {
            Speaks::Fine => spoken.http1 = true,
            Speaks::Not(_) => spoken.else_too = true,
            Speaks::Unknown => {}
        }
    }

    /// Takes the filter off.
    pub(super) fn end(&mut self, watch: Watch, cookie: Cookie, netns: Netns, cgroups: &Cgroups) {
        let Watch::On(on) = watch else { return };
        if let Some(watcher) = &mut self.watcher {
            watcher.forget(cookie);
        }
        if take_off(&on.holder, cookie).is_err() {
            // If that fails too, the connection is gone, or keeps the filter until it is.
            let _taken = take_off_wherever(cookie, on.inode, netns, cgroups);
        }
    }

    /// Takes off what an agent that was killed has left on.
    pub(super) fn clean(&mut self, lister: &mut Lister) {
        // Whoever does not watch leaves alone what another does.
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        match take_off_left(lister) {
            Ok(left) => {
                for Left { cookie, failed } in left {
                    watcher.forget(cookie);
                    match failed {
                        None => {
                            tracing::info!(%cookie, "not watched any more: its agent was killed")
                        }
                        Some(why) => tracing::warn!(%cookie, why, "it is watched until it ends"),
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "cannot tell what was watched before"),
        }
    }
}

/// A connection that an agent was about to move when it was killed.
#[derive(Debug)]
pub struct Left {
    /// The connection.
    pub cookie: Cookie,
    /// Why it could not be left alone; it is watched until it ends.
    pub failed: Option<String>,
}

/// Takes off what an agent that was killed has left on. Only for who is alone on these pins.
pub fn take_off_left(lister: &mut Lister) -> Result<Vec<Left>, bpf::Error> {
    let cgroups = Cgroups::read();
    let mut left = Vec::new();
    for cookie in bpf::read_watched(lister.pins())? {
        if let Some(listed) = lister.read_one(cookie)? {
            let host = lister.kernel().host_netns();
            let failed = take_off_listed(&listed, host, &cgroups).err();
            left.push(Left { cookie, failed });
        }
    }
    Ok(left)
}

fn take_off_listed(listed: &Listed, host: Netns, cgroups: &Cgroups) -> Result<(), String> {
    let Some(connection) = observe::connection(listed, host, &|_| Duration::ZERO) else {
        return Ok(());
    };
    let (cookie, netns) = (connection.cookie, connection.endpoint.netns);
    let id = SocketId {
        cookie,
        local: connection.local,
        remote: connection.remote,
        device: connection.device,
    };
    let Some(target) = Namespaces::default().open(netns) else {
        return Err("its network namespace cannot be entered".to_owned());
    };
    let look = || Diag::open()?.look(&id);
    let looked = enter(&target, look).and_then(|looked| looked);
    match looked.map_err(|e| e.to_string())? {
        Some(socket) if !take_off_wherever(cookie, socket.inode, netns, cgroups) => {
            Err("no process was found that holds it".to_owned())
        }
        _ => Ok(()),
    }
}

/// What was heard since a watch began, at rest or in the middle of something.
///
/// From rest the first words are the beginning of a request, or a frame, and tell all. Amid something
/// only a request of HTTP/1 does: a body looks like anything.
fn told_by(heard: Heard, from_rest: bool) -> Speaks {
    match heard.first() {
        Some(first) if from_rest => match first {
            Beginning::Http1 => Speaks::Fine,
            Beginning::Http2 => Speaks::Not(Speech::Http2),
            Beginning::Tls => Speaks::Not(Speech::Tls),
            Beginning::Other => Speaks::Not(Speech::Unknown),
        },
        _ if heard.http1 > 0 => Speaks::Fine,
        _ => Speaks::Unknown,
    }
}

/// `false`: the application has a filter of its own there, which ours would replace.
fn put_on(watcher: &mut Watcher, owner: &Owner, cookie: Cookie) -> Result<bool, Errno> {
    let socket = owner.duplicate(cookie)?;
    if has_filter(&socket)? {
        return Ok(false);
    }
    watcher.watch(cookie).map_err(|e| errno(&e))?;
    let Some(program) = watcher.program() else {
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

fn take_off(owner: &Owner, cookie: Cookie) -> Result<(), Errno> {
    let socket = owner.duplicate(cookie)?;
    match set_option(&socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0) {
        Err(e) if errno(&e) != Errno::NOENT => Err(errno(&e)),
        _ => Ok(()),
    }
}

/// Its holder has ended, or its descriptor has another number: looks for whoever has it now.
fn take_off_wherever(cookie: Cookie, inode: Inode, netns: Netns, cgroups: &Cgroups) -> bool {
    let owners = Owners::find(netns, &[inode].into(), cgroups);
    let mut owners = owners.of(inode).iter();
    owners.any(|owner| take_off(owner, cookie).is_ok())
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_heard_to_be_http_1_may_go() {
        let heard = |first: Beginning, http1| Heard {
            first: first as u32,
            http1,
        };
        let not = Speaks::Not;
        for (heard, from_rest, amid) in [
            (Heard::default(), Speaks::Unknown, Speaks::Unknown),
            (heard(Beginning::Http1, 1), Speaks::Fine, Speaks::Fine),
            // The end of a body, and the next request.
            (
                heard(Beginning::Other, 1),
                not(Speech::Unknown),
                Speaks::Fine,
            ),
            (heard(Beginning::Http2, 1), not(Speech::Http2), Speaks::Fine),
            (
                heard(Beginning::Http2, 0),
                not(Speech::Http2),
                Speaks::Unknown,
            ),
            (heard(Beginning::Tls, 0), not(Speech::Tls), Speaks::Unknown),
            (
                heard(Beginning::Other, 0),
                not(Speech::Unknown),
                Speaks::Unknown,
            ),
        ] {
            assert_eq!(told_by(heard, true), from_rest, "{heard:?}");
            assert_eq!(told_by(heard, false), amid, "{heard:?}");
        }
    }
}
