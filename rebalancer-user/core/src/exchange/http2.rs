//! The requests that a client of HTTP/2 opens, followed from a rest on.
//!
//! An answer to one of them shows two things of the server's sends: they are followed at the right
//! places, and the server has not announced the connection's end before.

use std::{mem, ops::RangeInclusive};

use rebalancer_common::frames::{HEADER, Header, flag, kind};

use super::{
    Stop,
    first_bytes::{FirstBytes, first_bytes},
    stream::{Content, Reader, Stream},
};

/// Of HEADERS: the payload begins with five bytes about its priority.
const PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: u64 = 5;

/// What a client sends.
#[derive(Debug)]
pub(super) struct Requests {
    stream: Stream,
    frames: Frames,
    /// Where the server's direction was at the rest.
    out: u32,
}

#[derive(Debug, Default)]
struct Frames {
    header: Vec<u8>,
    /// Bytes of the present frame's payload that are still to come.
    left: u64,
    /// HEADERS that end their stream, and the bytes before the first that shows whether they are a
    /// request or trailers.
    unclear: Option<(u32, u64)>,
    /// The first stream that was opened since the rest.
    opened: Option<u32>,
    /// The highest stream that was used since.
    highest: u32,
    /// Not followed any further.
    lost: bool,
}

impl Requests {
    /// From a rest on, with the next sequence numbers of both directions.
    pub(super) fn new([inward, out]: [u32; 2]) -> Self {
        Self {
            stream: Stream::new(inward),
            frames: Frames::default(),
            out,
        }
    }

    /// Takes in what the client has sent.
    pub(super) fn take_in(&mut self, seq: u32, content: Content<'_>) {
        let Self { stream, frames, .. } = self;
        if !frames.lost && stream.take_in(seq, content, frames).is_err() {
            frames.lost = true;
        }
    }

    /// The first stream that the client has opened since the rest, and the last one that it may have.
    pub(super) fn opened(&self) -> Option<RangeInclusive<u32>> {
        Some(self.frames.opened?..=self.frames.highest)
    }

    pub(super) fn at(&self) -> u32 {
        self.stream.at()
    }

    /// Where the server's direction was at the rest.
    pub(super) fn out(&self) -> u32 {
        self.out
    }

    /// The number of next bytes of the client that need not be seen.
    pub(super) fn needless(&self) -> u64 {
        self.frames.needless()
    }
}

impl Frames {
    fn header(&mut self, bytes: &[u8; HEADER as usize]) -> Result<(), Stop> {
        let header = Header::new(*bytes);
        let continued = header.kind == kind::CONTINUATION && header.of_request();
        if !continued && first_bytes(bytes) != FirstBytes::Http2 {
            return Err(Stop::Lost);
        }
        self.left = header.length.into();
        self.highest = self.highest.max(header.stream);
        if header.kind == kind::HEADERS && self.opened.is_none() {
            if header.flags & flag::END_STREAM == 0 {
                // Trailers end their stream.
                self.opened = Some(header.stream);
            } else if header.flags & flag::PADDED == 0 {
                let before = match header.flags & PRIORITY {
                    0 => 0,
                    _ => PRIORITY_BYTES,
                };
                self.unclear = Some((header.stream, before));
            }
        }
        Ok(())
    }
}

impl Reader for Frames {
    fn bytes(&mut self, mut bytes: &[u8]) -> Result<(), Stop> {
        while let [first, rest @ ..] = bytes {
            if let Some((stream, before)) = &mut self.unclear
                && self.left > 0
            {
                if *before > 0 {
                    *before -= 1;
                } else {
                    if is_of_request(*first) {
                        self.opened = Some(*stream);
                    }
                    self.unclear = None;
                }
                self.left -= 1;
                bytes = rest;
            } else if self.left > 0 {
                let skipped =
                    usize::try_from(self.left).map_or(bytes.len(), |n| n.min(bytes.len()));
                self.left -= skipped as u64;
                bytes = bytes.get(skipped..).unwrap_or_default();
            } else {
                self.unclear = None;
                self.header.push(*first);
                bytes = rest;
                if let Ok(header) = self.header.as_slice().try_into() {
                    let header: [u8; HEADER as usize] = header;
                    mem::take(&mut self.header);
                    self.header(&header)?;
                }
            }
        }
        Ok(())
    }

    fn skip(&mut self, count: u64) {
        self.left = self.left.saturating_sub(count);
    }

    fn needless(&self) -> u64 {
        match self.unclear {
            None => self.left,
            Some(_) => 0,
        }
    }
}

/// Whether a header block that begins with this byte is a request's: a pseudo-header of requests,
/// by its place in the static table of RFC 7541. Trailers have none.
fn is_of_request(first: u8) -> bool {
    let index = match first {
        0x80.. => first & 0x7f,
        0x40.. => first & 0x3f,
        0x20.. => return false, // a new size of the dynamic table
        _ => first & 0x0f,
    };
    matches!(index, 1..=7)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream];
        frame.extend(payload);
        frame
    }

    /// The first stream opened, however the bytes are cut.
    fn opened(bytes: &[u8]) -> Option<RangeInclusive<u32>> {
        let followed = |size| {
            let mut requests = Requests::new([u32::MAX, 0]);
            let mut seq = u32::MAX;
            for piece in bytes.chunks(size) {
                requests.take_in(seq, Content::Present(piece));
                seq = seq.wrapping_add(piece.len() as u32);
            }
            requests.opened()
        };
        let whole = followed(bytes.len());
        for size in 1..20 {
            assert_eq!(followed(size), whole, "{size}");
        }
        whole
    }

    #[test]
    fn the_first_request_after_the_rest_is_found() {
        let call = frame(kind::HEADERS, flag::END_HEADERS, 7, &[0x83, 0xc0]);
        let body = frame(kind::DATA, flag::END_STREAM, 5, b"0123456789");
        let ping = frame(6, 1, 0, b"01234567");
        let both = flag::END_HEADERS | flag::END_STREAM;
        let trailers = frame(kind::HEADERS, both, 5, &[0xbe, 0x82]);
        let get = frame(kind::HEADERS, both, 9, &[0x82, 0xbe]);
        let fields = [0, 0, 0, 0, 16, 0x41, 1];
        let prior = frame(kind::HEADERS, both | PRIORITY, 9, &fields);
        let text = b"GET / HTTP/1.1".to_vec();
        for (case, frames, stream) in [
            ("a call", &[&body, &ping, &call][..], Some(7)),
            ("a GET", &[&trailers, &body, &get], Some(9)),
            ("one with a priority", &[&trailers, &ping, &prior], Some(9)),
            ("trailers alone", &[&trailers], None),
            // What is not understood ends it.
            ("text before a call", &[&ping, &text, &call], None),
        ] {
            let bytes: Vec<u8> = frames.iter().copied().flatten().copied().collect();
            assert_eq!(opened(&bytes), stream.map(|id| id..=id), "{case}");
        }
    }

    #[test]
    fn payloads_may_be_skipped_and_what_is_missed_ends_it() {
        let call = frame(kind::HEADERS, flag::END_HEADERS, 7, &[0x83, 0xc0]);
        let mut requests = Requests::new([100, 0]);
        requests.take_in(
            100,
            Content::Present(&frame(kind::DATA, 0, 5, &[0; 50])[..9]),
        );
        assert_eq!((requests.needless(), requests.at()), (50, 109));
        requests.take_in(159, Content::Present(&call));
        assert_eq!(requests.opened(), Some(7..=7));
        let mut requests = Requests::new([100, 0]);
        requests.take_in(100, Content::Absent(9));
        requests.take_in(109, Content::Present(&call));
        assert_eq!(requests.opened(), None);
    }
}
