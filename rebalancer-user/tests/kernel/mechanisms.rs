//! Each reset mechanism: it resets the chosen connection, and nothing else.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpStream},
};

use rebalancer_user::moves::{Mechanism, find_mechanism, probe};
use xtask::lab::Lab;

use crate::{
    moves::{AT_ONCE, QUIET, enforce, is_reset},
    server::{Kind, Server},
    support::{Agent, PATIENCE, alone, cgroup, connect, download, lab, own_pins, request},
};

fn agent(lab: &Lab, policy: &str, mechanism: Mechanism) -> Agent {
    let cgroup = cgroup(lab).to_str().unwrap();
    let by = ["--cgroup", cgroup, "--reset-mechanism", mechanism.as_str()];
    Agent::with(policy, own_pins(), &by)
}

#[test]
fn each_mechanism_works_here_and_the_best_is_chosen() {
    let _alone = alone();
    for mechanism in Mechanism::ALL {
        probe(mechanism).unwrap_or_else(|why| panic!("{mechanism}: {why}"));
    }
    let (found, why_no_better) = find_mechanism().unwrap();
    assert_eq!((found, why_no_better), (Mechanism::SockDestroy, vec![]));
}

#[test]
fn sock_destroy_resets_only_its_connection() {
    resets_only_its_connection(Mechanism::SockDestroy);
}

#[test]
fn abort_resets_only_its_connection() {
    resets_only_its_connection(Mechanism::Abort);
}

#[test]
fn raw_resets_only_its_connection() {
    resets_only_its_connection(Mechanism::Raw);
}

fn resets_only_its_connection(mechanism: Mechanism) {
    let _alone = alone();
    let lab = lab(2);
    let pod = lab.pod(0);
    let mut agent = agent(&lab, &enforce(&lab, 80, "maxBytes: 1Mi", QUIET), mechanism);
    let mut light: Vec<_> = (0..4).map(|_| connect(&lab, pod.address())).collect();
    let mut heavy = connect(&lab, pod.address());
    for stream in &mut light {
        request(stream, "/").unwrap();
    }
    download(&mut heavy);
    let line = agent.wait_for_move();
    assert_eq!(line["outcome"], "reset", "{mechanism}: {line}");
    assert_eq!(line["peer"], heavy.local_addr().unwrap().to_string());
    assert_eq!(line["rule"], "lab");
    assert!(is_reset(&mut heavy), "{mechanism}");
    for stream in &mut light {
        request(stream, "/").unwrap_or_else(|e| panic!("{mechanism}: a sibling saw {e}"));
    }
    let mut next = connect(&lab, pod.address());
    request(&mut next, "/").unwrap();
    agent.wait_for_intervals(3);
    assert_eq!(agent.logged("move").len(), 1, "{mechanism}");
    // Each leaves a trace of its own in the socket's error when it closes: ECONNABORTED,
    // none yet, ECONNRESET.
    let e = agent.endpoint(pod, 80);
    let count = |name: &str| e[name].as_u64().unwrap();
    let traces = ["closed", "closedByAbort", "closedByReset"].map(count);
    let expected = match mechanism {
        Mechanism::SockDestroy => [1, 1, 0],
        Mechanism::Abort => [1, 0, 0],
        Mechanism::Raw => [1, 0, 1],
    };
    assert_eq!(traces, expected, "{mechanism}");
    let started = &agent.logged("started")[0];
    assert_eq!(started["reset_by"], mechanism.as_str());
    // The server's end is gone too: nginx has closed it.
    let open = agent.connections(pod);
    let peer = heavy.local_addr().unwrap().to_string();
    assert!(open.iter().all(|c| c["peer"] != peer), "{mechanism}");
}

#[test]
fn each_mechanism_wakes_a_server_that_blocks_in_a_receive() {
    let _alone = alone();
    let lab = lab(1);
    for (mechanism, port) in Mechanism::ALL.into_iter().zip(7050..) {
        let (address, _server) = Server::in_pod(lab.pod(0), port, Kind::Plain);
        let policy = enforce(&lab, port, "maxAge: 300ms", AT_ONCE);
        let mut agent = agent(&lab, &policy, mechanism);
        let mut client = connect(&lab, address);
        client.write_all(b"f").unwrap();
        client.read_exact(&mut [0]).unwrap();
        let line = agent.wait_for_move();
        assert_eq!(line["outcome"], "reset", "{mechanism}: {line}");
        assert!(is_reset(&mut client), "{mechanism}");
        let again = connect(&lab, address).write_all(b"f");
        again.unwrap_or_else(|e| panic!("{mechanism}: the listener: {e}"));
    }
}

/// IPv6, from the pod to itself: the lab has no IPv6 network.
#[test]
fn each_mechanism_works_over_ipv6() {
    let _alone = alone();
    let lab = lab(1);
    let host = &lab.pod(0).host;
    for (mechanism, port) in Mechanism::ALL.into_iter().zip(7060..) {
        let address = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        let _server = Server::start(host, address, Kind::Plain);
        let policy = enforce(&lab, port, "maxAge: 300ms", AT_ONCE)
            .replace(&lab.client_subnet(), "'::1/128'")
            .replace("rules:", "track: {loopback: true}\nrules:");
        let mut agent = agent(&lab, &policy, mechanism);
        let stream = host.enter(|| TcpStream::connect(address)).unwrap();
        let mut client = stream.unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"f").unwrap();
        client.read_exact(&mut [0]).unwrap();
        let line = agent.wait_for_move();
        assert_eq!(line["outcome"], "reset", "{mechanism}: {line}");
        let seen = client.read(&mut [0]).map_err(|e| e.kind());
        assert_eq!(seen, Err(ErrorKind::ConnectionReset), "{mechanism}");
    }
}
