//! Guards by facts about Services: each by itself, and which Services count.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rebalancer_core::{
    plan::{FIRST_FEW, Ledger, SkipReason, decide, explain},
    policy::{MissingFact, Policy},
    snapshot::{
        Connection, Cookie, Identity, Naming, Netns, Service, ServiceAt, Snapshot, Who, sample,
    },
};

mod named;
use named::{named, policy, service, snapshot, verdict, web, why};

const MOVED: &str = "moved by rule-0";

/// A movable connection of `web`, which these Services target.
fn behind(services: &[&str]) -> Snapshot {
    let at = |name: &&str| ServiceAt {
        name: (*name).to_owned(),
        ready: true,
        ..ServiceAt::default()
    };
    let pod = Identity {
        services: Some(services.iter().map(at).collect()),
        ..web()
    };
    snapshot(named(pod), Naming::Fresh)
}

fn with(mut seen: Snapshot, name: &str, change: impl Fn(&mut Service)) -> Snapshot {
    change(seen.services.get_mut(&service("shop", name)).unwrap());
    seen
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
    let seen = with(behind(&["checkout"]), "checkout", |s| {
        (s.ready, s.ready_here) = (3, 3);
        change(s);
    });
    three_pods(seen)
}

/// The pod of `seen` three times, the first with 200 connections.
fn three_pods(seen: Snapshot) -> Snapshot {
    let (key, endpoint) = seen.endpoints.first_key_value().unwrap();
    let pods = (1..=3).map(|netns| {
        let (mut key, mut endpoint) = (*key, endpoint.clone());
        key.netns = Netns(netns);
        endpoint.listeners = 1;
        (key, endpoint)
    });
    let connections = (1..=200).map(|cookie| {
        let one = sample::connection(cookie);
        let client = [10, 0, 1, cookie as u8].into();
        Connection {
            remote: SocketAddr::new(client, 40_000),
            // One in four.
            mptcp: cookie % 4 == 0,
            ..one
        }
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
    let text = format!(
        "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: Enforce
rules:
- {{name: web, match: {{{matches}}}, balance: {{}}}}
"
    );
    let policy = rebalancer_core::policy::parse("p", &text).unwrap();
    let plan = decide(&policy, seen, &Ledger::default(), seen.taken);
    for chosen in plan.moves() {
        let one = seen
            .connections
            .iter()
            .find(|c| c.cookie == chosen.cookie());
        assert!(!one.unwrap().mptcp);
    }
    let mut words = plan.skipped();
    words.insert("moved", plan.moves().count() as u64);
    words
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
    let by_port = balanced_by("ports: [{port: 8080}]", &three_pods(seen));
    assert_eq!(
        (by_port["moved"], by_port["mptcp"]),
        (FIRST_FEW, 50),
        "{by_port:?}"
    );
}

/// Why a connection is skipped after this change, by a rule with a port and by one with a Service.
fn skip_reason(change: impl Fn(&mut Service)) -> String {
    let seen = with(behind(&["checkout"]), "checkout", change);
    let skipped = why(&by_port(), &seen);
    assert_eq!(
        skipped,
        why(&policy("", &["services: ['*/checkout']"]), &seen)
    );
    format!("{}: {skipped}", skipped.as_str())
}

#[test]
fn each_fact_of_a_service_has_its_reason() {
    assert_eq!(verdict(&by_port(), &behind(&["checkout"])), MOVED);
    assert_eq!(
        skip_reason(|s| s.ready = 1),
        "minReadyEndpoints: Service shop/checkout has 1 of the 2 ready endpoints that \
         minReadyEndpoints asks for"
    );
    assert_eq!(
        skip_reason(|s| s.ready_in_zone = Some(1)),
        "minReadyEndpoints: Service shop/checkout has 1 of the 2 ready endpoints near this node \
         that minReadyEndpoints asks for"
    );
    assert_eq!(
        skip_reason(|s| s.client_ip_affinity = true),
        "sessionAffinity: Service shop/checkout has sessionAffinity ClientIP: its client would \
         come back"
    );
    assert_eq!(
        skip_reason(|s| s.headless = true),
        "headless: Service shop/checkout is headless: its clients choose an endpoint themselves"
    );
    assert_eq!(
        skip_reason(|s| s.internal_local = true),
        "localTraffic: Service shop/checkout has internalTrafficPolicy Local and 1 ready on this \
         node, below minReadyEndpoints 2"
    );
    assert_eq!(
        skip_reason(|s| s.external_local = true),
        "localTraffic: Service shop/checkout has externalTrafficPolicy Local and 1 ready on this \
         node, below minReadyEndpoints 2"
    );
    assert_eq!(
        skip_reason(|s| s.changed = Some(Duration::from_secs(20))),
        "stabilizing: the endpoints of Service shop/checkout changed 20s ago, less than stabilizationWindow 1m"
    );
    assert_eq!(
        skip_reason(|s| s.addresses = addresses(&["10.0.0.1", "10.0.0.9"])),
        "siblingPeer: its client is an endpoint of Service shop/checkout itself"
    );
    assert_eq!(
        skip_reason(|s| s.http2 = [8080].into()),
        "http2: port 8080 speaks HTTP/2 by the word of Service shop/checkout"
    );
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
        let seen = with(behind(&["checkout"]), "checkout", change);
        assert_eq!(verdict(&by_port(), &seen), MOVED, "{case}");
    }
}

#[test]
fn guards_have_the_policys_values() {
    let seen = |change: fn(&mut Service)| with(behind(&["checkout"]), "checkout", change);
    let at_least = |n: u32| {
        policy(
            &format!("minReadyEndpoints: {n}"),
            &["ports: [{port: 8080}]"],
        )
    };
    assert_eq!(verdict(&at_least(3), &seen(|s| s.ready = 3)), MOVED);
    assert_eq!(
        verdict(&at_least(4), &seen(|s| s.ready = 3)),
        "minReadyEndpoints"
    );
    assert_eq!(verdict(&at_least(1), &seen(|s| s.ready = 1)), MOVED);
    let stabilization_window = policy("stabilizationWindow: 10s", &["ports: [{port: 8080}]"]);
    let changed = seen(|s| s.changed = Some(Duration::from_secs(20)));
    assert_eq!(verdict(&stabilization_window, &changed), MOVED);
    // `LosesState` covers HTTP/2 streams as well.
    let mut text =
        "apiVersion: rebalancer.dev/v1alpha1\nkind: RebalancePolicy\nmode: Enforce\nrules:\n"
            .to_owned();
    text += "- {name: rule-0, match: {ports: [{port: 8080}]}, limits: {maxAge: 1h}, onReconnect: LosesState}\n";
    let loses = rebalancer_core::policy::parse("p", &text).unwrap();
    assert_eq!(verdict(&loses, &seen(|s| s.http2 = [8080].into())), MOVED);
}

#[test]
fn an_ipv4_mapped_peer_is_a_sibling() {
    let mut seen = with(behind(&["checkout"]), "checkout", |s| {
        s.addresses = addresses(&["10.0.0.1"]);
    });
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
    seen.services.remove(&service("shop", "checkout"));
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
        assert_eq!(
            verdict(&policy("", &[matches]), &seen),
            expected,
            "{matches}"
        );
    }
    // Only the facts of the Service that is named count.
    let seen = with(seen, "all", |s| s.client_ip_affinity = true);
    assert_eq!(
        verdict(&policy("", &["services: ['*/canary']"]), &seen),
        MOVED
    );
    assert_eq!(
        verdict(&policy("", &["services: ['*/all']"]), &seen),
        "sessionAffinity"
    );
    // But an endpoint of either is a sibling, and both share the port.
    let says = with(seen.clone(), "all", |s| s.http2 = [8080].into());
    assert_eq!(
        verdict(&policy("", &["services: ['*/canary']"]), &says),
        "http2"
    );
    let seen = with(seen, "all", |s| s.addresses = addresses(&["10.0.0.1"]));
    assert_eq!(
        verdict(&policy("", &["services: ['*/canary']"]), &seen),
        "siblingPeer"
    );
}

#[test]
fn services_with_the_same_endpoints_count_together() {
    let same = |s: &mut Service| s.addresses = addresses(&["10.1.0.1", "10.1.0.2"]);
    let seen = with(with(behind(&["a", "b"]), "a", same), "b", same);
    assert_eq!(verdict(&by_port(), &seen), MOVED);
    // Of both families or of one: the connection's own family is the same.
    let dual = with(seen.clone(), "b", |s| {
        s.addresses = addresses(&["10.1.0.1", "10.1.0.2", "2001:db8::1"]);
    });
    assert_eq!(verdict(&by_port(), &dual), MOVED);
    // One of them has fewer that are ready.
    let fewer = with(seen.clone(), "b", |s| s.ready = 2);
    assert_eq!(verdict(&by_port(), &fewer), "ambiguousService");
    // The client may have dialled either: a fact of one of them is enough.
    let sticky = with(seen.clone(), "b", |s| s.client_ip_affinity = true);
    assert_eq!(verdict(&by_port(), &sticky), "sessionAffinity");
    let local = with(seen, "b", |s| s.internal_local = true);
    assert_eq!(verdict(&by_port(), &local), "localTraffic");
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
    assert_eq!(
        verdict(&policy("", &["services: ['*/members']"]), &seen),
        "headless"
    );
    let both = with(seen, "checkout", |s| s.headless = true);
    assert_eq!(verdict(&by_port(), &both), "headless");
}

#[test]
fn an_explanation_names_every_guard_that_applies() {
    let seen = with(behind(&["checkout"]), "checkout", |s| {
        (s.ready, s.client_ip_affinity) = (1, true);
        s.changed = Some(Duration::ZERO);
    });
    let policy = by_port();
    let ledger = Ledger::default();
    let plan = decide(&policy, &seen, &ledger, seen.taken);
    let explained = explain(&policy, &seen, &plan, &ledger, seen.taken, Cookie(1)).unwrap();
    let guards: Vec<&str> = explained.guards.iter().map(SkipReason::as_str).collect();
    assert_eq!(
        guards,
        ["sessionAffinity", "minReadyEndpoints", "stabilizing"]
    );
    let needs = explained.needs().unwrap();
    assert_eq!(needs, "`sessionAffinity: None` in Service shop/checkout");
}
