//! Whether every request on a connection has its complete answer, by the framing of HTTP/1.
//!
//! A pause is not an end: answers are streamed, announced by others (103) or delayed by their servers.
//! So both directions of a connection are followed from a moment at rest, when no exchange is in
//! progress. The client's next bytes then begin a request, and from there on the framing of each
//! message gives its end. A message without such an end, or one that is not understood, is never
//! complete.
//!
//! TCP's counters show whether all bytes were seen: an exchange is complete only if there are no
//! others. So missed data can only delay a move.

mod first_bytes;
mod http1;
mod http2;
mod stream;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;

pub use rebalancer_common::Direction;
pub use stream::Content;

use first_bytes::FirstBytes;
use http1::Conversation;
use http2::Requests;
use stream::{Kept, Stream};

/// The number of rests after which the client must begin with something other than a request before
/// the protocol is given up: one rest may have been within a message, such as before the body that the
/// server has asked for.
const STRANGE: u32 = 2;

/// Pieces kept until it is known which of TCP's counters they belong to, and the bytes in them.
const MOST_EARLY: usize = 256;
const MOST_EARLY_BYTES: usize = 256 << 10;

/// TCP's counters of a connection on which everything is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Bytes received in order.
    pub received: u64,
    /// Bytes sent and acknowledged.
    pub acked: u64,
}

/// The sequence number at which the counters begin, by [`Direction`].
pub type Base = [u32; 2];

/// Bytes of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The direction in which they are sent.
    pub direction: Direction,
    /// The sequence number of the first.
    pub seq: u32,
    /// The bytes, or their number.
    pub content: Content<'a>,
}

/// What is known of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It cannot be followed before the next rest.
    Lost,
    /// It is followed, and nothing was sent since the rest.
    Resting,
    /// A request is not answered completely, or not known to be.
    InProgress,
    /// There were requests, and each is answered completely.
    Complete,
    /// Its protocol is not HTTP/1.
    Not(Other),
}

/// A protocol that is not HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// HTTP/2.
    Http2,
    /// TLS.
    Tls,
    /// An upgrade that the client asked for by HTTP/1: a WebSocket, a tunnel.
    Upgraded,
    /// Any other.
    Unknown,
}

/// Why a connection cannot be followed further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// Data was missed, or is not understood.
    Lost,
    /// Its client did not begin with a request.
    Strange(FirstBytes),
    /// It was upgraded, at its client's request.
    Upgraded,
}

/// One connection.
#[derive(Debug)]
pub struct Exchange {
    follow: Follow,
    base: Option<Base>,
    strange: u32,
}

#[derive(Debug)]
enum Follow {
    /// Nothing is known but which end sent last.
    Lost(Spoken),
    /// At rest; pieces since then are kept until the base is known.
    Early {
        rest: Position,
        pieces: Vec<(Direction, u32, Kept)>,
        bytes: usize,
    },
    On(Box<Following>),
    /// HTTP/2, whose requests are followed.
    Http2(Box<Requests>),
    Not(Other),
}

/// Which end sent last.
#[derive(Clone, Copy, Debug)]
struct Spoken {
    /// The direction of the last new data.
    last: Option<Direction>,
    /// The next sequence number of each direction.
    ends: [Option<u32>; 2],
}

#[derive(Debug)]
struct Following {
    streams: [Stream; 2],
    conversation: Conversation,
}

impl Default for Exchange {
    fn default() -> Self {
        Self {
            follow: Follow::LOST,
            base: None,
            strange: 0,
        }
    }
}

impl Exchange {
    /// The connection is at rest: the client has received everything, and sends next. Pieces from now on
    /// were sent since. On HTTP/2, the requests from now on are followed.
    pub fn rest(&mut self, at: Position) {
        match (&self.follow, self.base) {
            (Follow::Not(Other::Http2) | Follow::Http2(_), Some(base)) => {
                self.follow = Follow::Http2(Box::new(Requests::new(seqs(base, at))));
                return;
            }
            (Follow::Not(_) | Follow::Http2(_), _) => return,
            _ => {}
        }
        self.follow = Follow::Early {
            rest: at,
            pieces: Vec::new(),
            bytes: 0,
        };
        self.begin();
    }

    /// Sets the base.
    pub fn based(&mut self, base: Base) {
        self.base = Some(base);
        self.begin();
    }

    /// Takes in a piece.
    pub fn take_in(&mut self, piece: Piece<'_>) {
        match &mut self.follow {
            Follow::Lost(spoken) => spoken.take_in(piece),
            Follow::Http2(requests) => {
                if piece.direction == Direction::In {
                    requests.take_in(piece.seq, piece.content);
                }
            }
            Follow::Not(_) => {}
            Follow::Early { pieces, bytes, .. } => {
                let kept = Kept::from(piece.content);
                *bytes += kept.bytes();
                pieces.push((piece.direction, piece.seq, kept));
                if pieces.len() > MOST_EARLY || *bytes > MOST_EARLY_BYTES {
                    self.follow = Follow::LOST;
                }
            }
            Follow::On(on) => {
                if let Err(stop) = on.take_in(piece) {
                    self.stop(stop);
                }
            }
        }
    }

    /// The state, with TCP's counters `at`. All pieces up to them must have been taken in: data that is
    /// missing then never comes, and the connection is lost.
    pub fn state(&mut self, at: Position) -> State {
        let on = match &self.follow {
            Follow::Lost(_) => return State::Lost,
            Follow::Http2(_) => return State::Not(Other::Http2),
            Follow::Not(other) => return State::Not(*other),
            Follow::Early { rest, .. } if *rest == at => return State::Resting,
            Follow::Early { .. } => return State::InProgress,
            Follow::On(on) => on,
        };
        let Some(base) = self.base else {
            return State::InProgress; // it is known before anything is followed
        };
        let tcp = seqs(base, at);
        if on.is_behind(tcp) {
            self.follow = Follow::LOST;
            return State::Lost;
        }
        if !on.is_at(tcp) || !on.conversation.is_at_rest() {
            State::InProgress
        } else if on.conversation.has_answered() {
            State::Complete
        } else {
            State::Resting
        }
    }

    /// Whether it needs a rest. Until then no bytes are needed, only their sequence numbers.
    pub fn is_lost(&self) -> bool {
        matches!(self.follow, Follow::Lost(_))
    }

    /// Whether no further piece can change the state.
    pub fn is_over(&self) -> bool {
        matches!(self.follow, Follow::Not(_))
    }

    /// On HTTP/2, the first stream that the client has opened since the last rest, and the last one that it
    /// may have.
    pub fn opened(&self) -> Option<RangeInclusive<u32>> {
        match &self.follow {
            Follow::Http2(requests) => requests.opened(),
            _ => None,
        }
    }

    /// On HTTP/2, follows no requests any more, until the next rest.
    pub fn stop_following(&mut self) {
        if matches!(self.follow, Follow::Http2(_)) {
            self.follow = Follow::Not(Other::Http2);
        }
    }

    /// Whether the server sent last, with TCP's counters `at`. By sequence numbers of data alone: clocks
    /// are too coarse, and acknowledgements are not data.
    pub fn server_spoke_last(&mut self, at: Position) -> bool {
        match (&self.follow, self.base) {
            (Follow::Lost(spoken), Some(base)) => {
                spoken.last == Some(Direction::Out) && spoken.ends == seqs(base, at).map(Some)
            }
            _ => self.state(at) == State::Complete,
        }
    }

    /// The sequence number before which no bytes are needed, within a long body.
    pub fn skip_to(&self, direction: Direction) -> Option<u32> {
        /// The least that is worth skipping.
        const LONG: u64 = 16 << 10;
        /// The most: sequence numbers compare within half of their range.
        const FAR: u64 = 1 << 30;
        let (left, at) = match (&self.follow, direction) {
            (Follow::On(on), _) => (
                on.conversation.needless(direction),
                on.streams[direction as usize].at(),
            ),
            (Follow::Http2(requests), Direction::In) => (requests.needless(), requests.at()),
            (Follow::Http2(requests), Direction::Out) => {
                return Some(requests.out().wrapping_add(FAR as u32));
            }
            _ => return None,
        };
        match left {
            ..LONG => None,
            LONG..FAR => Some(at.wrapping_add(left as u32)),
            // In steps, so that it changes seldom.
            FAR.. => Some((at & !(FAR as u32 / 2 - 1)).wrapping_add(FAR as u32)),
        }
    }

    /// Begins to follow the connection, after a rest and once the base is known.
    fn begin(&mut self) {
        let Some(base) = self.base else { return };
        let Follow::Early { rest, pieces, .. } = &mut self.follow else {
            return;
        };
        let pieces = std::mem::take(pieces);
        self.follow = Follow::On(Box::new(Following {
            streams: seqs(base, *rest).map(Stream::new),
            conversation: Conversation::default(),
        }));
        for (direction, seq, kept) in pieces {
            self.take_in(Piece {
                direction,
                seq,
                content: kept.content(),
            });
        }
    }

    fn stop(&mut self, stop: Stop) {
        self.follow = match stop {
            Stop::Lost => Follow::LOST,
            Stop::Upgraded => Follow::Not(Other::Upgraded),
            Stop::Strange(first_bytes) => {
                self.strange += 1;
                match first_bytes {
                    _ if self.strange < STRANGE => Follow::LOST,
                    FirstBytes::Http2 => Follow::Not(Other::Http2),
                    FirstBytes::Tls => Follow::Not(Other::Tls),
                    FirstBytes::Other => Follow::Not(Other::Unknown),
                }
            }
        };
    }
}

impl Follow {
    const LOST: Self = Self::Lost(Spoken {
        last: None,
        ends: [None; 2],
    });
}

impl Spoken {
    fn take_in(&mut self, piece: Piece<'_>) {
        let end = piece.seq.wrapping_add(piece.content.len());
        let known = &mut self.ends[piece.direction as usize];
        // A retransmission is no new data.
        if known.is_none_or(|known| end.wrapping_sub(known) as i32 > 0) {
            *known = Some(end);
            self.last = Some(piece.direction);
        }
    }
}

impl Following {
    fn take_in(&mut self, piece: Piece<'_>) -> Result<(), Stop> {
        let direction = piece.direction;
        let mut side = self.conversation.side(direction);
        self.streams[direction as usize].take_in(piece.seq, piece.content, &mut side)
    }

    fn is_at(&self, tcp: [u32; 2]) -> bool {
        self.streams.each_ref().map(Stream::at) == tcp && !self.streams.iter().any(Stream::waits)
    }

    /// Whether TCP has counted data that was not taken in, other than within a body that is skipped.
    fn is_behind(&self, tcp: [u32; 2]) -> bool {
        [Direction::In, Direction::Out]
            .into_iter()
            .any(|direction| {
                let at = self.streams[direction as usize].at();
                let missed = tcp[direction as usize].wrapping_sub(at) as i32;
                missed > 0 && missed as u64 > self.conversation.needless(direction)
            })
    }
}

/// The next sequence numbers.
fn seqs(base: Base, at: Position) -> [u32; 2] {
    [
        base[0].wrapping_add(at.received as u32),
        base[1].wrapping_add(at.acked as u32),
    ]
}
