//! Requests and the responses to them: client and server derive the response from the request's
//! target.

use std::{str::FromStr, time::Duration};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::keepalive_client::mix;

/// How the server writes its response, or what the connection is upgraded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
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
    /// An immediate empty response, which keeps a connection in use until it is old; not measured.
    #[value(skip)]
    Warm,
}

impl Kind {
    /// Its word in a request target.
    fn word(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Sized => "`Content-Length`, in pieces",
            Self::Chunked => "chunks, cut anywhere, with a trailer",
            Self::Events => "event stream",
            Self::Tokens => "token stream, until `[DONE]`",
            Self::Early => "103 before the response",
            Self::Upload => "100 before an upload",
            Self::SplitHead => "head in several writes",
            Self::OnlyHead => "HEAD",
            Self::Unchanged => "304",
            Self::File => "file, by sendfile",
            Self::SlowReader => "response that its client reads slowly",
            Self::Pipelined => "three pipelined requests",
            Self::OneWrite => "two and a half responses in one write",
            Self::UntilClose => "HTTP/1.0, until close",
            Self::WebSocket => "WebSocket",
            Self::H2c => "h2c by upgrade",
            Self::Connect => "CONNECT",
            Self::Warm => unreachable!("not measured"),
        }
    }

    /// Whether the connection is upgraded from HTTP/1 to something else.
    pub(super) fn is_tunnel(self) -> bool {
        matches!(self, Self::WebSocket | Self::H2c | Self::Connect)
    }

    /// Number of pipelined requests.
    pub(super) fn pipelined(self) -> usize {
        match self {
            Self::Pipelined | Self::OneWrite => 3,
            _ => 1,
        }
    }
}

/// The body of an upload.
pub(super) const UPLOAD: &[u8] = b"what is uploaded";
/// The length of the file, in bytes.
pub(super) const FILE: usize = 512 << 10;

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: Kind,
    pub(super) seed: u64,
    /// The longest pause of its response, in milliseconds.
    pub(super) longest: u64,
}

impl Request {
    /// The request as sent.
    pub(super) fn text(self) -> String {
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

    /// This request and those that are pipelined behind it.
    pub(super) fn all(self) -> impl Iterator<Item = Self> {
        (0..self.kind.pipelined() as u64).map(move |more| Self {
            seed: self.seed + more,
            ..self
        })
    }

    /// A pseudo-random number for the purpose `what`.
    fn random(self, what: u64) -> u64 {
        mix(mix(self.seed) ^ what)
    }

    /// How long the server waits before it writes piece number `piece`. Mostly 0.1 to 2 s; one of
    /// forty responses pauses once for half of `longest` to `longest`.
    pub(super) fn pause(self, piece: usize) -> Duration {
        const USUAL: u64 = 1900;
        let random = self.random(piece as u64);
        let pauses_long = self.random(1000).is_multiple_of(40);
        let milliseconds = match self.kind {
            Kind::Warm => 0,
            _ if pauses_long && piece == 1 => self.longest / 2 + random % (self.longest / 2 + 1),
            // As language models stream: steadily, with occasional pauses.
            Kind::Tokens if piece > 0 && !random.is_multiple_of(50) => 20 + random % 31,
            // More short pauses than long ones.
            _ => 100 + (random % USUAL) * (mix(random) % USUAL) / USUAL,
        };
        Duration::from_millis(milliseconds.min(self.longest))
    }

    /// The parts of the response body.
    pub(super) fn parts(self) -> Vec<Vec<u8>> {
        let count = 2 + self.random(2000) % 4;
        match self.kind {
            Kind::Warm | Kind::OnlyHead | Kind::Unchanged => Vec::new(),
            kind if kind.is_tunnel() => Vec::new(),
            Kind::File | Kind::SlowReader => vec![file()],
            Kind::Events => (0..count)
                .map(|event| format!("id: {event}\ndata: {}\n\n", self.seed).into_bytes())
                .collect(),
            Kind::Tokens => {
                let tokens = 30 + self.random(2001) % 60;
                let token =
                    |token| format!("data: {{\"t\":\"{:x}\"}}\n\n", self.random(token) >> 48);
                let tokens = (0..tokens).map(token);
                let done = "data: [DONE]\n\n".to_owned();
                tokens.chain([done]).map(String::into_bytes).collect()
            }
            _ => (0..count)
                .map(|part| {
                    let length = 1 + self.random(3000 + part) % 3000;
                    let byte = |place| (self.random(part) + place * 7) as u8;
                    (0..length).map(byte).collect()
                })
                .collect(),
        }
    }
}

/// The content of the file.
pub(super) fn file() -> Vec<u8> {
    (0..FILE).map(|place| (place * 7 % 251) as u8).collect()
}

impl FromStr for Request {
    type Err = anyhow::Error;

    /// Parses a request target.
    fn from_str(target: &str) -> Result<Self> {
        let mut words = target
            .split(['/', '-', ':'])
            .filter(|word| !word.is_empty());
        let mut next = || words.next().with_context(|| format!("target {target}"));
        let word = next()?;
        let mut kinds = Kind::value_variants().iter().chain(&[Kind::Warm]);
        Ok(Self {
            kind: *kinds.find(|kind| kind.word() == word).context("kind")?,
            seed: next()?.parse()?,
            longest: next()?.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_parses_back_to_its_request() {
        for kind in Kind::value_variants() {
            let request = Request {
                kind: *kind,
                seed: 7,
                longest: 30_000,
            };
            let text = request.text();
            let target = text.split(' ').nth(1).unwrap();
            assert_eq!(target.parse::<Request>().unwrap(), request);
        }
    }

    /// Most pauses are longer than `idleFor`.
    #[test]
    fn pauses_are_from_a_tenth_of_a_second_to_the_longest() {
        let pauses: Vec<u128> = (0..10_000)
            .flat_map(|seed| {
                let request = Request {
                    kind: Kind::Sized,
                    seed,
                    longest: 30_000,
                };
                (0..4).map(move |piece| request.pause(piece).as_millis())
            })
            .collect();
        let within = |from, to| pauses.iter().filter(|p| (from..=to).contains(*p)).count();
        assert_eq!(within(100, 30_000), pauses.len());
        assert!(within(200, 2000) > pauses.len() / 2);
        assert!((150..400).contains(&within(15_000, 30_000)));
    }
}
