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

use rebalancer_common::{Heard, Listed};
use rustix::{fd::AsFd, io::Errno};

use super::{
    Inode, Quiet, Socket, SocketId,
    diag::Diag,
    judge,
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
        id: &SocketId,
        inode: Inode,
        owners: &[Owner],
        diag: &Diag,
    ) -> Result<Option<Watch>, Outcome> {
        let watcher = self.watcher.as_mut().ok_or(Speech::Unknown.refusal())?;
        for owner in owners {
            match put_on(watcher, owner, id.cookie) {
                Ok(true) => {}
                Ok(false) => return Err(Speech::OwnFilter.refusal()),
                Err(Errno::SRCH | Errno::BADF | Errno::STALE) => continue,
                Err(e) => return Err(Outcome::Failed(format!("watching what it speaks: {e}"))),
            }
            let holder = owner.clone();
            return Ok(Some(Watch::On(Box::new(On {
                since: Instant::now(),
                from_rest: is_at_rest(diag, id),
                inode,
                holder,
            }))));
        }
        Ok(None)
    }

    /// What is known by now. `socket`: how it looked just now.
    pub(super) fn speaks(
        &mut self,
        watch: &mut Watch,
        id: &SocketId,
        endpoint: EndpointKey,
        socket: &Socket,
        diag: &Diag,
    ) -> Speaks {
        let on = match watch {
            Watch::Needless => return Speaks::Fine,
            Watch::Wanted => return Speaks::Unknown,
            Watch::On(on) => on,
        };
        let Some(watcher) = &mut self.watcher else {
            return Speaks::Unknown;
        };
        let heard = watcher.heard(id.cookie).unwrap_or_default();
        let speaks = told_by(heard, on.from_rest);
        let spoken = match speaks {
            Speaks::Unknown => self.spoken.get(&endpoint).copied().unwrap_or_default(),
            Speaks::Fine | Speaks::Not(_) => self.learn(endpoint, speaks),
        };
        if speaks != Speaks::Unknown {
            return speaks;
        }
        let silent = on.since.elapsed();
        if heard == Heard::default() && silent >= IDLE && spoken.http1 && !spoken.else_too {
            return Speaks::Fine;
        }
        if heard == Heard::default() && silent >= SILENT {
            return Speaks::Not(Speech::Unknown);
        }
        // In the middle of something when it was put on: heard anew from the next request on.
        if !on.from_rest && judge(socket, Duration::ZERO) == Quiet::Yes {
            let again = self
                .watcher
                .as_mut()
                .map(|watcher| watcher.watch(id.cookie));
            on.from_rest = matches!(again, Some(Ok(()))) && is_at_rest(diag, id);
        }
        Speaks::Unknown
    }

    fn learn(&mut self, endpoint: EndpointKey, speaks: Speaks) -> Spoken {
        if self.spoken.len() >= MOST_ENDPOINTS && !self.spoken.contains_key(&endpoint) {
            self.spoken.clear();
        }
        let spoken = self.spoken.entry(endpoint).or_default();
        match speaks {
            Speaks::Fine => spoken.http1 = true,
            Speaks::Not(_) => spoken.else_too = true,
            Speaks::Unknown => {}
        }
        *spoken
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
                for (cookie, taken) in left {
                    watcher.forget(cookie);
                    match taken {
                        Ok(()) => {
                            tracing::info!(%cookie, "not watched any more: its agent was killed")
                        }
                        Err(error) => tracing::warn!(%cookie, error, "it is watched until it ends"),
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "cannot tell what was watched before"),
        }
    }
}

/// Takes off what an agent that was killed has left on: each connection that is still there, and
/// why it was not possible. Only for who is alone on these pins.
pub fn take_off_left(lister: &mut Lister) -> Result<Vec<(Cookie, Result<(), String>)>, bpf::Error> {
    let cgroups = Cgroups::read();
    let mut left = Vec::new();
    for cookie in bpf::read_watched(lister.pins())? {
        if let Some(listed) = lister.read_one(cookie)? {
            let host = lister.kernel().host_netns();
            left.push((cookie, take_off_listed(&listed, host, &cgroups)));
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
/// Either of two that a connection cannot both speak is enough to spare it.
fn told_by(heard: Heard, from_rest: bool) -> Speaks {
    if heard.http2 > 0 {
        Speaks::Not(Speech::Http2)
    } else if heard.tls > 0 {
        Speaks::Not(Speech::Tls)
    } else if heard.http1 > 0 {
        Speaks::Fine
    } else if heard.other > 0 && from_rest {
        Speaks::Not(Speech::Unknown)
    } else {
        Speaks::Unknown
    }
}

/// All that was asked is answered: what comes next begins something. It must be asked after the
/// watch has begun.
fn is_at_rest(diag: &Diag, id: &SocketId) -> bool {
    matches!(diag.look(id), Ok(Some(socket)) if judge(&socket, Duration::ZERO) == Quiet::Yes)
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
        let heard = |http1, http2, tls, other| Heard {
            http1,
            http2,
            tls,
            other,
        };
        let unknown = Speaks::Not(Speech::Unknown);
        for (heard, at_rest, amid) in [
            (heard(0, 0, 0, 0), Speaks::Unknown, Speaks::Unknown),
            (heard(1, 0, 0, 0), Speaks::Fine, Speaks::Fine),
            // A body beside its request.
            (heard(1, 0, 0, 9), Speaks::Fine, Speaks::Fine),
            (heard(0, 0, 0, 1), unknown, Speaks::Unknown),
            (
                heard(1, 1, 0, 0),
                Speaks::Not(Speech::Http2),
                Speaks::Not(Speech::Http2),
            ),
            (
                heard(1, 0, 1, 0),
                Speaks::Not(Speech::Tls),
                Speaks::Not(Speech::Tls),
            ),
        ] {
            assert_eq!(told_by(heard, true), at_rest, "{heard:?}");
            assert_eq!(told_by(heard, false), amid, "{heard:?}");
        }
    }
}
