//! Each reset mechanism: it resets the chosen connection, and nothing else.

use std::net::{Ipv6Addr, SocketAddr, TcpStream};

use rebalancer_user::moves::{Mechanism, find_mechanism, probe};
use serde_json::json;
use xtask::lab::Lab;

use crate::{
    server::{Kind, Server},
    support::{
        AT_ONCE, Agent, PATIENCE, QUIET, alone, answered, connect, connect_many, download, echoed,
        echoes, enforce, has_ended, is_reset, lab, request, shows,
    },
};

fn agent(lab: &Lab, policy: &str, mechanism: Mechanism) -> Agent {
    Agent::in_lab_with(lab, policy, &["--reset-mechanism", mechanism.as_str()])
}

#[test]
fn each_mechanism_works_here_and_the_best_is_chosen() {
    alone();
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
    let lab = lab(2);
    let pod = lab.pod(0);
    let mut agent = agent(&lab, &enforce(&lab, 80, "maxBytes: 1Mi", QUIET), mechanism);
    let mut light = connect_many(&lab, pod.address(), 4);
    let mut heavy = connect(&lab, pod.address());
    for stream in &mut light {
        request(stream, "/").unwrap();
    }
    download(&mut heavy);
    let peer = heavy.local_addr().unwrap().to_string();
    shows(&agent.moved("reset"), json!({"peer": peer, "rule": "lab"}));
    assert!(is_reset(&mut heavy), "{mechanism}");
    for stream in &mut light {
        request(stream, "/").unwrap_or_else(|e| panic!("{mechanism}: a sibling saw {e}"));
    }
    let _next = answered(&lab, pod.address());
    agent.moves_no_more(1, 3);
    // Each leaves a trace of its own in the socket's error when it closes: ECONNABORTED,
    // none yet, ECONNRESET.
    let (by_abort, by_reset) = match mechanism {
        Mechanism::SockDestroy => (1, 0),
        Mechanism::Abort => (0, 0),
        Mechanism::Raw => (0, 1),
    };
    let traces = json!({"closed": 1, "closedByAbort": by_abort, "closedByReset": by_reset});
    shows(&agent.endpoint(pod, 80), traces);
    let started = &agent.logged("started")[0];
    assert_eq!(started["reset_by"], mechanism.as_str());
    // The server's end is gone too: nginx has closed it.
    let open = agent.connections(pod);
    assert!(open.iter().all(|c| c["peer"] != peer), "{mechanism}");
}

#[test]
fn each_mechanism_wakes_a_server_that_blocks_in_a_receive() {
    let lab = lab(1);
    for (mechanism, port) in Mechanism::ALL.into_iter().zip(7050..) {
        let (address, _server) = Server::in_pod(lab.pod(0), port, Kind::Plain);
        let policy = enforce(&lab, port, "maxAge: 300ms", AT_ONCE);
        let mut agent = agent(&lab, &policy, mechanism);
        let mut client = echoed(&lab, address);
        agent.moved("reset");
        assert!(is_reset(&mut client), "{mechanism}");
        echoed(&lab, address);
    }
}

/// IPv6, from the pod to itself.
#[test]
fn each_mechanism_works_over_ipv6() {
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
        echoes(&mut client);
        agent.moved("reset");
        has_ended(&mut client, "reset");
    }
}
