//! What the process that holds a connection is, skips it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
};

use serde_json::Value;
use xtask::lab::Lab;

use crate::{
    moves::{AT_ONCE, enforce},
    server::{Kind, Server},
    support::{Agent, alone, connect, lab, rebalancer, request, stdout},
};

const CLOSE: &str = "{step: Close, when: AtOnce, timeout: 5s}";

/// An agent that moves whatever is older than a moment on this port.
fn agent(lab: &Lab, port: u16, step: &str) -> Agent {
    Agent::in_lab(lab, &enforce(lab, port, "maxAge: 300ms", step))
}

pub fn echoes(stream: &mut TcpStream) {
    stream.write_all(b"f").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

#[track_caller]
pub fn refused(line: &Value, guard: &str) {
    assert_eq!(line["outcome"], "refused", "{line}");
    assert_eq!(line["cause"], guard, "{line}");
}

#[test]
fn a_server_that_sigpipe_would_kill_is_skipped_on_every_step() {
    let _alone = alone();
    let lab = lab(1);
    for (port, step) in [(7030, AT_ONCE), (7031, CLOSE)] {
        let (address, mut server) = Server::in_pod(lab.pod(0), port, Kind::DiesOfSigpipe);
        let mut agent = agent(&lab, port, step);
        let mut client = connect(&lab, address);
        refused(&agent.wait_for_move(), "sigpipe");
        echoes(&mut client);
        assert!(server.lives());
    }
    // What the guard is for: a reset does kill such a server. The client's own has the same end.
    let (address, mut server) = Server::in_pod(lab.pod(0), 7032, Kind::DiesOfSigpipe);
    let mut client = connect(&lab, address);
    client.write_all(b"ff").unwrap();
    client.write_all(b"s").unwrap();
    rustix::net::sockopt::set_socket_linger(&client, Some(std::time::Duration::ZERO)).unwrap();
    drop(client);
    let status = server.child.wait().unwrap();
    use std::os::unix::process::ExitStatusExt as _;
    assert_eq!(status.signal(), Some(libc::SIGPIPE), "{status}");
}

/// What a refused move leaves, as `rebalancer cooldowns` has it.
#[test]
fn a_refused_move_is_tried_again_once_its_cooldown_is_cleared() {
    let _alone = alone();
    let lab = lab(1);
    let (address, _server) = Server::in_pod(lab.pod(0), 7038, Kind::DiesOfSigpipe);
    let mut agent = agent(&lab, 7038, AT_ONCE);
    let mut client = connect(&lab, address);
    let id = refused_id(&mut agent);
    let cooldowns = |arguments: &[&str]| {
        let out = rebalancer(&agent, &[&["cooldowns"], arguments].concat());
        assert!(out.status.success(), "{out:?}");
        stdout(&out)
    };
    let listed = || {
        let list: Value = serde_json::from_str(&cooldowns(&["list", "-o", "json"])).unwrap();
        assert_eq!(list["kind"], "CooldownList");
        list["items"].as_array().unwrap().clone()
    };
    let items = listed();
    let [item] = items.as_slice() else {
        panic!("{items:?}")
    };
    let what = ["connection", "rule", "cause"].map(|field| item[field].as_str().unwrap());
    assert_eq!(what, [id.as_str(), "lab", "sigpipe"], "{item}");
    assert_eq!(item["times"], 1);
    let table = cooldowns(&["list"]);
    assert!(table.contains(&id) && table.contains("sigpipe"), "{table}");

    // While it lasts it is not tried again.
    assert_eq!(
        cooldowns(&["clear", "--rule", "other"]),
        "cooldowns cleared: 0\n"
    );
    agent.wait_for_intervals(4);
    assert_eq!(agent.logged("move").len(), 1);
    let clear = rebalancer(&agent, &["cooldowns", "clear", "--rule", "lab"]);
    assert_eq!(stdout(&clear), "cooldowns cleared: 1\n", "{clear:?}");
    let cleared = agent.wait_for("the clearing", |line| line["message"] == "cooldown cleared");
    assert_eq!(cleared["cause"], "sigpipe");
    assert_eq!(refused_id(&mut agent), id);
    echoes(&mut client);
}

/// The connection of the next move, which is refused for its server's sake.
fn refused_id(agent: &mut Agent) -> String {
    let line = agent.wait_for_move();
    refused(&line, "sigpipe");
    line["cookie"].as_str().unwrap().to_owned()
}

#[test]
fn the_guards_check_every_process_that_holds_the_socket() {
    let _alone = alone();
    let lab = lab(1);
    let (address, _server) = Server::in_pod(lab.pod(0), 7033, Kind::Leaks);
    let mut agent = agent(&lab, 7033, AT_ONCE);
    let mut client = connect(&lab, address);
    refused(&agent.wait_for_move(), "sigpipe");
    echoes(&mut client);
}

/// Its descriptor is in flight between two processes, where no table shows it.
#[test]
fn a_connection_without_a_visible_holder_is_only_counted() {
    let _alone = alone();
    let lab = lab(1);
    for (port, step) in [(7034, AT_ONCE), (7035, CLOSE)] {
        let (address, _server) = Server::in_pod(lab.pod(0), port, Kind::Hides);
        let mut agent = agent(&lab, port, step);
        let mut client = connect(&lab, address);
        client.write_all(b"f").unwrap();
        agent.wait_for("counted", |line| {
            line["message"] == "listed" && line["unseen"] == 1 && line["connections"] == 0
        });
        agent.wait_for_intervals(3);
        assert_eq!(agent.logged("move").len(), 0);
        assert_eq!(agent.connections(lab.pod(0)).len(), 0);
        client.set_nonblocking(true).unwrap();
        let silent = client.read(&mut [0]).unwrap_err();
        assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock);
    }
}

/// This test's own process serves in the pod's network, as the proxy of an ambient mesh does.
#[test]
fn a_server_in_another_network_namespace_than_its_socket_is_skipped() {
    let _alone = alone();
    let lab = lab(1);
    let address = SocketAddr::from((lab.pod(0).addr, 7036));
    let listen = || TcpListener::bind(address);
    let listener = lab.pod(0).host.enter(listen).unwrap().unwrap();
    // The socket's cgroup is this process's, outside of the lab's.
    let mut agent = Agent::on_machine(&enforce(&lab, 7036, "maxAge: 300ms", AT_ONCE));
    let mut client = connect(&lab, address);
    let (mut server, _) = listener.accept().unwrap();
    refused(&agent.wait_for_move(), "foreignProcess");
    client.write_all(b"f").unwrap();
    server.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_server_moved_to_another_cgroup_is_skipped() {
    let _alone = alone();
    let lab = lab(2);
    let (address, server) = Server::in_pod(lab.pod(0), 7037, Kind::Plain);
    let elsewhere = lab.pod(1).host.cgroup().join("cgroup.procs");
    fs::write(elsewhere, server.child.id().to_string()).unwrap();
    let mut agent = agent(&lab, 7037, AT_ONCE);
    let mut client = connect(&lab, address);
    refused(&agent.wait_for_move(), "foreignProcess");
    echoes(&mut client);
}

/// nginx ignores SIGPIPE, and its worker holds what its master's listener accepted.
#[test]
fn an_ordinary_server_is_not_skipped() {
    let _alone = alone();
    let lab = lab(1);
    for step in [AT_ONCE, CLOSE] {
        let mut agent = agent(&lab, 80, step);
        let mut stream = connect(&lab, lab.pod(0).address());
        request(&mut stream, "/").unwrap();
        let outcome = if step == CLOSE { "closed" } else { "reset" };
        assert_eq!(agent.wait_for_move()["outcome"], outcome);
    }
}
