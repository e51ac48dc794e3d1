//! A server that knows each of its connections by cookie, and how it ended. It says the cookie
//! first, then answers each byte with itself.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::fd::AsFd as _,
    sync::{Arc, Mutex},
};

use rustix::net::{AddressFamily, SocketType, ipproto, sockopt};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use xtask::lab::Host;

use super::How;
use crate::program::{self, Program};

#[derive(Serialize, Deserialize)]
pub(super) struct Orders {
    /// Where to listen, twice each.
    pub(super) plain: Vec<SocketAddr>,
    /// Where to listen with MPTCP.
    pub(super) mptcp: Option<SocketAddr>,
    /// How many connections at most.
    pub(super) most: usize,
}

/// How each connection ended, by its cookie.
pub(super) type Report = BTreeMap<u64, (SocketAddr, How)>;

pub(super) fn start(host: &Host, orders: &Orders) -> Program<Report> {
    Program::start(host, "scale::server::serves_as_a_program", orders)
}

/// Not a test but the server, if the environment says so.
#[test]
fn serves_as_a_program() {
    let Some(orders) = program::orders::<Orders>() else {
        return;
    };
    program::allow_descriptors(orders.most);
    let seen = Arc::new(Mutex::new(Report::new()));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let twice = orders.plain.iter().flat_map(|address| [address; 2]);
        let plain = twice.map(|address| listen(*address, ipproto::TCP));
        let mptcp = orders.mptcp.iter();
        let mptcp = mptcp.map(|address| listen(*address, ipproto::MPTCP));
        for listener in plain.chain(mptcp) {
            tokio::spawn(accept(listener, Arc::clone(&seen)));
        }
    });
    program::ready();
    program::wait_for_the_end();
    program::report(&*seen.lock().unwrap());
}

fn listen(address: SocketAddr, protocol: rustix::net::Protocol) -> TcpListener {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, Some(protocol));
    let socket = socket.unwrap_or_else(|e| panic!("a socket of protocol {protocol:?}: {e}"));
    sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    if protocol == ipproto::TCP {
        sockopt::set_socket_reuseport(&socket, true).unwrap();
    }
    rustix::net::bind(&socket, &address).unwrap();
    rustix::net::listen(&socket, 4096).unwrap();
    let listener = std::net::TcpListener::from(socket);
    listener.set_nonblocking(true).unwrap();
    TcpListener::from_std(listener).unwrap()
}

async fn accept(listener: TcpListener, seen: Arc<Mutex<Report>>) {
    loop {
        let accepted = listener.accept().await;
        let Ok((stream, peer)) = accepted else {
            continue; // it had ended in the queue
        };
        let seen = Arc::clone(&seen);
        tokio::spawn(async move {
            let cookie = sockopt::socket_cookie(stream.as_fd()).unwrap();
            seen.lock().unwrap().insert(cookie, (peer, How::Open));
            let how = answer(&stream, cookie).await.unwrap_or_else(How::from);
            seen.lock().unwrap().insert(cookie, (peer, how));
        });
    }
}

async fn answer(stream: &TcpStream, cookie: u64) -> std::io::Result<How> {
    stream.set_nodelay(true)?;
    write_all(stream, &cookie.to_be_bytes()).await?;
    let mut buffer = [0; 4096];
    loop {
        match read(stream, &mut buffer).await? {
            0 => return Ok(How::Eof),
            n => write_all(stream, &buffer[..n]).await?,
        }
    }
}

pub(super) async fn read(stream: &TcpStream, into: &mut [u8]) -> std::io::Result<usize> {
    loop {
        stream.readable().await?;
        match stream.try_read(into) {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

pub(super) async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
