//! One direction of a connection, put in order.

use std::collections::VecDeque;

use super::Stop;

/// The most pieces, and bytes in them, that wait for an earlier one. Beyond that it was missed, and
/// never comes.
const MOST_HELD: usize = 256;
const MOST_HELD_BYTES: usize = 256 << 10;

/// Bytes, or their number where they are not needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// These.
    Present(&'a [u8]),
    /// This many.
    Absent(u32),
}

impl<'a> Content<'a> {
    pub(super) fn len(self) -> u32 {
        match self {
            Self::Present(bytes) => bytes.len() as u32,
            Self::Absent(length) => length,
        }
    }

    /// Without its first `n`, of which it has at least as many.
    fn after(self, n: u32) -> Content<'a> {
        match self {
            Self::Present(bytes) => Content::Present(bytes.get(n as usize..).unwrap_or_default()),
            Self::Absent(length) => Content::Absent(length - n),
        }
    }
}

/// The same, owned.
#[derive(Debug)]
pub(super) enum Kept {
    Present(Vec<u8>),
    Absent(u32),
}

impl Kept {
    pub(super) fn content(&self) -> Content<'_> {
        match self {
            Self::Present(bytes) => Content::Present(bytes),
            Self::Absent(length) => Content::Absent(*length),
        }
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Present(bytes) => bytes.len(),
            Self::Absent(_) => 0,
        }
    }
}

impl From<Content<'_>> for Kept {
    fn from(content: Content<'_>) -> Self {
        match content {
            Content::Present(bytes) => Self::Present(bytes.to_vec()),
            Content::Absent(length) => Self::Absent(length),
        }
    }
}

/// Takes the bytes in order.
pub(super) trait Reader {
    /// The next bytes.
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Stop>;
    /// Skips this many bytes, at most [`Reader::needless`].
    fn skip(&mut self, count: u64);
    /// The number of next bytes that it does not need.
    fn needless(&self) -> u64;
}

/// One direction.
#[derive(Debug)]
pub(super) struct Stream {
    /// The next sequence number.
    at: u32,
    /// Pieces that are out of order.
    held: VecDeque<(u32, Kept)>,
    held_bytes: usize,
}

impl Stream {
    pub(super) fn new(at: u32) -> Self {
        Self {
            at,
            held: VecDeque::new(),
            held_bytes: 0,
        }
    }

    pub(super) fn at(&self) -> u32 {
        self.at
    }

    /// Whether a piece waits for an earlier one.
    pub(super) fn waits(&self) -> bool {
        !self.held.is_empty()
    }

    /// Passes on what is new and in order.
    pub(super) fn take_in(
        &mut self,
        seq: u32,
        content: Content<'_>,
        reader: &mut impl Reader,
    ) -> Result<(), Stop> {
        if !self.give(seq, content, reader)? {
            return self.hold(seq, content);
        }
        // Each may be followed by one that has waited.
        let mut unchanged = 0;
        while unchanged < self.held.len()
            && let Some((seq, held)) = self.held.pop_front()
        {
            if self.give(seq, held.content(), reader)? {
                self.held_bytes -= held.bytes();
                unchanged = 0;
            } else {
                self.held.push_back((seq, held));
                unchanged += 1;
            }
        }
        Ok(())
    }

    /// `false`: an earlier piece is missing.
    fn give(
        &mut self,
        seq: u32,
        content: Content<'_>,
        reader: &mut impl Reader,
    ) -> Result<bool, Stop> {
        let ahead = seq.wrapping_sub(self.at) as i32;
        let length = content.len();
        let content = if ahead > 0 {
            let missing = ahead as u32;
            if u64::from(missing) > reader.needless() {
                return Ok(false);
            }
            reader.skip(missing.into());
            self.at = seq;
            content
        } else {
            let known = ahead.unsigned_abs();
            if known >= length {
                return Ok(true); // seen before
            }
            content.after(known)
        };
        match content {
            Content::Present(bytes) => reader.bytes(bytes)?,
            Content::Absent(length) if u64::from(length) <= reader.needless() => {
                reader.skip(length.into());
            }
            Content::Absent(_) => return Err(Stop::Lost),
        }
        self.at = self.at.wrapping_add(content.len());
        Ok(true)
    }

    fn hold(&mut self, seq: u32, content: Content<'_>) -> Result<(), Stop> {
        let held = Kept::from(content);
        self.held_bytes += held.bytes();
        self.held.push_back((seq, held));
        if self.held.len() > MOST_HELD || self.held_bytes > MOST_HELD_BYTES {
            return Err(Stop::Lost);
        }
        Ok(())
    }
}
