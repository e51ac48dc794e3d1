//! What the process that holds a connection is, skips it.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    os::unix::process::ExitStatusExt as _,
    time::Duration,
};

use serde_json::json;
use xtask::lab::Lab;

use crate::{
    server::{Kind, Server, served, served_and_moved},
    support::{
        AT_ONCE, Agent, CLOSE_AT_ONCE, accepted, connect, echoes, enforce, lab, listen, move_to,
        shows,
    },
};

/// An agent that moves whatever is older than a moment on this port.
fn agent(lab: &Lab, port: u16, step: &str) -> Agent {
    Agent::moving(lab, port, "maxAge: 300ms", step)
}

#[test]
fn a_server_that_sigpipe_would_kill_is_skipped_on_every_step() {
    let (lab, address, mut server) = served(7030, Kind::DiesOfSigpipe);
    for step in [AT_ONCE, CLOSE_AT_ONCE] {
        let mut agent = agent(&lab, 7030, step);
        let mut client = connect(&lab, address);
        agent.refused("sigpipe");
        echoes(&mut client);
        assert!(server.lives());
    }
    // What the guard is for: a reset does kill such a server. The client's own has the same end.
    let mut client = connect(&lab, address);
    client.write_all(b"ff").unwrap();
    client.write_all(b"s").unwrap();
    rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop(client);
    let status = server.program.child.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGPIPE), "{status}");
}

/// What a refused move leaves, as `rebalancer cooldowns` has it.
#[test]
fn a_refused_move_is_tried_again_once_its_cooldown_is_cleared() {
    let (lab, address, _server, mut agent) = served_and_moved(7038, Kind::DiesOfSigpipe, AT_ONCE);
    let mut client = connect(&lab, address);
    let id = agent.refused("sigpipe")["cookie"].clone();
    let list = agent.ask_json(&["cooldowns", "list"]);
    assert_eq!(list["kind"], "CooldownList");
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
    let of_it = json!({"connection": id, "rule": "lab", "cause": "sigpipe", "times": 1});
    shows(&list["items"][0], of_it);
    let table = agent.ask(&["cooldowns", "list"]);
    assert!(
        table.contains(id.as_str().unwrap()) && table.contains("sigpipe"),
        "{table}"
    );

    // While it lasts it is not tried again.
    let clear = |agent: &Agent, rule| agent.ask(&["cooldowns", "clear", "--rule", rule]);
    assert_eq!(clear(&agent, "other"), "cooldowns cleared: 0\n");
    agent.moves_no_more(1, 4);
    assert_eq!(clear(&agent, "lab"), "cooldowns cleared: 1\n");
    let cleared = agent.wait_for_message("cooldown cleared");
    assert_eq!(cleared["cause"], "sigpipe");
    assert_eq!(agent.refused("sigpipe")["cookie"], id);
    echoes(&mut client);
}

#[test]
fn the_guards_check_every_process_that_holds_the_socket() {
    let (lab, address, _server, mut agent) = served_and_moved(7033, Kind::Leaks, AT_ONCE);
    let mut client = connect(&lab, address);
    agent.refused("sigpipe");
    echoes(&mut client);
}

/// Its descriptor is in flight between two processes, where no table shows it.
#[test]
fn a_connection_without_a_visible_holder_is_only_counted() {
    let lab = lab(1);
    for (port, step) in [(7034, AT_ONCE), (7035, CLOSE_AT_ONCE)] {
        let (address, _server) = Server::in_pod(lab.pod(0), port, Kind::Hides);
        let mut agent = agent(&lab, port, step);
        let mut client = connect(&lab, address);
        client.write_all(b"f").unwrap();
        agent.wait_for("counted", |line| {
            line["message"] == "listed" && line["unseen"] == 1 && line["connections"] == 0
        });
        agent.moves_no_more(0, 3);
        assert_eq!(agent.connections(lab.pod(0)).len(), 0);
        client.set_nonblocking(true).unwrap();
        let silent = client.read(&mut [0]).unwrap_err();
        assert_eq!(silent.kind(), ErrorKind::WouldBlock);
    }
}

/// This test's own process serves in the pod's network, as the proxy of an ambient mesh does.
#[test]
fn a_server_in_another_network_namespace_than_its_socket_is_skipped() {
    let lab = lab(1);
    let listener = listen(lab.pod(0), 7036);
    // The socket's cgroup is this process's, outside of the lab's.
    let mut agent = Agent::on_machine(&enforce(&lab, 7036, "maxAge: 300ms", AT_ONCE));
    let (mut client, mut server) = accepted(&lab, &listener);
    agent.refused("foreignProcess");
    client.write_all(b"f").unwrap();
    server.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_server_moved_to_another_cgroup_is_skipped() {
    let lab = lab(2);
    let (address, server) = Server::in_pod(lab.pod(0), 7037, Kind::Plain);
    move_to(lab.pod(1), server.id());
    let mut agent = agent(&lab, 7037, AT_ONCE);
    let mut client = connect(&lab, address);
    agent.refused("foreignProcess");
    echoes(&mut client);
}
