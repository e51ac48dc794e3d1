//! Bytes are exact: live as `ss` says of the same socket at rest, final as was sent.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener},
    process::Stdio,
};

use serde_json::Value;

use crate::support::{Agent, TRACK_ONLY, alone, connect, eventually, lab, request, ss};

/// The dump and `ss`, on the same sockets at rest.
fn assert_live_equals_ss(agent: &Agent, pod: &xtask::lab::Pod, port: u16, count: usize) {
    let dump = agent.connections(pod);
    let shown = ss(&pod.host, port);
    assert_eq!(
        (dump.len(), shown.len()),
        (count, count),
        "{dump:#?}\n{shown:#?}"
    );
    for socket in shown {
        let id = Value::from(socket.cookie.clone());
        let found = dump.iter().find(|c| c["id"] == id).expect("same cookies");
        assert_eq!(found["bytesIn"], socket.received, "{socket:?}");
        assert_eq!(found["bytesOut"], socket.acked, "{socket:?}");
        assert_eq!(
            (&found["receiveQueue"], &found["sendQueue"]),
            (&0.into(), &0.into())
        );
    }
}

#[test]
fn bytes_of_request_traffic_match_ss_live_and_final() {
    let _alone = alone();
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let pod = lab.pod(0);
    let mut streams: Vec<_> = (0..5).map(|_| connect(&lab, pod.address())).collect();
    let (mut sent, mut received) = (0, 0);
    for (i, stream) in streams.iter_mut().enumerate() {
        for path in ["/", "/blob"].into_iter().cycle().take(10 * (i + 1)) {
            received += request(stream, path).unwrap() as u64;
            sent += format!("GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n").len() as u64;
        }
    }
    eventually("all acknowledged", || {
        let acked: u64 = ss(&pod.host, 80).iter().map(|s| s.acked).sum();
        if acked == received {
            Ok(acked)
        } else {
            Err(acked)
        }
    });
    assert_live_equals_ss(&agent, pod, 80, 5);
    let endpoint = agent.endpoint(pod, 80);
    assert_eq!(
        (
            &endpoint["bytesIn"],
            &endpoint["bytesOut"],
            &endpoint["open"]
        ),
        (&sent.into(), &received.into(), &5.into())
    );
    drop(streams);
    let closed = eventually("closed", || {
        let e = agent.endpoint(pod, 80);
        if e["closed"].as_u64() >= Some(5) && e["open"] == 0 {
            Ok(e)
        } else {
            Err(e)
        }
    });
    // One more for each FIN: the client's was received, nginx's was acknowledged.
    assert_eq!(closed["bytesIn"], sent + 5);
    let out = closed["bytesOut"].as_u64().unwrap();
    assert!(
        (received..=received + 5).contains(&out),
        "{out} of {received}"
    );
}

#[test]
fn short_connections_are_counted_like_long_ones() {
    let _alone = alone();
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let pod = lab.pod(0);
    let accepted_by_nginx = || pod.counts().unwrap().accepted;
    let (before, truth_before) = (
        agent.endpoint(pod, 80)["accepted"].as_u64().unwrap_or(0),
        accepted_by_nginx(),
    );
    let url = format!("http://{}/blob", pod.address());
    let out = lab
        .client()
        .command("ab")
        .args(["-n", "500", "-c", "4", &url])
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let transferred: u64 = text
        .lines()
        .find_map(|l| l.strip_prefix("Total transferred:"))
        .and_then(|l| l.trim().strip_suffix(" bytes")?.parse().ok())
        .unwrap_or_else(|| panic!("{text}"));
    assert!(text.contains("Failed requests:        0"), "{text}");
    let e = eventually("all closed", || {
        let e = agent.endpoint(pod, 80);
        if e["closed"].as_u64() >= Some(before + 500) && e["open"] == 0 {
            Ok(e)
        } else {
            Err(e)
        }
    });
    // ab may open one more than it was asked for; nginx's own count is the truth.
    let truth = accepted_by_nginx() - truth_before;
    assert_eq!(
        e["accepted"],
        before + truth,
        "none missed or counted twice"
    );
    assert_eq!(e["closed"], before + truth);
    // nginx closes first: its FIN counts one when acknowledged.
    let out = e["bytesOut"].as_u64().unwrap();
    assert!(
        (transferred..=transferred + truth).contains(&out),
        "{out} of {transferred} over {truth} connections"
    );
}

#[test]
fn bulk_both_ways_by_iperf3() {
    let _alone = alone();
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let pod = lab.pod(0);
    for (reverse, port, sums) in [(false, 5201, "bytesIn"), (true, 5202, "bytesOut")] {
        let port_text = port.to_string();
        let mut server = pod
            .host
            .command("iperf3")
            .args(["-s", "-1", "-p", &port_text])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        eventually("listening", || {
            let e = agent.endpoint(pod, port);
            if e["listeners"].as_u64() >= Some(1) {
                Ok(e)
            } else {
                Err(e)
            }
        });
        let to = pod.addr.to_string();
        let mut client = lab.client().command("iperf3");
        client.args(["-c", &to, "-p", &port_text, "-n", "300M", "-J"]);
        if reverse {
            client.arg("-R");
        }
        let out = client.output().unwrap();
        server.wait().unwrap();
        let report: Value = serde_json::from_slice(&out.stdout).unwrap();
        let shown = |sum: &str| report["end"][sum]["bytes"].as_u64().unwrap();
        let (sent, received) = (shown("sum_sent"), shown("sum_received"));
        assert!(sent >= 300 << 20, "{report:#}");
        let e = eventually("closed", || {
            let e = agent.endpoint(pod, port);
            if e["closed"] == 2 && e["open"] == 0 {
                Ok(e)
            } else {
                Err(e)
            }
        });
        assert_eq!((&e["accepted"], &e["listeners"]), (&2.into(), &0.into()));
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
    let _alone = alone();
    let lab = lab(1);
    let agent = Agent::on_machine(TRACK_ONLY);
    let pod = lab.pod(0);
    const SIZE: usize = 10 << 20;
    let address = std::net::SocketAddr::from((pod.addr, 7000));
    let listener = pod
        .host
        .enter(|| TcpListener::bind(address))
        .unwrap()
        .unwrap();
    for to_server in [true, false] {
        let mut client = connect(&lab, address);
        let (mut server, _) = listener.accept().unwrap();
        let (from, to) = if to_server {
            (&mut client, &mut server)
        } else {
            (&mut server, &mut client)
        };
        std::thread::scope(|scope| {
            scope.spawn(|| from.write_all(&vec![7; SIZE]).unwrap());
            to.read_exact(&mut vec![0; SIZE]).unwrap();
        });
        eventually("acknowledged", || {
            let s = ss(&pod.host, 7000);
            let done = s.iter().any(|s| s.received + s.acked == SIZE as u64);
            if done { Ok(s) } else { Err(s) }
        });
        assert_live_equals_ss(&agent, pod, 7000, 1);
        let expected = if to_server {
            (SIZE as u64, 0)
        } else {
            (0, SIZE as u64)
        };
        let dump = agent.connections(pod);
        assert_eq!(
            (
                dump[0]["bytesIn"].as_u64().unwrap(),
                dump[0]["bytesOut"].as_u64().unwrap()
            ),
            expected
        );
        client.shutdown(Shutdown::Both).unwrap();
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        drop((client, server));
        eventually("closed", || {
            let e = agent.endpoint(pod, 7000);
            if e["open"] == 0 { Ok(e) } else { Err(e) }
        });
    }
    let e = agent.endpoint(pod, 7000);
    // Each way: the data, and one for each FIN.
    assert_eq!(e["bytesIn"], SIZE as u64 + 2, "{e:#}");
    assert_eq!(e["bytesOut"], SIZE as u64 + 2, "{e:#}");
    assert_eq!((&e["accepted"], &e["closed"]), (&2.into(), &2.into()));
}
