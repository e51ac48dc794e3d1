//! MPTCP: to destroy a subflow strands its connection, so it is skipped on every step.

use serde_json::json;

use crate::{
    manual,
    server::{Kind, connect_mptcp, served},
    support::{AT_ONCE, Agent, connect, echoed, echoes, enforce, has_ended, shows},
};

#[test]
fn an_mptcp_connection_is_tracked_and_skipped_and_a_plain_one_is_moved() {
    let (lab, address, _server) = served(7095, Kind::Mptcp);
    let pod = lab.pod(0);
    let steps = format!("{{step: Close, when: AtOnce, timeout: 1s}}, {AT_ONCE}");
    let policy = enforce(&lab, 7095, "maxAge: 300ms", &steps) + "  atEnd: ResetNow\n";
    let mut agent = Agent::in_lab(&lab, &policy);
    let mut client = connect_mptcp(&lab, address);
    echoes(&mut client);
    let connection = agent.connection(pod);
    assert_eq!(connection["mptcp"], true, "{connection:#}");
    agent.moves_no_more(0, 5);
    echoes(&mut client);

    // By hand neither, with either step, and not with the guards ignored.
    let id = connection["id"].as_str().unwrap();
    for more in [
        &["--step", "close"][..],
        &["--step", "reset"],
        &["--step", "close", "--ignore-guards"],
        &["--step", "reset", "--ignore-guards"],
    ] {
        let arguments = [&["--when", "at-once", id], more].concat();
        let item = &manual::moves(&agent, 1, &arguments)[0];
        shows(item, json!({"outcome": "skipped", "cause": "mptcp"}));
    }
    echoes(&mut client);
    let planned = agent.plan_by(&policy, &[]);
    shows(&planned["skipped"], json!({"mptcp": 1}));

    // The same listener, and a client without MPTCP.
    let mut plain = connect(&lab, address);
    let line = agent.moved("closed");
    assert_eq!(line["peer"], plain.local_addr().unwrap().to_string());
    has_ended(&mut plain, "closed");
    echoes(&mut client);
    agent.leaves_nothing();

    let mut agent = Agent::moving(&lab, 7095, "maxAge: 300ms", AT_ONCE);
    let mut plain = echoed(&lab, address);
    agent.moved("reset");
    has_ended(&mut plain, "reset");
    echoes(&mut client);
    agent.moves_no_more(1, 3);
    agent.leaves_nothing();
}
