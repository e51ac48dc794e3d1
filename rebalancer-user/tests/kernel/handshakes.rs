//! Connections whose handshake is not the usual one: each is recorded at its accept, and exact.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
};

use rustix::net::{AddressFamily, SocketType};
use serde_json::json;
use xtask::lab::{Host, Pod};

use crate::support::{Agent, PATIENCE, TRACK_ONLY, connect, lab, listen, shows, ss_shows};

/// `linux/tcp.h`
const TCP_FASTOPEN: i32 = 23;
const TCP_FASTOPEN_CONNECT: i32 = 30;

fn sysctl(host: &Host, name: &str, value: &str) {
    let path = format!("/proc/sys/net/ipv4/{name}");
    host.enter(|| fs::write(path, value)).unwrap().unwrap();
}

/// One of the kernel's own counters of a namespace, by its name in `/proc/net/netstat`.
fn counter(host: &Host, name: &str) -> u64 {
    let read = || fs::read_to_string("/proc/thread-self/net/netstat");
    let text = host.enter(read).unwrap().unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut both = names.split_whitespace().zip(values.split_whitespace());
    both.find(|(this, _)| *this == name)
        .unwrap_or_else(|| panic!("no {name} in {text}"))
        .1
        .parse()
        .unwrap()
}

fn set(socket: &impl std::os::fd::AsFd, option: i32, value: i32) {
    let length = size_of::<i32>() as u32;
    let (socket, value) = (socket.as_fd().as_raw_fd(), (&raw const value).cast());
    // SAFETY: `value` is as long as is said, and outlives the call.
    let refused = unsafe { libc::setsockopt(socket, libc::SOL_TCP, option, value, length) };
    assert_eq!(refused, 0, "{}", std::io::Error::last_os_error());
}

fn listen_with(pod: &Pod, port: u16, backlog: i32) -> TcpListener {
    let listener = listen(pod, port);
    // Again, with another backlog.
    rustix::net::listen(&listener, backlog).unwrap();
    listener
}

/// Five bytes from the client, seven from the server, at rest: the record says so.
fn five_in_seven_out(agent: &Agent, pod: &Pod, client: &TcpStream) {
    let peer = client.local_addr().unwrap().to_string();
    let port = client.peer_addr().unwrap().port();
    ss_shows(&pod.host, port, "acknowledged", |s| {
        s.peer == peer && s.acked == 7
    });
    let mut found = agent.connections(pod);
    found.retain(|c| c["peer"] == peer);
    assert_eq!(found.len(), 1, "{found:#?}");
    shows(
        &found[0],
        json!({"bytesIn": 5, "bytesOut": 7, "adopted": false}),
    );
}

/// So many connections have closed, each with five bytes in and seven out, and one for each FIN.
fn all_closed(agent: &Agent, pod: &Pod, port: u16, count: u64) {
    let (bytes_in, bytes_out) = (6 * count, 8 * count);
    let sums =
        json!({"accepted": count, "closed": count, "bytesIn": bytes_in, "bytesOut": bytes_out});
    shows(&agent.endpoint_closed(pod, port, count), sums);
}

/// The client closes first, then the server.
fn end(mut client: TcpStream, mut server: TcpStream) {
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn data_in_the_syn() {
    let lab = lab(1);
    let pod = lab.pod(0);
    sysctl(&pod.host, "tcp_fastopen", "3");
    sysctl(lab.client(), "tcp_fastopen", "3");
    let agent = Agent::on_machine(TRACK_ONLY);
    let listener = listen_with(pod, 7090, 16);
    set(&listener, TCP_FASTOPEN, 16);
    let address = listener.local_addr().unwrap();
    // The first gets the cookie with which those after it put data into their SYN.
    for in_the_syn in [0, 1, 2] {
        let socket = || rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None);
        let socket = lab.client().enter(socket).unwrap().unwrap();
        set(&socket, TCP_FASTOPEN_CONNECT, 1);
        rustix::net::connect(&socket, &address).unwrap();
        let mut client = TcpStream::from(socket);
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"hello").unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let with_data = counter(&pod.host, "TCPFastOpenPassive");
        assert_eq!(with_data, in_the_syn, "SYNs that brought data");
        let recorded = agent.endpoint(pod, 7090);
        assert_eq!(recorded["accepted"], in_the_syn + 1, "at its accept");
        server.read_exact(&mut [0; 5]).unwrap();
        server.write_all(b"goodbye").unwrap();
        client.read_exact(&mut [0; 7]).unwrap();
        five_in_seven_out(&agent, pod, &client);
        end(client, server);
    }
    all_closed(&agent, pod, 7090, 3);
    agent.leaves_nothing();
}

/// Nothing is kept of a SYN: the socket is made of the ACK alone. A backlog of one takes two; the
/// SYN of a third is dropped until there is room.
#[test]
fn syn_cookies() {
    let lab = lab(1);
    let pod = lab.pod(0);
    sysctl(&pod.host, "tcp_syncookies", "2");
    let agent = Agent::on_machine(TRACK_ONLY);
    let listener = listen_with(pod, 7091, 1);
    let address = listener.local_addr().unwrap();
    let connect_and_ask = |()| {
        let mut client = connect(&lab, address);
        client.write_all(b"hello").unwrap();
        client
    };
    let mut clients = Vec::from([(); 2].map(connect_and_ask));
    // Recorded before anyone has accepted them.
    agent.endpoint_when(pod, 7091, |e| e["accepted"] == 2);
    let mut servers = std::thread::scope(|scope| {
        let third = scope.spawn(|| connect_and_ask(()));
        let accept = |_| listener.accept().unwrap();
        let servers: Vec<_> = (0..3).map(accept).collect();
        clients.push(third.join().unwrap());
        servers
    });
    assert!(counter(&pod.host, "SyncookiesRecv") >= 3);
    for (server, _) in &mut servers {
        server.read_exact(&mut [0; 5]).unwrap();
        server.write_all(b"goodbye").unwrap();
    }
    for client in &mut clients {
        client.read_exact(&mut [0; 7]).unwrap();
        five_in_seven_out(&agent, pod, client);
    }
    for client in clients {
        let of_client = |(_, peer): &(TcpStream, SocketAddr)| *peer == client.local_addr().unwrap();
        let (server, _) = servers.remove(servers.iter().position(of_client).unwrap());
        end(client, server);
    }
    all_closed(&agent, pod, 7091, 3);
    agent.leaves_nothing();
}
