//! Which ways to reset a connection this node has, tried on connections of our own.

use std::{
    io::{self, Read as _},
    net::TcpStream,
    os::fd::AsRawFd as _,
    time::Duration,
};

use rustix::{
    net::connect_unspec,
    process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open},
};

use super::{
    Mechanism,
    raw::{self, Ends},
};
use crate::{
    host::{Diag, Pair, SocketId, may_take_descriptors, option, set_option},
    snapshot::TcpState,
};

/// The best mechanism that works here, and why those before it do not.
///
/// `Err`: why none does.
pub fn find_mechanism() -> Result<(Mechanism, Vec<String>), Vec<String>> {
    let mut why_not = Vec::new();
    for mechanism in Mechanism::ALL {
        match probe(mechanism) {
            Ok(()) => return Ok((mechanism, why_not)),
            Err(why) => why_not.push(format!("{mechanism}: {why}")),
        }
    }
    Err(why_not)
}

/// Resets a loopback connection to ourselves, and verifies that both its ends are reset and that the
/// listener still accepts.
pub fn probe(mechanism: Mechanism) -> Result<(), String> {
    // The server's descriptor is reset itself, or asked for the sequence numbers.
    if mechanism != Mechanism::SockDestroy {
        may_take_descriptors()?;
    }
    let mut victim = Victim::connect()?;
    match mechanism {
        Mechanism::SockDestroy => victim.destroy()?,
        Mechanism::Abort => victim.abort()?,
        Mechanism::Raw => victim.reset_by_segments()?,
    }
    victim.is_reset()
}

/// A connection of our own.
struct Victim {
    pair: Pair,
    id: SocketId,
    diag: Diag,
}

fn step(what: &'static str) -> impl Fn(io::Error) -> String {
    move |e| format!("{what}: {e}")
}

impl Victim {
    fn connect() -> Result<Self, String> {
        let connecting = step("connecting to ourselves");
        let pair = Pair::connect().map_err(&connecting)?;
        let id = pair.id().map_err(connecting)?;
        // Every mechanism needs to look: the state is compared just before.
        let diag = Diag::open().map_err(step("sock_diag"))?;
        let found = diag.look(&id).map_err(step("looking by sock_diag"))?;
        if found.is_none() {
            return Err("sock_diag does not find a connection that is there \
                        (kernel without CONFIG_INET_DIAG, or its module inet_diag/tcp_diag not \
                        loaded)"
                .to_owned());
        }
        Ok(Self { pair, id, diag })
    }

    fn destroy(&self) -> Result<(), String> {
        match self.diag.destroy(&self.id) {
            Ok(true) => {}
            Ok(false) => {
                return Err("SOCK_DESTROY does not find a connection that is there".to_owned());
            }
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                return Err("kernel without CONFIG_INET_DIAG_DESTROY".to_owned());
            }
            Err(e) => return Err(step("SOCK_DESTROY")(e)),
        }
        // A repeat must say that it is gone, not hit what else is on the port.
        match self.diag.destroy(&self.id) {
            Ok(false) => Ok(()),
            other => Err(format!("destroying a destroyed connection gave {other:?}")),
        }
    }

    fn abort(&self) -> Result<(), String> {
        let failed = |what: &'static str| move |e: rustix::io::Errno| step(what)(e.into());
        let own = pidfd_open(getpid(), PidfdFlags::empty()).map_err(failed("pidfd_open"))?;
        let fd = self.pair.server.as_raw_fd();
        let duplicate =
            pidfd_getfd(&own, fd, PidfdGetfdFlags::empty()).map_err(failed("pidfd_getfd"))?;
        connect_unspec(duplicate).map_err(failed("connect(AF_UNSPEC)"))
    }

    fn reset_by_segments(&self) -> Result<(), String> {
        let ends = Ends {
            server: self.id.local,
            client: self.id.remote,
            to_client: next_sequence(&self.pair.server)
                .map_err(step("reading sequence numbers"))?,
            to_server: next_sequence(&self.pair.client)
                .map_err(step("reading sequence numbers"))?,
        };
        raw::reset(&ends).map_err(step("sending a raw RST"))
    }

    /// Both ends know, and whoever connects next is accepted.
    fn is_reset(&mut self) -> Result<(), String> {
        let after = self.diag.look(&self.id).map_err(step("looking again"))?;
        if let Some(socket) = after
            && socket.state == TcpState::Established
        {
            return Err("its server's end is still established".to_owned());
        }
        let wait = Some(Duration::from_secs(1));
        let waiting = step("waiting for the reset");
        self.pair.client.set_read_timeout(wait).map_err(waiting)?;
        match self.pair.client.read(&mut [0]) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
            other => return Err(format!("its client saw {other:?}, not a reset")),
        }
        let listener = self.pair.listener.local_addr();
        let next = listener.and_then(TcpStream::connect);
        next.map_err(step("the listener did not survive")).map(drop)
    }
}

/// What the peer of our own socket expects next, read by `TCP_REPAIR` without sending anything.
fn next_sequence(socket: &TcpStream) -> io::Result<u32> {
    /// Values of `linux/tcp.h`: leaving repair without probing the peer, and the queue of what
    /// is sent.
    const REPAIR_OFF_NO_PROBE: libc::c_int = -1;
    const SEND_QUEUE: libc::c_int = 2;
    let set = |option, value| set_option(socket, libc::IPPROTO_TCP, option, value);
    set(libc::TCP_REPAIR, 1)?;
    let sequence = set(libc::TCP_REPAIR_QUEUE, SEND_QUEUE)
        .and_then(|()| option(socket, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ));
    set(libc::TCP_REPAIR, REPAIR_OFF_NO_PROBE)?;
    sequence.map(libc::c_int::cast_unsigned)
}
