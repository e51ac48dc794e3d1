//! Detects the protocol of a connection that is about to be moved, and between two HTTP/1 exchanges lets it
//! be moved; only where its rule has no `onReconnect`. Of HTTP/2 it follows the requests, for `notices`.
//!
//! Nothing is lost on HTTP/1 while every request has been answered completely. A pause does not prove that,
//! and TCP shows no more than pauses. On HTTP/2 a slow call hides behind the responses to fast ones, TLS is
//! opaque, and a WebSocket has no exchanges. So while such a connection waits, two programs copy what it
//! receives and sends to [`exchange`](crate::exchange), which follows the framing from a moment of rest on:
//! in the middle of an exchange the bytes could mean anything.
//!
//! The programs are attached to the connection's cgroup, drop and change nothing, and are detached with its
//! last sniffed connection, or when this process ends.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    ops::RangeInclusive,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rebalancer_common::{Sniffed, copy};
use rustix::io::Errno;

use crate::{
    bpf::{Capture, Captured, Kernel},
    exchange::{Content, Direction, Exchange, Other, Piece, Position, State},
    host::{Diag, Pair, Socket, SocketId, own_cgroup},
    plan::{Outcome, Refusal},
    snapshot::{CgroupId, Cookie},
};

/// A connection that is silent for longer is skipped, so that idle ones do not block others. The plan skips
/// those that were silent before; this is for the few that fall silent later.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is known of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// HTTP/1 with every request answered, or the rule has `onReconnect`: it may be moved when it is quiet.
    Movable,
    /// HTTP/2: its client may be asked to leave.
    Http2,
    /// Not known yet, or an exchange is under way.
    Unknown,
    /// It must not be moved.
    Refused(Refusal),
}

/// Whether a connection is sniffed.
pub(super) enum Sniffing {
    /// Its rule has `onReconnect`.
    NotNeeded,
    /// To be started once the guards allow the move.
    Pending,
    /// Started.
    Active {
        /// When it was last at rest.
        at_rest: Option<Instant>,
    },
}

impl Sniffing {
    pub(super) fn is_pending(&self) -> bool {
        matches!(self, Self::Pending)
    }
}

/// The connections that are sniffed.
pub(super) struct Sniffer {
    capture: Option<Capture>,
    exchanges: BTreeMap<Cookie, Exchange>,
}

impl Sniffer {
    pub(super) fn new(capture: Option<Capture>) -> Self {
        Self {
            capture,
            exchanges: BTreeMap::new(),
        }
    }

    /// Starts sniffing. `Ok(None)`: not at this moment.
    pub(super) fn start(
        &mut self,
        cookie: Cookie,
        cgroup: CgroupId,
    ) -> Result<Option<Sniffing>, Outcome> {
        let capture = self
            .capture
            .as_mut()
            .ok_or(Outcome::Refused(Refusal::CannotSniff))?;
        match capture.add(cookie, cgroup) {
            Ok(()) => {
                self.exchanges.insert(cookie, Exchange::default());
                Ok(Some(Sniffing::Active { at_rest: None }))
            }
            Err(error) => match Errno::from_io_error(&error) {
                // The map is full.
                Some(Errno::TOOBIG) => Ok(None),
                // Forbidden, or the cgroup was removed while its sockets are still open.
                Some(Errno::PERM | Errno::ACCESS | Errno::STALE) => {
                    Err(Outcome::Refused(Refusal::CannotSniff))
                }
                _ => Err(Outcome::Failed(format!("sniffing it: {error}"))),
            },
        }
    }

    /// What is known so far; `socket` was read just before.
    pub(super) fn verdict(
        &mut self,
        sniffing: &Sniffing,
        cookie: Cookie,
        socket: &Socket,
    ) -> Verdict {
        let at_rest = match sniffing {
            Sniffing::NotNeeded => return Verdict::Movable,
            Sniffing::Pending => return Verdict::Unknown,
            Sniffing::Active { at_rest } => *at_rest,
        };
        self.receive();
        let Self {
            capture: Some(capture),
            exchanges,
        } = self
        else {
            return Verdict::Unknown;
        };
        let (Some(exchange), Some(sniffed)) = (exchanges.get_mut(&cookie), capture.state(cookie))
        else {
            return Verdict::Unknown;
        };
        if sniffed.based != 0 {
            exchange.based(sniffed.base);
        }
        let state = exchange.state(position(socket));
        let wanted = wanted(exchange, sniffed);
        if wanted != sniffed
            && let Err(error) = capture.set(cookie, wanted)
        {
            tracing::warn!(%cookie, %error, "could not update what is sniffed on a connection");
        }
        match state {
            State::Complete => Verdict::Movable,
            State::Resting if at_rest.is_some_and(|at| at.elapsed() >= PATIENCE) => {
                Verdict::Refused(Refusal::Silent)
            }
            State::Lost | State::Resting | State::InProgress => Verdict::Unknown,
            State::Not(other) => match other {
                Other::Http2 => Verdict::Http2,
                Other::Tls => Verdict::Refused(Refusal::Tls),
                Other::Upgraded => Verdict::Refused(Refusal::Upgraded),
                Other::Unknown => Verdict::Refused(Refusal::ProtocolUnknown),
            },
        }
    }

    /// Whether the framing is not known, so that it can only be followed from the next rest on.
    pub(super) fn needs_rest(&self, cookie: Cookie) -> bool {
        self.exchanges.get(&cookie).is_some_and(Exchange::is_lost)
    }

    /// Whether the server was seen to send last; `socket` was read just before.
    pub(super) fn server_spoke_last(&mut self, cookie: Cookie, socket: &Socket) -> bool {
        let exchange = self.exchanges.get_mut(&cookie);
        exchange.is_some_and(|exchange| exchange.server_spoke_last(position(socket)))
    }

    /// Copies what it receives and sends from now on. If it is at rest after that, call
    /// [`Sniffer::rested`].
    pub(super) fn capture(&mut self, cookie: Cookie) -> bool {
        let capture = self.capture.as_mut();
        capture.is_some_and(|capture| {
            let capturing = capture.state(cookie).map(|sniffed| Sniffed {
                copy: copy::BYTES,
                skipping: [0; 2],
                ..sniffed
            });
            capturing.is_some_and(|capturing| capture.set(cookie, capturing).is_ok())
        })
    }

    /// It was at rest when `socket` was read.
    pub(super) fn rested(&mut self, sniffing: &mut Sniffing, cookie: Cookie, socket: &Socket) {
        if let Some(exchange) = self.exchanges.get_mut(&cookie) {
            exchange.rest(position(socket));
            *sniffing = Sniffing::Active {
                at_rest: Some(Instant::now()),
            };
        }
    }

    /// The sequence number of the server's next byte, of one that is at rest; `socket` was read just before.
    pub(super) fn next_out(&self, cookie: Cookie, socket: &Socket) -> Option<u32> {
        let sniffed = self.capture.as_ref()?.state(cookie)?;
        let acked = socket.bytes_acked.0 as u32;
        (sniffed.based != 0).then(|| sniffed.base[Direction::Out as usize].wrapping_add(acked))
    }

    /// On HTTP/2, the first stream that the client has opened since the last rest, and the last one that it
    /// may have.
    pub(super) fn opened(&self, cookie: Cookie) -> Option<RangeInclusive<u32>> {
        self.exchanges.get(&cookie)?.opened()
    }

    /// On HTTP/2, follows no requests any more, until the next rest.
    pub(super) fn stop_following(&mut self, cookie: Cookie) {
        if let Some(exchange) = self.exchanges.get_mut(&cookie) {
            exchange.stop_following();
        }
    }

    /// Stops sniffing it.
    pub(super) fn stop(&mut self, cookie: Cookie) {
        if self.exchanges.remove(&cookie).is_some()
            && let Some(capture) = &mut self.capture
        {
            capture.remove(cookie);
        }
    }

    /// Receives what the programs have copied of all connections.
    fn receive(&mut self) {
        let Self {
            capture: Some(capture),
            exchanges,
        } = self
        else {
            return;
        };
        capture.take(|passed| {
            if let Some(exchange) = exchanges.get_mut(&passed.cookie) {
                exchange.take_in(piece(passed));
            }
        });
    }
}

/// What the programs should copy of a connection now; what they have found out stays.
fn wanted(exchange: &Exchange, sniffed: Sniffed) -> Sniffed {
    let mut wanted = Sniffed {
        copy: if exchange.is_over() {
            copy::OFF
        } else if exchange.is_lost() {
            copy::LENGTHS
        } else {
            copy::BYTES
        },
        skipping: [0; 2],
        ..sniffed
    };
    for direction in [Direction::In, Direction::Out] {
        if let Some(skip_to) = exchange.skip_to(direction) {
            wanted.skipping[direction as usize] = 1;
            wanted.skip_to[direction as usize] = skip_to;
        }
    }
    wanted
}

fn piece(passed: Captured<'_>) -> Piece<'_> {
    Piece {
        direction: passed.direction,
        seq: passed.seq,
        content: match passed.bytes {
            Some(bytes) => Content::Present(bytes),
            None => Content::Absent(passed.length),
        },
    }
}

fn position(socket: &Socket) -> Position {
    Position {
        received: socket.bytes_received.0,
        acked: socket.bytes_acked.0,
    }
}

/// Follows an exchange on a connection of our own.
///
/// # Errors
/// Why that is not possible here.
pub fn probe_sniffing(kernel: &Kernel, pins: &Path) -> Result<(), String> {
    let capture = Capture::open(kernel, pins).map_err(|e| e.to_string())?;
    follow_own(capture).map_err(|e| format!("on a connection of our own: {e}"))
}

fn follow_own(capture: Capture) -> io::Result<()> {
    let mut own = Own::sniff(capture)?;
    own.exchange(b"GET / HTTP/1.1\r\n\r\n", |server| {
        server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
    })?;
    own.becomes(State::Complete)
}

/// A connection of our own that is sniffed.
struct Own {
    pair: Pair,
    id: SocketId,
    diag: Diag,
    sniffer: Sniffer,
    sniffing: Sniffing,
}

impl Own {
    /// Sniffs a new one, from its first rest on.
    fn sniff(capture: Capture) -> io::Result<Self> {
        let pair = Pair::connect()?;
        let cookie = pair.cookie;
        let id = pair.id()?;
        let cgroup = own_cgroup().ok_or_else(|| io::Error::other("our own cgroup is not known"))?;
        let mut own = Self {
            pair,
            id,
            diag: Diag::open()?,
            sniffer: Sniffer::new(Some(capture)),
            sniffing: Sniffing::Pending,
        };
        match own.sniffer.start(cookie, cgroup) {
            Ok(Some(sniffing)) if own.sniffer.capture(cookie) => own.sniffing = sniffing,
            Ok(_) => return Err(io::Error::other("it cannot be sniffed")),
            Err(outcome) => return Err(io::Error::other(outcome.to_string())),
        }
        let socket = own.look()?;
        own.sniffer.rested(&mut own.sniffing, cookie, &socket);
        Ok(own)
    }

    /// Sends a request, which the server reads and answers.
    fn exchange(
        &mut self,
        request: &[u8],
        answer: impl FnOnce(&mut std::net::TcpStream) -> io::Result<()>,
    ) -> io::Result<()> {
        self.pair.client.write_all(request)?;
        self.pair.server.read_exact(&mut vec![0; request.len()])?;
        answer(&mut self.pair.server)
    }

    /// Waits until it is known to be in this state, but not for long.
    fn becomes(&mut self, expected: State) -> io::Result<()> {
        let mut state = State::Lost;
        for _ in 0..100 {
            state = self.state()?;
            if state == expected {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10)); // for its acknowledgement
        }
        Err(io::Error::other(format!("it was sniffed as {state:?}")))
    }

    fn state(&mut self) -> io::Result<State> {
        let socket = self.look()?;
        // This receives what was copied, too.
        let _verdict = self
            .sniffer
            .verdict(&self.sniffing, self.id.cookie, &socket);
        let exchange = self.sniffer.exchanges.get_mut(&self.id.cookie);
        Ok(exchange.map_or(State::Lost, |exchange| exchange.state(position(&socket))))
    }

    fn look(&self) -> io::Result<Socket> {
        let looked = self.diag.look(&self.id)?;
        looked.ok_or_else(|| io::Error::other("it is not found"))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        net::{Ipv6Addr, TcpStream},
    };

    use rustix::fs::sendfile;

    use super::*;
    use crate::bpf::{Lifetime, Tracker, Tracking, mount_bpffs};

    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    /// Needs its tracker for as long as it is used: the maps are pinned by that.
    fn capture() -> (Tracker, Capture) {
        let pins = format!("/sys/fs/bpf/rebalancer-sniff-{:?}", thread::current().id());
        let pins = Path::new(&pins);
        mount_bpffs(Path::new("/sys/fs/bpf")).unwrap();
        let kernel = Kernel::read().unwrap();
        let tracking = Tracking::default();
        let tracker = Tracker::start(&kernel, pins, None, tracking, Lifetime::Process).unwrap();
        let capture = Capture::open(&kernel, pins).unwrap();
        (tracker, capture)
    }

    fn own() -> (Tracker, Own) {
        let (tracker, capture) = capture();
        (tracker, Own::sniff(capture).unwrap())
    }

    fn write(bytes: &[u8]) -> impl FnOnce(&mut TcpStream) -> io::Result<()> {
        move |server| server.write_all(bytes)
    }

    /// What its client reads and throws away.
    fn read(own: &mut Own, length: usize) {
        own.pair.client.read_exact(&mut vec![0; length]).unwrap();
    }

    #[test]
    #[ignore = "needs root and BPF: `cargo xtask test kernel` runs it"]
    fn an_exchange_of_our_own_is_followed_to_its_end() {
        let (_tracker, capture) = capture();
        follow_own(capture).unwrap();
    }

    /// Whichever system call the server sends with, and however the data is segmented.
    #[test]
    #[ignore = "needs root and BPF: `cargo xtask test kernel` runs it"]
    fn all_bytes_of_both_directions_are_copied() {
        let (_tracker, mut capture) = capture();
        all_bytes_are_copied(&mut capture, Pair::connect().unwrap());
        let pair = Pair::connect_over(Ipv6Addr::LOCALHOST.into()).unwrap();
        all_bytes_are_copied(&mut capture, pair);
    }

    fn all_bytes_are_copied(capture: &mut Capture, mut pair: Pair) {
        const LENGTH: usize = 1 << 20;
        let cgroup = own_cgroup().unwrap();
        capture.add(pair.cookie, cgroup).unwrap();
        let wanted = Sniffed {
            copy: copy::BYTES,
            ..Sniffed::default()
        };
        capture.set(pair.cookie, wanted).unwrap();
        let sent: Vec<u8> = (0..LENGTH).map(|n| (n * 7 % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&sent).unwrap();
        let mut copied = [Vec::new(), Vec::new()];
        let mut take = |capture: &mut Capture| {
            capture.take(|passed| {
                let copied = &mut copied[passed.direction as usize];
                copied.push((passed.cookie, passed.seq, passed.bytes.unwrap().to_vec()));
            });
        };
        let sender = pair.server.try_clone().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                let (mut offset, file) = (0, file);
                while (offset as usize) < LENGTH {
                    sendfile(&sender, &file, Some(&mut offset), LENGTH).unwrap();
                }
            });
            let mut got = vec![0; LENGTH];
            for part in got.chunks_mut(64 << 10) {
                pair.client.read_exact(part).unwrap();
                take(capture);
            }
            assert!(got == sent);
        });
        pair.client.write_all(&sent[..100_000]).unwrap();
        pair.server.read_exact(&mut vec![0; 100_000]).unwrap();
        take(capture);
        let sniffed = capture.state(pair.cookie).unwrap();
        assert_eq!(sniffed.based, 1);
        for (direction, expected) in [&sent[..100_000], &sent].into_iter().enumerate() {
            let mut bytes = vec![None; expected.len()];
            for (cookie, seq, content) in &copied[direction] {
                assert_eq!(*cookie, pair.cookie);
                let from = seq.wrapping_sub(sniffed.base[direction]) as usize;
                for (to, byte) in bytes[from..].iter_mut().zip(content) {
                    *to = Some(*byte);
                }
            }
            let bytes: Option<Vec<u8>> = bytes.into_iter().collect();
            assert!(bytes.is_some_and(|bytes| bytes == expected), "{direction}");
        }
    }

    /// A pause in a response is not its end, however long it is.
    #[test]
    #[ignore = "needs root and BPF: `cargo xtask test kernel` runs it"]
    fn a_response_is_complete_at_the_end_of_its_framing() {
        let (_tracker, mut own) = own();
        let pieces: [&[u8]; 6] = [
            b"HTTP/1.1 103 Early Hints\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n",
            b"\r\n5\r\nhello\r\n",
            b"5\r\n",
            b"world\r\n0\r\nA: b\r\n",
            b"\r\n",
        ];
        own.exchange(GET, |_| Ok(())).unwrap();
        for piece in pieces {
            own.becomes(State::InProgress).unwrap();
            thread::sleep(Duration::from_millis(100));
            assert_eq!(own.state().unwrap(), State::InProgress);
            own.pair.server.write_all(piece).unwrap();
        }
        own.becomes(State::Complete).unwrap();
    }

    /// A long body is not copied, and its end is still found.
    #[test]
    #[ignore = "needs root and BPF: `cargo xtask test kernel` runs it"]
    fn a_long_body_is_skipped() {
        const LENGTH: usize = 64 << 20;
        let (_tracker, mut own) = own();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
        for _ in 0..2 {
            own.exchange(GET, write(head.as_bytes())).unwrap();
            own.becomes(State::InProgress).unwrap();
            let sniffed = own.sniffer.capture.as_ref().unwrap();
            let sniffed = sniffed.state(own.id.cookie).unwrap();
            assert_eq!(sniffed.skipping, [0, 1]);
            let mut server = own.pair.server.try_clone().unwrap();
            thread::scope(|scope| {
                scope.spawn(move || {
                    let mut zeros = File::open("/dev/zero").unwrap().take(LENGTH as u64);
                    io::copy(&mut zeros, &mut server).unwrap();
                });
                read(&mut own, head.len() + LENGTH / 2);
                assert_eq!(own.state().unwrap(), State::InProgress);
                read(&mut own, LENGTH / 2);
            });
            own.becomes(State::Complete).unwrap();
        }
    }

    #[test]
    #[ignore = "needs root and BPF: `cargo xtask test kernel` runs it"]
    fn an_upgrade_to_a_websocket_is_detected() {
        let (_tracker, mut own) = own();
        let upgrade = b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        let answer = write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n");
        own.exchange(upgrade, answer).unwrap();
        own.becomes(State::Not(Other::Upgraded)).unwrap();
        // Nothing more of it is copied.
        own.exchange(b"\x81\x05hello", write(b"\x81\x05hello"))
            .unwrap();
        own.sniffer
            .capture
            .as_mut()
            .unwrap()
            .take(|passed| panic!("{passed:?}"));
    }

    /// Other connections are not copied, and the programs are detached with their last connection.
    #[test]
    #[ignore = "needs root and BPF: `cargo xtask test kernel` runs it"]
    fn nothing_of_other_connections_is_copied() {
        let (_tracker, mut capture) = capture();
        let cgroup = own_cgroup().unwrap();
        let (mut one, mut other) = (Pair::connect().unwrap(), Pair::connect().unwrap());
        capture.add(one.cookie, cgroup).unwrap();
        for pair in [&mut one, &mut other] {
            pair.client.write_all(GET).unwrap();
            pair.server.read_exact(&mut [0; GET.len()]).unwrap();
        }
        capture.take(|passed| panic!("{passed:?}"));
        capture.remove(one.cookie);
        let error = capture.add(one.cookie, CgroupId(u64::MAX)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
        assert!(capture.state(one.cookie).is_none());
    }
}
