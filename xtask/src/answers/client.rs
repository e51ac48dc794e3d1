//! The clients: each keeps a connection, repeats requests for one kind of response with pauses
//! between them, and compares every byte of the response.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use xtask::lab::Host;

use super::{
    observations::{Cell, Observations, Tally},
    request::{FILE, Kind, Request, UPLOAD},
    routes::Route,
    wire::{BodyEnd, Wire},
};
use crate::keepalive_client::mix;

/// How long small exchanges keep a connection open before a request that ends or upgrades it: long
/// enough for the agent to choose and sniff it.
const OLD: Duration = Duration::from_millis(3200);
/// Number of messages sent in a tunnel.
const TURNS: usize = 8;
/// Timeout of a response beyond the longest pause.
const PATIENCE: Duration = Duration::from_secs(60);

/// The load of each cell.
#[derive(Clone, Copy)]
pub(super) struct Load {
    /// Number of responses.
    pub(super) answers: u64,
    /// Number of connections.
    pub(super) connections: u64,
    /// The longest pause, in milliseconds.
    pub(super) longest: u64,
}

/// Runs the clients of all cells until each cell has received its responses.
pub(super) fn run(host: &Host, pod: IpAddr, load: Load) -> Result<Observations> {
    host.enter(|| run_here(pod, load))
        .context("enter the client's namespace")?
}

#[tokio::main(flavor = "current_thread")]
async fn run_here(pod: IpAddr, load: Load) -> Result<Observations> {
    let tally = Arc::new(Tally::default());
    let mut clients = Vec::new();
    for (number, cell) in Cell::all().enumerate() {
        for index in 0..load.connections {
            let client = Client {
                cell,
                server: SocketAddr::from((pod, cell.route.port())),
                load,
                tally: Arc::clone(&tally),
                random: mix(number as u64) ^ mix(1000 + index),
            };
            clients.push(tokio::spawn(client.run()));
        }
    }
    for client in clients {
        client.await?;
    }
    Ok(tally.seen())
}

struct Client {
    cell: Cell,
    server: SocketAddr,
    load: Load,
    tally: Arc<Tally>,
    random: u64,
}

/// The state of the connection after a complete exchange.
#[derive(PartialEq, Eq)]
enum After {
    Open,
    /// The server closes it, as announced.
    Closed,
}

impl Client {
    async fn run(mut self) {
        // Spread the start.
        sleep(Duration::from_millis(self.random_below(3000))).await;
        while !self.is_done() {
            match TcpStream::connect(self.server).await.and_then(Wire::new) {
                Ok(wire) => self.use_connection(wire).await,
                Err(error) => self.tally.broken(self.cell, format!("connect: {error}")),
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn is_done(&self) -> bool {
        self.tally.requested(self.cell) >= self.load.answers
    }

    /// A pseudo-random number below `below`.
    fn random_below(&mut self, below: u64) -> u64 {
        self.random = mix(self.random);
        self.random % below
    }

    /// Exchanges messages on a connection until it ends.
    async fn use_connection(&mut self, mut wire: Wire) {
        let Ok(local) = wire.0.get_ref().local_addr() else {
            return;
        };
        let opened = Instant::now();
        let connection = self.tally.add_connection(self.cell, local, opened);
        let must_be_old = self.cell.kind.is_tunnel() || self.cell.kind == Kind::UntilClose;
        while !self.is_done() {
            let warms = must_be_old && opened.elapsed() < OLD;
            let kind = if warms { Kind::Warm } else { self.cell.kind };
            self.tally.begin_exchange(connection, kind);
            match self.exchange(&mut wire, kind).await {
                Ok(after) => {
                    if kind != Kind::Warm {
                        self.tally.answered(self.cell, kind.pipelined() as u64);
                    }
                    if after == After::Closed {
                        break;
                    }
                }
                Err(Failure::Crossed) => {
                    self.tally.crossed(self.cell);
                    break;
                }
                Err(Failure::Broken(why)) => {
                    self.tally.broken(self.cell, format!("{local}: {why}"));
                    break;
                }
            }
            let rest = if warms {
                30 + self.random_below(60)
            } else {
                350 + self.random_below(650)
            };
            let ended = timeout(Duration::from_millis(rest), wire.wait_readable()).await;
            // Check again before the next request: the runtime may not have seen the event yet.
            if ended.is_ok() || wire.is_readable() {
                break;
            }
        }
    }

    async fn exchange(&mut self, wire: &mut Wire, kind: Kind) -> Result<After, Failure> {
        let request = Request {
            kind,
            seed: self.random_below(1 << 40),
            longest: self.load.longest,
        };
        let pauses = [(); TURNS].map(|()| 100 + self.random_below(1500));
        let (started, mut at) = (Instant::now(), Phase::Requesting);
        let exchange = async {
            match kind.is_tunnel() {
                true => talk(wire, request, pauses, &mut at).await,
                false => ask(wire, request, &mut at).await,
            }
        };
        let patience = PATIENCE + Duration::from_millis(self.load.longest);
        let ended = timeout(patience, exchange).await;
        let ended = ended.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        ended.map_err(|error| Failure::of(error, at, wire, request, started))
    }
}

/// The progress of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Requesting,
    Waiting,
    Responding,
}

/// Why an exchange failed.
enum Failure {
    /// The connection ended before the peer acknowledged the request: request and reset crossed.
    Crossed,
    Broken(String),
}

impl Failure {
    fn of(error: io::Error, at: Phase, wire: &Wire, request: Request, started: Instant) -> Self {
        let timed_out = error.kind() == io::ErrorKind::TimedOut;
        match at {
            Phase::Requesting if !timed_out => Self::Crossed,
            Phase::Waiting if !timed_out && !wire.is_acknowledged() => Self::Crossed,
            _ => {
                let after = started.elapsed();
                Self::Broken(format!("{request:?}, {at:?}, after {after:?}: {error}"))
            }
        }
    }
}

/// Upgrades the connection to a tunnel and exchanges some messages in it, with these pauses in
/// milliseconds.
async fn talk(
    wire: &mut Wire,
    request: Request,
    pauses: [u64; TURNS],
    at: &mut Phase,
) -> io::Result<After> {
    wire.write(request.text().as_bytes()).await?;
    *at = Phase::Waiting;
    let head = wire.read_head().await?;
    *at = Phase::Responding;
    if !matches!(head.status(), 101 | 200) {
        return Err(io::Error::other(format!("unexpected status: {}", head.0)));
    }
    let message = match request.kind {
        Kind::H2c => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
        _ => b"\x81\x05hello".to_vec(),
    };
    for pause in pauses {
        wire.write(&message).await?;
        if wire.read_exact(message.len()).await? != message {
            return Err(io::Error::other("the echo differs"));
        }
        sleep(Duration::from_millis(pause)).await;
    }
    Ok(After::Closed)
}

async fn ask(wire: &mut Wire, request: Request, at: &mut Phase) -> io::Result<After> {
    let requests: String = request.all().map(Request::text).collect();
    wire.write(requests.as_bytes()).await?;
    *at = Phase::Waiting;
    let mut closes = false;
    for request in request.all() {
        let head = loop {
            let head = wire.read_head().await?;
            *at = Phase::Responding;
            match head.status() {
                100 => wire.write(UPLOAD).await?,
                101..200 => {}
                _ => break head,
            }
        };
        if !matches!(head.status(), 200 | 204 | 304) {
            return Err(io::Error::other(format!("unexpected status: {}", head.0)));
        }
        let ends = match request.kind {
            Kind::OnlyHead => BodyEnd::After(0),
            _ => head.body_end()?,
        };
        let (mut body, mut rest) = (Vec::new(), ends);
        if request.kind == Kind::SlowReader {
            // Reads slowly, so that the whole response is received before its end is read.
            for piece in 1..4 {
                body.extend(wire.read_exact(FILE / 4).await?);
                sleep(request.pause(piece) / 2).await;
            }
            rest = BodyEnd::After(FILE - body.len());
        }
        body.extend(wire.read_body(rest).await?);
        let expected = request.parts().concat();
        if body != expected {
            let (received, all) = (body.len(), expected.len());
            return Err(io::Error::other(format!(
                "wrong body: {received} bytes instead of {all}, or others"
            )));
        }
        closes |= ends == BodyEnd::WithConnection || head.closes();
    }
    Ok(if closes { After::Closed } else { After::Open })
}

impl Cell {
    /// All cells.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let of = |kind| Route::ALL.map(|route| Self { kind, route });
        let cells = Kind::value_variants().iter().copied().flat_map(of);
        cells.filter(|cell| cell.route.carries(cell.kind))
    }
}
