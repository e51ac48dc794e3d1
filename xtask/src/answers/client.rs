//! The clients: each keeps a connection, asks for one kind of answer over and over, rests between
//! two, and knows every byte that must come.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use xtask::lab::Host;

use super::{
    proxies::Way,
    question::{FILE, Kind, Question, UPLOAD},
    seen::{Cell, Seen, Tally},
    wire::{Ends, Wire},
};
use crate::paced::mix;

/// How old a connection is kept by small exchanges before it is asked for what ends it, or becomes
/// something else: chosen by then, and listened to.
const OLD: Duration = Duration::from_millis(3200);
/// How often something is said in a tunnel.
const TURNS: u64 = 8;
/// Beyond the longest pause.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is asked for in all.
#[derive(Clone, Copy)]
pub(super) struct Load {
    /// Answers of each cell.
    pub(super) answers: u64,
    /// Connections of each cell.
    pub(super) connections: u64,
    /// The longest pause, in milliseconds.
    pub(super) longest: u64,
}

/// Runs the clients of all cells until each has had its answers.
pub(super) fn run(host: &Host, pod: std::net::Ipv4Addr, load: Load) -> Result<Seen> {
    let tally = Arc::new(Tally::default());
    host.enter(|| -> Result<()> {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime")?
            .block_on(async {
                let mut clients = Vec::new();
                for (number, cell) in Cell::all().enumerate() {
                    for index in 0..load.connections {
                        let client = Client {
                            cell,
                            server: SocketAddr::from((pod, cell.way.port())),
                            load,
                            tally: Arc::clone(&tally),
                            drawn: mix(number as u64) ^ mix(1000 + index),
                        };
                        clients.push(tokio::spawn(client.run()));
                    }
                }
                for client in clients {
                    client.await?;
                }
                Ok(())
            })
    })
    .context("enter the client's namespace")??;
    Ok(tally.seen())
}

struct Client {
    cell: Cell,
    server: SocketAddr,
    load: Load,
    tally: Arc<Tally>,
    drawn: u64,
}

/// How an exchange went well.
#[derive(PartialEq, Eq)]
enum Kept {
    Open,
    /// By the server, as it had said.
    Closed,
}

impl Client {
    async fn run(mut self) {
        // Not all at once.
        sleep(Duration::from_millis(self.chance(3000))).await;
        while !self.is_done() {
            match TcpStream::connect(self.server).await.and_then(Wire::new) {
                Ok(wire) => self.keep(wire).await,
                Err(error) => self.tally.broken(self.cell, format!("connect: {error}")),
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn is_done(&self) -> bool {
        self.tally.asked(self.cell) >= self.load.answers
    }

    fn chance(&mut self, below: u64) -> u64 {
        self.drawn = mix(self.drawn);
        self.drawn % below
    }

    /// Talks on a connection until it is over.
    async fn keep(&mut self, mut wire: Wire) {
        let Ok(local) = wire.stream.local_addr() else {
            return;
        };
        let opened = Instant::now();
        let connection = self.tally.opened(self.cell, local, opened);
        let must_be_old = self.cell.kind.is_tunnel() || self.cell.kind == Kind::UntilClose;
        while !self.is_done() {
            let warms = must_be_old && opened.elapsed() < OLD;
            let kind = if warms { Kind::Warm } else { self.cell.kind };
            self.tally.begins(connection, kind);
            let ended = if kind.is_tunnel() {
                self.tunnel(&mut wire).await.map(|()| Kept::Closed)
            } else {
                self.exchange(&mut wire, kind).await
            };
            match ended {
                Ok(kept) => {
                    if kind != Kind::Warm {
                        self.tally.answered(self.cell, kind.at_once() as u64);
                    }
                    if kept == Kept::Closed {
                        break;
                    }
                }
                Err(Lost::Crossed) => {
                    self.tally.crossed(self.cell);
                    break;
                }
                Err(Lost::Broken(why)) => {
                    self.tally.broken(self.cell, format!("{local}: {why}"));
                    break;
                }
            }
            let rest = if warms {
                30 + self.chance(60)
            } else {
                350 + self.chance(650)
            };
            let ended = timeout(Duration::from_millis(rest), wire.ends()).await;
            // Looked at once more before it is used, as the runtime may not have heard of it yet.
            if ended.is_ok() || wire.has_ended() {
                break;
            }
        }
    }

    fn question(&mut self, kind: Kind) -> Question {
        Question {
            kind,
            seed: self.chance(1 << 40),
            longest: self.load.longest,
        }
    }

    async fn exchange(&mut self, wire: &mut Wire, kind: Kind) -> Result<Kept, Lost> {
        let question = self.question(kind);
        let (started, mut at) = (Instant::now(), At::Asking);
        let patience = PATIENCE + Duration::from_millis(self.load.longest);
        let asked = timeout(patience, ask(wire, question, &mut at)).await;
        let asked = asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        asked.map_err(|error| Lost::of(error, at, wire, question, started))
    }

    /// Becomes something else, and says and hears something for a time.
    async fn tunnel(&mut self, wire: &mut Wire) -> Result<(), Lost> {
        let question = self.question(self.cell.kind);
        let pauses: Vec<_> = (0..TURNS)
            .map(|_| Duration::from_millis(100 + self.chance(1500)))
            .collect();
        let (started, mut at) = (Instant::now(), At::Asking);
        let talk = async {
            wire.write(question.request().as_bytes()).await?;
            at = At::Asked;
            let head = wire.head().await?;
            at = At::Answered;
            if !matches!(head.status(), 101 | 200) {
                return Err(io::Error::other(format!("refused: {}", head.0)));
            }
            let first = match question.kind {
                Kind::H2c => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
                _ => b"\x81\x05hello".to_vec(),
            };
            for pause in pauses {
                wire.write(&first).await?;
                if wire.exactly(first.len()).await? != first {
                    return Err(io::Error::other("other bytes came back"));
                }
                sleep(pause).await;
            }
            Ok(())
        };
        let talked = timeout(PATIENCE, talk).await;
        let talked = talked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        talked.map_err(|error| Lost::of(error, at, wire, question, started))
    }
}

/// How far an exchange has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Asking,
    Asked,
    Answered,
}

/// How an exchange went wrong.
enum Lost {
    /// The connection ended before its other end could acknowledge the request: they crossed.
    Crossed,
    Broken(String),
}

impl Lost {
    fn of(error: io::Error, at: At, wire: &Wire, question: Question, started: Instant) -> Self {
        let is_lost = error.kind() == io::ErrorKind::TimedOut;
        match at {
            At::Asking if !is_lost => Self::Crossed,
            At::Asked if !is_lost && !wire.is_acknowledged() => Self::Crossed,
            _ => {
                let after = started.elapsed();
                Self::Broken(format!("{question:?}, {at:?}, after {after:?}: {error}"))
            }
        }
    }
}

async fn ask(wire: &mut Wire, question: Question, at: &mut At) -> io::Result<Kept> {
    let requests: String = question.all().map(Question::request).collect();
    wire.write(requests.as_bytes()).await?;
    *at = At::Asked;
    let mut closes = false;
    for question in question.all() {
        let head = loop {
            let head = wire.head().await?;
            *at = At::Answered;
            match head.status() {
                100 => wire.write(UPLOAD).await?,
                101..200 => {}
                _ => break head,
            }
        };
        if !matches!(head.status(), 200 | 204 | 304) {
            return Err(io::Error::other(format!("refused: {}", head.0)));
        }
        let ends = match question.kind {
            Kind::OnlyHead => Ends::After(0),
            _ => head.ends()?,
        };
        if question.kind == Kind::SlowReader {
            // All of it has come before the last of it is read.
            for piece in 1..4 {
                wire.at_least(piece * FILE / 4).await?;
                sleep(question.pause(piece) / 2).await;
            }
        }
        let (body, expected) = (wire.body(ends).await?, question.parts().concat());
        if body != expected {
            let (came, all) = (body.len(), expected.len());
            return Err(io::Error::other(format!(
                "{came} bytes came of {all}, or others"
            )));
        }
        closes |= ends == Ends::WithConnection || head.closes();
    }
    Ok(if closes { Kept::Closed } else { Kept::Open })
}

impl Cell {
    /// All that there are.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let of = |kind| Way::ALL.map(|way| Self { kind, way });
        let cells = Kind::ALL.into_iter().flat_map(of);
        cells.filter(|cell| cell.way.carries(cell.kind))
    }
}
