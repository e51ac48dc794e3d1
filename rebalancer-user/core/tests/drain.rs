//! Connections of a pod that is being deleted leave it before it stops, if their rule says so.

use std::{collections::BTreeMap, time::Duration};

use rebalancer_core::{
    plan::{Drained, Ledger, Outcome, Plan, SkipReason, decide, explain},
    policy::{Mode, Policy, parse},
    snapshot::{
        Connection, Cookie, Ending, Identity, KernelTime, Naming, Snapshot, sample::connection,
    },
};

mod named;
use named::{named, snapshot, web};

const DRAIN: &str = "drain: {on: [Terminating]}";

fn policy(fields: &str) -> Policy {
    let text = format!(
        "apiVersion: rebalancer.dev/v1alpha1\nkind: RebalancePolicy\nmode: Enforce\n\
         budget: {{perNode: 1, maxInFlight: 50}}\n\
         rules:\n- {{name: web, match: {{services: [shop/checkout]}}, {fields}}}\n"
    );
    parse("p", &text).unwrap_or_else(|errors| panic!("{errors}"))
}

fn ending(since: u64, stops_after: u64) -> Identity {
    let mut pod = web();
    pod.services.as_mut().unwrap().truncate(1);
    pod.terminating = true;
    pod.ready = false;
    pod.services.as_mut().unwrap()[0].ready = false;
    pod.services.as_mut().unwrap()[0].terminating = true;
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

fn decided(policy: &Policy, listed: &Snapshot, ledger: &Ledger) -> Plan {
    decide(policy, listed, ledger, listed.taken)
}

fn words(plan: &Plan) -> BTreeMap<&'static str, u64> {
    let mut words = plan.skipped();
    words.insert("moved", plan.moves().count() as u64);
    words
}

fn one(fields: &str, change: impl FnOnce(&mut Snapshot)) -> BTreeMap<&'static str, u64> {
    let mut listed = holding(ending(5, 15), 1);
    change(&mut listed);
    words(&decided(&policy(fields), &listed, &Ledger::default()))
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
    let (policy, mut ledger) = (policy(DRAIN), Ledger::default());
    let mut left: Vec<u64> = (1..=300).collect();
    let mut began = Vec::new();
    for second in 0..15 {
        let mut listed = holding(ending(second, 15), 300);
        listed.taken = KernelTime(listed.taken.0 + second * 1_000_000_000);
        listed
            .connections
            .retain(|one| left.contains(&one.cookie.0));
        ledger.observe(&policy, &listed);
        let plan = decided(&policy, &listed, &ledger);
        let here: u64 = plan.drained().iter().map(Drained::count).sum();
        assert_eq!(here, left.len() as u64);
        began.push(plan.moves().count());
        for chosen in plan.moves() {
            assert_eq!(chosen.reasons()[0].as_str(), "drain");
            ledger.started(chosen, listed.taken);
            ledger.ended(chosen.cookie(), Outcome::Reset, listed.taken);
            left.retain(|cookie| *cookie != chosen.cookie().0);
        }
        ledger.prune(&listed, policy.budget().window(), listed.taken);
    }
    assert!(left.is_empty(), "{began:?}");
    assert!(began[0] == 0 && began.iter().all(|n| *n <= 25), "{began:?}");
    // Neither spent nor evidence.
    assert_eq!(
        ledger.spent(Mode::Enforce, policy.budget().window(), KernelTime(0)),
        0
    );
    assert_eq!(ledger.return_counts(), Default::default());
}

#[test]
fn guards_of_what_a_move_may_do_hold_and_those_of_when_do_not() {
    let with = |change: fn(&mut Snapshot)| one(DRAIN, change);
    let skipped = |word| BTreeMap::from([("moved", 0), (word, 1)]);
    let moved = BTreeMap::from([("moved", 1)]);
    let service = |listed: &mut Snapshot, change: fn(&mut rebalancer_core::snapshot::Service)| {
        listed.services.values_mut().for_each(change);
    };
    assert_eq!(with(|_| ()), moved);
    // Who has no other endpoint stays to the end.
    let alone = |listed: &mut Snapshot| service(listed, |facts| facts.ready = 0);
    assert_eq!(one(DRAIN, alone), skipped("minReadyEndpoints"));
    let last = |listed: &mut Snapshot| service(listed, |facts| facts.ready = 1);
    assert_eq!(one(DRAIN, last), moved);
    let headless = |listed: &mut Snapshot| service(listed, |facts| facts.headless = true);
    assert_eq!(one(DRAIN, headless), skipped("headless"));
    // A client cannot be sent back to what is gone, and a change of the endpoints is the very reason.
    let affinity = |listed: &mut Snapshot| service(listed, |facts| facts.client_ip_affinity = true);
    assert_eq!(one(DRAIN, affinity), moved);
    let changed =
        |listed: &mut Snapshot| service(listed, |facts| facts.changed = Some(Duration::ZERO));
    assert_eq!(one(DRAIN, changed), moved);
    assert_eq!(
        with(|listed| listed.connections[0].mptcp = true),
        skipped("mptcp")
    );
    assert_eq!(
        with(|listed| listed.naming = Naming::Stale { silent: None }),
        skipped("staleFacts")
    );
    let silent =
        |listed: &mut Snapshot| listed.connections[0].since_received = Duration::from_secs(60);
    assert_eq!(one(DRAIN, silent), skipped("silent"));
}

#[test]
fn a_pod_that_stops_at_once_is_left_alone_and_what_gives_it_time_is_said() {
    let policy = policy(DRAIN);
    let listed = holding(ending(0, 0), 1);
    let ledger = Ledger::default();
    let plan = decided(&policy, &listed, &ledger);
    assert_eq!(plan.drained(), []);
    assert_eq!(words(&plan), [("moved", 0), ("noTimeToDrain", 1)].into());
    let explained = explain(&policy, &listed, &plan, &ledger, listed.taken, Cookie(1)).unwrap();
    let needs = explained.needs().unwrap();
    assert!(needs.contains("preStop: {sleep: {seconds: 15}}"), "{needs}");
    // It may be that it is deleted, but not how.
    let mut unknown = ending(0, 15);
    unknown.ending = None;
    let plan = decided(&policy, &holding(unknown, 1), &ledger);
    assert_eq!(words(&plan), [("moved", 0), ("terminating", 1)].into());
}

#[test]
fn a_rule_that_only_drains_leaves_the_living() {
    let mut pod = web();
    pod.services.as_mut().unwrap().truncate(1);
    let plan = decided(&policy(DRAIN), &holding(pod, 1), &Ledger::default());
    assert_eq!(words(&plan), [("moved", 0), ("notDrained", 1)].into());
}

/// A move that waits for its quiet moment is not recalled because its pod is deleted, nor because another has
/// its turn; and is, once its rule no longer drains.
#[test]
fn a_move_under_way_continues_while_its_endpoint_is_drained() {
    let (drains, mut ledger) = (policy(DRAIN), Ledger::default());
    let listed = holding(ending(5, 15), 1);
    let plan = decided(&drains, &listed, &ledger);
    ledger.started(plan.moves().next().unwrap(), listed.taken);
    let later = holding(ending(6, 15), 1);
    assert!(decided(&drains, &later, &ledger).recalls().is_empty());
    let limits = policy("limits: {maxAge: 1h}");
    let plan = decided(&limits, &later, &ledger);
    let recalls: Vec<&SkipReason> = plan.recalls().iter().map(|recall| &recall.why).collect();
    assert!(
        matches!(recalls[..], [SkipReason::Terminating { .. }]),
        "{recalls:?}"
    );
}

#[test]
fn a_dry_run_reports_each_once() {
    let dry = policy(&format!("mode: DryRun, {DRAIN}"));
    let mut ledger = Ledger::default();
    let mut reported = 0;
    for second in 2..15 {
        let listed = holding(ending(second, 15), 20);
        let plan = decided(&dry, &listed, &ledger);
        for chosen in plan.moves() {
            reported += 1;
            ledger.reported(chosen, listed.taken);
        }
    }
    assert_eq!(reported, 20);
}
