//! The ways to reset a connection: to both its ends, and without touching another.

use std::{fmt, io};

use clap::ValueEnum;
use rustix::{io::Errno, net::connect_unspec};

use super::{
    owners::read_live,
    raw::{self, Ends},
};
use crate::{
    bpf::Walker,
    host::{Diag, Owner, SocketId, with_duplicate},
    snapshot::TcpState,
};

/// A way to reset a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mechanism {
    /// `SOCK_DESTROY` of `sock_diag(7)`, by cookie. Needs CONFIG_INET_DIAG_DESTROY.
    SockDestroy,
    /// `connect(AF_UNSPEC)` on a duplicate of the server's own descriptor. Needs a kernel from
    /// 5.6 on, and that `pidfd_getfd` is allowed.
    Abort,
    /// A segment with RST to each end.
    Raw,
}

/// The result of an attempt to reset.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// It is reset.
    Hit,
    /// It was gone.
    Gone,
    /// It is open and untouched: it has just changed.
    Untouched,
    /// It is open although resets were sent: data was in flight.
    Missed,
}

impl Mechanism {
    /// All of them, the best first.
    pub const ALL: [Self; 3] = [Self::SockDestroy, Self::Abort, Self::Raw];

    /// A stable word, for flags and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SockDestroy => "sock-destroy",
            Self::Abort => "abort",
            Self::Raw => "raw",
        }
    }

    /// Resets a connection; in its network namespace.
    pub(super) fn reset(
        self,
        id: &SocketId,
        owners: &[Owner],
        diag: &Diag,
        walker: &mut Walker,
    ) -> Result<Attempt, String> {
        match self {
            Self::SockDestroy => match diag.destroy(id) {
                Ok(true) => Ok(Attempt::Hit),
                Ok(false) => Ok(Attempt::Gone),
                Err(e) => Err(format!("SOCK_DESTROY: {e}")),
            },
            Self::Abort => abort(id, owners),
            Self::Raw => raw_reset(id, owners, diag, walker),
        }
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn abort(id: &SocketId, owners: &[Owner]) -> Result<Attempt, String> {
    match with_duplicate(owners, id.cookie, connect_unspec) {
        Ok(()) => Ok(Attempt::Hit),
        Err(None) => Err("no process that holds it was found".to_owned()),
        // The process or the descriptor is gone, or (some kernels) a thread is blocked in a receive.
        Err(Some(Errno::SRCH | Errno::BADF | Errno::STALE | Errno::BUSY)) => Ok(Attempt::Untouched),
        Err(Some(e)) => Err(format!("aborting by the server's descriptor: {e}")),
    }
}

fn raw_reset(
    id: &SocketId,
    owners: &[Owner],
    diag: &Diag,
    walker: &mut Walker,
) -> Result<Attempt, String> {
    let live = read_live(owners, id.cookie, walker)
        .map_err(|e| format!("reading sequence numbers: {e}"))?;
    let Some(live) = live else {
        return not_listed(id, diag);
    };
    let ends = Ends {
        server: id.local,
        client: id.remote,
        to_client: live.snd_nxt,
        to_server: live.rcv_nxt,
    };
    let failed = |e: io::Error| format!("raw RST: {e}");
    raw::reset(&ends).map_err(failed)?;
    let after = diag.look(id).map_err(failed)?;
    Ok(match after {
        Some(socket) if socket.state == TcpState::Established => Attempt::Missed,
        _ => Attempt::Hit,
    })
}

/// No descriptor leads to it, so its sequence numbers are unknown and nothing can be sent. It may still be
/// open, with its descriptor in flight between two processes.
fn not_listed(id: &SocketId, diag: &Diag) -> Result<Attempt, String> {
    let now = diag.look(id).map_err(|e| format!("sock_diag: {e}"))?;
    Ok(match now {
        Some(socket) if socket.state == TcpState::Established => Attempt::Untouched,
        _ => Attempt::Gone,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Pair;

    #[test]
    fn a_socket_without_a_descriptor_is_gone_only_if_sock_diag_agrees() {
        let pair = Pair::connect().unwrap();
        let id = pair.id().unwrap();
        let diag = Diag::open().unwrap();
        assert_eq!(not_listed(&id, &diag), Ok(Attempt::Untouched));
        connect_unspec(&pair.server).unwrap();
        assert_eq!(not_listed(&id, &diag), Ok(Attempt::Gone));
    }
}
