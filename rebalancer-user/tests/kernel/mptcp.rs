//! MPTCP: to destroy a subflow strands its connection, so it is skipped on every step.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use serde_json::Value;

use crate::{
    guards::echoes,
    manual,
    moves::{AT_ONCE, enforce, is_reset},
    server::{Kind, Server, mptcp_socket},
    support::{Agent, PATIENCE, alone, connect, lab, rebalancer, stdout},
};

#[test]
fn an_mptcp_connection_is_tracked_and_skipped_and_a_plain_one_is_moved() {
    let _alone = alone();
    let lab = lab(1);
    let pod = lab.pod(0);
    let address = SocketAddr::from((pod.addr, 7095));
    let _server = Server::start(&pod.host, address, Kind::Mptcp);
    let steps = format!("{{step: Close, when: AtOnce, timeout: 1s}}, {AT_ONCE}");
    let policy = enforce(&lab, 7095, "maxAge: 300ms", &steps) + "  atEnd: ResetNow\n";
    let mut agent = Agent::in_lab(&lab, &policy);
    let socket = lab.client().enter(mptcp_socket).unwrap();
    rustix::net::connect(&socket, &address).unwrap();
    let mut client = TcpStream::from(socket);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    echoes(&mut client);

    let all = agent.connections(pod);
    let [connection] = all.as_slice() else {
        panic!("{all:#?}")
    };
    assert_eq!(connection["mptcp"], true, "{connection:#}");
    agent.wait_for_intervals(5);
    assert_eq!(agent.logged("move"), [] as [Value; 0]);
    echoes(&mut client);

    // By hand neither, with either step, and not with the guards ignored.
    let id = connection["id"].as_str().unwrap();
    for more in [
        &["--step", "close"][..],
        &["--step", "reset"],
        &["--step", "close", "--ignore-guards"],
        &["--step", "reset", "--ignore-guards"],
    ] {
        let arguments = [&["--when", "at-once", id], more].concat();
        let out = manual::manual(&agent.pins, &arguments);
        let item = &manual::items(&out)[0];
        assert_eq!(
            (&item["outcome"], &item["cause"]),
            (&"skipped".into(), &"mptcp".into()),
            "{more:?}: {item}"
        );
    }
    echoes(&mut client);
    assert!(planned(&agent, &policy).contains("mptcp"));

    // The same listener, and a client without MPTCP.
    let mut plain = connect(&lab, address);
    let line = agent.wait_for_move();
    assert_eq!(line["peer"], plain.local_addr().unwrap().to_string());
    assert_eq!(line["outcome"], "closed", "{line}");
    assert_eq!(plain.read(&mut [0]).unwrap(), 0);
    echoes(&mut client);
    agent.leaves_nothing();

    let mut agent = Agent::in_lab(&lab, &enforce(&lab, 7095, "maxAge: 300ms", AT_ONCE));
    let mut plain = connect(&lab, address);
    plain.write_all(b"f").unwrap();
    assert_eq!(agent.wait_for_move()["outcome"], "reset");
    plain.read_exact(&mut [0]).unwrap();
    assert!(is_reset(&mut plain));
    echoes(&mut client);
    agent.wait_for_intervals(3);
    assert_eq!(agent.logged("move").len(), 1);
    agent.leaves_nothing();
}

/// What `plan` says of this policy.
fn planned(agent: &Agent, policy: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), policy).unwrap();
    let file = file.path().to_str().unwrap();
    let out = rebalancer(agent, &["plan", "-o", "json", "--policy", file]);
    assert!(out.status.success(), "{out:?}");
    stdout(&out)
}
