//! Holds many connections: a program for each some thousands, as many at the other end.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
};

use rustix::net::{AddressFamily, SocketType, sockopt};
use serde::{Deserialize, Serialize};
use xtask::lab::{Host, Lab};

use crate::{
    program::{self, Program},
    support::add_address,
};

/// Connections of one pair of programs: with room to spare below the usual limits of open files.
const EACH: usize = 10_000;
/// The first local port of clients, each of which has an address of its own.
const FIRST_PORT: usize = 20_000;
/// The first port of servers.
const FIRST_SERVER: u16 = 7300;

#[derive(Serialize, Deserialize)]
enum Orders {
    Listen(SocketAddr, usize),
    Connect(IpAddr, SocketAddr, usize),
}

/// Connections between the lab's client and its pods, for as long as this lives.
pub(super) struct Crowd {
    _clients: Vec<Program<()>>,
    _servers: Vec<Program<()>>,
}

impl Crowd {
    pub(super) fn gather(lab: &Lab, count: usize) -> Self {
        let mut crowd = Self {
            _clients: Vec::new(),
            _servers: Vec::new(),
        };
        for (n, first) in (0..count).step_by(EACH).enumerate() {
            let some = EACH.min(count - first);
            let pod = &lab.pods()[n % lab.pods().len()];
            let server = SocketAddr::from((pod.addr, FIRST_SERVER + n as u16));
            crowd
                ._servers
                .push(start(&pod.host, &Orders::Listen(server, some)));
            let from = address(lab, n);
            crowd
                ._clients
                .push(start(lab.client(), &Orders::Connect(from, server, some)));
        }
        crowd
    }
}

/// The n-th address of the lab's client; made if there is none yet.
fn address(lab: &Lab, n: usize) -> IpAddr {
    let last = 131 + u8::try_from(n).expect("as many programs as one network has addresses");
    let address = IpAddr::from([10, 244, lab.id(), last]);
    add_address(lab, address);
    address
}

fn start(host: &Host, orders: &Orders) -> Program<()> {
    Program::start(host, "scale::holder::holds_as_a_program", orders)
}

/// Not a test but the program, if the environment says so.
#[test]
fn holds_as_a_program() {
    let held = match program::orders::<Orders>() {
        None => return,
        Some(Orders::Listen(address, count)) => {
            program::allow_descriptors(count);
            listen(address)
        }
        Some(Orders::Connect(from, to, count)) => {
            program::allow_descriptors(count);
            (FIRST_PORT..FIRST_PORT + count)
                .map(|port| connect(SocketAddr::new(from, port as u16), to))
                .collect()
        }
    };
    program::ready();
    program::wait_for_the_end();
    drop(held);
}

/// Accepts for good, beside what the program does next.
fn listen(address: SocketAddr) -> Vec<OwnedFd> {
    let listener = TcpListener::bind(address).unwrap();
    rustix::net::listen(&listener, 4096).unwrap();
    std::thread::spawn(move || {
        let all: Vec<_> = listener.incoming().map_while(Result::ok).collect();
        drop(all);
    });
    Vec::new()
}

fn connect(from: SocketAddr, to: SocketAddr) -> OwnedFd {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    rustix::net::bind(&socket, &from).unwrap();
    rustix::net::connect(&socket, &to).unwrap();
    socket
}
