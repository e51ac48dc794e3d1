//! What is tracked, and what is not.

use std::net::{SocketAddr, TcpListener, TcpStream};

use rebalancer_user::{
    bpf::{Kernel, Lister},
    observe::observe,
};

use crate::support::{
    Agent, REBALANCER, TRACK_ONLY, alone, bpftool, connect, eventually, lab, own_pins, request,
};

#[test]
fn listeners_are_endpoints_before_any_connection() {
    let _alone = alone();
    let lab = lab(1);
    let agent = Agent::on_machine(TRACK_ONLY);
    let pod = lab.pod(0);
    let address = SocketAddr::from((pod.addr, 7001));
    let listener = pod
        .host
        .enter(|| TcpListener::bind(address))
        .unwrap()
        .unwrap();
    let e = agent.endpoint(pod, 7001);
    assert_eq!(
        (&e["listeners"], &e["accepted"]),
        (&1.into(), &0.into()),
        "{e:#}"
    );
    let client = connect(&lab, address);
    let (server, _) = listener.accept().unwrap();
    drop(listener);
    let e = agent.endpoint(pod, 7001);
    assert_eq!(
        (&e["listeners"], &e["accepted"], &e["open"]),
        (&0.into(), &1.into(), &1.into())
    );
    drop((client, server));
}

#[test]
fn a_connection_is_shown_with_peer_state_age_and_namespace() {
    let _alone = alone();
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let pod = lab.pod(0);
    let mut stream = connect(&lab, pod.address());
    request(&mut stream, "/").unwrap();
    let all = agent.connections(pod);
    let [c] = all.as_slice() else {
        panic!("{all:#?}")
    };
    assert_eq!(c["peer"], stream.local_addr().unwrap().to_string());
    assert_eq!(c["local"], pod.address().to_string());
    assert_eq!(c["state"], "ESTAB");
    assert_eq!(c["endpoint"]["port"], 80);
    assert_eq!(c["cgroup"], pod.host.cgroup_id().unwrap());
    assert_eq!(
        (&c["owned"], &c["mptcp"], &c["adopted"]),
        (&true.into(), &false.into(), &false.into())
    );
    let age = c["ageSeconds"].as_f64().unwrap();
    assert!(age > 0.0 && age < 20.0, "{age}");
    assert!(c["bytesPerSecond"].as_u64().unwrap() > 0);

    // The table shows the same connection.
    let table = std::process::Command::new(REBALANCER)
        .args(["dump", "--pins"])
        .arg(&agent.pins)
        .output()
        .unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.starts_with("ID "), "{table}");
    assert!(
        table.contains(&stream.local_addr().unwrap().to_string()),
        "{table}"
    );
}

#[test]
fn ipv4_on_a_dual_stack_listener_is_shown_as_ipv4() {
    let _alone = alone();
    let lab = lab(1);
    let agent = Agent::on_machine(TRACK_ONLY);
    let pod = lab.pod(0);
    let any = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 7002));
    let listener = pod.host.enter(|| TcpListener::bind(any)).unwrap().unwrap();
    let client = connect(&lab, SocketAddr::from((pod.addr, 7002)));
    let (_server, _) = listener.accept().unwrap();
    let all = agent.connections(pod);
    assert_eq!(all.len(), 1);
    assert_eq!(all[0]["peer"], client.local_addr().unwrap().to_string());
}

#[test]
fn loopback_peers_are_recorded_only_when_asked() {
    let _alone = alone();
    let lab = lab(1);
    let pod = lab.pod(0);
    for loopback in [false, true] {
        let policy = TRACK_ONLY.replace(
            "rules:",
            &format!("track: {{loopback: {loopback}}}\nrules:"),
        );
        let agent = Agent::on_machine(&policy);
        for ip in ["127.0.0.1", "[::1]", "[::ffff:127.0.0.2]"] {
            let listener = pod
                .host
                .enter(|| TcpListener::bind("[::]:0"))
                .unwrap()
                .unwrap();
            let port = listener.local_addr().unwrap().port();
            let to: SocketAddr = format!("{ip}:{port}").parse().unwrap();
            let client = pod.host.enter(|| TcpStream::connect(to)).unwrap().unwrap();
            let server = listener.accept().unwrap();
            let seen = agent
                .connections(pod)
                .iter()
                .filter(|c| c["endpoint"]["port"] == u64::from(port))
                .count();
            assert_eq!(seen, usize::from(loopback), "{ip}, loopback: {loopback}");
            drop((client, server));
        }
    }
}

#[test]
fn a_connection_not_accepted_yet_is_told_apart() {
    let _alone = alone();
    let lab = lab(1);
    let agent = Agent::on_machine(TRACK_ONLY);
    let pod = lab.pod(0);
    let address = SocketAddr::from((pod.addr, 7003));
    let listener = pod
        .host
        .enter(|| TcpListener::bind(address))
        .unwrap()
        .unwrap();
    let _client = connect(&lab, address);
    assert_eq!(agent.connections(pod)[0]["owned"], false);
    let _server = listener.accept().unwrap();
    assert_eq!(agent.connections(pod)[0]["owned"], true);
}

#[test]
fn more_connections_than_slots_are_listed_exactly() {
    let _alone = alone();
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let pod = lab.pod(0);
    let streams: Vec<_> = (0..300).map(|_| connect(&lab, pod.address())).collect();
    let kernel = std::sync::Arc::new(Kernel::read().unwrap());
    let mut lister = Lister::with_slots(kernel, &agent.pins, 2).unwrap();
    let pass = lister.read().unwrap();
    assert!(lister.slots() > 2, "two slots a shard cannot be enough");
    let mut cookies: Vec<u64> = pass
        .listed
        .iter()
        .filter(|l| u64::from(l.connection.netns) == pod.host.netns_inode())
        .filter(|l| l.connection.kind == rebalancer_common::kind::CONNECTION)
        .map(|l| l.connection.cookie)
        .collect();
    cookies.sort_unstable();
    cookies.dedup();
    assert_eq!(cookies.len(), streams.len());
    let shown = observe(&mut lister).unwrap().snapshot.connections.len();
    assert_eq!(shown, streams.len());
}

#[test]
fn a_full_endpoint_is_capped_and_counted() {
    let _alone = alone();
    let lab = lab(1);
    let policy = TRACK_ONLY.replace("rules:", "track: {maxPerEndpoint: 3}\nrules:");
    let agent = Agent::in_lab(&lab, &policy);
    let pod = lab.pod(0);
    let _streams: Vec<_> = (0..5).map(|_| connect(&lab, pod.address())).collect();
    eventually("capped", || {
        let n = agent.connections(pod).len();
        if n == 3 { Ok(n) } else { Err(n) }
    });
    let said = String::from_utf8(agent.dump_output(&[]).stderr).unwrap();
    assert!(
        said.contains("over an endpoint's cap") && said.contains("2 times"),
        "{said}"
    );
}

#[test]
fn bpftool_shows_the_maps_with_field_names() {
    let _alone = alone();
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let _stream = connect(&lab, lab.pod(0).address());
    let pin = agent.pins.join("endpoints");
    let entries = bpftool(&["map", "dump", "pinned", pin.to_str().unwrap()]);
    let entry = &entries[0]["formatted"];
    assert_eq!(
        entry["key"]["netns"],
        lab.pod(0).host.netns_inode(),
        "{entries:#}"
    );
    assert_eq!(entry["value"]["accepted"], 1, "{entries:#}");
}

#[test]
fn without_an_agent_the_dump_attaches_for_the_call_and_says_so() {
    let _alone = alone();
    let lab = lab(1);
    let pins = own_pins();
    let mut dump = std::process::Command::new(REBALANCER)
        .args(["dump", "-o", "json", "--watch", "2s", "--pins"])
        .arg(&pins)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut own = pins.clone().into_os_string();
    own.push(format!("-dump-{}", dump.id()));
    let own = std::path::PathBuf::from(own);
    eventually("attached", || {
        let there = own.join("settings").exists();
        if there { Ok(there) } else { Err(there) }
    });
    let streams: Vec<_> = std::iter::from_fn(|| {
        let running = dump.try_wait().unwrap().is_none();
        running.then(|| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            connect(&lab, lab.pod(0).address())
        })
    })
    .collect();
    let out = dump.wait_with_output().unwrap();
    assert!(out.status.success(), "{out:?}");
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(
        said.contains("no agent runs") && said.contains("ages count from now"),
        "{said}"
    );
    let value: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(value["source"], "thisCall");
    let of_pod = |c: &&serde_json::Value| c["endpoint"]["netns"] == lab.pod(0).host.netns_inode();
    let seen = value["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(of_pod)
        .count();
    assert!(
        seen > 0 && seen <= streams.len(),
        "{seen} of {}",
        streams.len()
    );
    assert!(!own.exists(), "its pins are gone");
}
