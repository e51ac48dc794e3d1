//! Connections that are served by another process than the one that accepted them.

use std::net::SocketAddr;

use serde_json::json;
use xtask::lab::{Lab, Pod};

use crate::{
    server::{Kind, Server},
    support::{
        AT_ONCE, Agent, CLOSE_AT_ONCE, TRACK_ONLY, echoed, echoes, enforce, has_ended, lab,
        move_to, shows,
    },
};

/// A server that passes its connections to a worker of the same pod, or of another.
fn passing(lab: &Lab, port: u16, worker_in: &Pod, kind: Kind) -> (SocketAddr, [Server; 2]) {
    let path = lab.folder().join(format!("worker-{port}"));
    let worker = Server::worker(&worker_in.host, &path, kind);
    let (address, server) = Server::handing_over(lab.pod(0), port, &path);
    (address, [worker, server])
}

/// Both ways of handing over.
fn each_way(lab: &Lab, port: u16, test: impl Fn(SocketAddr, &str)) {
    let (address, _servers) = passing(lab, port, lab.pod(0), Kind::Plain);
    test(address, "passed");
    let (address, _server) = Server::in_pod(lab.pod(0), port + 1, Kind::Inetd);
    test(address, "inherited");
}

#[test]
fn a_handed_over_connection_is_tracked_until_it_closes() {
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let pod = lab.pod(0);
    each_way(&lab, 7080, |address, way| {
        let mut client = echoed(&lab, address);
        let id = || agent.connection(pod)["id"].clone();
        let before = id();
        for _ in 0..9 {
            echoes(&mut client);
        }
        assert_eq!(id(), before, "{way}");
        drop(client);
        let e = agent.endpoint_closed(pod, address.port(), 1);
        // One more for each FIN.
        let sums = json!({"accepted": 1, "closed": 1, "bytesIn": 11, "bytesOut": 11});
        shows(&e, sums);
    });
    agent.leaves_nothing();
}

/// SIGPIPE would kill the process that accepted it, which holds it no more.
#[test]
fn the_process_that_holds_it_now_is_checked_and_asked_to_close() {
    let lab = lab(1);
    for (port, step, outcome) in [(7082, CLOSE_AT_ONCE, "closed"), (7084, AT_ONCE, "reset")] {
        each_way(&lab, port, |address, _| {
            let mut client = echoed(&lab, address);
            let policy = enforce(&lab, address.port(), "maxAge: 300ms", step);
            let mut agent = Agent::in_lab(&lab, &policy);
            agent.moved(outcome);
            has_ended(&mut client, outcome);
            agent.leaves_nothing();
        });
    }
}

#[test]
fn a_worker_that_sigpipe_would_kill_or_of_another_pod_or_cgroup_is_skipped() {
    let lab = lab(2);
    let [here, elsewhere] = [lab.pod(0), lab.pod(1)];
    for (port, worker_in, kind, is_moved, guard) in [
        (7086, here, Kind::DiesOfSigpipe, false, "sigpipe"),
        (7087, elsewhere, Kind::Plain, false, "foreignProcess"),
        // A container of the same pod shares its network, and is another cgroup.
        (7088, here, Kind::Plain, true, "foreignProcess"),
    ] {
        let (address, mut servers) = passing(&lab, port, worker_in, kind);
        if is_moved {
            move_to(elsewhere, servers[0].id());
        }
        let mut client = echoed(&lab, address);
        let mut agent = Agent::moving(&lab, port, "maxAge: 300ms", AT_ONCE);
        agent.refused(guard);
        agent.leaves_nothing();
        echoes(&mut client);
        assert!(servers.iter_mut().all(Server::lives));
    }
}
