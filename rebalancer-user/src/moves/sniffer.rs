//! Hears whether a victim may go before anything is done to it, where its rule does not say so.
//!
//! On HTTP/1 nothing is lost at a moment at which all that was asked has been answered in full. A
//! pause is not such a moment, and TCP knows no other. On HTTP/2 a slow call hides behind the answers
//! to fast ones, inside TLS nobody knows, and of a WebSocket no end is an end. So while a victim
//! waits for its end two programs pass on what it receives and sends, and what that says is followed
//! by [`exchange`](crate::exchange), from a rest on: in the middle of something nothing is told.
//!
//! The programs are on the victim's cgroup, drop nothing and change nothing there, and go with the
//! last of its victims, or with this process.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rebalancer_common::{Watched, listening};
use rustix::io::Errno;

use crate::{
    bpf::{Kernel, Passed, Watcher},
    exchange::{Content, Direction, Exchange, Other, Piece, Position, State},
    host::{Diag, Pair, Socket, SocketId, own_cgroup},
    plan::{Outcome, Refusal},
    snapshot::{CgroupId, Cookie},
};

/// One that says nothing for so long is left, lest the idle keep others from being moved. The plan
/// chooses none that was silent before, so that this is for the few that fall silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a victim speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// HTTP/1, and all that was asked is answered, or the rule vouches for it: it may go when it is
    /// quiet.
    Fine,
    /// It is not known, or not answered.
    Unknown,
    /// Something else.
    Not(Refusal),
}

/// One victim's watch.
pub(super) enum Watch {
    /// Its rule says what its end means.
    Needless,
    /// To be begun as soon as the guards have let it pass.
    Wanted,
    /// Begun.
    On {
        /// When it was last at rest.
        rest: Option<Instant>,
    },
}

impl Watch {
    pub(super) fn is_wanted(&self) -> bool {
        matches!(self, Self::Wanted)
    }
}

/// What is watched.
pub(super) struct Watches {
    watcher: Option<Watcher>,
    exchanges: BTreeMap<Cookie, Exchange>,
}

impl Watches {
    pub(super) fn new(watcher: Option<Watcher>) -> Self {
        Self {
            watcher,
            exchanges: BTreeMap::new(),
        }
    }

    /// Begins. `Ok(None)`: not at this moment.
    pub(super) fn begin(
        &mut self,
        cookie: Cookie,
        cgroup: CgroupId,
    ) -> Result<Option<Watch>, Outcome> {
        let watcher = self
            .watcher
            .as_mut()
            .ok_or(Outcome::Refused(Refusal::CannotSniff))?;
        match watcher.watch(cookie, cgroup) {
            Ok(()) => {
                self.exchanges.insert(cookie, Exchange::default());
                Ok(Some(Watch::On { rest: None }))
            }
            Err(error) => match Errno::from_io_error(&error) {
                // As many are watched as can be.
                Some(Errno::TOOBIG) => Ok(None),
                // Forbidden, or the cgroup has been removed and its sockets live on.
                Some(Errno::PERM | Errno::ACCESS | Errno::STALE) => {
                    Err(Outcome::Refused(Refusal::CannotSniff))
                }
                _ => Err(Outcome::Failed(format!("sniffing it: {error}"))),
            },
        }
    }

    /// What is known by now, where the socket is as it was looked at just before.
    pub(super) fn speaks(&mut self, watch: &Watch, cookie: Cookie, socket: &Socket) -> Verdict {
        let rest = match watch {
            Watch::Needless => return Verdict::Fine,
            Watch::Wanted => return Verdict::Unknown,
            Watch::On { rest } => *rest,
        };
        self.take_in();
        let Self {
            watcher: Some(watcher),
            exchanges,
        } = self
        else {
            return Verdict::Unknown;
        };
        let (Some(exchange), Some(watched)) = (exchanges.get_mut(&cookie), watcher.watched(cookie))
        else {
            return Verdict::Unknown;
        };
        if watched.based != 0 {
            exchange.based(watched.base);
        }
        let state = exchange.state(position(socket));
        let wanted = wanted(exchange, watched);
        if wanted != watched
            && let Err(error) = watcher.want(cookie, wanted)
        {
            tracing::warn!(%cookie, %error, "could not update what is sniffed on a connection");
        }
        match state {
            State::Complete => Verdict::Fine,
            State::Resting if rest.is_some_and(|rest| rest.elapsed() >= PATIENCE) => {
                Verdict::Not(Refusal::Silent)
            }
            State::Lost | State::Resting | State::InProgress => Verdict::Unknown,
            State::Not(other) => Verdict::Not(match other {
                Other::Http2 => Refusal::Http2,
                Other::Tls => Refusal::Tls,
                Other::Upgraded => Refusal::Upgraded,
                Other::Unknown => Refusal::ProtocolUnknown,
            }),
        }
    }

    /// Whether it is to be listened to from its next rest on.
    pub(super) fn waits_for_rest(&self, cookie: Cookie) -> bool {
        self.exchanges.get(&cookie).is_some_and(Exchange::is_lost)
    }

    /// Whether its server was seen to speak last, where the socket is as it was looked at.
    pub(super) fn server_spoke_last(&mut self, cookie: Cookie, socket: &Socket) -> bool {
        let exchange = self.exchanges.get_mut(&cookie);
        exchange.is_some_and(|exchange| exchange.server_spoke_last(position(socket)))
    }

    /// What it receives and sends is passed on from now on. If it is at rest after that, tell
    /// [`Watches::rests`].
    pub(super) fn listen(&mut self, cookie: Cookie) -> bool {
        let watcher = self.watcher.as_mut();
        watcher.is_some_and(|watcher| {
            let listening = watcher.watched(cookie).map(|watched| Watched {
                listening: listening::BYTES,
                skipping: [0; 2],
                ..watched
            });
            listening.is_some_and(|listening| watcher.want(cookie, listening).is_ok())
        })
    }

    /// It has been at rest where the socket was looked at.
    pub(super) fn rests(&mut self, watch: &mut Watch, cookie: Cookie, socket: &Socket) {
        if let Some(exchange) = self.exchanges.get_mut(&cookie) {
            exchange.rest(position(socket));
            *watch = Watch::On {
                rest: Some(Instant::now()),
            };
        }
    }

    /// It is watched no longer.
    pub(super) fn end(&mut self, cookie: Cookie) {
        if self.exchanges.remove(&cookie).is_some()
            && let Some(watcher) = &mut self.watcher
        {
            watcher.forget(cookie);
        }
    }

    /// Takes in what was passed on of all that are watched.
    fn take_in(&mut self) {
        let Self {
            watcher: Some(watcher),
            exchanges,
        } = self
        else {
            return;
        };
        watcher.take(|passed| {
            if let Some(exchange) = exchanges.get_mut(&passed.cookie) {
                exchange.take_in(piece(passed));
            }
        });
    }
}

/// What is wanted of a connection now; what was found out stays.
fn wanted(exchange: &Exchange, watched: Watched) -> Watched {
    let mut wanted = Watched {
        listening: if exchange.is_over() {
            listening::OFF
        } else if exchange.is_lost() {
            listening::LENGTHS
        } else {
            listening::BYTES
        },
        skipping: [0; 2],
        ..watched
    };
    for direction in [Direction::In, Direction::Out] {
        if let Some(skip_to) = exchange.skip_to(direction) {
            wanted.skipping[direction as usize] = 1;
            wanted.skip_to[direction as usize] = skip_to;
        }
    }
    wanted
}

fn piece(passed: Passed<'_>) -> Piece<'_> {
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

/// Hears that a request on a connection of our own is answered, or says why not.
pub fn probe_sniffing(kernel: &Kernel, pins: &Path) -> Result<(), String> {
    let watcher = Watcher::open(kernel, pins).map_err(|e| e.to_string())?;
    hear_own(watcher).map_err(|e| format!("on a connection of our own: {e}"))
}

fn hear_own(watcher: Watcher) -> io::Result<()> {
    let mut own = Own::watch(watcher)?;
    own.exchange(b"GET / HTTP/1.1\r\n\r\n", |server| {
        server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
    })?;
    own.becomes(State::Complete)
}

/// A connection of our own that is watched.
struct Own {
    pair: Pair,
    id: SocketId,
    diag: Diag,
    watches: Watches,
    watch: Watch,
}

impl Own {
    /// Watches a new one, from its first rest on.
    fn watch(watcher: Watcher) -> io::Result<Self> {
        let pair = Pair::connect()?;
        let cookie = pair.cookie;
        let id = pair.id()?;
        let cgroup = own_cgroup().ok_or_else(|| io::Error::other("our own cgroup is not known"))?;
        let mut own = Self {
            pair,
            id,
            diag: Diag::open()?,
            watches: Watches::new(Some(watcher)),
            watch: Watch::Wanted,
        };
        match own.watches.begin(cookie, cgroup) {
            Ok(Some(watch)) if own.watches.listen(cookie) => own.watch = watch,
            Ok(_) => return Err(io::Error::other("it cannot be sniffed")),
            Err(outcome) => return Err(io::Error::other(outcome.to_string())),
        }
        let socket = own.look()?;
        own.watches.rests(&mut own.watch, cookie, &socket);
        Ok(own)
    }

    /// A request, which is read by the server, and then what that does.
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
        // Takes in what there is, too.
        let _known = self.watches.speaks(&self.watch, self.id.cookie, &socket);
        let exchange = self.watches.exchanges.get_mut(&self.id.cookie);
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
    fn watcher() -> (Tracker, Watcher) {
        let pins = format!("/sys/fs/bpf/rebalancer-watch-{:?}", thread::current().id());
        let pins = Path::new(&pins);
        mount_bpffs(Path::new("/sys/fs/bpf")).unwrap();
        let kernel = Kernel::read().unwrap();
        let tracking = Tracking::default();
        let tracker = Tracker::start(&kernel, pins, None, tracking, Lifetime::Process).unwrap();
        let watcher = Watcher::open(&kernel, pins).unwrap();
        (tracker, watcher)
    }

    fn own() -> (Tracker, Own) {
        let (tracker, watcher) = watcher();
        (tracker, Own::watch(watcher).unwrap())
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
    fn a_request_of_our_own_is_heard_to_be_answered() {
        let (_tracker, watcher) = watcher();
        hear_own(watcher).unwrap();
    }

    /// Whatever the server sends by, and however it is cut.
    #[test]
    #[ignore = "needs root and BPF: `cargo xtask test kernel` runs it"]
    fn all_bytes_of_both_directions_are_passed_on() {
        let (_tracker, mut watcher) = watcher();
        all_bytes_are_passed_on(&mut watcher, Pair::connect().unwrap());
        let pair = Pair::connect_over(Ipv6Addr::LOCALHOST.into()).unwrap();
        all_bytes_are_passed_on(&mut watcher, pair);
    }

    fn all_bytes_are_passed_on(watcher: &mut Watcher, mut pair: Pair) {
        const LENGTH: usize = 1 << 20;
        let cgroup = own_cgroup().unwrap();
        watcher.watch(pair.cookie, cgroup).unwrap();
        let wanted = Watched {
            listening: listening::BYTES,
            ..Watched::default()
        };
        watcher.want(pair.cookie, wanted).unwrap();
        let sent: Vec<u8> = (0..LENGTH).map(|n| (n * 7 % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&sent).unwrap();
        let mut there = [Vec::new(), Vec::new()];
        let mut take = |watcher: &mut Watcher| {
            watcher.take(|passed| {
                let there = &mut there[passed.direction as usize];
                there.push((passed.cookie, passed.seq, passed.bytes.unwrap().to_vec()));
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
                take(watcher);
            }
            assert!(got == sent);
        });
        pair.client.write_all(&sent[..100_000]).unwrap();
        pair.server.read_exact(&mut vec![0; 100_000]).unwrap();
        take(watcher);
        let watched = watcher.watched(pair.cookie).unwrap();
        assert_eq!(watched.based, 1);
        for (direction, expected) in [&sent[..100_000], &sent].into_iter().enumerate() {
            let mut bytes = vec![None; expected.len()];
            for (cookie, seq, content) in &there[direction] {
                assert_eq!(*cookie, pair.cookie);
                let from = seq.wrapping_sub(watched.base[direction]) as usize;
                for (to, byte) in bytes[from..].iter_mut().zip(content) {
                    *to = Some(*byte);
                }
            }
            let bytes: Option<Vec<u8>> = bytes.into_iter().collect();
            assert!(bytes.is_some_and(|bytes| bytes == expected), "{direction}");
        }
    }

    /// A pause in an answer is not its end, however long.
    #[test]
    #[ignore = "needs root and BPF: `cargo xtask test kernel` runs it"]
    fn an_answer_is_complete_when_it_says_so() {
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

    /// A long body is not passed on, and its end is known all the same.
    #[test]
    #[ignore = "needs root and BPF: `cargo xtask test kernel` runs it"]
    fn a_long_body_is_skipped() {
        const LENGTH: usize = 64 << 20;
        let (_tracker, mut own) = own();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
        for _ in 0..2 {
            own.exchange(GET, write(head.as_bytes())).unwrap();
            own.becomes(State::InProgress).unwrap();
            let watched = own.watches.watcher.as_ref().unwrap();
            let watched = watched.watched(own.id.cookie).unwrap();
            assert_eq!(watched.skipping, [0, 1]);
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
    fn what_becomes_a_websocket_is_heard_to() {
        let (_tracker, mut own) = own();
        let upgrade = b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        let answer = write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n");
        own.exchange(upgrade, answer).unwrap();
        own.becomes(State::Not(Other::Upgraded)).unwrap();
        // Nothing more of it is passed on.
        own.exchange(b"\x81\x05hello", write(b"\x81\x05hello"))
            .unwrap();
        own.watches
            .watcher
            .as_mut()
            .unwrap()
            .take(|passed| panic!("{passed:?}"));
    }

    /// Others are not passed on, and the programs go with the last for whom they are there.
    #[test]
    #[ignore = "needs root and BPF: `cargo xtask test kernel` runs it"]
    fn nothing_of_others_is_passed_on() {
        let (_tracker, mut watcher) = watcher();
        let cgroup = own_cgroup().unwrap();
        let (mut one, mut other) = (Pair::connect().unwrap(), Pair::connect().unwrap());
        watcher.watch(one.cookie, cgroup).unwrap();
        for pair in [&mut one, &mut other] {
            pair.client.write_all(GET).unwrap();
            pair.server.read_exact(&mut [0; GET.len()]).unwrap();
        }
        watcher.take(|passed| panic!("{passed:?}"));
        watcher.forget(one.cookie);
        let error = watcher.watch(one.cookie, CgroupId(u64::MAX)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
        assert!(watcher.watched(one.cookie).is_none());
    }
}
