//! Guards by facts about Services: each by itself, and which Services count.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rebalancer_core::{
    plan::{FIRST_FEW, SkipReason},
    policy::{self, MissingFact, Policy},
    snapshot::{Connection, Naming, Service, Snapshot, Who, sample},
};

mod agent;
mod named;
use agent::{Agent, decided, words};
use named::{named, policy, snapshot, verdict, web, why};

const MOVED: &str = "moved by rule-0";

/// A movable connection of `web`, which these Services target.
fn behind(services: &[&str]) -> Snapshot {
    snapshot(named(named::behind(services)), Naming::Fresh)
}

fn with(mut seen: Snapshot, name: &str, change: impl Fn(&mut Service)) -> Snapshot {
    change(seen.services.get_mut(&sample::service(name)).unwrap());
    seen
}

/// The same behind the Service `checkout` alone.
fn with_checkout(change: impl Fn(&mut Service)) -> Snapshot {
    with(behind(&["checkout"]), "checkout", change)
}

fn addresses(of: &[&str]) -> Arc<BTreeSet<IpAddr>> {
    let all = of.iter().map(|ip| ip.parse::<IpAddr>().unwrap());
    Arc::new(all.collect())
}

fn by_port() -> Policy {
    policy("", &["ports: [{port: 8080}]"])
}

/// 200 connections of the first of three pods of Service `checkout`, none of the others.
fn hot(change: impl Fn(&mut Service)) -> Snapshot {
    three_pods(with_checkout(|s| {
        (s.ready, s.ready_here) = (3, 3);
        change(s);
    }))
}

/// The pod of `seen` three times, the first with 200 connections.
fn three_pods(seen: Snapshot) -> Snapshot {
    let mut pod = seen.endpoints[&sample::endpoint(1, 8080)].clone();
    pod.listeners = 1;
    let pods = (1..=3).map(|netns| (sample::endpoint(netns, 8080), pod.clone()));
    let connections = (1..=200).map(|cookie| Connection {
        remote: SocketAddr::from(([10, 0, 1, cookie as u8], 40_000)),
        // One in four.
        mptcp: cookie % 4 == 0,
        ..sample::connection(cookie)
    });
    Snapshot {
        connections: connections.collect(),
        endpoints: pods.collect(),
        ..seen
    }
}

/// How many connections balance moves, and why it skips the others.
fn balanced(seen: &Snapshot) -> BTreeMap<&'static str, u64> {
    balanced_by("services: ['*/checkout']", seen)
}

/// The same under a rule with this match.
fn balanced_by(matches: &str, seen: &Snapshot) -> BTreeMap<&'static str, u64> {
    let rule = format!("{{name: web, match: {{{matches}}}, balance: {{}}}}");
    let policy = policy::sample::policy(&format!("mode: Enforce\nrules: [{rule}]\n"));
    let plan = decided(&policy, seen);
    for chosen in plan.moves() {
        assert!(!chosen.cookie().0.is_multiple_of(4), "MPTCP");
    }
    words(&plan)
}

#[test]
fn guards_apply_to_balance() {
    let free = balanced(&hot(|_| {}));
    assert_eq!((free["moved"], free["mptcp"]), (FIRST_FEW, 50), "{free:?}");
    type Change = fn(&mut Service);
    let changes: [(&str, Change); 5] = [
        ("stabilizing", |s| s.changed = Some(Duration::from_secs(59))),
        ("minReadyEndpoints", |s| s.ready = 1),
        ("sessionAffinity", |s| s.client_ip_affinity = true),
        ("headless", |s| s.headless = true),
        ("siblingPeer", |s| {
            s.addresses = Arc::new((0..=200).map(|last| [10, 0, 1, last].into()).collect());
        }),
    ];
    for (word, change) in changes {
        let all = BTreeMap::from([("moved", 0), ("mptcp", 50), (word, 150)]);
        assert_eq!(balanced(&hot(change)), all);
    }
}

/// A headless Service over more pods, first by name, does not count beside one with a cluster IP.
#[test]
fn balance_compares_the_endpoints_of_the_service_with_a_cluster_ip() {
    let seen = with(behind(&["all", "checkout"]), "all", |s| {
        (s.headless, s.ready) = (true, 9);
        s.addresses = addresses(&["10.1.0.7"]);
    });
    let seen = with(seen, "checkout", |s| (s.ready, s.ready_here) = (3, 3));
    let found = balanced_by("ports: [{port: 8080}]", &three_pods(seen));
    assert_eq!(
        (found["moved"], found["mptcp"]),
        (FIRST_FEW, 50),
        "{found:?}"
    );
}

/// By a rule with a port and by one with a Service.
#[test]
fn each_fact_of_a_service_has_its_reason() {
    assert_eq!(verdict(&by_port(), &behind(&["checkout"])), MOVED);
    type Change = fn(&mut Service);
    let changes: [(Change, &str); 9] = [
        (|s| s.ready = 1, "minReadyEndpoints"),
        (|s| s.ready_in_zone = Some(1), "minReadyEndpoints"),
        (|s| s.client_ip_affinity = true, "sessionAffinity"),
        (|s| s.headless = true, "headless"),
        (|s| s.internal_local = true, "localTraffic"),
        (|s| s.external_local = true, "localTraffic"),
        (|s| s.changed = Some(Duration::from_secs(20)), "stabilizing"),
        (
            |s| s.addresses = addresses(&["10.0.0.1", "10.0.0.9"]),
            "siblingPeer",
        ),
        (|s| s.http2 = [8080].into(), "http2"),
    ];
    let mut sentences = String::new();
    for (change, word) in changes {
        let seen = with_checkout(change);
        let skipped = why(&by_port(), &seen);
        assert_eq!(skipped.as_str(), word);
        let by_service = policy("", &["services: ['*/checkout']"]);
        assert_eq!(skipped, why(&by_service, &seen), "{word}");
        sentences += &format!("{word}: {skipped}\n");
    }
    insta::assert_snapshot!(sentences);
}

#[test]
fn facts_within_the_guards_skip_nothing() {
    type Change = fn(&mut Service);
    let cases: [(&str, Change); 8] = [
        ("two are enough", |s| s.ready = 2),
        ("two near are enough", |s| s.ready_in_zone = Some(2)),
        ("two here", |s| {
            (s.internal_local, s.ready_here) = (true, 2);
        }),
        ("two here, from outside", |s| {
            (s.external_local, s.ready_here) = (true, 2);
        }),
        ("stable", |s| s.changed = Some(Duration::from_secs(60))),
        ("another peer", |s| s.addresses = addresses(&["10.0.0.2"])),
        ("another port", |s| s.http2 = [80].into()),
        ("zones do not count where traffic is local", |s| {
            (s.internal_local, s.ready_here, s.ready_in_zone) = (true, 2, Some(1));
        }),
    ];
    for (case, change) in cases {
        assert_eq!(verdict(&by_port(), &with_checkout(change)), MOVED, "{case}");
    }
}

#[test]
fn guards_have_the_policys_values() {
    type Change = fn(&mut Service);
    let cases: [(&str, Change, &str); 4] = [
        ("minReadyEndpoints: 3", |s| s.ready = 3, MOVED),
        ("minReadyEndpoints: 4", |s| s.ready = 3, "minReadyEndpoints"),
        ("minReadyEndpoints: 1", |s| s.ready = 1, MOVED),
        (
            "stabilizationWindow: 10s",
            |s| s.changed = Some(Duration::from_secs(20)),
            MOVED,
        ),
    ];
    for (guards, change, expected) in cases {
        let policy = policy(guards, &["ports: [{port: 8080}]"]);
        assert_eq!(
            verdict(&policy, &with_checkout(change)),
            expected,
            "{guards}"
        );
    }
    // `LosesState` covers HTTP/2 streams as well.
    let rule = "{name: rule-0, match: {ports: [{port: 8080}]}, limits: {maxAge: 1h}, onReconnect: LosesState}";
    let loses = policy::sample::policy(&format!("mode: Enforce\nrules: [{rule}]\n"));
    let says_http2 = with_checkout(|s| s.http2 = [8080].into());
    assert_eq!(verdict(&loses, &says_http2), MOVED);
}

#[test]
fn an_ipv4_mapped_peer_is_a_sibling() {
    let mut seen = with_checkout(|s| s.addresses = addresses(&["10.0.0.1"]));
    seen.connections[0].remote = "[::ffff:10.0.0.1]:4000".parse().unwrap();
    assert_eq!(verdict(&by_port(), &seen), "siblingPeer");
}

#[test]
fn an_endpoint_that_is_not_ready_is_skipped() {
    let mut pod = web();
    pod.services.as_mut().unwrap()[0].ready = false;
    let seen = snapshot(named(pod), Naming::Fresh);
    let skipped = why(&by_port(), &seen);
    assert_eq!(skipped.as_str(), "unready");
    assert_eq!(
        skipped.to_string(),
        "pod shop/web-0 is not ready: Service shop/checkout does not lead there now"
    );
    // It is ready for the Service that the rule names.
    assert_eq!(verdict(&policy("", &["services: ['*/web']"]), &seen), MOVED);
}

/// A client that dials a pod, or its `hostPort`, returns to it.
#[test]
fn a_port_that_no_service_targets_is_skipped() {
    let bare = behind(&[]);
    for matches in [
        "ports: [{port: 8080}]",
        "podSelector: {matchLabels: {app: web}}",
        "namespaceSelector: {}",
    ] {
        assert_eq!(
            verdict(&policy("", &[matches]), &bare),
            "noService",
            "{matches}"
        );
    }
    // Without a pod, as on a plain host, there are no Services.
    for naming in [Naming::Off, Naming::Fresh] {
        assert_eq!(verdict(&by_port(), &snapshot(Who::NoPod, naming)), MOVED);
    }
}

#[test]
fn unknown_services_skip() {
    let mut pod = web();
    pod.services = None;
    let lack = MissingFact::Services;
    assert_eq!(
        why(&by_port(), &snapshot(named(pod), Naming::Fresh)),
        SkipReason::Unnamed { lack, rule: None }
    );
    let mut seen = behind(&["all", "checkout"]);
    seen.services.remove(&sample::service("checkout"));
    assert_eq!(
        why(&by_port(), &seen).to_string(),
        "nothing is known of Service shop/checkout, which leads there"
    );
}

/// Clients of one Service are not sent to another's endpoints.
#[test]
fn services_with_different_endpoints_need_a_rule_that_names_one() {
    let (two, three) = (
        ["10.1.0.1", "10.1.0.2"],
        ["10.1.0.1", "10.1.0.2", "10.1.0.3"],
    );
    let seen = behind(&["all", "canary"]);
    let seen = with(seen, "all", |s| s.addresses = addresses(&three));
    let seen = with(seen, "canary", |s| s.addresses = addresses(&two));
    assert_eq!(
        why(&by_port(), &seen).to_string(),
        "Services shop/all and shop/canary lead there and have different endpoints"
    );
    for (matches, expected) in [
        ("services: ['*/canary']", MOVED),
        ("services: [shop/all]", MOVED),
        ("services: ['*/all', '*/canary']", "ambiguousService"),
        ("services: ['*/canary', other/all]", MOVED),
        ("podSelector: {}", "ambiguousService"),
    ] {
        let policy = policy("", &[matches]);
        assert_eq!(verdict(&policy, &seen), expected, "{matches}");
    }
    // Only the facts of the Service that is named count.
    let [canary, all] =
        ["'*/canary'", "'*/all'"].map(|name| policy("", &[&format!("services: [{name}]")]));
    let seen = with(seen, "all", |s| s.client_ip_affinity = true);
    assert_eq!(verdict(&canary, &seen), MOVED);
    assert_eq!(verdict(&all, &seen), "sessionAffinity");
    // But an endpoint of either is a sibling, and both share the port.
    let says = with(seen.clone(), "all", |s| s.http2 = [8080].into());
    assert_eq!(verdict(&canary, &says), "http2");
    let seen = with(seen, "all", |s| s.addresses = addresses(&["10.0.0.1"]));
    assert_eq!(verdict(&canary, &seen), "siblingPeer");
}

#[test]
fn services_with_the_same_endpoints_count_together() {
    let same = |s: &mut Service| s.addresses = addresses(&["10.1.0.1", "10.1.0.2"]);
    let seen = with(with(behind(&["a", "b"]), "a", same), "b", same);
    assert_eq!(verdict(&by_port(), &seen), MOVED);
    type Change = fn(&mut Service);
    let cases: [(&str, Change, &str); 4] = [
        // The connection's own family is the same.
        (
            "of both families",
            |s| s.addresses = addresses(&["10.1.0.1", "10.1.0.2", "2001:db8::1"]),
            MOVED,
        ),
        ("fewer are ready", |s| s.ready = 2, "ambiguousService"),
        // The client may have dialled either: a fact of one of them is enough.
        ("sticky", |s| s.client_ip_affinity = true, "sessionAffinity"),
        ("local", |s| s.internal_local = true, "localTraffic"),
    ];
    for (case, change, expected) in cases {
        let seen = with(seen.clone(), "b", change);
        assert_eq!(verdict(&by_port(), &seen), expected, "{case}");
    }
}

/// As of a StatefulSet with another Service beside its own.
#[test]
fn a_headless_service_beside_another_does_not_count() {
    let seen = behind(&["checkout", "members"]);
    let seen = with(seen, "members", |s| {
        (s.headless, s.ready) = (true, 9);
        s.addresses = addresses(&["10.1.0.7"]);
    });
    assert_eq!(verdict(&by_port(), &seen), MOVED);
    let members = policy("", &["services: ['*/members']"]);
    assert_eq!(verdict(&members, &seen), "headless");
    let both = with(seen, "checkout", |s| s.headless = true);
    assert_eq!(verdict(&by_port(), &both), "headless");
}

#[test]
fn an_explanation_names_every_guard_that_applies() {
    let seen = with_checkout(|s| {
        (s.ready, s.client_ip_affinity) = (1, true);
        s.changed = Some(Duration::ZERO);
    });
    let agent = Agent::new(by_port());
    let plan = agent.plan(&seen);
    let explained = agent.explain(&seen, &plan, 1).unwrap();
    let guards: Vec<&str> = explained.guards.iter().map(SkipReason::as_str).collect();
    assert_eq!(
        guards,
        ["sessionAffinity", "minReadyEndpoints", "stabilizing"]
    );
    let needs = explained.needs().unwrap();
    assert_eq!(needs, "`sessionAffinity: None` in Service shop/checkout");
}
