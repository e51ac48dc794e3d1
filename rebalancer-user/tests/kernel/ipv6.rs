//! The same by IPv6: through a Service to a pod, and to another one after the move.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use xtask::lab::Lab;

use crate::{
    moves::{enforce, is_reset},
    support::{Agent, alone, connect, download, lab, request},
};

const RESET: &str = "{step: Reset, when: Quiet, idleFor: 100ms, timeout: 10s}";
const CLOSE: &str = "{step: Close, when: Quiet, idleFor: 100ms, timeout: 10s}";

/// Which pod answers.
fn who(stream: &mut TcpStream) -> String {
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n")
        .unwrap();
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    let pod = answer.lines().find_map(|line| line.strip_prefix("X-Pod: "));
    pod.unwrap_or_else(|| panic!("no X-Pod in {answer}"))
        .to_owned()
}

fn by_ipv6(lab: &Lab, limits: &str, step: &str) -> String {
    enforce(lab, 80, limits, step).replace(&lab.client_subnet(), &lab.client_subnet6())
}

#[test]
fn connections_move_through_the_service_to_another_pod() {
    let _alone = alone();
    let lab = lab(2);
    let service = lab.service6().expect("this machine has IPv6 and NAT of it");
    for (step, outcome) in [(RESET, "reset"), (CLOSE, "closed")] {
        lab.set_endpoints(&[0]).unwrap();
        let mut heavy: Vec<_> = (0..4).map(|_| connect(&lab, service)).collect();
        let mut light = connect(&lab, service);
        let mut by_ipv4 = connect(&lab, lab.service());
        lab.set_endpoints(&[1]).unwrap();
        let mut agent = Agent::in_lab(&lab, &by_ipv6(&lab, "maxBytes: 1Mi", step));
        for stream in heavy.iter_mut().chain([&mut by_ipv4]) {
            download(stream);
        }
        for _ in &heavy {
            let line = agent.wait_for_move();
            assert_eq!(line["outcome"], outcome, "{line}");
        }
        for mut stream in heavy {
            if step == RESET {
                assert!(is_reset(&mut stream));
            } else {
                assert_eq!(stream.read(&mut [0]).unwrap(), 0);
            }
            assert_eq!(who(&mut connect(&lab, service)), "web-1");
        }
        // Neither the light one, nor the heavy one of the other family, which no rule names.
        agent.wait_for_intervals(3);
        assert_eq!(agent.logged("move").len(), 4);
        assert_eq!(who(&mut light), "web-0");
        assert_eq!(who(&mut by_ipv4), "web-0");
        agent.leaves_nothing();
    }
}

#[test]
fn records_of_ipv6_connections_are_complete() {
    let _alone = alone();
    let lab = lab(1);
    let pod = lab.pod(0);
    let agent = Agent::in_lab(&lab, crate::support::TRACK_ONLY);
    let mut stream = connect(&lab, lab.service6().unwrap());
    let received = request(&mut stream, "/blob").unwrap();
    let all = agent.connections(pod);
    assert_eq!(all.len(), 1, "{all:#?}");
    assert_eq!(all[0]["peer"], stream.local_addr().unwrap().to_string());
    assert_eq!(all[0]["local"], pod.address6().unwrap().to_string());
    crate::support::eventually("acknowledged", || {
        let out = agent.connections(pod)[0]["bytesOut"].as_u64().unwrap();
        if out == received as u64 {
            Ok(out)
        } else {
            Err(out)
        }
    });
    agent.leaves_nothing();
}
