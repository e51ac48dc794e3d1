//! `count: Messages`: exact on what joins, nothing on what does not, and no harm to either.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{FromRawFd as _, OwnedFd},
};

use aya::sys::{Stats, enable_stats};
use rebalancer_user::moves::Mechanism;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use xtask::lab::Lab;

use crate::{
    moves::{AT_ONCE, enforce, is_reset},
    server::{Kind, Server, UNIT, pattern},
    support::{
        Agent, PATIENCE, alone, bpftool, cgroup, connect, eventually, held_by, lab, own_pins,
        request, still_there,
    },
};

pub const NEVER: &str = "maxAge: 1h";

/// A rule that counts on this port and, as long as `limits` are not exceeded, nothing else.
pub fn counting(lab: &Lab, port: u16, limits: &str, steps: &str) -> String {
    format!("{}  count: Messages\n", enforce(lab, port, limits, steps))
}

pub fn start(lab: &Lab, policy: &str, more: &[&str]) -> Agent {
    let mut arguments = vec!["--cgroup", cgroup(lab).to_str().unwrap()];
    arguments.push("--count-despite-fionread");
    arguments.extend(more);
    Agent::with(policy, own_pins(), &arguments)
}

pub fn wait_for_joined(agent: &mut Agent, all: u64) {
    agent.wait_for("who joined", |line| {
        line["message"] == "counting sends" && line["all"] == all
    });
}

/// What `dump` says of the connection of this client.
pub fn sends(agent: &Agent, client: &TcpStream) -> Value {
    let peer = client.local_addr().unwrap().to_string();
    let all = agent.dump(&[]);
    let of = all.iter().find(|c| c["peer"] == peer.as_str());
    of.unwrap_or_else(|| panic!("{peer} is not listed"))["sends"].clone()
}

/// The sk_msg program of this agent.
fn program(agent: &Agent) -> Option<u64> {
    let programs = held_by(agent.child.id()).into_iter();
    let ids = programs.filter_map(|(what, id)| (what == "prog").then_some(id));
    ids.into_iter().find(|id| {
        let program = bpftool(&["prog", "show", "id", &id.to_string()]);
        program["type"] == "sk_msg"
    })
}

fn runs(program: u64) -> u64 {
    let shown = bpftool(&["prog", "show", "id", &program.to_string()]);
    shown["run_cnt"].as_u64().unwrap_or(0)
}

/// Asks a [`Kind::Sends`] server, and compares its stream from `place` on with what it should be.
fn ask(client: &mut TcpStream, units: u8, place: &mut usize) {
    client.write_all(&[units]).unwrap();
    let mut answer = vec![0; usize::from(units) * UNIT];
    client.read_exact(&mut answer).unwrap();
    for byte in answer {
        assert_eq!(byte, pattern(*place), "at {place}");
        *place += 1;
    }
}

#[test]
fn sends_of_known_sizes_are_counted_exactly_and_other_connections_run_nothing() {
    let _alone = alone();
    let lab = lab(1);
    let [counted, other] = [7060, 7061].map(|port| SocketAddr::from((lab.pod(0).addr, port)));
    let _servers =
        [counted, other].map(|address| Server::start(&lab.pod(0).host, address, Kind::Sends));
    let mut agent = start(&lab, &counting(&lab, 7060, NEVER, AT_ONCE), &[]);
    let _stats = enable_stats(Stats::RunTime).expect("run counts");
    let mut client = connect(&lab, counted);
    let mut bystander = connect(&lab, other);
    let (mut place, mut elsewhere) = (0, 0);
    wait_for_joined(&mut agent, 1);
    let program = program(&agent).expect("loaded");
    assert_eq!(sends(&agent, &client), Value::Null, "nothing was sent yet");

    let sizes: Vec<u8> = (1..=255).chain([1; 100]).collect();
    for units in &sizes {
        ask(&mut bystander, *units, &mut elsewhere);
    }
    assert_eq!(runs(program), 0, "for a connection that no rule asked for");
    for units in &sizes {
        ask(&mut client, *units, &mut place);
    }
    let expected = json!({"messages": sizes.len(), "bytes": place});
    assert_eq!(sends(&agent, &client), expected);
    assert_eq!(runs(program), sizes.len() as u64);
    assert_eq!(sends(&agent, &bystander), Value::Null);
    // It ends as any other: the server sees the end, closes, and nothing is missing.
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn nginx_sends_once_per_keep_alive_request_and_its_downloads_are_complete() {
    let _alone = alone();
    let lab = lab(1);
    let mut agent = start(&lab, &counting(&lab, 80, NEVER, AT_ONCE), &[]);
    let mut streams: Vec<_> = (0..5)
        .map(|_| connect(&lab, lab.pod(0).address()))
        .collect();
    // The first answer comes before any of them joins.
    for stream in &mut streams {
        request(stream, "/").unwrap();
    }
    wait_for_joined(&mut agent, 5);
    for (i, stream) in streams.iter_mut().enumerate() {
        let bytes: usize = (0..i * 10).map(|_| request(stream, "/").unwrap()).sum();
        let expected = match i {
            0 => Value::Null,
            i => json!({"messages": i * 10, "bytes": bytes}),
        };
        assert_eq!(sends(&agent, stream), expected);
    }
    let stream = &mut streams[0];
    let bytes: usize = (0..100).map(|_| request(stream, "/blob").unwrap()).sum();
    let got = sends(&agent, stream);
    assert_eq!(got["bytes"], bytes, "{got}");
    assert!(got["messages"].as_u64() >= Some(100), "{got}");
}

#[test]
fn a_counted_connection_is_moved_like_any_other() {
    let _alone = alone();
    let lab = lab(1);
    let (address, mut server) = Server::in_pod(lab.pod(0), 7062, Kind::Plain);
    const CLOSE: &str = "{step: Close, when: AtOnce, timeout: 5s}";
    for (step, outcome, mechanism) in [
        (AT_ONCE, "reset", Mechanism::SockDestroy),
        (AT_ONCE, "reset", Mechanism::Abort),
        (AT_ONCE, "reset", Mechanism::Raw),
        (CLOSE, "closed", Mechanism::SockDestroy),
    ] {
        let policy = counting(&lab, 7062, "maxBytes: 4", step);
        let by = ["--reset-mechanism", mechanism.as_str()];
        let mut agent = start(&lab, &policy, &by);
        let mut client = connect(&lab, address);
        wait_for_joined(&mut agent, 1);
        for _ in 0..3 {
            client.write_all(b"f").unwrap();
            client.read_exact(&mut [0]).unwrap();
        }
        let line = agent.wait_for_move();
        assert_eq!(line["outcome"], outcome, "{mechanism}: {line}");
        if outcome == "closed" {
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        } else {
            assert!(is_reset(&mut client), "{mechanism}");
        }
        let mut next = connect(&lab, address);
        next.write_all(b"f").unwrap();
        next.read_exact(&mut [0]).unwrap();
        assert!(server.lives());
    }
}

#[test]
fn a_connection_that_cannot_be_counted_is_left_alone_and_the_reason_is_logged() {
    let _alone = alone();
    let lab = lab(2);
    let pod = lab.pod(0);
    let address = |port| SocketAddr::from((pod.addr, port));

    // The client has closed its direction, and the server does not look.
    let _stays = Server::start(&pod.host, address(7064), Kind::Stays);
    let mut half = connect(&lab, address(7064));
    half.write_all(b"f").unwrap();
    half.read_exact(&mut [0]).unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    let mut agent = start(&lab, &counting(&lab, 7064, NEVER, AT_ONCE), &[]);
    refused(&mut agent, "notEstablished", &half);

    // Its process is not where its socket is.
    let moved = Server::start(&pod.host, address(7065), Kind::Plain);
    let elsewhere = lab.pod(1).host.cgroup().join("cgroup.procs");
    std::fs::write(elsewhere, moved.child.id().to_string()).unwrap();
    let mut agent = start(&lab, &counting(&lab, 7065, NEVER, AT_ONCE), &[]);
    let mut foreign = connect(&lab, address(7065));
    refused(&mut agent, "foreignProcess", &foreign);
    foreign.write_all(b"f").unwrap();
    foreign.read_exact(&mut [0]).unwrap();

    // Another program has it: here, that of a first agent.
    let _plain = Server::start(&pod.host, address(7066), Kind::Plain);
    let policy = counting(&lab, 7066, NEVER, AT_ONCE);
    let mut first = start(&lab, &policy, &[]);
    let mut twice = connect(&lab, address(7066));
    wait_for_joined(&mut first, 1);
    let mut second = start(&lab, &policy, &[]);
    refused(&mut second, "busy", &twice);
    twice.write_all(b"f").unwrap();
    twice.read_exact(&mut [0]).unwrap();
    assert_eq!(sends(&first, &twice), json!({"messages": 1, "bytes": 1}));
    // Said once, and left alone from then on.
    second.wait_for_intervals(5);
    assert_eq!(second.logged("sends not counted").len(), 1);
}

#[track_caller]
fn refused(agent: &mut Agent, reason: &str, client: &TcpStream) {
    let line = agent.wait_for("why it is not counted", |line| {
        line["message"] == "sends not counted"
    });
    assert_eq!(
        (&line["reason"], &line["level"], &line["total"]),
        (&json!(reason), &json!("WARN"), &json!(1)),
        "{line}"
    );
    assert_eq!(sends(agent, client), Value::Null);
}

/// Both ends speak MPTCP, so that what is accepted is a subflow.
#[test]
fn an_mptcp_subflow_is_not_counted() {
    let _alone = alone();
    let lab = lab(1);
    let pod = lab.pod(0);
    let address = SocketAddr::from((pod.addr, 7067));
    let listener = pod.host.enter(|| listen_mptcp(address)).unwrap();
    // This process serves, and its socket's cgroup is its own.
    let arguments = ["--count-despite-fionread"];
    let policy = counting(&lab, 7067, NEVER, AT_ONCE);
    let mut agent = Agent::with(&policy, own_pins(), &arguments);
    let client = lab.client().enter(|| connect_mptcp(address)).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    refused(&mut agent, "mptcp", &client);
    server.write_all(b"f").unwrap();
    (&client).read_exact(&mut [0]).unwrap();
}

fn mptcp_socket() -> OwnedFd {
    // SAFETY: no pointers; the descriptor is new and ours.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP);
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    }
}

fn listen_mptcp(address: SocketAddr) -> TcpListener {
    let socket = mptcp_socket();
    rustix::net::bind(&socket, &address).unwrap();
    rustix::net::listen(&socket, 8).unwrap();
    socket.into()
}

fn connect_mptcp(address: SocketAddr) -> TcpStream {
    let socket = mptcp_socket();
    rustix::net::connect(&socket, &address).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn counting_stops_on_reload_on_stop_and_when_the_agent_is_killed() {
    let _alone = alone();
    let lab = lab(1);
    let (address, _server) = Server::in_pod(lab.pod(0), 7068, Kind::Sends);
    let file = tempfile::NamedTempFile::new().unwrap();
    let counts = counting(&lab, 7068, NEVER, AT_ONCE);
    std::fs::write(file.path(), &counts).unwrap();
    let in_lab = ["--cgroup", cgroup(&lab).to_str().unwrap()];
    let arguments = [in_lab[0], in_lab[1], "--count-despite-fionread"];
    let mut agent = Agent::with_file(file.path(), own_pins(), &arguments);
    let mut client = connect(&lab, address);
    let mut place = 0;
    wait_for_joined(&mut agent, 1);
    ask(&mut client, 1, &mut place);
    let once = json!({"messages": 1, "bytes": UNIT});
    assert_eq!(sends(&agent, &client), once);

    // A rule that does not ask any more.
    let hangup = |agent: &Agent| {
        kill_process(Pid::from_child(&agent.child), Signal::HUP).unwrap();
    };
    std::fs::write(file.path(), enforce(&lab, 7068, NEVER, AT_ONCE)).unwrap();
    hangup(&agent);
    let line = agent.wait_for("the end of counting", |line| {
        line["message"] == "stopped counting sends"
    });
    assert_eq!(line["left"], 1, "{line}");
    eventually("the program is unloaded", || match program(&agent) {
        None => Ok(None),
        some => Err(some),
    });
    ask(&mut client, 2, &mut place);
    assert_eq!(sends(&agent, &client), once, "as it was when it left");

    // And one that does again; then it is stopped.
    std::fs::write(file.path(), &counts).unwrap();
    hangup(&agent);
    wait_for_joined(&mut agent, 1);
    ask(&mut client, 3, &mut place);
    let twice = json!({"messages": 2, "bytes": 4 * UNIT});
    assert_eq!(sends(&agent, &client), twice);
    let held = held_by(agent.child.id());
    assert_eq!(agent.terminate(), Some(0));
    // The server's receive that is under way holds on to the program until it returns.
    ask(&mut client, 4, &mut place);
    nothing_left(&held);

    // Killed, it cannot let go by itself: the kernel does, as nothing else holds the map.
    let mut agent = start(&lab, &counts, &[]);
    wait_for_joined(&mut agent, 1);
    let sk_msg = program(&agent).unwrap();
    agent.child.kill().unwrap();
    agent.child.wait().unwrap();
    // It does so a moment later, and until then each receive begins to hold on to the program: one
    // that begins afterwards does not.
    for _ in 0..100 {
        ask(&mut client, 5, &mut place);
        if still_there(&[("prog", sk_msg)]).is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("the program of a killed agent stays");
}

pub fn nothing_left(held: &[(&'static str, u64)]) {
    eventually("nothing left", || {
        let left = still_there(held);
        if left.is_empty() { Ok(left) } else { Err(left) }
    });
}

/// Where the kernel reports to the server of a counted socket that nothing waits to be read, nothing
/// is counted, and FIONREAD is right.
#[test]
fn nothing_is_counted_on_a_kernel_with_wrong_fionread() {
    let _alone = alone();
    let lab = lab(1);
    let (address, _server) = Server::in_pod(lab.pod(0), 7069, Kind::Sends);
    let mut agent = Agent::in_lab(&lab, &counting(&lab, 7069, NEVER, AT_ONCE));
    let mut client = connect(&lab, address);
    let line = agent.wait_for("whether it counts", |line| {
        line["fionread"] == "Right" || line["reason"] == "fionread"
    });
    if line["fionread"] == "Right" {
        wait_for_joined(&mut agent, 1);
    } else {
        agent.wait_for_intervals(5);
        assert_eq!(program(&agent), None);
        assert_eq!(agent.logged("counting sends").len(), 0);
    }
    ask(&mut client, 1, &mut 0);
}
