//! What the kernel half and the agent tell each other of a connection that is about to be moved.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Direction {
    /// From the client to the server.
    In = 0,
    /// From the server to the client.
    Out = 1,
}

/// Values of [`Watched::listening`].
pub mod listening {
    /// Nothing.
    pub const OFF: u32 = 0;
    /// That there were any, and how long they were.
    pub const LENGTHS: u32 = 1;
    /// Their bytes.
    pub const BYTES: u32 = 2;
}

/// What is wanted of a watched connection, and what was found out of it; a value of the `watched`
/// map. Only the agent writes what is wanted, only the kernel half the rest.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Watched {
    /// What is wanted of its segments, one of [`listening`].
    pub listening: u32,
    /// 1: `base` is known.
    pub based: u32,
    /// By [`Direction`]: the sequence number of the first byte that TCP's counters
    /// (`bytes_received`, `bytes_acked`) count. A byte's number is this and what they say before it.
    pub base: [u32; 2],
    /// By [`Direction`]: 1 if bytes before `skip_to` are not wanted.
    pub skipping: [u32; 2],
    /// By [`Direction`]: a sequence number.
    pub skip_to: [u32; 2],
}

/// Bytes of one segment, or the number of those that were not wanted. In the ring buffer
/// `segments`, followed by the bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Segment {
    /// The socket's cookie.
    pub cookie: u64,
    /// Sequence number of the first byte.
    pub seq: u32,
    /// How many bytes.
    pub length: u32,
    /// A [`Direction`].
    pub direction: u32,
    /// 1 if the bytes follow, 0 if they were not wanted.
    pub present: u32,
}

impl Segment {
    /// Most bytes that follow one.
    pub const MOST: usize = 4096;
}
