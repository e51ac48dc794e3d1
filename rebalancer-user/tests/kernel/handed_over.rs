//! Connections that are served by another process than the one that accepted them.

use std::{
    fs,
    io::Read as _,
    net::{SocketAddr, TcpStream},
};

use serde_json::Value;
use xtask::lab::{Lab, Pod};

use crate::{
    guards::{echoes, refused},
    moves::{AT_ONCE, enforce, is_reset},
    server::{Kind, Server},
    support::{Agent, TRACK_ONLY, alone, connect, eventually, lab},
};

const CLOSE: &str = "{step: Close, when: AtOnce, timeout: 5s}";

/// A server that passes its connections to a worker of the same pod, or of another.
fn passing(lab: &Lab, port: u16, worker_in: &Pod, kind: Kind) -> (SocketAddr, [Server; 2]) {
    let path = lab.folder().join(format!("worker-{port}"));
    let address = SocketAddr::from((lab.pod(0).addr, port));
    let worker = Server::worker(&worker_in.host, &path, kind);
    let server = Server::handing_over(&lab.pod(0).host, address, &path);
    (address, [worker, server])
}

/// A connection that was handed over: its answer comes from the one that holds it now.
fn handed_over(lab: &Lab, address: SocketAddr) -> TcpStream {
    let mut client = connect(lab, address);
    echoes(&mut client);
    client
}

/// Both ways of handing over.
fn each_way(lab: &Lab, port: u16, test: impl Fn(SocketAddr, &str)) {
    let (address, _servers) = passing(lab, port, lab.pod(0), Kind::Plain);
    test(address, "passed");
    let address = SocketAddr::from((lab.pod(0).addr, port + 1));
    let _server = Server::start(&lab.pod(0).host, address, Kind::Inetd);
    test(address, "inherited");
}

#[test]
fn a_handed_over_connection_is_tracked_until_it_closes() {
    let _alone = alone();
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let pod = lab.pod(0);
    each_way(&lab, 7080, |address, way| {
        let mut client = handed_over(&lab, address);
        let id = || {
            let all = agent.connections(pod);
            assert_eq!(all.len(), 1, "{way}: {all:#?}");
            all[0]["id"].clone()
        };
        let before = id();
        for _ in 0..9 {
            echoes(&mut client);
        }
        assert_eq!(id(), before, "{way}");
        drop(client);
        let port = address.port();
        let e = eventually("closed", || {
            let e = agent.endpoint(pod, port);
            if e["open"] == 0 { Ok(e) } else { Err(e) }
        });
        assert_eq!((&e["accepted"], &e["closed"]), (&1.into(), &1.into()));
        // One more for each FIN.
        assert_eq!(
            (&e["bytesIn"], &e["bytesOut"]),
            (&11.into(), &11.into()),
            "{way}"
        );
    });
    agent.leaves_nothing();
}

/// SIGPIPE would kill the process that accepted it, which holds it no more.
#[test]
fn the_process_that_holds_it_now_is_checked_and_asked_to_close() {
    let _alone = alone();
    let lab = lab(1);
    for (port, step, outcome) in [(7082, CLOSE, "closed"), (7084, AT_ONCE, "reset")] {
        each_way(&lab, port, |address, way| {
            let mut client = handed_over(&lab, address);
            let policy = enforce(&lab, address.port(), "maxAge: 300ms", step);
            let mut agent = Agent::in_lab(&lab, &policy);
            let line = agent.wait_for_move();
            assert_eq!(line["outcome"], outcome, "{way}: {line}");
            if step == CLOSE {
                assert_eq!(client.read(&mut [0]).unwrap(), 0, "{way}");
            } else {
                assert!(is_reset(&mut client), "{way}");
            }
            agent.leaves_nothing();
        });
    }
}

#[test]
fn a_worker_that_sigpipe_would_kill_is_skipped() {
    let _alone = alone();
    let lab = lab(1);
    let (address, mut servers) = passing(&lab, 7086, lab.pod(0), Kind::DiesOfSigpipe);
    let mut client = handed_over(&lab, address);
    refused(&first_move(&lab, address), "sigpipe");
    echoes(&mut client);
    assert!(servers.iter_mut().all(Server::lives));
}

#[test]
fn a_worker_in_another_pod_is_skipped_as_foreign() {
    let _alone = alone();
    let lab = lab(2);
    let (address, _servers) = passing(&lab, 7087, lab.pod(1), Kind::Plain);
    let mut client = handed_over(&lab, address);
    refused(&first_move(&lab, address), "foreignProcess");
    echoes(&mut client);
}

/// A container of the same pod shares its network, and is another cgroup.
#[test]
fn a_worker_in_another_cgroup_is_skipped_as_foreign() {
    let _alone = alone();
    let lab = lab(2);
    let (address, servers) = passing(&lab, 7088, lab.pod(0), Kind::Plain);
    let elsewhere = lab.pod(1).host.cgroup().join("cgroup.procs");
    fs::write(elsewhere, servers[0].child.id().to_string()).unwrap();
    let mut client = handed_over(&lab, address);
    refused(&first_move(&lab, address), "foreignProcess");
    echoes(&mut client);
}

fn first_move(lab: &Lab, address: SocketAddr) -> Value {
    let policy = enforce(lab, address.port(), "maxAge: 300ms", AT_ONCE);
    let mut agent = Agent::in_lab(lab, &policy);
    let line = agent.wait_for_move();
    agent.leaves_nothing();
    line
}
