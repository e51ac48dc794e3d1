//! Whether all that was asked on a connection has been answered, by the framing of HTTP/1 itself.
//!
//! A pause is no end: answers are streamed, announced by others (103), held up by their servers. So
//! both directions of a connection are followed from a moment at which nothing was under way. Then
//! the client's next bytes begin a request, and from there on each message says where it ends. What
//! does not say so, or is not understood, is not complete.
//!
//! Whether all bytes were seen is found out by TCP's own counters: an exchange is complete only if
//! they say that there are no others. So it does no harm if some were missed.

mod first_bytes;
mod http1;
mod stream;
#[cfg(test)]
mod tests;

pub use rebalancer_common::Direction;
pub use stream::Content;

use first_bytes::FirstBytes;
use http1::Conversation;
use stream::{Kept, Stream};

/// So often it must begin with something else than a request: the moment from which it was followed
/// may have been within something, such as before the body that the server has asked for.
const STRANGE: u32 = 2;

/// Pieces kept until it is known which of TCP's counters they belong to, and the bytes in them.
const MOST_EARLY: usize = 256;
const MOST_EARLY_BYTES: usize = 256 << 10;

/// TCP's counters of a connection of which nothing is unacknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Bytes received in order.
    pub received: u64,
    /// Bytes sent and acknowledged.
    pub acked: u64,
}

/// The sequence number of what the counters count first, by [`Direction`].
pub type Base = [u32; 2];

/// Bytes of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Where they go.
    pub direction: Direction,
    /// Sequence number of the first.
    pub seq: u32,
    /// The bytes, or how many there are.
    pub content: Content<'a>,
}

/// What is known of a connection at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is not followed: it must be at rest first.
    Lost,
    /// It is followed, and nothing was said since.
    Resting,
    /// Something was asked and is not answered in full, or not known to be.
    InProgress,
    /// Something was asked, and all that was asked is answered in full.
    Complete,
    /// It speaks something else.
    Not(Other),
}

/// What it speaks that is not HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// HTTP/2.
    Http2,
    /// TLS.
    Tls,
    /// What its client asked for by HTTP/1: a WebSocket, a tunnel.
    Upgraded,
    /// Something else.
    Unknown,
}

/// Why a connection cannot be followed any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// Something was missed, or is not understood.
    Lost,
    /// Its client began something else than a request.
    Strange(FirstBytes),
    /// It has become something else, at its client's wish.
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
    /// Nothing is known but who has spoken.
    Lost(Spoken),
    /// At rest; what was passed on since is kept until the base is known.
    Early {
        rest: Position,
        pieces: Vec<(Direction, u32, Kept)>,
        bytes: usize,
    },
    On(Box<Following>),
    Not(Other),
}

/// Who has spoken, as far as it was seen.
#[derive(Clone, Copy, Debug)]
struct Spoken {
    /// Who has said something new last.
    last: Option<Direction>,
    /// The sequence number after what each has said.
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
    /// It is at rest: its client has heard all that the server has said, and is to speak next. What
    /// is passed on from now on was said since.
    pub fn rest(&mut self, at: Position) {
        if matches!(self.follow, Follow::Not(_)) {
            return;
        }
        self.follow = Follow::Early {
            rest: at,
            pieces: Vec::new(),
            bytes: 0,
        };
        self.begin();
    }

    /// The base has become known.
    pub fn based(&mut self, base: Base) {
        self.base = Some(base);
        self.begin();
    }

    /// Takes in what was passed on.
    pub fn take_in(&mut self, piece: Piece<'_>) {
        match &mut self.follow {
            Follow::Lost(spoken) => spoken.take_in(piece),
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

    /// What is known, where TCP is `at`. All that was passed on before it was asked must have been
    /// taken in: what is missing then never comes, and the connection is lost.
    pub fn state(&mut self, at: Position) -> State {
        let on = match &self.follow {
            Follow::Lost(_) => return State::Lost,
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

    /// Whether it is to be told when it is at rest. Until then no byte of it is wanted, but who speaks.
    pub fn is_lost(&self) -> bool {
        matches!(self.follow, Follow::Lost(_))
    }

    /// Whether nothing of it matters any more.
    pub fn is_over(&self) -> bool {
        matches!(self.follow, Follow::Not(_))
    }

    /// Whether the server was seen to speak last, where TCP is `at`. By data alone, so that what a
    /// clock does not tell apart is told, and no acknowledgement is taken for a word.
    pub fn server_spoke_last(&mut self, at: Position) -> bool {
        match (&self.follow, self.base) {
            (Follow::Lost(spoken), Some(base)) => {
                spoken.last == Some(Direction::Out) && spoken.ends == seqs(base, at).map(Some)
            }
            _ => self.state(at) == State::Complete,
        }
    }

    /// The sequence number before which no bytes are wanted, if there is one: there a long body ends.
    pub fn skip_to(&self, direction: Direction) -> Option<u32> {
        /// Shorter ones are not worth the words.
        const LONG: u64 = 16 << 10;
        /// Half of what sequence numbers can tell apart is still ahead then.
        const FAR: u64 = 1 << 30;
        let Follow::On(on) = &self.follow else {
            return None;
        };
        let left = on.conversation.needless(direction);
        let at = on.streams[direction as usize].at();
        match left {
            ..LONG => None,
            LONG..FAR => Some(at.wrapping_add(left as u32)),
            // In steps, so that it changes seldom.
            FAR.. => Some((at & !(FAR as u32 / 2 - 1)).wrapping_add(FAR as u32)),
        }
    }

    /// Begins to follow it, once it has been at rest and the base is known.
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
        // What is sent again says nothing.
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

    /// TCP has what was not passed on, and not only within a body.
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

/// Sequence numbers of what comes next.
fn seqs(base: Base, at: Position) -> [u32; 2] {
    [
        base[0].wrapping_add(at.received as u32),
        base[1].wrapping_add(at.acked as u32),
    ]
}
