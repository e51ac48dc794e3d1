//! Opens and closes connections as cheaply as can be, both ends in one process: no wake-ups, a
//! handful of system calls each, no TIME_WAIT. A thread a CPU, each with a listener on the one
//! port; every connection carries one message to the server and is reset.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketType, sockopt};
use serde::{Deserialize, Serialize};
use xtask::lab::Host;

use crate::program::{self, Program};

/// Bytes that each connection brings to its server.
pub(super) const MESSAGE: usize = 16;
/// Connections that each thread has open at a time.
const AT_ONCE: usize = 32;

/// What was done.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Report {
    /// Connections made, and as many closed.
    pub(super) made: u64,
    pub(super) took: Duration,
}

/// Starts it in a host of the lab, with this address of that host.
pub(super) fn start(host: &Host, address: SocketAddr) -> Program<Report> {
    Program::start(host, "scale::churner::churns_as_a_program", &address)
}

/// Not a test but the program, if the environment says so.
#[test]
fn churns_as_a_program() {
    let Some(address) = program::orders::<SocketAddr>() else {
        return;
    };
    let cpus = std::thread::available_parallelism().unwrap().get();
    let listeners: Vec<_> = (0..cpus).map(|_| listen(address)).collect();
    let end = Arc::new(AtomicBool::new(false));
    program::ready();
    let started = Instant::now();
    let threads: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            let end = Arc::clone(&end);
            std::thread::spawn(move || {
                let mut made = 0;
                while !end.load(Ordering::Relaxed) {
                    made += round(&listener, address);
                }
                // Both listeners stay until all are done: what one made waits at the other.
                (made, listener)
            })
        })
        .collect();
    program::wait_for_the_end();
    end.store(true, Ordering::Relaxed);
    let ended: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    let took = started.elapsed();
    let made = ended.iter().map(|(made, _)| made).sum();
    ended.iter().for_each(|(_, listener)| take_all(listener));
    program::report(&Report { made, took });
}

/// Each thread's own, on one port; what it accepts is reset when it is closed.
fn listen(address: SocketAddr) -> TcpListener {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_reuseport(&socket, true).unwrap();
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
    rustix::net::bind(&socket, &address).unwrap();
    rustix::net::listen(&socket, 4096).unwrap();
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true).unwrap();
    listener
}

fn round(listener: &TcpListener, address: SocketAddr) -> u64 {
    let clients: Vec<TcpStream> = (0..AT_ONCE).map(|_| client(address)).collect();
    take_all(listener);
    clients.len() as u64
}

fn client(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    stream.write_all(&[7; MESSAGE]).unwrap();
    stream
}

/// Accepts what waits, reads its message and closes it.
fn take_all(listener: &TcpListener) {
    while let Ok((mut stream, _)) = listener.accept() {
        // Its client may have reset it by now: what it had sent was received all the same.
        let _ = stream.read(&mut [0; MESSAGE]);
    }
}
