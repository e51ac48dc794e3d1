//! What is asked, and what its answer is made of: both the server and the clients know it from the
//! request's target alone.

use std::{str::FromStr, time::Duration};

use anyhow::{Context as _, Result};

use crate::paced::mix;

/// How the server writes its answer, or what it becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Sized,
    Chunked,
    Events,
    Tokens,
    Early,
    Upload,
    SplitHead,
    OnlyHead,
    Unchanged,
    File,
    SlowReader,
    Pipelined,
    OneWrite,
    UntilClose,
    WebSocket,
    H2c,
    Connect,
    /// Nothing, at once: it keeps a connection busy until that is old.
    Warm,
}

impl Kind {
    /// Those that are measured.
    pub(super) const ALL: [Self; 17] = [
        Self::Sized,
        Self::Chunked,
        Self::Events,
        Self::Tokens,
        Self::Early,
        Self::Upload,
        Self::SplitHead,
        Self::OnlyHead,
        Self::Unchanged,
        Self::File,
        Self::SlowReader,
        Self::Pipelined,
        Self::OneWrite,
        Self::UntilClose,
        Self::WebSocket,
        Self::H2c,
        Self::Connect,
    ];

    /// In a target.
    fn word(self) -> &'static str {
        match self {
            Self::Sized => "sized",
            Self::Chunked => "chunked",
            Self::Events => "events",
            Self::Tokens => "tokens",
            Self::Early => "early",
            Self::Upload => "upload",
            Self::SplitHead => "splithead",
            Self::OnlyHead => "onlyhead",
            Self::Unchanged => "unchanged",
            Self::File => "file",
            Self::SlowReader => "slowreader",
            Self::Pipelined => "pipelined",
            Self::OneWrite => "onewrite",
            Self::UntilClose => "untilclose",
            Self::WebSocket => "websocket",
            Self::H2c => "h2c",
            Self::Connect => "connect",
            Self::Warm => "warm",
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Sized => "`Content-Length`, in pieces",
            Self::Chunked => "chunks, cut anywhere, with a trailer",
            Self::Events => "event stream",
            Self::Tokens => "token stream, until `[DONE]`",
            Self::Early => "103 before the answer",
            Self::Upload => "100 before an upload",
            Self::SplitHead => "a head in several writes",
            Self::OnlyHead => "HEAD",
            Self::Unchanged => "304",
            Self::File => "a file, by sendfile",
            Self::SlowReader => "an answer that its client reads slowly",
            Self::Pipelined => "three pipelined requests",
            Self::OneWrite => "two and a half answers in one write",
            Self::UntilClose => "HTTP/1.0, until close",
            Self::WebSocket => "WebSocket",
            Self::H2c => "h2c by upgrade",
            Self::Connect => "CONNECT",
            Self::Warm => unreachable!("it is not measured"),
        }
    }

    /// What becomes something else than HTTP/1.
    pub(super) fn is_tunnel(self) -> bool {
        matches!(self, Self::WebSocket | Self::H2c | Self::Connect)
    }

    /// How many requests are written at once.
    pub(super) fn at_once(self) -> usize {
        match self {
            Self::Pipelined | Self::OneWrite => 3,
            _ => 1,
        }
    }
}

/// What an upload sends.
pub(super) const UPLOAD: &[u8] = b"what is uploaded";
/// The length of a file's answer.
pub(super) const FILE: usize = 512 << 10;

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) kind: Kind,
    pub(super) seed: u64,
    /// The longest pause of its answer, in milliseconds.
    pub(super) longest: u64,
}

impl Question {
    /// The whole request.
    pub(super) fn request(self) -> String {
        let Self {
            kind,
            seed,
            longest,
        } = self;
        let word = kind.word();
        if kind == Kind::Connect {
            let authority = format!("{word}-{seed}-{longest}:443");
            return format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
        }
        let method = match kind {
            Kind::OnlyHead => "HEAD",
            Kind::Upload => "PUT",
            _ => "GET",
        };
        let fields = match kind {
            Kind::Upload => format!(
                "Expect: 100-continue\r\nContent-Length: {}\r\n",
                UPLOAD.len()
            ),
            Kind::WebSocket => "Connection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                .to_owned(),
            Kind::H2c => "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                 HTTP2-Settings: AAMAAABkAAQAAP__\r\n"
                .to_owned(),
            _ => String::new(),
        };
        format!("{method} /{word}/{seed}/{longest} HTTP/1.1\r\nHost: answers\r\n{fields}\r\n")
    }

    /// Of the requests that are written at once, this and those that follow it.
    pub(super) fn all(self) -> impl Iterator<Item = Self> {
        (0..self.kind.at_once() as u64).map(move |more| Self {
            seed: self.seed + more,
            ..self
        })
    }

    /// What a number is drawn for.
    fn chance(self, what: u64) -> u64 {
        mix(mix(self.seed) ^ what)
    }

    /// How long the server waits before the piece with this number. Mostly 0.1 to 2 s; one of forty
    /// answers is held up once for as long as `longest`, or a half of that.
    pub(super) fn pause(self, piece: usize) -> Duration {
        const USUAL: u64 = 1900;
        let chance = self.chance(piece as u64);
        let held_up = self.chance(1000).is_multiple_of(40);
        let milliseconds = match self.kind {
            Kind::Warm => 0,
            _ if held_up && piece == 1 => self.longest / 2 + chance % (self.longest / 2 + 1),
            // As models speak: steadily, and now and then not.
            Kind::Tokens if piece > 0 && !chance.is_multiple_of(50) => 20 + chance % 31,
            // More short ones than long ones.
            _ => 100 + (chance % USUAL) * (mix(chance) % USUAL) / USUAL,
        };
        Duration::from_millis(milliseconds.min(self.longest))
    }

    /// The parts of the answer's body.
    pub(super) fn parts(self) -> Vec<Vec<u8>> {
        let count = 2 + self.chance(2000) % 4;
        match self.kind {
            Kind::Warm | Kind::OnlyHead | Kind::Unchanged => Vec::new(),
            kind if kind.is_tunnel() => Vec::new(),
            Kind::File | Kind::SlowReader => vec![file()],
            Kind::Events => (0..count)
                .map(|event| format!("id: {event}\ndata: {}\n\n", self.seed).into_bytes())
                .collect(),
            Kind::Tokens => {
                let tokens = 30 + self.chance(2001) % 60;
                let token =
                    |token| format!("data: {{\"t\":\"{:x}\"}}\n\n", self.chance(token) >> 48);
                let tokens = (0..tokens).map(token);
                let done = "data: [DONE]\n\n".to_owned();
                tokens.chain([done]).map(String::into_bytes).collect()
            }
            _ => (0..count)
                .map(|part| {
                    let length = 1 + self.chance(3000 + part) % 3000;
                    let byte = |place| (self.chance(part) + place * 7) as u8;
                    (0..length).map(byte).collect()
                })
                .collect(),
        }
    }
}

/// What a file's answer holds.
pub(super) fn file() -> Vec<u8> {
    (0..FILE).map(|place| (place * 7 % 251) as u8).collect()
}

impl FromStr for Question {
    type Err = anyhow::Error;

    /// Reads a target.
    fn from_str(target: &str) -> Result<Self> {
        let mut words = target
            .split(['/', '-', ':'])
            .filter(|word| !word.is_empty());
        let mut next = || words.next().with_context(|| format!("target {target}"));
        let word = next()?;
        let mut kinds = Kind::ALL.into_iter().chain([Kind::Warm]);
        Ok(Self {
            kind: kinds.find(|kind| kind.word() == word).context("its kind")?,
            seed: next()?.parse()?,
            longest: next()?.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_says_all_of_it() {
        for kind in Kind::ALL {
            let question = Question {
                kind,
                seed: 7,
                longest: 30_000,
            };
            let request = question.request();
            let target = request.split(' ').nth(1).unwrap();
            assert_eq!(target.parse::<Question>().unwrap(), question);
        }
    }

    /// Most pauses are longer than a connection must be silent to be moved.
    #[test]
    fn pauses_are_from_a_tenth_of_a_second_to_the_longest() {
        let pauses: Vec<u128> = (0..10_000)
            .flat_map(|seed| {
                let question = Question {
                    kind: Kind::Sized,
                    seed,
                    longest: 30_000,
                };
                (0..4).map(move |piece| question.pause(piece).as_millis())
            })
            .collect();
        let within = |from, to| pauses.iter().filter(|p| (from..=to).contains(*p)).count();
        assert_eq!(within(100, 30_000), pauses.len());
        assert!(within(200, 2000) > pauses.len() / 2);
        assert!((150..400).contains(&within(15_000, 30_000)));
    }
}
