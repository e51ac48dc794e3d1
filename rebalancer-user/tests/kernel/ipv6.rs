//! The same by IPv6: through a Service to a pod, and to another one after the move.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use serde_json::json;

use crate::support::{
    Agent, CLOSE_QUIET, QUIET, TRACK_ONLY, connect, connect_many, download, enforce, eventually,
    has_ended, lab, request, shows,
};

/// Which pod's nginx answers.
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

#[test]
fn connections_move_through_the_service_to_another_pod() {
    let lab = lab(2);
    let service = lab.service6().expect("this machine has IPv6 and NAT of it");
    for (step, outcome) in [(QUIET, "reset"), (CLOSE_QUIET, "closed")] {
        lab.set_endpoints(&[0]).unwrap();
        let mut heavy = connect_many(&lab, service, 4);
        let mut light = connect(&lab, service);
        let mut by_ipv4 = connect(&lab, lab.service());
        lab.set_endpoints(&[1]).unwrap();
        let policy = enforce(&lab, 80, "maxBytes: 1Mi", step);
        let policy = policy.replace(&lab.client_subnet(), &lab.client_subnet6());
        let mut agent = Agent::in_lab(&lab, &policy);
        for stream in heavy.iter_mut().chain([&mut by_ipv4]) {
            download(stream);
        }
        for _ in &heavy {
            agent.moved(outcome);
        }
        for mut stream in heavy {
            has_ended(&mut stream, outcome);
            assert_eq!(who(&mut connect(&lab, service)), "web-1");
        }
        // Neither the light one, nor the heavy one of the other family, which no rule names.
        agent.moves_no_more(4, 3);
        assert_eq!(who(&mut light), "web-0");
        assert_eq!(who(&mut by_ipv4), "web-0");
        agent.leaves_nothing();
    }
}

#[test]
fn records_of_ipv6_connections_are_complete() {
    let lab = lab(1);
    let pod = lab.pod(0);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let mut stream = connect(&lab, lab.service6().unwrap());
    let received = request(&mut stream, "/blob").unwrap();
    let peer = stream.local_addr().unwrap().to_string();
    let addresses = json!({"peer": peer, "local": pod.address6().unwrap().to_string()});
    shows(&agent.connection(pod), addresses);
    let acknowledged = || agent.connection(pod)["bytesOut"].clone();
    eventually("acknowledged", acknowledged, |out| *out == received);
    agent.leaves_nothing();
}
