//! `count: Messages`: exact on what joins, nothing on what does not, and no harm to either.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    os::fd::AsFd as _,
};

use aya::sys::{Stats, enable_stats};
use rebalancer_user::{
    bpf::{Reason, Sends, left_joined},
    moves::Mechanism,
    snapshot::Cookie,
};
use serde_json::{Value, json};
use xtask::lab::Lab;

use crate::{
    cost::{program_where, runs},
    server::{Kind, Server, UNIT, connect_mptcp, pattern, served},
    support::{
        AT_ONCE, Agent, CLOSE_AT_ONCE, Tracked, answered, connect, cookie, echoed, echoes, enforce,
        eventually, has_ended, held_by, kernel, lab, move_to, nothing_left, request, shows,
        still_there,
    },
};

pub const NEVER: &str = "maxAge: 1h";

/// A rule that counts on this port and, as long as `limits` are not exceeded, nothing else.
pub fn counting(lab: &Lab, port: u16, limits: &str, steps: &str) -> String {
    format!("{}  count: Messages\n", enforce(lab, port, limits, steps))
}

/// An agent that only counts on this port.
pub fn start(lab: &Lab, port: u16) -> Agent {
    start_with(lab, &counting(lab, port, NEVER, AT_ONCE), &[])
}

fn start_with(lab: &Lab, policy: &str, more: &[&str]) -> Agent {
    Agent::in_lab_with(lab, policy, &[&["--count-despite-fionread"], more].concat())
}

pub fn wait_for_joined(agent: &mut Agent, all: u64) {
    agent.wait_for("who joined", |line| {
        line["message"] == "counting sends" && line["all"] == all
    });
}

/// What `dump` says of the connection of this client.
pub fn sends(agent: &Agent, client: &TcpStream) -> Value {
    agent.connection_of(client)["sends"].clone()
}

/// The sk_msg program of this agent.
pub fn program(agent: &Agent) -> Option<u64> {
    program_where(agent, "type", "sk_msg")
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
    let (lab, counted, _server) = served(7060, Kind::Sends);
    let (other, _other) = Server::in_pod(lab.pod(0), 7061, Kind::Sends);
    let mut agent = start(&lab, 7060);
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
    has_ended(&mut client, "closed");
}

#[test]
fn nginx_sends_once_per_keep_alive_request_and_its_downloads_are_complete() {
    let lab = lab(1);
    let mut agent = start(&lab, 80);
    // The first answer comes before any of them joins.
    let mut streams = [(); 5].map(|()| answered(&lab, lab.pod(0).address()));
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
    let (lab, address, mut server) = served(7062, Kind::Plain);
    for (step, outcome, mechanism) in [
        (AT_ONCE, "reset", Mechanism::SockDestroy),
        (AT_ONCE, "reset", Mechanism::Abort),
        (AT_ONCE, "reset", Mechanism::Raw),
        (CLOSE_AT_ONCE, "closed", Mechanism::SockDestroy),
    ] {
        let policy = counting(&lab, 7062, "maxBytes: 4", step);
        let by = ["--reset-mechanism", mechanism.as_str()];
        let mut agent = start_with(&lab, &policy, &by);
        let mut client = connect(&lab, address);
        wait_for_joined(&mut agent, 1);
        for _ in 0..3 {
            echoes(&mut client);
        }
        agent.moved(outcome);
        has_ended(&mut client, outcome);
        echoed(&lab, address);
        assert!(server.lives());
    }
}

#[test]
fn a_connection_that_cannot_be_counted_is_left_alone_and_the_reason_is_logged() {
    let lab = lab(2);
    let pod = lab.pod(0);

    // The client has closed its direction, and the server does not look.
    let (address, _stays) = Server::in_pod(pod, 7064, Kind::Stays);
    let half = echoed(&lab, address);
    half.shutdown(Shutdown::Write).unwrap();
    refused(&mut start(&lab, 7064), "notEstablished", &half);

    // Its process is not where its socket is.
    let (address, moved) = Server::in_pod(pod, 7065, Kind::Plain);
    move_to(lab.pod(1), moved.id());
    let mut agent = start(&lab, 7065);
    let mut foreign = connect(&lab, address);
    refused(&mut agent, "foreignProcess", &foreign);
    echoes(&mut foreign);

    // Both ends speak MPTCP, so that what is accepted is a subflow.
    let (address, _mptcp) = Server::in_pod(pod, 7067, Kind::Mptcp);
    let mut agent = start(&lab, 7067);
    let mut subflow = connect_mptcp(&lab, address);
    refused(&mut agent, "mptcp", &subflow);
    echoes(&mut subflow);

    // Another program has it: here, that of a first agent.
    let (address, _plain) = Server::in_pod(pod, 7066, Kind::Plain);
    let mut first = start(&lab, 7066);
    let mut twice = connect(&lab, address);
    wait_for_joined(&mut first, 1);
    let mut second = start(&lab, 7066);
    refused(&mut second, "busy", &twice);
    echoes(&mut twice);
    assert_eq!(sends(&first, &twice), json!({"messages": 1, "bytes": 1}));
    // Said once, and left alone from then on.
    second.wait_for_intervals(5);
    assert_eq!(second.logged("sends not counted").len(), 1);
}

#[track_caller]
fn refused(agent: &mut Agent, reason: &str, client: &TcpStream) {
    let line = agent.wait_for_message("sends not counted");
    shows(
        &line,
        json!({"reason": reason, "level": "WARN", "total": 1}),
    );
    assert_eq!(sends(agent, client), Value::Null);
}

#[test]
fn counting_stops_on_reload_on_stop_and_when_the_agent_is_killed() {
    let (lab, address, _server) = served(7068, Kind::Sends);
    let mut agent = start(&lab, 7068);
    let mut client = connect(&lab, address);
    let mut place = 0;
    wait_for_joined(&mut agent, 1);
    ask(&mut client, 1, &mut place);
    let once = json!({"messages": 1, "bytes": UNIT});
    assert_eq!(sends(&agent, &client), once);

    // A rule that does not ask any more.
    agent.reload(&enforce(&lab, 7068, NEVER, AT_ONCE));
    let line = agent.wait_for_message("stopped counting sends");
    assert_eq!(line["left"], 1, "{line}");
    eventually("unloaded", || program(&agent), Option::is_none);
    ask(&mut client, 2, &mut place);
    assert_eq!(sends(&agent, &client), once, "as it was when it left");

    // And one that does again; then it is stopped.
    agent.reload(&counting(&lab, 7068, NEVER, AT_ONCE));
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
    let mut agent = start(&lab, 7068);
    wait_for_joined(&mut agent, 1);
    let sk_msg = program(&agent).unwrap();
    agent.kill();
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

/// Where the kernel reports to the server of a counted socket that nothing waits to be read, nothing
/// is counted, and FIONREAD is right.
#[test]
fn nothing_is_counted_on_a_kernel_with_wrong_fionread() {
    let (lab, address, _server) = served(7069, Kind::Sends);
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

/// Another thread removes what a stuck one has joined. Until its readers were woken, the pins remember each.
#[test]
fn what_a_thread_has_joined_is_removed_for_it_and_remembered_until_it_is_woken() {
    let tracked = Tracked::on_machine();
    let pins = tracked.tracker.pins();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let clients = [(); 2].map(|()| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    let [counted, notified] = [(); 2].map(|()| listener.accept().unwrap().0);
    let [first, second] = [&counted, &notified].map(|server| Cookie(cookie(server)));

    let sends = Sends::new(kernel(), pins.to_owned());
    let counter = sends.open().unwrap();
    let mut joiner = counter.joiner().unwrap();
    joiner.join(first, counted.as_fd(), Reason::Count).unwrap();
    for reason in [Reason::Count, Reason::Notice] {
        joiner.join(second, notified.as_fd(), reason).unwrap();
    }
    let both = BTreeSet::from([first, second]);
    assert_eq!(left_joined(pins).unwrap(), both);
    assert_eq!(
        sends.leave_all(Reason::Notice),
        BTreeSet::new(),
        "it is counted on"
    );
    assert_eq!(left_joined(pins).unwrap(), both);
    assert_eq!(sends.leave_all(Reason::Count), both);
    assert_eq!(sends.leave_all(Reason::Count), BTreeSet::new());
    assert_eq!(left_joined(pins).unwrap(), both, "not woken yet");
    sends.woken(first);
    assert_eq!(left_joined(pins).unwrap(), BTreeSet::from([second]));
    // One that has joined again is remembered.
    joiner
        .join(second, notified.as_fd(), Reason::Notice)
        .unwrap();
    sends.woken(second);
    assert_eq!(left_joined(pins).unwrap(), BTreeSet::from([second]));
    // The kernel has removed it with its end.
    drop((clients, notified));
    counter.leave(second, Reason::Notice).unwrap();
    assert_eq!(left_joined(pins).unwrap(), BTreeSet::new());
}
