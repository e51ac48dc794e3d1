//! What is tracked, and what is not.

use std::{
    collections::BTreeSet,
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
};

use rebalancer_user::bpf::Adopt;
use serde_json::{Value, json};

use crate::support::{
    Agent, TRACK_ONLY, Tracked, accepted, alone, answered, bpftool, connect, connect_many,
    eventually, is_sent, lab, listen, of_client, own_pins, pins_left, rebalancer, request, shows,
    stderr, track_only_with, walked_in,
};

#[test]
fn listeners_are_endpoints_before_any_connection() {
    let lab = lab(1);
    let agent = Agent::on_machine(TRACK_ONLY);
    let pod = lab.pod(0);
    let listener = listen(pod, 7001);
    shows(
        &agent.endpoint(pod, 7001),
        json!({"listeners": 1, "accepted": 0}),
    );
    let _ends = accepted(&lab, &listener);
    drop(listener);
    let left = json!({"listeners": 0, "accepted": 1, "open": 1});
    shows(&agent.endpoint(pod, 7001), left);
}

#[test]
fn a_connection_is_shown_with_peer_state_age_and_namespace() {
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let pod = lab.pod(0);
    let stream = answered(&lab, pod.address());
    let peer = stream.local_addr().unwrap().to_string();
    let c = agent.connection(pod);
    shows(
        &c,
        json!({
            "peer": peer, "local": pod.address().to_string(), "state": "ESTAB",
            "/endpoint/port": 80, "cgroup": pod.host.cgroup_id().unwrap(),
            "mptcp": false, "adopted": false,
        }),
    );
    let age = c["ageSeconds"].as_f64().unwrap();
    assert!(age > 0.0 && age < 20.0, "{age}");
    assert!(c["bytesPerSecond"].as_u64().unwrap() > 0);

    // The table shows the same connection.
    let table = agent.ask(&["dump"]);
    assert!(table.starts_with("ID ") && table.contains(&peer), "{table}");
}

#[test]
fn ipv4_on_a_dual_stack_listener_is_shown_as_ipv4() {
    let lab = lab(1);
    let agent = Agent::on_machine(TRACK_ONLY);
    let pod = lab.pod(0);
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 7002));
    let listener = pod.host.enter(|| TcpListener::bind(any)).unwrap().unwrap();
    let client = connect(&lab, (pod.addr, 7002));
    let _server = listener.accept().unwrap();
    let peer = client.local_addr().unwrap().to_string();
    assert_eq!(agent.connection(pod)["peer"], peer);
}

#[test]
fn loopback_peers_are_recorded_only_if_configured() {
    let lab = lab(1);
    let pod = lab.pod(0);
    for loopback in [false, true] {
        let policy = track_only_with(&format!("track: {{loopback: {loopback}}}"));
        let agent = Agent::on_machine(&policy);
        for ip in ["127.0.0.1", "[::1]", "[::ffff:127.0.0.2]"] {
            let listener = pod.host.enter(|| TcpListener::bind("[::]:0"));
            let listener = listener.unwrap().unwrap();
            let port = listener.local_addr().unwrap().port();
            let to: SocketAddr = format!("{ip}:{port}").parse().unwrap();
            let _client = pod.host.enter(|| TcpStream::connect(to)).unwrap().unwrap();
            let _server = listener.accept().unwrap();
            let mut seen = agent.connections(pod);
            seen.retain(|c| c["endpoint"]["port"] == port);
            let expected = usize::from(loopback);
            assert_eq!(seen.len(), expected, "{ip}, loopback: {loopback}");
        }
    }
}

#[test]
fn a_connection_not_accepted_yet_is_only_counted() {
    let lab = lab(1);
    // This process's own sockets are not of the lab's cgroup.
    let mut tracked = Tracked::on_machine();
    let listener = listen(lab.pod(0), 7003);
    let _client = connect(&lab, listener.local_addr().unwrap());
    let mut counts = || {
        let seen = tracked.observe(Adopt::No);
        let all = seen.snapshot.connections.iter();
        let here = all.filter(|c| c.endpoint.port == 7003).count();
        (here, seen.unseen)
    };
    assert_eq!(counts(), (0, 1));
    let _server = listener.accept().unwrap();
    assert_eq!(counts(), (1, 0));
}

#[test]
fn the_walk_is_exact_with_any_buffer_size() {
    let lab = lab(1);
    let mut tracked = Tracked::in_lab(&lab);
    // The listeners are older.
    let within = tracked.tracker.within().unwrap();
    tracked.walker.adopt(within, u64::MAX).unwrap();
    let pod = lab.pod(0);
    let streams = connect_many(&lab, pod.address(), 300);
    // What nginx has not accepted yet is only counted.
    let listed = || tracked.observe(Adopt::No).snapshot.connections.len();
    eventually("all are accepted", listed, |n| *n == streams.len());
    for rows in [1, 64, 4_096] {
        tracked.walker = tracked.reader(rows);
        let pass = tracked.walker.walk(Adopt::No).unwrap();
        assert!(pass.portions > streams.len() as u32 / rows, "{rows} rows");
        let cookies = walked_in(&pass, pod).map(|l| l.connection.cookie);
        assert_eq!(cookies.collect::<BTreeSet<u64>>().len(), streams.len());
        let shown = tracked.observe(Adopt::No).snapshot.connections;
        assert_eq!(shown.len(), streams.len());
    }
}

#[test]
fn a_full_endpoint_is_capped_and_counted() {
    let lab = lab(1);
    let mut agent = Agent::in_lab(&lab, &track_only_with("track: {maxPerEndpoint: 3}"));
    let pod = lab.pod(0);
    let _streams = connect_many(&lab, pod.address(), 5);
    eventually("capped", || agent.connections(pod), |all| all.len() == 3);
    // The kernel half says it itself too, once for each CPU, through aya-log. In either order.
    let said = || {
        let by_kernel = agent.logged("first fault of kind 5 on this CPU").len();
        (by_kernel, agent.logged("kernel fault"))
    };
    eventually("what was left out is said", said, |(by_kernel, faults)| {
        let is_it = |line: &Value| {
            let fault = line["fault"].as_str().unwrap();
            fault.contains("over an endpoint's cap") && line["total"] == 2
        };
        *by_kernel > 0 && faults.iter().any(is_it)
    });
}

#[test]
fn bpftool_shows_the_maps_with_field_names() {
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let _stream = connect(&lab, lab.pod(0).address());
    let pin = agent.pins.join("endpoints");
    let entries = bpftool(&["map", "dump", "pinned", pin.to_str().unwrap()]);
    let netns = lab.pod(0).host.netns_inode();
    let of_pod = |e: &&Value| e["formatted"]["key"]["netns"] == netns;
    let entry = entries.as_array().unwrap().iter().find(of_pod);
    let entry = entry.unwrap_or_else(|| panic!("{entries:#}"));
    assert_eq!(entry["formatted"]["value"]["accepted"], 1, "{entry:#}");
}

#[test]
fn without_an_agent_dump_attaches_for_the_call_and_reports_it() {
    let lab = lab(1);
    let mut stream = connect(&lab, lab.pod(0).address());
    let answer = request(&mut stream, "/").unwrap();
    let pins = own_pins();
    let out = rebalancer(&pins, &["dump", "-o", "json"]);
    assert!(out.status.success(), "{out:?}");
    let note = stderr(&out);
    assert!(
        note.contains("no agent is running") && note.contains("ages count from now"),
        "{note}"
    );
    let value: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(value["source"], "thisCall");
    // What is older is shown too.
    let shown = of_client(value["items"].as_array().unwrap(), &stream);
    shows(&shown, json!({"adopted": true, "bytesOut": answer}));
    assert_eq!(pins_left(&pins), [] as [PathBuf; 0]);
}

#[test]
fn pins_of_a_killed_dump_are_removed_by_the_next_one() {
    alone();
    let pins = own_pins();
    let mut stale = pins.clone().into_os_string();
    stale.push("-dump-4194304"); // no process has this id
    std::fs::create_dir(&stale).unwrap();
    assert!(rebalancer(&pins, &["dump"]).status.success());
    assert!(!PathBuf::from(stale).exists());
}

#[test]
fn only_connections_below_the_attached_cgroup_are_adopted() {
    let lab = lab(2);
    let [inside, outside] = [lab.pod(0), lab.pod(1)];
    let _streams = [inside, outside].map(|pod| connect(&lab, pod.address()));
    let of_one = inside.host.cgroup().to_str().unwrap();
    let agent = Agent::on_machine_with(TRACK_ONLY, &["--cgroup", of_one]);
    agent.connection(inside);
    assert_eq!(agent.connections(outside), [] as [Value; 0]);
}

#[test]
fn a_connection_older_than_the_agent_is_adopted_once_and_counted_as_closed_once() {
    let lab = lab(1);
    let pod = lab.pod(0);
    let mut old = connect_many(&lab, pod.address(), 5);
    let download = |stream| request(stream, "/blob").unwrap() as u64;
    let received: u64 = old.iter_mut().map(download).sum();
    let agent = Agent::on_machine(TRACK_ONLY);
    let young = connect(&lab, pod.address());
    let all = agent.connections(pod);
    let adopted = |is: bool| all.iter().filter(|c| c["adopted"] == is).count();
    assert_eq!((adopted(true), adopted(false)), (5, 1), "{all:#?}");
    // nginx has a listener for each family; bytes before the adoption count.
    let e = json!({"listeners": 2, "accepted": 6, "open": 6, "bytesOut": received});
    shows(&agent.endpoint(pod, 80), e);

    // The other ends of these connections were not accepted: they are no connections of ours.
    let netns = lab.client().netns_inode();
    let all = agent.dump(&[]);
    assert!(all.iter().all(|c| c["endpoint"]["netns"] != netns));

    drop((old, young));
    let e = agent.endpoint_closed(pod, 80, 6);
    assert_eq!(e["closed"], 6);
    is_sent(&e["bytesOut"], received, 6);
    pod.stop_server().unwrap();
    // An adopted listener's end is seen.
    assert_eq!(agent.endpoint(pod, 80)["listeners"], 0);
}
