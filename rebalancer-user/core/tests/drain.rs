//! Connections of a pod that is being deleted leave it before it stops, if their rule says so.

use std::{collections::BTreeMap, time::Duration};

use rebalancer_core::{
    plan::{Drained, SkipReason},
    policy::{Mode, Policy, sample},
    snapshot::{
        Connection, Ending, Identity, KernelTime, Naming, Service, Snapshot, sample::connection,
    },
};

mod agent;
mod named;
use agent::{Agent, SECOND, decided, words};
use named::{behind, named, snapshot};

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
    assert!(needs.contains("preStop: {sleep: {seconds: 15}}"), "{needs}");
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
