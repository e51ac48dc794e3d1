//! Bytes are exact: live as `ss` says of the same socket at rest, final as was sent.

use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    process::Stdio,
};

use serde_json::{Value, json};
use xtask::lab::Pod;

use crate::support::{
    Agent, TRACK_ONLY, accepted, connect_many, eventually, is_sent, lab, listen, request, shows,
    ss, ss_shows, stdout,
};

/// The dump and `ss`, on the same sockets at rest.
fn assert_live_equals_ss(agent: &Agent, pod: &Pod, port: u16, count: usize) {
    let dump = agent.connections(pod);
    let shown = ss(&pod.host, port);
    assert_eq!(
        (dump.len(), shown.len()),
        (count, count),
        "{dump:#?}\n{shown:#?}"
    );
    for socket in shown {
        let found = dump.iter().find(|c| c["id"] == socket.cookie);
        let (received, acked) = (socket.received, socket.acked);
        let bytes =
            json!({"bytesIn": received, "bytesOut": acked, "receiveQueue": 0, "sendQueue": 0});
        shows(found.expect("same cookies"), bytes);
    }
}

#[test]
fn bytes_of_request_traffic_match_ss_live_and_final() {
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let pod = lab.pod(0);
    let mut streams = connect_many(&lab, pod.address(), 5);
    let (mut sent, mut received) = (0, 0);
    for (i, stream) in streams.iter_mut().enumerate() {
        for path in ["/", "/blob"].into_iter().cycle().take(10 * (i + 1)) {
            received += request(stream, path).unwrap() as u64;
            sent += format!("GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n").len() as u64;
        }
    }
    let acked = || ss(&pod.host, 80).iter().map(|s| s.acked).sum();
    eventually("all acknowledged", acked, |acked: &u64| *acked == received);
    assert_live_equals_ss(&agent, pod, 80, 5);
    let live = json!({"bytesIn": sent, "bytesOut": received, "open": 5});
    shows(&agent.endpoint(pod, 80), live);
    drop(streams);
    let closed = agent.endpoint_closed(pod, 80, 5);
    // One more for each FIN: the client's was received, nginx's was acknowledged.
    assert_eq!(closed["bytesIn"], sent + 5);
    is_sent(&closed["bytesOut"], received, 5);
}

#[test]
fn short_connections_are_counted_like_long_ones() {
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let pod = lab.pod(0);
    let accepted_by_nginx = || pod.counts().unwrap().accepted;
    let before = agent.endpoint(pod, 80)["accepted"].as_u64().unwrap_or(0);
    let truth_before = accepted_by_nginx();
    let url = format!("http://{}/blob", pod.address());
    let mut ab = lab.client().command("ab");
    let text = stdout(&ab.args(["-n", "500", "-c", "4", &url]).output().unwrap());
    let transferred: u64 = text
        .lines()
        .find_map(|l| l.strip_prefix("Total transferred:"))
        .and_then(|l| l.trim().strip_suffix(" bytes")?.parse().ok())
        .unwrap_or_else(|| panic!("{text}"));
    assert!(text.contains("Failed requests:        0"), "{text}");
    let e = agent.endpoint_closed(pod, 80, before + 500);
    // ab may open one more than it was asked for; nginx's own count is the truth: none missed or
    // counted twice.
    let truth = accepted_by_nginx() - truth_before;
    shows(
        &e,
        json!({"accepted": before + truth, "closed": before + truth}),
    );
    // nginx closes first: its FIN counts one when acknowledged.
    is_sent(&e["bytesOut"], transferred, truth);
}

#[test]
fn bulk_both_ways_by_iperf3() {
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let pod = lab.pod(0);
    for (way, port, sums) in [(None, 5201, "bytesIn"), (Some("-R"), 5202, "bytesOut")] {
        let port_text = port.to_string();
        let mut server = pod.host.command("iperf3");
        server.args(["-s", "-1", "-p", &port_text]);
        let mut server = server.stdout(Stdio::null()).spawn().unwrap();
        agent.endpoint_when(pod, port, |e| e["listeners"].as_u64() >= Some(1));
        let to = pod.addr.to_string();
        let mut client = lab.client().command("iperf3");
        client.args(["-c", &to, "-p", &port_text, "-n", "300M", "-J"]);
        let out = client.args(way).output().unwrap();
        server.wait().unwrap();
        let report: Value = serde_json::from_slice(&out.stdout).unwrap();
        let shown = |sum: &str| report["end"][sum]["bytes"].as_u64().unwrap();
        let (sent, received) = (shown("sum_sent"), shown("sum_received"));
        assert!(sent >= 300 << 20, "{report:#}");
        let e = agent.endpoint_closed(pod, port, 2);
        shows(&e, json!({"accepted": 2, "closed": 2, "listeners": 0}));
        // Beside the data: a cookie of 37 bytes on both connections and the control messages.
        // iperf3 may close before the receiver has read, and counted, the last that was sent.
        let counted = e[sums].as_u64().unwrap();
        assert!(
            (received..=sent + (16 << 10)).contains(&counted),
            "{counted} counted, {sent} sent, {received} received"
        );
    }
}

#[test]
fn receive_only_and_send_only_in_exact_numbers() {
    const SIZE: usize = 10 << 20;
    let lab = lab(1);
    let agent = Agent::on_machine(TRACK_ONLY);
    let pod = lab.pod(0);
    let listener = listen(pod, 7000);
    for (is_received, bytes) in [(true, [SIZE, 0]), (false, [0, SIZE])] {
        let (mut client, mut server) = accepted(&lab, &listener);
        let (from, to) = if is_received {
            (&mut client, &mut server)
        } else {
            (&mut server, &mut client)
        };
        std::thread::scope(|scope| {
            scope.spawn(|| from.write_all(&vec![7; SIZE]).unwrap());
            to.read_exact(&mut vec![0; SIZE]).unwrap();
        });
        ss_shows(&pod.host, 7000, "all acknowledged", |s| {
            s.received + s.acked == SIZE as u64
        });
        assert_live_equals_ss(&agent, pod, 7000, 1);
        let exact = json!({"bytesIn": bytes[0], "bytesOut": bytes[1]});
        shows(&agent.connection(pod), exact);
        client.shutdown(Shutdown::Both).unwrap();
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        drop((client, server));
        agent.endpoint_closed(pod, 7000, 0);
    }
    // Each way: the data, and one for each FIN.
    let both = json!({"bytesIn": SIZE + 2, "bytesOut": SIZE + 2, "accepted": 2, "closed": 2});
    shows(&agent.endpoint(pod, 7000), both);
}
