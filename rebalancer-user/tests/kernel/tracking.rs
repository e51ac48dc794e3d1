//! What is tracked, and what is not.

use std::net::{SocketAddr, TcpListener, TcpStream};

use rebalancer_user::{
    bpf::{Adopt, Kernel, Walker},
    host::CgroupPaths,
    observe::observe,
};

use crate::support::{
    Agent, TRACK_ONLY, alone, bpftool, connect, eventually, lab, own_pins, pins_left, rebalancer,
    request, stderr, stdout,
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
    assert_eq!((&c["mptcp"], &c["adopted"]), (&false.into(), &false.into()));
    let age = c["ageSeconds"].as_f64().unwrap();
    assert!(age > 0.0 && age < 20.0, "{age}");
    assert!(c["bytesPerSecond"].as_u64().unwrap() > 0);

    // The table shows the same connection.
    let table = stdout(&rebalancer(&agent, &["dump"]));
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
fn loopback_peers_are_recorded_only_if_configured() {
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
fn a_connection_not_accepted_yet_is_only_counted() {
    let _alone = alone();
    let lab = lab(1);
    // This process's own sockets are not of the lab's cgroup.
    let agent = Agent::on_machine(TRACK_ONLY);
    let pod = lab.pod(0);
    let address = SocketAddr::from((pod.addr, 7003));
    let listener = pod
        .host
        .enter(|| TcpListener::bind(address))
        .unwrap()
        .unwrap();
    let _client = connect(&lab, address);
    let kernel = std::sync::Arc::new(Kernel::read().unwrap());
    let mut walker = Walker::open(kernel, &agent.pins).unwrap();
    let mut counts = || {
        let seen = observe(&mut walker, Adopt::No, &CgroupPaths::new()).unwrap();
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
    let _alone = alone();
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let pod = lab.pod(0);
    let streams: Vec<_> = (0..300).map(|_| connect(&lab, pod.address())).collect();
    let kernel = std::sync::Arc::new(Kernel::read().unwrap());
    for rows in [1, 64, 4_096] {
        let mut walker = Walker::with_portions(kernel.clone(), &agent.pins, rows).unwrap();
        let pass = walker.walk(Adopt::No).unwrap();
        assert!(pass.portions > streams.len() as u32 / rows, "{rows} rows");
        let mut cookies: Vec<u64> = pass
            .sockets
            .iter()
            .filter(|l| u64::from(l.connection.netns) == pod.host.netns_inode())
            .filter(|l| l.connection.kind == rebalancer_common::kind::CONNECTION)
            .map(|l| l.connection.cookie)
            .collect();
        cookies.sort_unstable();
        cookies.dedup();
        assert_eq!(cookies.len(), streams.len());
        let shown = observe(&mut walker, Adopt::No, &CgroupPaths::new()).unwrap();
        assert_eq!(shown.snapshot.connections.len(), streams.len());
    }
}

#[test]
fn a_full_endpoint_is_capped_and_counted() {
    let _alone = alone();
    let lab = lab(1);
    let policy = TRACK_ONLY.replace("rules:", "track: {maxPerEndpoint: 3}\nrules:");
    let mut agent = Agent::in_lab(&lab, &policy);
    let pod = lab.pod(0);
    let _streams: Vec<_> = (0..5).map(|_| connect(&lab, pod.address())).collect();
    eventually("capped", || {
        let n = agent.connections(pod).len();
        if n == 3 { Ok(n) } else { Err(n) }
    });
    // The kernel half says it itself too, once for each CPU, through aya-log.
    agent.wait_for("the kernel half's message", |line| {
        line["message"]
            .as_str()
            .is_some_and(|m| m.contains("first fault of kind 5"))
    });
    agent.wait_for("what was left out", |line| {
        let fault = line["fault"].as_str();
        fault.is_some_and(|fault| fault.contains("over an endpoint's cap")) && line["total"] == 2
    });
}

#[test]
fn bpftool_shows_the_maps_with_field_names() {
    let _alone = alone();
    let lab = lab(1);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let _stream = connect(&lab, lab.pod(0).address());
    let pin = agent.pins.join("endpoints");
    let entries = bpftool(&["map", "dump", "pinned", pin.to_str().unwrap()]);
    let of_pod =
        |e: &&serde_json::Value| e["formatted"]["key"]["netns"] == lab.pod(0).host.netns_inode();
    let entry = entries.as_array().unwrap().iter().find(of_pod);
    let entry = entry.unwrap_or_else(|| panic!("{entries:#}"));
    assert_eq!(entry["formatted"]["value"]["accepted"], 1, "{entry:#}");
}

#[test]
fn without_an_agent_dump_attaches_for_the_call_and_reports_it() {
    let _alone = alone();
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
    let value: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(value["source"], "thisCall");
    let items = value["items"].as_array().unwrap();
    let peer = stream.local_addr().unwrap().to_string();
    let shown = items
        .iter()
        .find(|c| c["peer"] == peer)
        .expect("what is older is shown too");
    assert_eq!(
        (&shown["adopted"], &shown["bytesOut"]),
        (&true.into(), &answer.into())
    );
    assert_eq!(pins_left(&pins), [] as [std::path::PathBuf; 0]);
}

#[test]
fn pins_of_a_killed_dump_are_removed_by_the_next_one() {
    let _alone = alone();
    let pins = own_pins();
    let mut stale = pins.clone().into_os_string();
    stale.push("-dump-4194304"); // no process has this id
    std::fs::create_dir(&stale).unwrap();
    assert!(rebalancer(&pins, &["dump"]).status.success());
    assert!(!std::path::Path::new(&stale).exists());
}

#[test]
fn only_connections_below_the_attached_cgroup_are_adopted() {
    let _alone = alone();
    let lab = lab(2);
    let streams: Vec<_> = lab
        .pods()
        .iter()
        .map(|pod| connect(&lab, pod.address()))
        .collect();
    let of_one = lab.pod(0).host.cgroup().to_str().unwrap();
    let agent = Agent::with(TRACK_ONLY, own_pins(), &["--cgroup", of_one]);
    assert_eq!(agent.connections(lab.pod(0)).len(), 1);
    assert_eq!(
        agent.connections(lab.pod(1)),
        Vec::<serde_json::Value>::new()
    );
    drop(streams);
}

#[test]
fn a_connection_older_than_the_agent_is_adopted_once_and_counted_as_closed_once() {
    let _alone = alone();
    let lab = lab(1);
    let pod = lab.pod(0);
    let mut old: Vec<_> = (0..5).map(|_| connect(&lab, pod.address())).collect();
    let mut received = 0;
    for stream in &mut old {
        received += request(stream, "/blob").unwrap() as u64;
    }
    let agent = Agent::on_machine(TRACK_ONLY);
    let young = connect(&lab, pod.address());
    let all = agent.connections(pod);
    assert_eq!(
        all.iter().filter(|c| c["adopted"] == true).count(),
        5,
        "{all:#?}"
    );
    assert_eq!(all.iter().filter(|c| c["adopted"] == false).count(), 1);
    let e = agent.endpoint(pod, 80);
    assert_eq!(
        (&e["listeners"], &e["accepted"], &e["open"]),
        (&2.into(), &6.into(), &6.into()),
        "nginx has a listener for each family"
    );
    assert_eq!(e["bytesOut"], received, "bytes before the adoption count");

    // The other ends of these connections were not accepted: they are no connections of ours.
    let netns = lab.client().netns_inode();
    assert!(
        agent
            .dump(&[])
            .iter()
            .all(|c| c["endpoint"]["netns"] != netns)
    );

    drop((old, young));
    let e = eventually("closed", || {
        let e = agent.endpoint(pod, 80);
        if e["closed"] == 6 && e["open"] == 0 {
            Ok(e)
        } else {
            Err(e)
        }
    });
    let out = e["bytesOut"].as_u64().unwrap();
    assert!(
        (received..=received + 6).contains(&out),
        "{out} of {received}"
    );
    lab.pod(0).stop_server().unwrap();
    let e = agent.endpoint(pod, 80);
    assert_eq!(
        e["listeners"], 0,
        "an adopted listener's end is seen: {e:#}"
    );
}
