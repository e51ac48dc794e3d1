//! Clients of three kinds, each connection known by the cookie that the server says:
//!
//! - those that come again at once, from the very address and port, whenever their connection
//!   ends; of each three, one also leaves by itself after a while;
//! - bystanders, on the same listeners from another address, which keep their connection;
//! - MPTCP, from a third address, which keep theirs.
//!
//! Each sends random bytes and compares what comes back.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketType, ipproto};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::watch,
    time::sleep,
};
use xtask::lab::Host;

use super::{
    How,
    server::{read, write_all},
};
use crate::{
    program::{self, Program},
    support::PATIENCE,
};

#[derive(Serialize, Deserialize)]
pub(super) struct Orders {
    /// Every listener's address.
    pub(super) servers: Vec<SocketAddr>,
    /// Whence those that come again come.
    pub(super) again: IpAddr,
    /// How many of them there are, each with one local port for good.
    pub(super) returning: u16,
    pub(super) bystander: IpAddr,
    pub(super) bystanders: usize,
    /// Whence, and to which server, MPTCP connections are made; and how many.
    pub(super) mptcp: Option<(IpAddr, SocketAddr)>,
    pub(super) multipath: usize,
}

/// One connection that was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Life {
    /// 0: it ended before the server had said it.
    pub(super) cookie: u64,
    pub(super) local: SocketAddr,
    pub(super) how: How,
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

impl Life {
    fn nameless(local: SocketAddr, how: How) -> Self {
        Self {
            cookie: 0,
            local,
            how,
            messages: 0,
            bytes: 0,
        }
    }
}

#[derive(Default, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) returning: Vec<Life>,
    pub(super) bystanders: Vec<Life>,
    pub(super) multipath: Vec<Life>,
    /// From a connection's end to the next with the same addresses and ports, in microseconds.
    pub(super) reused_after: Vec<u64>,
    /// Listeners that accepted and answered at the end.
    pub(super) answering: Vec<SocketAddr>,
}

pub(super) fn start(host: &Host, orders: &Orders) -> Program<Report> {
    Program::start(host, "scale::client::connects_as_a_program", orders)
}

/// The first local port of those that come again.
const FIRST_PORT: u16 = 20_000;
/// The longest life of a connection whose client leaves by itself, in milliseconds.
const LONGEST_STAY: u64 = 900;

type Seen = Arc<Mutex<Report>>;
type End = watch::Receiver<bool>;

/// Not a test but the clients, if the environment says so.
#[test]
fn connects_as_a_program() {
    let Some(orders) = program::orders::<Orders>() else {
        return;
    };
    let all = usize::from(orders.returning) + orders.bystanders + orders.multipath;
    program::allow_descriptors(all + 100);
    let seen = Seen::default();
    let (tell_end, end) = watch::channel(false);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let tasks = runtime.block_on(begin(&orders, &seen, &end));
    program::ready();
    program::wait_for_the_end();
    tell_end.send(true).unwrap();
    runtime.block_on(async {
        for task in tasks {
            task.await.unwrap();
        }
        for server in &orders.servers {
            if one_message(*server).await.is_ok() {
                seen.lock().unwrap().answering.push(*server);
            }
        }
    });
    program::report(&*seen.lock().unwrap());
}

async fn begin(orders: &Orders, seen: &Seen, end: &End) -> Vec<tokio::task::JoinHandle<()>> {
    let servers = || orders.servers.iter().copied().cycle();
    let mut tasks = Vec::new();
    let mut keep = |stream, slot, kind| {
        tasks.push(tokio::spawn(keep(
            stream,
            slot,
            seen.clone(),
            end.clone(),
            kind,
        )));
    };
    for (server, slot) in servers().zip(0..orders.bystanders) {
        let from = SocketAddr::new(orders.bystander, 0);
        keep(connect(from, server).await.unwrap(), slot, |r| {
            &mut r.bystanders
        });
    }
    for ((from, server), slot) in orders.mptcp.into_iter().cycle().zip(0..orders.multipath) {
        keep(connect_mptcp(from, server).unwrap(), slot, |r| {
            &mut r.multipath
        });
    }
    for (server, slot) in servers().zip(0..orders.returning) {
        let from = SocketAddr::new(orders.again, FIRST_PORT + slot);
        let coming = come_again(from, server, seen.clone(), end.clone());
        tasks.push(tokio::spawn(coming));
    }
    tasks
}

/// One connection, to the end.
async fn keep(
    stream: TcpStream,
    seed: usize,
    seen: Seen,
    mut end: End,
    kind: fn(&mut Report) -> &mut Vec<Life>,
) {
    let talk = Talk {
        seed: seed as u64,
        think: 30..60,
        longest: 2048,
        until: None,
    };
    let life = talk.over(&stream, &mut end).await;
    kind(&mut seen.lock().unwrap()).push(life);
}

/// One connection after the other, with the same addresses and ports.
async fn come_again(from: SocketAddr, server: SocketAddr, seen: Seen, mut end: End) {
    let mut ended: Option<Instant> = None;
    for turn in 0.. {
        let stream = loop {
            if *end.borrow() {
                return;
            }
            match connect(from, server).await {
                Ok(stream) => break stream,
                // It was made, and ended before this thread had its turn.
                Err(e) if e.raw_os_error() == Some(libc::ECONNRESET) => {
                    let life = Life::nameless(from, How::Reset);
                    seen.lock().unwrap().returning.push(life);
                }
                Err(_) => sleep(Duration::from_millis(1)).await,
            }
        };
        if let Some(ended) = ended {
            let gap = ended.elapsed().as_micros() as u64;
            seen.lock().unwrap().reused_after.push(gap);
        }
        let stays = chance(u64::from(from.port()), turn) % LONGEST_STAY;
        let leaves = from.port().is_multiple_of(3);
        let talk = Talk {
            seed: u64::from(from.port()),
            think: 100..200,
            longest: 64,
            until: leaves.then(|| Instant::now() + Duration::from_millis(stays)),
        };
        let life = talk.over(&stream, &mut end).await;
        seen.lock().unwrap().returning.push(life);
        drop(stream);
        ended = Some(Instant::now());
    }
}

async fn connect(from: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_nodelay(true)?;
    // Leave by RST: no TIME_WAIT keeps the port.
    socket.set_zero_linger()?;
    socket.bind(from)?;
    socket.connect(to).await
}

fn connect_mptcp(from: IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let protocol = Some(ipproto::MPTCP);
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, protocol)?;
    rustix::net::bind(&socket, &SocketAddr::new(from, 0))?;
    rustix::net::connect(&socket, &to)?;
    let stream = std::net::TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

/// How a connection is used.
struct Talk {
    seed: u64,
    /// Between messages, in milliseconds.
    think: std::ops::Range<u64>,
    /// The longest message.
    longest: u64,
    /// Leave then.
    until: Option<Instant>,
}

impl Talk {
    /// Talks until the connection ends, it is time to leave, or the end of all.
    async fn over(&self, stream: &TcpStream, end: &mut End) -> Life {
        let mut life = Life::nameless(stream.local_addr().unwrap(), How::Open);
        let mut said = [0; 8];
        life.how = match read_exact(stream, &mut said).await {
            Ok(()) => {
                life.cookie = u64::from_be_bytes(said);
                self.exchange(stream, end, &mut life).await
            }
            Err(how) => how,
        };
        life
    }

    async fn exchange(&self, stream: &TcpStream, end: &mut End, life: &mut Life) -> How {
        loop {
            let last = *end.borrow();
            let number = chance(self.seed, life.messages);
            let message: Vec<u8> = (0..=number % self.longest)
                .map(|i| (chance(number, i / 8) >> (8 * (i % 8))) as u8)
                .collect();
            if let Err(e) = write_all(stream, &message).await {
                return e.into();
            }
            let mut answer = vec![0; message.len()];
            // One that hangs says nothing: MPTCP does when its subflow was destroyed.
            match tokio::time::timeout(PATIENCE, read_exact(stream, &mut answer)).await {
                Ok(Ok(())) => {}
                Ok(Err(how)) => return how,
                Err(_late) => return How::Error(libc::ETIMEDOUT),
            }
            if answer != message {
                return How::Corrupt;
            }
            life.messages += 1;
            life.bytes += message.len() as u64;
            if last {
                return How::Open;
            }
            let think = self.think.start + number % (self.think.end - self.think.start);
            let think = Instant::now() + Duration::from_millis(think);
            let leave = self.until.filter(|until| *until < think);
            tokio::select! {
                how = unasked(stream) => return how,
                () = tokio::time::sleep_until(leave.unwrap_or(think).into()) => {}
                _ = end.changed() => continue,
            }
            if leave.is_some() {
                // What came in this moment counts as what it was.
                return match stream.try_read(&mut [0]) {
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => How::Left,
                    Err(e) => e.into(),
                    Ok(0) => How::Eof,
                    Ok(_) => How::Corrupt,
                };
            }
        }
    }
}

/// What comes without being asked for: the end.
async fn unasked(stream: &TcpStream) -> How {
    match read(stream, &mut [0]).await {
        Ok(0) => How::Eof,
        Ok(_) => How::Corrupt,
        Err(e) => e.into(),
    }
}

async fn read_exact(stream: &TcpStream, mut into: &mut [u8]) -> Result<(), How> {
    while !into.is_empty() {
        match read(stream, into).await? {
            0 => return Err(How::Eof),
            n => into = &mut into[n..],
        }
    }
    Ok(())
}

async fn one_message(server: SocketAddr) -> Result<(), How> {
    let stream = TcpStream::connect(server).await?;
    read_exact(&stream, &mut [0; 8]).await?;
    write_all(&stream, b"x").await?;
    read_exact(&stream, &mut [0]).await
}

/// By chance, but the same in every run.
fn chance(seed: u64, turn: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, turn).hash(&mut hasher);
    hasher.finish()
}
