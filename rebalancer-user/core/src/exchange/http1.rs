//! Follows the messages of HTTP/1 in both directions (RFC 9112), strictly: a message whose framing
//! can be read in more than one way is given up.

use std::collections::VecDeque;

use httparse::{EMPTY_HEADER, Header, Request, Response, Status, parse_chunk_size};

use super::{Direction, Stop, first_bytes::first_bytes, stream::Reader};

/// The longest head of a message, and its most fields.
const MOST_HEAD: usize = 64 << 10;
const MOST_FIELDS: usize = 256;
/// A longer head is parsed at the ends of its lines only.
const LONG_HEAD: usize = 1 << 10;

/// The longest chunk header or trailer line.
const MOST_LINE: usize = 8 << 10;

/// The most pipelined requests.
const MOST_ASKED: usize = 1024;

/// Both directions, from a moment at which no exchange was in progress.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    client: Part,
    server: Part,
    /// Requests without a final answer, the oldest first.
    asked: VecDeque<Asked>,
    /// What the last request means for what its client sends next.
    last: Last,
    answered: bool,
}

/// What a request means for its answer.
#[derive(Clone, Copy, Debug)]
struct Asked {
    head: bool,
    connect: bool,
}

/// What a request means for what follows it.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    /// It asks for an upgrade: its answer determines what follows.
    stops: bool,
    /// Its body is sent once the server asks for it, or not at all.
    expects: bool,
}

/// The position of a direction within a message.
#[derive(Debug)]
enum Part {
    /// In the head, of which this was received; empty between two messages.
    Head(Vec<u8>),
    /// In a body of which this many bytes are missing.
    Sized(u64),
    /// In the header of a chunk.
    ChunkLine(Vec<u8>),
    /// In a chunk of which this many bytes are missing.
    Chunk(u64),
    /// In the CRLF after a chunk, of which this many bytes were received.
    ChunkEnd(usize),
    /// In the trailers.
    Trailer(Vec<u8>),
    /// In a body that ends with the connection.
    UntilClose,
    /// After a request for an upgrade; what follows waits for its answer.
    Stopped(Vec<u8>),
}

impl Default for Part {
    fn default() -> Self {
        Self::Head(Vec::new())
    }
}

impl Part {
    fn is_between(&self) -> bool {
        matches!(self, Self::Head(seen) if seen.is_empty())
    }

    fn needless(&self) -> u64 {
        match self {
            Self::Sized(left) | Self::Chunk(left) => *left,
            Self::UntilClose => u64::MAX,
            _ => 0,
        }
    }
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Sized(u64),
    Chunked,
    UntilClose,
}

impl From<Body> for Part {
    fn from(body: Body) -> Self {
        match body {
            Body::Sized(length) => Self::Sized(length),
            Body::Chunked => Self::ChunkLine(Vec::new()),
            Body::UntilClose => Self::UntilClose,
        }
    }
}

impl Conversation {
    /// Whether no message is in progress in either direction.
    pub(super) fn is_at_rest(&self) -> bool {
        self.asked.is_empty() && self.client.is_between() && self.server.is_between()
    }

    /// Whether there were requests, and each is answered.
    pub(super) fn has_answered(&self) -> bool {
        self.answered
    }

    /// The number of next bytes that need not be seen.
    pub(super) fn needless(&self, direction: Direction) -> u64 {
        match direction {
            Direction::In => self.client.needless(),
            Direction::Out => self.server.needless(),
        }
    }

    pub(super) fn side(&mut self, direction: Direction) -> Side<'_> {
        Side {
            conversation: self,
            direction,
        }
    }

    fn part(&mut self, direction: Direction) -> &mut Part {
        match direction {
            Direction::In => &mut self.client,
            Direction::Out => &mut self.server,
        }
    }

    fn read(&mut self, direction: Direction, mut bytes: &[u8]) -> Result<(), Stop> {
        while !bytes.is_empty() {
            // After a failure it is not followed further.
            let part = std::mem::take(self.part(direction));
            let (next, rest) = match part {
                Part::Head(seen) => self.head(direction, seen, bytes)?,
                body => read_body(body, bytes)?,
            };
            *self.part(direction) = next;
            bytes = rest;
            self.settle(direction);
        }
        Ok(())
    }

    /// Ends a body of which nothing is missing.
    fn settle(&mut self, direction: Direction) {
        let part = self.part(direction);
        match part {
            Part::Sized(0) => *part = Part::default(),
            Part::Chunk(0) => *part = Part::ChunkEnd(0),
            _ => {}
        }
        if direction == Direction::In && self.client.is_between() && self.last.stops {
            self.client = Part::Stopped(Vec::new());
        }
    }

    fn skip(&mut self, direction: Direction, count: u64) {
        match self.part(direction) {
            Part::Sized(left) | Part::Chunk(left) => *left = left.saturating_sub(count),
            _ => {}
        }
        self.settle(direction);
    }

    /// Reads more of a head. Returns what follows it, and the rest of `bytes`.
    fn head<'a>(
        &mut self,
        direction: Direction,
        mut seen: Vec<u8>,
        bytes: &'a [u8],
    ) -> Result<(Part, &'a [u8]), Stop> {
        if direction == Direction::Out && self.asked.is_empty() {
            return Err(Stop::Lost); // an answer without a request
        }
        let before = seen.len();
        let room = MOST_HEAD.saturating_sub(before).min(bytes.len());
        seen.extend_from_slice(&bytes[..room]);
        if direction == Direction::In {
            // Old clients send an empty line after a body (RFC 9112, 2.2).
            let empty = seen.chunks(2).take_while(|line| *line == b"\r\n").count() * 2;
            if empty == seen.len() {
                let end = (seen.len() - before).min(bytes.len());
                return Ok((Part::default(), &bytes[end..]));
            }
        }
        // A long head is not parsed again for each of its bytes.
        let parsed = match direction {
            _ if before > LONG_HEAD && !bytes.contains(&b'\n') => None,
            Direction::In => self.request(&seen)?,
            Direction::Out => self.answer(&seen)?,
        };
        match parsed {
            // It ends within `bytes`, or it would have been complete before.
            Some((end, next)) => Ok((next, &bytes[end.saturating_sub(before)..])),
            None if seen.len() >= MOST_HEAD => Err(Stop::Lost),
            None => Ok((Part::Head(seen), &[])),
        }
    }

    fn request(&mut self, seen: &[u8]) -> Result<Option<(usize, Part)>, Stop> {
        let mut fields = [EMPTY_HEADER; MOST_FIELDS];
        let mut request = Request::new(&mut fields);
        let end = match request.parse(seen) {
            Ok(Status::Complete(end)) => end,
            Ok(Status::Partial) => return Ok(None),
            Err(_) => return Err(Stop::Strange(first_bytes(seen))),
        };
        if self.asked.len() >= MOST_ASKED {
            return Err(Stop::Lost);
        }
        let is = |name: &str| named(request.headers, name).next().is_some();
        let connect = request.method == Some("CONNECT");
        self.last = Last {
            stops: connect || is("upgrade"),
            expects: is("expect"),
        };
        self.asked.push_back(Asked {
            head: request.method == Some("HEAD"),
            connect,
        });
        let length = length(request.headers)?;
        let body = match codings(request.headers, request.version)? {
            None => Body::Sized(length.unwrap_or(0)),
            Some(Coding::Chunked) if length.is_none() => Body::Chunked,
            Some(_) => return Err(Stop::Lost),
        };
        Ok(Some((end, body.into())))
    }

    fn answer(&mut self, seen: &[u8]) -> Result<Option<(usize, Part)>, Stop> {
        let mut fields = [EMPTY_HEADER; MOST_FIELDS];
        let mut response = Response::new(&mut fields);
        let end = match response.parse(seen) {
            Ok(Status::Complete(end)) => end,
            Ok(Status::Partial) => return Ok(None),
            Err(_) => return Err(Stop::Lost),
        };
        let code = response.code.unwrap_or(0);
        match code {
            101 => return Err(Stop::Upgraded),
            100..200 => return Ok(Some((end, Part::default()))),
            200..600 => {}
            _ => return Err(Stop::Lost),
        }
        let asked = self.asked.pop_front().ok_or(Stop::Lost)?;
        if asked.connect && (200..300).contains(&code) {
            return Err(Stop::Upgraded);
        }
        let length = length(response.headers)?;
        let body = match codings(response.headers, response.version)? {
            _ if asked.head || code == 204 || code == 304 => Body::Sized(0),
            Some(_) if length.is_some() => return Err(Stop::Lost),
            Some(Coding::Chunked) => Body::Chunked,
            Some(Coding::Other) => Body::UntilClose,
            None => length.map_or(Body::UntilClose, Body::Sized),
        };
        self.answered = true;
        if self.asked.is_empty() {
            self.last_is_answered()?;
        }
        Ok(Some((end, body.into())))
    }

    /// The last request is answered without an upgrade: HTTP/1 follows.
    fn last_is_answered(&mut self) -> Result<(), Stop> {
        // Whether its body comes is its client's choice.
        if self.last.expects && !self.client.is_between() {
            return Err(Stop::Lost);
        }
        self.last = Last::default();
        if let Part::Stopped(waits) = &mut self.client {
            let waits = std::mem::take(waits);
            self.client = Part::default();
            self.read(Direction::In, &waits)?;
        }
        Ok(())
    }
}

/// Reads more of a body. Returns what follows it, and the rest of `bytes`.
fn read_body(part: Part, bytes: &[u8]) -> Result<(Part, &[u8]), Stop> {
    Ok(match part {
        Part::Sized(left) => {
            let now = left.min(bytes.len() as u64);
            (Part::Sized(left - now), &bytes[now as usize..])
        }
        Part::Chunk(left) => {
            let now = left.min(bytes.len() as u64);
            (Part::Chunk(left - now), &bytes[now as usize..])
        }
        Part::ChunkEnd(seen) => match (seen, bytes[0]) {
            (0, b'\r') => (Part::ChunkEnd(1), &bytes[1..]),
            (1, b'\n') => (Part::ChunkLine(Vec::new()), &bytes[1..]),
            _ => return Err(Stop::Lost),
        },
        Part::ChunkLine(mut line) => {
            let (ended, rest) = read_line(&mut line, bytes)?;
            let next = if ended {
                match chunk_size(&line)? {
                    0 => Part::Trailer(Vec::new()),
                    size => Part::Chunk(size),
                }
            } else {
                Part::ChunkLine(line)
            };
            (next, rest)
        }
        Part::Trailer(mut line) => {
            let (ended, rest) = read_line(&mut line, bytes)?;
            let next = match (ended, line.as_slice()) {
                (true, b"\r\n") => Part::default(),
                (true, [.., b'\r', b'\n']) if line.contains(&b':') => Part::Trailer(Vec::new()),
                (true, _) => return Err(Stop::Lost),
                (false, _) => Part::Trailer(line),
            };
            (next, rest)
        }
        Part::Stopped(mut waits) => {
            if waits.len() + bytes.len() > MOST_HEAD {
                return Err(Stop::Lost);
            }
            waits.extend_from_slice(bytes);
            (Part::Stopped(waits), &[])
        }
        Part::UntilClose => (Part::UntilClose, &[]),
        Part::Head(_) => return Err(Stop::Lost),
    })
}

/// Reads more of a line. Returns whether it has ended, and the rest of `bytes`.
fn read_line<'a>(line: &mut Vec<u8>, bytes: &'a [u8]) -> Result<(bool, &'a [u8]), Stop> {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let now = end.map_or(bytes.len(), |end| end + 1);
    if line.len() + now > MOST_LINE {
        return Err(Stop::Lost);
    }
    line.extend_from_slice(&bytes[..now]);
    Ok((end.is_some(), &bytes[now..]))
}

fn chunk_size(line: &[u8]) -> Result<u64, Stop> {
    // Without a digit it is 0 to the parser.
    match parse_chunk_size(line) {
        Ok(Status::Complete((end, size))) if end == line.len() && line[0].is_ascii_hexdigit() => {
            Ok(size)
        }
        _ => Err(Stop::Lost),
    }
}

/// The transfer coding of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    /// Chunked is the last coding.
    Chunked,
    /// Not chunked.
    Other,
}

fn codings(fields: &[Header<'_>], version: Option<u8>) -> Result<Option<Coding>, Stop> {
    let mut last = None;
    for value in named(fields, "transfer-encoding") {
        for coding in value.split(|byte| *byte == b',') {
            // No coding may follow chunked, and HTTP/1.0 has none.
            if last == Some(Coding::Chunked) || version != Some(1) {
                return Err(Stop::Lost);
            }
            last = Some(match coding.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                true => Coding::Chunked,
                false => Coding::Other,
            });
        }
    }
    Ok(last)
}

fn length(fields: &[Header<'_>]) -> Result<Option<u64>, Stop> {
    let mut length = None;
    for value in named(fields, "content-length") {
        let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let said = std::str::from_utf8(value)
            .ok()
            .and_then(|value| value.parse().ok());
        match said {
            Some(said) if digits && length.is_none_or(|length| length == said) => {
                length = Some(said);
            }
            _ => return Err(Stop::Lost),
        }
    }
    Ok(length)
}

fn named<'a>(fields: &'a [Header<'a>], name: &str) -> impl Iterator<Item = &'a [u8]> {
    fields
        .iter()
        .filter(move |field| field.name.eq_ignore_ascii_case(name))
        .map(|field| field.value)
}

/// One direction of a conversation.
pub(super) struct Side<'a> {
    conversation: &'a mut Conversation,
    direction: Direction,
}

impl Reader for Side<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.conversation.read(self.direction, bytes)
    }

    fn skip(&mut self, count: u64) {
        self.conversation.skip(self.direction, count);
    }

    fn needless(&self) -> u64 {
        self.conversation.needless(self.direction)
    }
}
