//! Connections leave a pod that is being deleted before it stops, one that its Service does not select any more,
//! and an endpoint that an operator wants empty.

use std::{collections::BTreeMap, time::Duration};

use rebalancer_core::{
    plan::{DrainCause, Drained, SkipReason},
    policy::{Mode, Policy, sample},
    snapshot::{
        Connection, Ending, Identity, KernelTime, Naming, RemovedFrom, RequestedDrain, Service,
        ServiceAt, Snapshot,
        sample::{connection, service, service_at},
    },
};

mod agent;
mod named;
use agent::{Agent, SECOND, decided, words};
use named::{behind, named, snapshot, web};

const DRAIN: &str = "drain: {on: [Terminating]}";

fn policy(fields: &str) -> Policy {
    sample::policy(&format!(
        "mode: Enforce\nbudget: {{perNode: 1, maxInFlight: 50}}\n\
         rules:\n- {{name: web, match: {{services: [shop/checkout]}}, {fields}}}\n"
    ))
}

fn ending(since: u64, stops_after: u64) -> Identity {
    let mut pod = behind(&["checkout"]);
    let service = &mut pod.services.as_mut().unwrap()[0];
    (service.ready, service.terminating) = (false, true);
    (pod.ready, pod.terminating) = (false, true);
    pod.ending = Some(Ending {
        since: Duration::from_secs(since),
        stops_after: Duration::from_secs(stops_after),
    });
    pod
}

/// So many young connections of that pod.
fn holding(pod: Identity, connections: u64) -> Snapshot {
    let mut listed = snapshot(named(pod), Naming::Fresh);
    let young = |cookie| Connection {
        opened: listed.taken,
        ..connection(cookie)
    };
    listed.connections = (1..=connections).map(young).collect();
    listed
}

fn one(fields: &str, change: impl FnOnce(&mut Snapshot)) -> BTreeMap<&'static str, u64> {
    let mut listed = holding(ending(5, 15), 1);
    change(&mut listed);
    words(&decided(&policy(fields), &listed))
}

#[test]
fn without_a_rule_that_drains_a_pod_that_is_deleted_is_left_alone() {
    let limits = "limits: {maxAge: 1h}";
    assert_eq!(
        one(limits, |_| ()),
        [("moved", 0), ("terminating", 1)].into()
    );
    let both = format!("{limits}, {DRAIN}");
    assert_eq!(one(&both, |_| ()), [("moved", 1)].into());
}

/// They leave by the second, whatever the other budgets have left and however young they are.
#[test]
fn all_have_begun_to_leave_before_it_stops() {
    let mut agent = Agent::new(policy(DRAIN));
    let mut left: Vec<u64> = (1..=300).collect();
    let mut began = Vec::new();
    for second in 0..15 {
        let mut listed = holding(ending(second, 15), 300);
        listed.taken = KernelTime(listed.taken.0 + second * SECOND);
        listed.connections.retain(|c| left.contains(&c.cookie.0));
        let plan = agent.observe(&listed);
        let here: u64 = plan.drained().iter().map(Drained::count).sum();
        assert_eq!(here, left.len() as u64);
        began.push(plan.moves().count());
        for chosen in plan.moves() {
            assert_eq!(chosen.reasons()[0].as_str(), "drain");
            left.retain(|cookie| *cookie != chosen.cookie().0);
        }
        agent.reset(&plan, listed.taken);
        agent.prune(&listed);
    }
    assert!(left.is_empty(), "{began:?}");
    assert!(began[0] == 0 && began.iter().all(|n| *n <= 25), "{began:?}");
    // Neither spent nor evidence.
    let (ledger, window) = (&agent.ledger, agent.policy.budget().window());
    assert_eq!(ledger.spent(Mode::Enforce, window, KernelTime(0)), 0);
    assert_eq!(ledger.return_counts(), Default::default());
}

#[test]
fn guards_of_what_a_move_may_do_hold_and_those_of_when_do_not() {
    type Of<T> = fn(&mut T);
    let of_service: [(&str, Of<Service>); 5] = [
        // Who has no other endpoint stays to the end.
        ("minReadyEndpoints", |s| s.ready = 0),
        ("moved", |s| s.ready = 1),
        ("headless", |s| s.headless = true),
        // A client cannot be sent back to what is gone, and a change of the endpoints is the very reason.
        ("moved", |s| s.client_ip_affinity = true),
        ("moved", |s| s.changed = Some(Duration::ZERO)),
    ];
    for (number, (word, change)) in of_service.into_iter().enumerate() {
        let found = one(DRAIN, |seen| seen.services.values_mut().for_each(change));
        assert_eq!(found[word], 1, "change {number} of the Service: {found:?}");
    }
    let silent = |seconds| Naming::Stale {
        silent: Some(Duration::from_secs(seconds)),
    };
    // No deletion is undone while the API server is away; a selector may be flipped back.
    assert_eq!(one(DRAIN, |seen| seen.naming = silent(300))["moved"], 1);
    let mut listed = two(removed(10, &[]), 5);
    listed.naming = silent(30);
    let found = words(&decided(&policy(REMOVED), &listed));
    assert_eq!(found["staleFacts"], 2);
    let of_rest: [(&str, Of<Snapshot>); 4] = [
        ("moved", |_| ()),
        ("mptcp", |seen| seen.connections[0].mptcp = true),
        ("staleFacts", |seen| {
            seen.naming = Naming::Stale { silent: None }
        }),
        ("silent", |seen| {
            seen.connections[0].since_received = Duration::from_secs(60)
        }),
    ];
    for (word, change) in of_rest {
        let found = one(DRAIN, change);
        assert_eq!(found[word], 1, "{word}: {found:?}");
    }
}

#[test]
fn a_pod_that_stops_at_once_is_left_alone_and_what_gives_it_time_is_said() {
    let agent = Agent::new(policy(DRAIN));
    let listed = holding(ending(0, 0), 1);
    let plan = agent.plan(&listed);
    assert_eq!(plan.drained(), []);
    assert_eq!(words(&plan), [("moved", 0), ("noTimeToDrain", 1)].into());
    let explained = agent.explain(&listed, &plan, 1).unwrap();
    let needs = explained.needs().unwrap();
    assert!(needs.contains("preStop: {sleep: {seconds: 10}}"), "{needs}");
    // It may be that it is deleted, but not how.
    let mut unknown = ending(0, 15);
    unknown.ending = None;
    let plan = agent.plan(&holding(unknown, 1));
    assert_eq!(words(&plan), [("moved", 0), ("terminating", 1)].into());
}

#[test]
fn a_rule_that_only_drains_leaves_the_living() {
    let plan = decided(&policy(DRAIN), &holding(behind(&["checkout"]), 1));
    assert_eq!(words(&plan), [("moved", 0), ("notDrained", 1)].into());
}

/// A move that waits for its quiet moment is not recalled because its pod is deleted, nor because another has
/// its turn; and is, once its rule no longer drains.
#[test]
fn a_move_under_way_continues_while_its_endpoint_is_drained() {
    let mut agent = Agent::new(policy(DRAIN));
    let listed = holding(ending(5, 15), 1);
    let plan = agent.plan(&listed);
    agent.begin(&plan, listed.taken);
    assert_eq!(agent.ledger.in_flight(), 1);
    let later = holding(ending(6, 15), 1);
    assert!(agent.plan(&later).recalls().is_empty());
    agent.policy = policy("limits: {maxAge: 1h}");
    let plan = agent.plan(&later);
    let recalls: Vec<&SkipReason> = plan.recalls().iter().map(|recall| &recall.why).collect();
    assert!(
        matches!(recalls[..], [SkipReason::Terminating { .. }]),
        "{recalls:?}"
    );
}

#[test]
fn a_dry_run_reports_each_once() {
    let mut agent = Agent::new(policy(&format!("mode: DryRun, {DRAIN}")));
    let mut reported = 0;
    for second in 2..15 {
        let listed = holding(ending(second, 15), 20);
        let plan = agent.plan(&listed);
        reported += plan.moves().count();
        agent.report(&plan, listed.taken);
    }
    assert_eq!(reported, 20);
}

const REMOVED: &str = "drain: {on: [Removed], within: 1m}";

/// A pod that was removed from the Service so many seconds ago, and is in these still.
fn removed(since: u64, still: &[&str]) -> Identity {
    let service = ServiceAt {
        ready: false,
        ..service_at("checkout")
    };
    Identity {
        removed_from: vec![RemovedFrom {
            service,
            since: Duration::from_secs(since),
        }],
        ..behind(still)
    }
}

/// Two connections of a pod: one opened an hour ago, and one that was opened so many seconds ago.
fn two(pod: Identity, young: u64) -> Snapshot {
    let mut listed = snapshot(named(pod), Naming::Fresh);
    let opened = |seconds: u64| KernelTime(listed.taken.0 - seconds * SECOND);
    listed.connections = [(1, 3600), (2, young)]
        .map(|(cookie, age)| Connection {
            opened: opened(age),
            ..connection(cookie)
        })
        .into();
    for name in ["checkout", "web"] {
        let facts = Service {
            ready: 2,
            ..Service::default()
        };
        listed.services.entry(service(name)).or_insert(facts);
    }
    listed
}

#[test]
fn who_was_there_before_leaves_a_pod_that_its_service_does_not_select_any_more() {
    let policy = policy(REMOVED);
    let found = |pod, young| words(&decided(&policy, &two(pod, young)));
    let one_moves = [("moved", 1), ("openedLater", 1)].into();
    assert_eq!(found(removed(10, &[]), 5), one_moves);
    // Not every node knows at once.
    let one_waits = [("drainedLater", 1), ("moved", 1)].into();
    assert_eq!(found(removed(10, &[]), 10), one_waits);
    let plan = decided(&policy, &two(removed(10, &[]), 5));
    let [Drained { cause, left, .. }] = plan.drained() else {
        panic!("{:?}", plan.drained())
    };
    assert_eq!(
        (*cause, *left),
        (DrainCause::Removed, Duration::from_secs(50))
    );
    // Its time is over, and the rule is for it no more; nor is one that drains on other events.
    assert_eq!(
        found(removed(60, &[]), 5),
        [("moved", 0), ("noRule", 2)].into()
    );
    let other = self::policy(DRAIN);
    assert_eq!(
        words(&decided(&other, &two(removed(10, &[]), 5))),
        [("moved", 0), ("noRule", 2)].into()
    );
    let within_limits = self::policy("limits: {maxAge: 1m}");
    assert_eq!(
        words(&decided(&within_limits, &two(removed(10, &[]), 5))),
        [("moved", 0), ("noRule", 2)].into()
    );
}

/// Of a connection it is not known by which Service it came.
#[test]
fn a_pod_that_is_in_another_service_still_is_drained_only_by_a_rule_that_names_the_one_it_left() {
    let by_name = policy(REMOVED);
    let in_web = two(removed(10, &["web"]), 5);
    assert_eq!(words(&decided(&by_name, &in_web))["moved"], 1);
    // It left another one, and is what the rule names.
    let mut left = removed(10, &["checkout"]);
    left.removed_from[0].service.name = "web".to_owned();
    assert_eq!(
        words(&decided(&by_name, &two(left, 5))),
        [("moved", 0), ("notDrained", 2)].into()
    );
    let by_port = sample::policy(&format!(
        "mode: Enforce\nrules:\n- {{name: web, match: {{ports: [{{port: 8080}}]}}, {REMOVED}}}\n"
    ));
    let mut differs = in_web.clone();
    differs.services.get_mut(&service("web")).unwrap().ready = 3;
    let found = words(&decided(&by_port, &differs));
    assert_eq!(found, [("ambiguousService", 2), ("moved", 0)].into());
}

#[test]
fn nobody_leaves_a_removed_pod_for_a_service_without_endpoints() {
    let mut listed = two(removed(10, &[]), 5);
    listed.services.get_mut(&service("checkout")).unwrap().ready = 0;
    let found = words(&decided(&policy(REMOVED), &listed));
    assert_eq!(found["minReadyEndpoints"], 2);
    let opted_out = |pod: &mut Identity| pod.removed_from[0].service.opted_out = true;
    let mut pod = removed(10, &[]);
    opted_out(&mut pod);
    let found = words(&decided(&policy(REMOVED), &two(pod, 5)));
    assert_eq!(found["optedOut"], 2);
}

/// The same with a request of an operator, made so many seconds ago.
fn requested(since: u64, listed: &Snapshot) -> Snapshot {
    let mut listed = listed.clone();
    for endpoint in listed.endpoints.values_mut() {
        endpoint.drain = Some(RequestedDrain {
            since: Duration::from_secs(since),
            within: Duration::from_secs(60),
        });
    }
    listed
}

#[test]
fn an_operator_drains_whatever_the_policy_would_do() {
    let listed = two(behind(&["checkout"]), 5);
    let asked = requested(10, &listed);
    for fields in [
        "limits: {maxAge: 8000h}",
        "limits: {maxAge: 8000h}, mode: DryRun",
        "limits: {maxAge: 8000h}, mode: Disabled",
        DRAIN,
    ] {
        let plan = decided(&policy(fields), &asked);
        assert_eq!(
            words(&plan),
            [("moved", 1), ("openedLater", 1)].into(),
            "{fields}"
        );
        let chosen = plan.moves().next().unwrap();
        assert_eq!(
            (chosen.mode(), chosen.rule().as_str()),
            (Mode::Enforce, "web")
        );
    }
    // What no rule is for is moved as far as its protocol can be detected.
    let none = sample::policy("mode: DryRun\nrules: []\n");
    assert_eq!(
        words(&decided(&none, &listed)),
        [("moved", 0), ("noRule", 2)].into()
    );
    let plan = decided(&none, &asked);
    assert_eq!(words(&plan), [("moved", 1), ("openedLater", 1)].into());
    assert_eq!(plan.drained()[0].cause, DrainCause::Requested);
    let chosen = plan.moves().next().unwrap();
    assert_eq!(chosen.rule().as_str(), "(manual)");
    let over = decided(&none, &requested(60, &listed));
    assert_eq!(words(&over)["moved"], 0);
}

#[test]
fn an_operator_does_not_move_clients_to_where_they_cannot_be() {
    type Change = fn(&mut Snapshot);
    let changes: [(&str, Change); 7] = [
        ("moved", |_| ()),
        // The endpoint itself is ready, and one of these.
        ("minReadyEndpoints", |seen| {
            seen.services.values_mut().for_each(|s| s.ready = 1)
        }),
        ("sessionAffinity", |seen| {
            seen.services
                .values_mut()
                .for_each(|s| s.client_ip_affinity = true)
        }),
        ("headless", |seen| {
            seen.services.values_mut().for_each(|s| s.headless = true)
        }),
        ("moved", |seen| {
            seen.services
                .values_mut()
                .for_each(|s| s.changed = Some(Duration::ZERO))
        }),
        // Two of them are drained, of two.
        ("minReadyEndpoints", |seen| {
            let (mut key, mut other) = seen.endpoints.pop_first().unwrap();
            seen.endpoints.insert(key, other.clone());
            key.netns.0 += 1;
            let second = Identity {
                uid: "v".to_owned(),
                ..behind(&["checkout"])
            };
            other.who = named(second);
            seen.endpoints.insert(key, other);
            seen.services.values_mut().for_each(|s| s.ready = 2);
        }),
        ("systemPort", |seen| {
            let (mut key, endpoint) = seen.endpoints.pop_first().unwrap();
            key.port = 22;
            seen.endpoints.insert(key, endpoint);
            seen.connections.iter_mut().for_each(|c| c.endpoint = key);
        }),
    ];
    for (number, (word, change)) in changes.into_iter().enumerate() {
        let mut seen = requested(10, &two(behind(&["checkout"]), 5));
        change(&mut seen);
        let found = words(&decided(&policy("limits: {maxAge: 8000h}"), &seen));
        let least = if word == "moved" { 1 } else { 2 };
        assert_eq!(found.get(word), Some(&least), "change {number}: {found:?}");
    }
    let mut opted_out = web();
    opted_out.opted_out = true;
    let seen = requested(10, &two(opted_out, 5));
    assert_eq!(words(&decided(&policy(DRAIN), &seen))["optedOut"], 2);
}

/// A move continues as long as the request lasts, in a policy that would only report it.
#[test]
fn a_requested_move_ends_with_the_request() {
    let mut agent = Agent::new(policy("limits: {maxAge: 8000h}, mode: DryRun"));
    let listed = two(behind(&["checkout"]), 5);
    let plan = agent.plan(&requested(10, &listed));
    agent.begin(&plan, listed.taken);
    assert_eq!(agent.ledger.in_flight(), 1);
    assert!(agent.plan(&requested(20, &listed)).recalls().is_empty());
    assert_eq!(agent.plan(&listed).recalls().len(), 1);
}

#[test]
fn a_pod_that_is_not_ready_any_more_is_drained_only_if_that_is_asked_for() {
    let mut pod = behind(&["checkout"]);
    let service = &mut pod.services.as_mut().unwrap()[0];
    (service.ready, service.unready) = (false, Some(Duration::from_secs(10)));
    let listed = two(pod, 5);
    let found = |fields: &str| words(&decided(&policy(fields), &listed));
    let leave = [("moved", 1), ("openedLater", 1)].into();
    assert_eq!(found("drain: {on: [Unready]}"), leave);
    let stay = [("moved", 0), ("unready", 2)].into();
    assert_eq!(found("drain: {on: [Terminating, Removed]}"), stay);
    assert_eq!(found("drain: {on: [Unready], within: 10s}"), stay);
}
