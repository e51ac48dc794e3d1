//! The frames of HTTP/2 (RFC 9113) in what a server sends, followed by their headers alone.
//!
//! The same code runs in the kernel, on each send of a connection that is about to be asked to
//! leave, and on the host, where it is tested. It starts at a boundary between two frames and
//! stops for good at the first bytes that it does not understand, or does not see: what it has not
//! followed is no boundary.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a frame's header.
pub const HEADER: u32 = 9;

/// The longest payload that is followed: the most that every peer must accept.
pub const MOST_PAYLOAD: u32 = 1 << 14;

/// Frames in one send; with more it is not followed.
pub const MOST_FRAMES: u32 = 64;

/// GOAWAY without an error, with the highest stream that there can be: no call is refused, and the
/// client opens no further ones on this connection.
pub const GOAWAY: [u8; 17] = [
    0,
    0,
    8,
    kind::GOAWAY,
    0,
    0,
    0,
    0,
    0, // the header
    0x7f,
    0xff,
    0xff,
    0xff, // the last stream
    0,
    0,
    0,
    0, // NO_ERROR
];

/// The types of frames.
pub mod kind {
    /// Part of a body.
    pub const DATA: u8 = 0;
    /// The first, or only, part of a header block.
    pub const HEADERS: u8 = 1;
    /// The end of a stream that failed.
    pub const RST_STREAM: u8 = 3;
    /// Settings, or their acknowledgement.
    pub const SETTINGS: u8 = 4;
    /// A ping, or its answer.
    pub const PING: u8 = 6;
    /// The end of the connection is announced.
    pub const GOAWAY: u8 = 7;
    /// More may be sent.
    pub const WINDOW_UPDATE: u8 = 8;
    /// A further part of a header block.
    pub const CONTINUATION: u8 = 9;
}

/// Bits of [`Header::flags`].
pub mod flag {
    /// Of SETTINGS and PING: an acknowledgement.
    pub const ACK: u8 = 0x1;
    /// Of DATA and HEADERS: the sender's last on this stream.
    pub const END_STREAM: u8 = 0x1;
    /// Of HEADERS and CONTINUATION: the block's last part.
    pub const END_HEADERS: u8 = 0x4;
    /// Of DATA and HEADERS: the payload is padded.
    pub const PADDED: u8 = 0x8;
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of payload.
    pub length: u32,
    /// One of [`kind`], or another.
    pub kind: u8,
    /// Bits of [`flag`], and others.
    pub flags: u8,
    /// The stream, with the reserved highest bit.
    pub stream: u32,
}

impl Header {
    /// From its bytes.
    #[inline(always)]
    pub const fn new(bytes: [u8; HEADER as usize]) -> Self {
        Self {
            length: u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]),
            kind: bytes[3],
            flags: bytes[4],
            stream: u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]),
        }
    }

    /// Whether it has no other flags than these.
    #[inline(always)]
    pub const fn only(&self, allowed: u8) -> bool {
        self.flags & !allowed == 0
    }

    /// Whether it is of a stream that a client has opened.
    #[inline(always)]
    pub const fn of_request(&self) -> bool {
        self.stream & 1 == 1 && self.stream >> 31 == 0
    }

    /// Whether a server can have sent it, as far as it shows by itself. Frames that servers of calls
    /// do not send are not among them, such as PUSH_PROMISE and extensions.
    #[inline(always)]
    const fn is_of_server(&self) -> bool {
        let of_connection = self.stream == 0;
        match self.kind {
            // An empty one that ends nothing has no use, and is what zeros look like.
            kind::DATA => {
                self.of_request()
                    && self.only(flag::END_STREAM | flag::PADDED)
                    && (self.length > 0 || self.flags == flag::END_STREAM)
            }
            kind::HEADERS => {
                self.of_request()
                    && self.only(flag::END_STREAM | flag::END_HEADERS | flag::PADDED)
                    && self.length > 0
            }
            kind::RST_STREAM => self.of_request() && self.flags == 0 && self.length == 4,
            kind::SETTINGS => {
                of_connection
                    && (self.flags == 0 && self.length.is_multiple_of(6)
                        || self.flags == flag::ACK && self.length == 0)
            }
            kind::PING => of_connection && self.only(flag::ACK) && self.length == 8,
            kind::GOAWAY => of_connection && self.flags == 0 && self.length >= 8,
            kind::WINDOW_UPDATE => {
                (of_connection || self.of_request()) && self.flags == 0 && self.length == 4
            }
            _ => false,
        }
    }
}

/// Why a connection is not followed any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Stop {
    /// Not the header of a frame that a server sends there.
    NoFrame = 1,
    /// A payload longer than [`MOST_PAYLOAD`].
    TooLong = 2,
    /// A header that one send begins and another ends.
    Split = 3,
    /// More than [`MOST_FRAMES`] in one send.
    TooMany = 4,
    /// A header that cannot be read.
    Unreadable = 5,
    /// The server has announced the end of the connection itself.
    GoAway = 6,
}

/// Where a server's stream of bytes is between, or within, its frames. All zeros: at a boundary.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Frames {
    /// Bytes of the present frame's payload that are still to come.
    pub left: u32,
    /// The stream whose header block is open, or 0.
    pub block: u32,
    /// The highest stream of a HEADERS frame so far, or 0.
    pub newest: u32,
}

impl Frames {
    /// Whether the next byte begins a frame, before which another one may stand.
    #[inline(always)]
    pub const fn is_at_boundary(&self) -> bool {
        self.left == 0 && self.block == 0
    }

    /// Follows one send of `size` bytes. `read` gives the nine bytes at a place in it; `None`: they
    /// cannot be read.
    ///
    /// # Errors
    /// It cannot be followed any further, from here on or later.
    #[inline(always)]
    pub fn send(
        &mut self,
        size: u32,
        mut read: impl FnMut(u32) -> Option<[u8; HEADER as usize]>,
    ) -> Result<(), Stop> {
        let mut at = 0;
        for _ in 0..=MOST_FRAMES {
            let ahead = size - at;
            if self.left >= ahead {
                self.left -= ahead;
                return Ok(());
            }
            at += self.left;
            if size - at < HEADER {
                return Err(Stop::Split);
            }
            let header = read(at).ok_or(Stop::Unreadable)?;
            self.header(Header::new(header))?;
            at += HEADER;
        }
        Err(Stop::TooMany)
    }

    /// Takes in the next frame's header.
    #[inline(always)]
    fn header(&mut self, header: Header) -> Result<(), Stop> {
        if header.length > MOST_PAYLOAD {
            return Err(Stop::TooLong);
        }
        if self.block != 0 {
            // Nothing else may stand within a header block.
            if header.kind != kind::CONTINUATION
                || header.stream != self.block
                || !header.only(flag::END_HEADERS)
            {
                return Err(Stop::NoFrame);
            }
        } else if !header.is_of_server() {
            return Err(Stop::NoFrame);
        } else if header.kind == kind::GOAWAY {
            return Err(Stop::GoAway);
        } else if header.kind == kind::HEADERS && header.stream > self.newest {
            self.newest = header.stream;
        }
        if header.kind == kind::HEADERS || header.kind == kind::CONTINUATION {
            self.block = if header.flags & flag::END_HEADERS == 0 {
                header.stream
            } else {
                0
            };
        }
        self.left = header.length;
        Ok(())
    }
}
