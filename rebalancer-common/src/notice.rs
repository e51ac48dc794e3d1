//! The record of a connection that is about to be asked to leave by HTTP/2's own word for it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::frames::Frames;

/// Values of [`Notice::state`]. Others: it is not followed any further, as a
/// [`frames::Stop`](crate::frames::Stop).
pub mod state {
    /// Its sends are followed.
    pub const FOLLOWED: u32 = 0;
    /// It was notified.
    pub const NOTIFIED: u32 = 16;
    /// Not followed any further: something was sent that the program did not see.
    pub const MISSED: u32 = 17;
    /// Not followed any further: a send of pages that are not its own, as by `sendfile`.
    pub const SHARED: u32 = 18;
    /// Not followed any further: the kernel made no room for it.
    pub const REFUSED: u32 = 19;
}

/// Sends that must have ended at a boundary before a connection is notified.
pub const MIN_SENDS: u32 = 2;

/// The longest send before which it is notified: well under the smallest send buffer in use, so that the
/// kernel takes it as a whole.
pub const MOST_BYTES: u32 = 16 << 10;

/// A value of the `notices` map: made by the agent before the socket joins, and from then on written
/// by the kernel half alone.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Notice {
    /// Where its sends are within frames. It joins at a boundary.
    pub frames: Frames,
    /// The sequence number at which the next send begins, if none is missed.
    pub next: u32,
    /// Sends that have ended at a boundary.
    pub sends: u32,
    /// One of [`state`].
    pub state: u32,
}
