//! The records by which the kernel half passes the segments of a connection to the agent while it
//! is moved.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The direction of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Direction {
    /// From the client to the server.
    In = 0,
    /// From the server to the client.
    Out = 1,
}

/// Values of [`Sniffed::copy`].
pub mod copy {
    /// No segments.
    pub const OFF: u32 = 0;
    /// The lengths of segments.
    pub const LENGTHS: u32 = 1;
    /// The bytes of segments.
    pub const BYTES: u32 = 2;
}

/// A value of the `sniffed` map: what the agent wants copied, written by the agent alone, and
/// `base`, written by the kernel half alone.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Sniffed {
    /// What the agent wants of its segments, one of [`copy`].
    pub copy: u32,
    /// 1 if `base` is set.
    pub based: u32,
    /// By [`Direction`]: the sequence number at which TCP's counters (`bytes_received`,
    /// `bytes_acked`) are zero. Base plus counter is the sequence number of the next byte.
    pub base: [u32; 2],
    /// By [`Direction`]: 1 if the agent does not want bytes before `skip_to`.
    pub skipping: [u32; 2],
    /// By [`Direction`]: a sequence number.
    pub skip_to: [u32; 2],
}

/// A segment, or a range of bytes that the agent does not want. In the ring buffer `segments`,
/// followed by the bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Segment {
    /// The socket's cookie.
    pub cookie: u64,
    /// Sequence number of the first byte.
    pub seq: u32,
    /// Number of bytes.
    pub length: u32,
    /// A [`Direction`].
    pub direction: u32,
    /// 1 if the bytes follow, else 0.
    pub present: u32,
}

impl Segment {
    /// Maximum number of bytes in one record.
    pub const MOST: usize = 4096;
}
