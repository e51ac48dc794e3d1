//! What holds for every plan, whatever the policy, the snapshot and the past.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use proptest::{collection::vec, prelude::*, sample::select};
use rebalancer_core::{
    plan::{
        Decision, Entries, FIRST_HOLD, LOOKED_FOR, Ledger, Move, Outcome, Plan, Reason, Refusal,
        SILENT, SkipReason, Verdict, decide,
    },
    policy::{Mode, Policy, RuleName, sample},
    snapshot::{
        Bytes, CgroupId, Connection, Cookie, KernelTime, Snapshot, TcpState, Who,
        sample::{connection, endpoint, snapshot},
    },
};

mod agent;
use agent::{Agent, HOUR, MINUTE, SECOND, decided, words};

/// Limits of the budget that `head` leaves out are so large that they never apply.
fn policy(head: &str, rules: &str) -> Policy {
    const WIDE: &str = "perService: 1000000, perEndpoint: 1000000";
    let head = if head.contains("budget: {") {
        head.replace("budget: {", &format!("budget: {{{WIDE}, "))
    } else {
        format!("{head}\nbudget: {{{WIDE}}}")
    };
    sample::policy(&format!("mode: Enforce\n{head}\nrules:\n{rules}"))
}

/// One rule for all of port 8080, with `fields`.
fn one_rule(head: &str, fields: &str) -> Policy {
    policy(
        head,
        &format!("- {{name: web, match: {{ports: [{{port: 8080}}]}}, {fields}}}\n"),
    )
}

/// One that was accepted at this port.
fn on(port: u16, cookie: u64) -> Connection {
    Connection {
        endpoint: endpoint(1, port),
        ..connection(cookie)
    }
}

/// So many old connections, with cookies from this one on.
fn listed(taken: u64, cookies: impl IntoIterator<Item = u64>) -> Snapshot {
    snapshot(taken, cookies.into_iter().map(connection).collect())
}

fn cookies(plan: &Plan) -> Vec<u64> {
    plan.moves().map(|chosen| chosen.cookie().0).collect()
}

fn skipped(plan: &Plan, cookie: u64) -> &SkipReason {
    let decision = plan
        .decisions()
        .find(|decision| decision.cookie == Cookie(cookie));
    match decision.expect("listed").verdict {
        Verdict::Skipped(reason) => reason,
        Verdict::Move(chosen) => panic!("moved: {chosen:?}"),
    }
}

#[test]
fn the_old_and_the_heavy_are_moved_the_furthest_beyond_first() {
    let policy = one_rule("", "limits: {maxAge: 1h, maxBytes: 1Gi}, jitter: 0%");
    let now = KernelTime(10 * HOUR);
    let with = |cookie, age, bytes| Connection {
        opened: KernelTime(now.0 - age),
        bytes_in: Bytes(bytes / 4),
        bytes_out: Bytes(bytes - bytes / 4),
        ..connection(cookie)
    };
    let all = vec![
        with(1, HOUR - 1, 1 << 20),
        with(2, HOUR, 0),
        with(3, HOUR + 1, 0),
        with(4, MINUTE, 3 << 30),
        with(5, 2 * HOUR, 2 << 30),
        with(6, 0, u64::MAX),
        with(7, 2 * HOUR, 1 << 29),
        with(8, MINUTE, 1 << 30),
        with(9, MINUTE, (1 << 30) - 1),
    ];
    let plan = decided(&policy, &snapshot(now.0, all));
    let moves = plan.moves().map(|chosen| {
        let reasons: Vec<_> = chosen.reasons().iter().map(|r| r.as_str()).collect();
        format!("{} {}", chosen.cookie().0, reasons.join(" "))
    });
    let expected = [
        "4 bytes",
        "5 age bytes",
        "7 age",
        "3 age",
        "2 age",
        "8 bytes",
    ];
    assert!(moves.eq(expected), "{:?}", cookies(&plan));
    assert_eq!(skipped(&plan, 1).as_str(), "withinLimits");
    assert!(matches!(skipped(&plan, 6), SkipReason::MinAge { .. }));
    assert!(matches!(
        skipped(&plan, 9),
        SkipReason::WithinLimits {
            nearest: Reason::Bytes { .. }
        }
    ));
    assert_eq!(plan.overdue(), 6);
    assert_eq!(plan.budget_left(), 54);
}

#[test]
fn each_guard_skips_with_its_word() {
    let rules = "\
- {name: disabled, mode: Disabled, match: {ports: [{port: 8081}]}, limits: {maxAge: 1h}}
- {name: fast, match: {ports: [{port: 8082}]}, limits: {maxRate: {bytesPerSecond: 1Mi, for: 30s}}}
- {name: lost, match: {ports: [{port: 6379}]}, limits: {maxAge: 1h}, onReconnect: LosesState}
- {name: all, match: {ports: [{port: 1, endPort: 65535}], peers: [{ipBlock: {cidr: 10.0.0.0/8}}]}, limits: {maxAge: 1h}}
";
    let policy = policy("guards: {allowSystemPorts: [53]}", rules);
    let with = |change: fn(&mut Connection)| {
        let mut one = on(8080, 1);
        change(&mut one);
        one
    };
    for (word, connection) in [
        ("moved", on(8080, 1)),
        ("moved", on(53, 1)),
        ("moved", on(6379, 1)),
        ("disabled", on(8081, 1)),
        ("systemPort", on(22, 1)),
        ("systemPort", on(10250, 1)),
        ("statefulPort", on(5432, 1)),
        ("statefulPort", on(1883, 1)),
        ("noRule", with(|c| c.remote = address("11.0.0.1:1"))),
        ("notEstablished", with(|c| c.state = TcpState::CloseWait)),
        ("notEstablished", with(|c| c.state = TcpState::Other(4))),
        ("mptcp", with(|c| c.mptcp = true)),
        ("withinLimits", with(|c| c.opened = KernelTime(10 * HOUR))),
        ("rateUnknown", on(8082, 1)),
        ("sameHost", with(|c| c.local = address("10.0.0.1:8080"))),
        (
            "sameHost",
            with(|c| c.local = address("[::ffff:10.0.0.1]:8080")),
        ),
        // On a plain host its own namespace is where everything is.
        ("moved", with(|c| c.endpoint.cgroup = Some(CgroupId(7)))),
    ] {
        assert_eq!(verdict(&policy, &connection), word, "{connection:?}");
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The verdict's word for one connection, ten hours after the start.
fn verdict(policy: &Policy, connection: &Connection) -> &'static str {
    let listed = snapshot(10 * HOUR, vec![connection.clone()]);
    let plan = decided(policy, &listed);
    match plan.decisions().next().unwrap().verdict {
        Verdict::Move(_) => "moved",
        Verdict::Skipped(reason) => reason.as_str(),
    }
}

#[test]
fn loopback_peers_are_moved_only_where_they_are_tracked() {
    for (local, remote) in [
        ("127.0.0.1:8080", "127.0.0.1:5"),
        ("127.0.0.2:8080", "127.9.9.9:5"),
        ("[::1]:8080", "[::1]:5"),
        ("[::ffff:127.0.0.1]:8080", "[::ffff:127.0.0.1]:5"),
    ] {
        let connection = Connection {
            local: address(local),
            remote: address(remote),
            ..connection(1)
        };
        let with = |head| verdict(&one_rule(head, "limits: {maxAge: 1h}"), &connection);
        assert_eq!(with("track: {loopback: false}"), "loopback", "{remote}");
        assert_eq!(with("track: {loopback: true}"), "moved", "{remote}");
    }
}

#[test]
fn the_host_network_is_skipped_by_policy_or_on_kubernetes() {
    let pod = connection(1);
    let mut host = connection(1);
    host.endpoint.cgroup = Some(CgroupId(7));
    for (guards, plain, kubernetes) in [
        ("", "moved", "hostNetwork"),
        ("allowHostNetwork: true", "moved", "moved"),
        ("allowHostNetwork: false", "hostNetwork", "hostNetwork"),
    ] {
        let policy = one_rule(&format!("guards: {{{guards}}}"), "limits: {maxAge: 1h}");
        assert_eq!(verdict(&policy, &host), plain, "{guards}");
        assert_eq!(verdict(&policy, &pod), "moved", "{guards}");
        let policy = policy.with_kubernetes_defaults();
        assert_eq!(verdict(&policy, &host), kubernetes, "{guards}");
        assert_eq!(verdict(&policy, &pod), "moved", "{guards}");
    }
}

#[test]
fn a_rate_is_too_high_when_it_was_held_and_one_burst_is_not() {
    let policy = one_rule(
        "interval: 5s\nguards: {minAge: 0s}",
        "limits: {maxRate: {bytesPerSecond: 1Ki, for: 30s}}, jitter: 0%",
    );
    let mut agent = Agent::new(policy);
    let (mut steady, mut bursts) = (0, 0);
    for tick in 0..20 {
        let with = |(cookie, bytes)| Connection {
            bytes_out: Bytes(bytes),
            ..connection(cookie)
        };
        let all = [(1, steady), (2, bursts), (3, 5119 * tick)].map(with);
        let plan = agent.observe(&snapshot(HOUR + tick * 5 * SECOND, all.into()));
        // Thirty seconds are six intervals.
        let expected = if tick < 6 { vec![] } else { vec![1] };
        assert_eq!(cookies(&plan), expected, "{tick}");
        if let Some(chosen) = plan.moves().next() {
            let [Reason::Rate { value, limit, .. }] = chosen.reasons() else {
                panic!("{:?}", chosen.reasons())
            };
            assert_eq!((value.0, limit.0), (2048, 1024));
            assert_eq!(plan.overdue(), 1);
        } else {
            assert_eq!(plan.skipped(), BTreeMap::from([("rateUnknown", 3)]));
        }
        steady += 5 * 2048;
        bursts += if tick % 4 == 0 { 1 << 30 } else { 0 };
    }
}

#[test]
fn an_unknown_rate_does_not_hide_the_other_limits() {
    let policy = one_rule(
        "",
        "limits: {maxAge: 1h, maxRate: {bytesPerSecond: 1, for: 30s}}",
    );
    assert_eq!(verdict(&policy, &connection(1)), "moved");
    let mut young = connection(1);
    young.opened = KernelTime(10 * HOUR - MINUTE);
    assert_eq!(verdict(&policy, &young), "withinLimits");
}

#[test]
fn an_explanation_has_all_that_is_weighed() {
    let rules = "\
- {name: admin, match: {ports: [{port: 9000}]}, limits: {maxAge: 1h}}
- {name: inner, match: {ports: [{port: 5432}], peers: [{ipBlock: {cidr: 10.9.0.0/16}}]}, limits: {maxAge: 1h}}
- {name: data, match: {ports: [{port: 5432}]}, limits: {maxAge: 1h, maxBytes: 1Gi, maxRate: {bytesPerSecond: 1Mi, for: 1m}}}
- {name: rest, match: {ports: [{port: 1, endPort: 65535}]}, limits: {maxAge: 1h}}
";
    let agent = Agent::new(policy("", rules));
    let data = Connection {
        mptcp: true,
        ..on(5432, 7)
    };
    let listed = snapshot(2 * HOUR, vec![connection(1), data]);
    let plan = agent.plan(&listed);
    let explained = agent.explain(&listed, &plan, 7).unwrap();
    let rules: Vec<_> = explained
        .rules
        .iter()
        .map(|(rule, miss)| (rule.name().as_str(), miss.as_ref().map(ToString::to_string)))
        .collect();
    let not = |why: &str| Some(why.to_owned());
    assert_eq!(
        rules,
        [
            ("admin", not("port 5432 is not among its ports")),
            ("inner", not("10.0.0.1 is not among its peers")),
            ("data", None),
        ]
    );
    let measures: Vec<_> = explained
        .measures
        .iter()
        .map(|m| (m.as_str(), m.overdue()))
        .collect();
    assert_eq!(measures, [("age", true), ("bytes", false)]);
    assert_eq!(
        explained.unknown.unwrap().to_string(),
        "its rate over 1m is not known"
    );
    let guards: Vec<_> = explained.guards.iter().map(SkipReason::as_str).collect();
    assert_eq!(guards, ["mptcp", "statefulPort"]);
    assert!(explained.needs().unwrap().contains("MPTCP is never moved"));
    let moved = agent.explain(&listed, &plan, 1).unwrap();
    assert_eq!((moved.needs(), moved.decision.place), (None, Some(1)));
    assert_eq!(agent.explain(&listed, &plan, 2), None);
}

#[test]
fn those_older_than_tracking_are_spread_over_the_whole_of_max_age() {
    let policy = one_rule(
        "budget: {perNode: 1000000, maxInFlight: 10000}\nguards: {minAge: 0s}",
        "limits: {maxAge: 1h}, jitter: 0%",
    );
    let chosen_after = |minutes: u64| {
        let mut all = listed(minutes * MINUTE, 0..6000);
        all.connections.iter_mut().for_each(|c| c.adopted = true);
        decided(&policy, &all).moves().count() as u64
    };
    for minutes in [1, 10, 30, 59] {
        let chosen = chosen_after(minutes);
        let is_near = chosen.abs_diff(minutes * 100) < 150;
        assert!(is_near, "{chosen} after {minutes} minutes");
    }
    assert_eq!(chosen_after(60), 6000);
}

#[test]
fn a_dry_run_reports_each_once_at_the_pace_of_the_budget() {
    let policy = one_rule(
        "budget: {perNode: 2, window: 1m}",
        "limits: {maxAge: 1h}, mode: DryRun",
    );
    let mut agent = Agent::new(policy);
    for (now, reported, skipped) in [
        (2 * HOUR, 2, &[("budget", 1)][..]),
        (2 * HOUR + SECOND, 0, &[("budget", 1), ("dryRun", 2)]),
        (2 * HOUR + MINUTE, 1, &[("dryRun", 2)]),
        (3 * HOUR, 0, &[("dryRun", 3)]),
    ] {
        let listed = listed(now, 1..=3);
        let plan = agent.plan(&listed);
        agent.report(&plan, listed.taken);
        agent.prune(&listed);
        assert!(plan.moves().all(|chosen| chosen.mode() == Mode::DryRun));
        assert_eq!(plan.moves().count(), reported, "{now}");
        assert_eq!(plan.skipped(), skipped.iter().copied().collect(), "{now}");
        assert_eq!(plan.overdue(), 3, "{now}");
    }
}

/// Otherwise an edited policy seems to match none of the connections that the previous one reported.
#[test]
fn under_another_policy_a_dry_run_reports_again() {
    let named = |name| {
        let matches = "match: {ports: [{port: 8080}]}, limits: {maxAge: 1h}";
        policy(
            "",
            &format!("- {{name: {name}, mode: DryRun, {matches}}}\n"),
        )
    };
    let reported = |agent: &mut Agent, now| -> Vec<String> {
        let listed = listed(now, 1..=3);
        let plan = agent.plan(&listed);
        agent.report(&plan, listed.taken);
        plan.moves()
            .map(|chosen| chosen.rule().to_string())
            .collect()
    };
    let mut agent = Agent::new(named("one"));
    assert_eq!(reported(&mut agent, 2 * HOUR), ["one"; 3]);
    agent.policy = named("two");
    assert_eq!(reported(&mut agent, 2 * HOUR + SECOND), [""; 0]);
    agent.ledger.forget_reported();
    assert_eq!(reported(&mut agent, 2 * HOUR + SECOND), ["two"; 3]);
}

#[test]
fn dry_runs_do_not_hold_up_what_is_enforced() {
    let rules = "\
- {name: dry, mode: DryRun, match: {ports: [{port: 8081}]}, limits: {maxAge: 1h}}
- {name: real, match: {ports: [{port: 8080}]}, limits: {maxAge: 1h}}
";
    let policy = policy("budget: {perNode: 1}", rules);
    let mut younger = connection(3);
    younger.opened = KernelTime(7 * HOUR);
    let listed = snapshot(9 * HOUR, vec![on(8081, 1), on(8081, 2), younger]);
    let plan = decided(&policy, &listed);
    let modes: Vec<_> = plan.moves().map(Move::mode).collect();
    assert_eq!(modes, [Mode::DryRun, Mode::Enforce]);
}

#[test]
fn a_move_is_in_flight_until_it_ends_and_held_after() {
    let policy = one_rule(
        "budget: {perNode: 5, window: 24h, maxInFlight: 2}",
        "limits: {maxAge: 1h}",
    );
    let mut agent = Agent::new(policy);
    let three = listed(2 * HOUR, 1..=3);
    let plan = agent.plan(&three);
    let first = cookies(&plan);
    assert_eq!(plan.skipped(), [("maxInFlight", 1)].into());
    agent.begin(&plan, three.taken);
    assert_eq!(agent.ledger.in_flight(), 2);
    let plan = agent.plan(&three);
    assert_eq!(plan.skipped(), [("inFlight", 2), ("maxInFlight", 1)].into());
    assert_eq!((plan.budget_left(), plan.overdue()), (3, 3));

    // One gives up, which gives its budget back; one is reset, which does not.
    let ended = KernelTime(2 * HOUR + MINUTE);
    agent.ledger.ended(Cookie(first[0]), Outcome::GaveUp, ended);
    agent.ledger.ended(Cookie(first[1]), Outcome::Reset, ended);
    let before_the_end = listed(ended.0 - 1, 1..=3);
    let window = agent.policy.budget().window();
    agent.ledger.prune(&before_the_end, window, ended);
    let plan = decide(&agent.policy, &before_the_end, &agent.ledger, ended);
    assert_eq!(plan.skipped(), [("gaveUp", 1), ("moved", 1)].into());
    assert_eq!((cookies(&plan).len(), plan.budget_left()), (1, 3));

    // The one that lives is held, then may be chosen again.
    let over = ended.after(FIRST_HOLD).0;
    let one = |taken| listed(taken, [first[0]]);
    agent.prune(&one(over - 1));
    let plan = agent.plan(&one(over - 1));
    let why = skipped(&plan, first[0]);
    assert!(matches!(why, SkipReason::Held { left, .. } if left.as_nanos() == 1));
    assert_eq!(cookies(&agent.plan(&one(over))), [first[0]]);
}

/// They are the furthest beyond their limit, and would be first again each time.
#[test]
fn those_that_are_never_quiet_do_not_hold_up_the_others() {
    let rules = "\
- {name: busy, match: {ports: [{port: 8081}]}, limits: {maxAge: 1h}}
- {name: other, match: {ports: [{port: 8080}]}, limits: {maxAge: 1h}}
";
    let agent_with = |slots: u64| {
        let budget = format!("budget: {{perNode: 100, maxInFlight: {slots}}}");
        Agent::new(policy(&budget, rules))
    };
    let busy = |cookie| on(8081, cookie);
    let later = |cookie| Connection {
        opened: KernelTime(HOUR),
        ..connection(cookie)
    };
    // Of one slot each has its turn, also if nothing came of the other's.
    let mut agent = agent_with(1);
    for (now, rule) in [(9 * HOUR, "busy"), (9 * HOUR + SECOND, "other")] {
        let listed = snapshot(now, vec![busy(1), busy(2), later(3)]);
        let plan = agent.plan(&listed);
        let chosen = plan.moves().next().unwrap();
        assert_eq!(chosen.rule().as_str(), rule);
        agent.moved(chosen, Outcome::GaveUp, listed.taken);
    }
    let mut agent = agent_with(4);
    let (mut tried, mut moved) = (BTreeMap::<u64, u64>::new(), 0);
    let mut others: Vec<u64> = (100..140).collect();
    for minute in 0..24 * 60 {
        let all = (0..40).map(busy).chain(others.iter().copied().map(later));
        let listed = snapshot(9 * HOUR + minute * MINUTE, all.collect());
        let plan = agent.plan(&listed);
        for chosen in plan.moves() {
            let cookie = chosen.cookie();
            let outcome = if cookie.0 < 40 {
                *tried.entry(cookie.0).or_default() += 1;
                Outcome::GaveUp
            } else {
                moved += 1;
                others.retain(|other| *other != cookie.0);
                Outcome::Reset
            };
            agent.moved(chosen, outcome, listed.taken);
        }
        agent.prune(&listed);
        assert!(minute < 20 || moved == 40, "{moved} after {minute} minutes");
    }
    // After 10 minutes, 20, 40 ... of a day.
    let most = tried.values().max().copied().unwrap();
    assert_eq!((tried.len(), most), (40, 8));
}

/// A connection never changes its protocol; that nothing was received to detect it may change.
#[test]
fn other_protocols_than_http_1_are_skipped_until_the_rule_vouches_for_them() {
    let policy = |state| one_rule("", &format!("limits: {{maxAge: 1h}}, onReconnect: {state}"));
    let over = KernelTime(2 * HOUR).after(FIRST_HOLD).0;
    for (refusal, lasts) in [
        (Refusal::Http2, true),
        (Refusal::Tls, true),
        (Refusal::Upgraded, true),
        (Refusal::ProtocolUnknown, false),
        (Refusal::CannotSniff, false),
    ] {
        let mut agent = Agent::new(policy("Detect"));
        let one = listed(2 * HOUR, [1]);
        let plan = agent.plan(&one);
        let chosen = plan.moves().next().unwrap();
        assert!(chosen.is_sniffed());
        agent.moved(chosen, Outcome::Refused(refusal), one.taken);
        assert_eq!(agent.plan(&one).skipped(), [(refusal.as_str(), 1)].into());
        let one = listed(over, [1]);
        agent.prune(&one);
        let again = agent.plan(&one);
        assert_eq!(again.moves().count() == 0, lasts, "{refusal}");
        for state in ["Safe", "LosesState"] {
            agent.policy = policy(state);
            let is_sniffed = agent.plan(&one).moves().next().unwrap().is_sniffed();
            assert!(!is_sniffed, "{refusal} {state}");
        }
        agent.prune(&listed(over, []));
        assert_eq!(agent.ledger.entries().ended, []);
    }
}

#[test]
fn a_silent_connection_holds_up_no_other() {
    let (second, nanosecond) = (Duration::from_secs(1), Duration::from_nanos(1));
    let vouched = ", onReconnect: Safe";
    for (case, state, since_received, send_queue, since_sent, word) in [
        ("silent", "", SILENT, 0, Duration::ZERO, "silent"),
        (
            "not yet",
            "",
            SILENT - nanosecond,
            0,
            Duration::ZERO,
            "moved",
        ),
        ("vouched for", vouched, SILENT, 0, Duration::ZERO, "moved"),
        // While its server has the word it is not silent.
        ("a download", "", SILENT, 1, Duration::ZERO, "moved"),
        ("a long poll", "", SILENT, 0, SILENT + second, "moved"),
    ] {
        let policy = one_rule("", &format!("limits: {{maxAge: 1h}}{state}"));
        let one = Connection {
            since_received,
            send_queue,
            since_sent,
            ..connection(1)
        };
        assert_eq!(verdict(&policy, &one), word, "{case}");
        let plan = decided(&policy, &snapshot(2 * HOUR, vec![one]));
        assert_eq!(plan.overdue(), plan.moves().count() as u64, "{case}");
    }
}

#[test]
fn what_was_reported_in_dry_run_stays_reported_when_it_falls_silent() {
    let policy = one_rule("", "mode: DryRun, limits: {maxAge: 1h}");
    let mut agent = Agent::new(policy);
    let mut listed = listed(2 * HOUR, [1]);
    let plan = agent.plan(&listed);
    assert_eq!(plan.moves().count(), 1);
    agent.report(&plan, listed.taken);
    listed.connections[0].since_received = SILENT;
    assert_eq!(agent.plan(&listed).skipped(), [("dryRun", 1)].into());
}

#[test]
fn outcomes_without_harm_give_the_budget_back() {
    let policy = one_rule("budget: {perNode: 1, window: 24h}", "limits: {maxAge: 1h}");
    for (outcome, left) in [
        (Outcome::GoneBefore, 1),
        (Outcome::GaveUp, 1),
        (Outcome::Refused(Refusal::Sigpipe), 1),
        (Outcome::LeftByItself, 0),
        (Outcome::Closed, 0),
        (Outcome::Reset, 0),
        (Outcome::Failed("EPERM".into()), 0),
    ] {
        let mut agent = Agent::new(policy.clone());
        let one = listed(2 * HOUR, [1]);
        let plan = agent.plan(&one);
        agent.begin(&plan, one.taken);
        agent.ledger.ended(Cookie(1), outcome.clone(), one.taken);
        let left_now = agent.plan(&listed(2 * HOUR, [])).budget_left();
        assert_eq!(left_now, left, "{outcome:?}");
    }
}

#[test]
fn the_ledger_forgets_what_is_gone() {
    let policy = one_rule(
        "budget: {perNode: 100, maxInFlight: 100}",
        "limits: {maxAge: 1h}",
    );
    let mut agent = Agent::new(policy.clone());
    let some = listed(2 * HOUR, 0..50);
    let plan = agent.plan(&some);
    agent.reset(&plan, some.taken);
    agent.policy = policy.clone().with_mode_at_most(Mode::DryRun);
    let others = listed(2 * HOUR, 50..100);
    let plan = agent.plan(&others);
    agent.report(&plan, others.taken);
    assert_ne!(agent.ledger.entries(), Entries::default());
    agent.policy = policy;
    let mut left_at = |now| {
        let nothing = listed(now, []);
        agent.observe(&nothing);
        agent.prune(&nothing);
        agent.ledger.entries()
    };
    // What is left of it are the clients that are looked for.
    let minute = 2 * HOUR + MINUTE;
    let left = left_at(minute);
    assert_eq!(left.late.len(), 50);
    let only_late = Entries {
        late: left.late.clone(),
        ..Entries::default()
    };
    assert_eq!(left, only_late);
    assert_eq!(
        left_at(KernelTime(minute).after(LOOKED_FOR).0),
        Entries::default()
    );
    assert_eq!(agent.ledger.return_counts().unseen, 50);
}

/// One edit turns every node of a cluster from dry run to moving.
#[test]
fn budgets_grow_once_a_rule_is_enforced() {
    let policy = one_rule(
        "budget: {perNode: 64, window: 1m, maxInFlight: 1000}",
        "limits: {maxAge: 1h}",
    );
    let dry = policy.clone().with_mode_at_most(Mode::DryRun);
    let mut agent = Agent::new(policy.clone());
    let mut live: Vec<u64> = (0..500).collect();
    let mut minute = |policy: &Policy, minute: u64| {
        agent.policy = policy.clone();
        let mut moves = 0;
        for second in [0, 20, 40] {
            let listed = listed(2 * HOUR + minute * MINUTE + second * SECOND, live.clone());
            agent.observe(&listed);
            agent.ledger.enforce(policy, listed.taken);
            let plan = agent.plan(&listed);
            for chosen in plan.moves().filter(|chosen| chosen.mode() == Mode::Enforce) {
                agent.moved(chosen, Outcome::Reset, listed.taken);
                live.retain(|cookie| *cookie != chosen.cookie().0);
                moves += 1;
            }
            agent.prune(&listed);
            // It is kept across a restart.
            agent.ledger = Ledger::from_entries(agent.ledger.entries());
            if policy.mode() == Mode::Enforce && minute == 1 {
                let text = plan.forecasts()[0].to_string();
                assert!(
                    text.contains("1/64 of the budgets, all of them in"),
                    "{text}"
                );
                let Some(Verdict::Skipped(why)) = plan.decisions().last().map(|d| d.verdict) else {
                    panic!()
                };
                assert!(why.to_string().contains("it grows to 64 (ramp)"), "{why}");
                assert_eq!(plan.budget_left(), 0);
            }
        }
        moves
    };
    assert_eq!(minute(&dry, 0), 0);
    let grown: Vec<u64> = (1..9).map(|n| minute(&policy, n)).collect();
    assert_eq!(grown, [1, 2, 4, 8, 16, 32, 64, 64]);
    // A rule that is no longer enforced starts its ramp again.
    assert_eq!(minute(&dry, 9), 0);
    assert_eq!(minute(&policy, 10), 1);
}

/// As by an agent that is started with `--no-ramp` after one without it.
#[test]
fn a_kept_ramp_can_be_ended() {
    let mut agent = Agent::new(one_rule("", "limits: {maxAge: 1h}"));
    let listed = listed(2 * HOUR, 0..500);
    let whole = agent.observe(&listed).moves().count();
    agent.ledger.enforce(&agent.policy, listed.taken);
    agent.ledger = Ledger::from_entries(agent.ledger.entries());
    assert!(agent.plan(&listed).moves().count() < whole);
    agent.ledger.end_ramps();
    assert_eq!(agent.plan(&listed).moves().count(), whole);
}

#[test]
fn a_cookie_listed_twice_is_left_alone() {
    let policy = one_rule("", "limits: {maxAge: 1h}");
    let plan = decided(&policy, &listed(2 * HOUR, [1, 2, 1]));
    assert_eq!(cookies(&plan), [2]);
    assert_eq!(plan.skipped(), BTreeMap::from([("duplicate", 2)]));
}

#[test]
fn a_percentage_is_of_the_tracked_connections() {
    let policy = one_rule("budget: {perNode: 10%}", "limits: {maxAge: 1h}");
    for (tracked, moves) in [(1, 1), (10, 1), (11, 2), (100, 10)] {
        let plan = decided(&policy, &listed(2 * HOUR, 0..tracked));
        assert_eq!(cookies(&plan).len(), moves, "{tracked}");
    }
}

// From here on: for all policies, snapshots and pasts.

fn any_policy() -> impl Strategy<Value = Policy> {
    let head = (
        select(vec!["Disabled", "DryRun", "Enforce", "Enforce", "Enforce"]),
        select(vec!["1", "3", "1000000", "1%", "50%", "100%"]),
        1..10u32,
        select(vec!["0s", "1ms", "30s"]),
        select(vec!["1", "10%", "100%", "1000000"]),
        select(vec!["1", "25%", "100%", "1000000"]),
    );
    let rule = (
        select(vec![
            "",
            "mode: DryRun, ",
            "mode: Disabled, ",
            "mode: Enforce, ",
        ]),
        select(vec![
            "limits: {maxAge: 30s}",
            "limits: {maxAge: 1h}",
            "limits: {maxAge: 8760h, maxBytes: 1}",
            "limits: {maxBytes: 10Gi}",
            "limits: {maxAge: 10m, maxBytes: 15Ei}",
            "limits: {maxRate: {bytesPerSecond: 1, for: 10s}}",
            "limits: {maxAge: 1h, maxRate: {bytesPerSecond: 1Gi, for: 1m}}",
            "limits: {maxAge: 1h}, balance: {}",
            "balance: {tolerance: 1%}",
            "balance: {by: ByteRate}",
            "balance: {by: MessageRate}",
        ]),
        0..=100u8,
        select(vec!["Detect", "Safe", "LosesState"]),
        select(vec!["8080", "22", "5432", "1, endPort: 65535"]),
    );
    (head, vec(rule, 0..4)).prop_map(|(head, rules)| {
        let (mode, per_node, in_flight, min_age, per_service, per_endpoint) = head;
        let rules: String = rules
            .iter()
            .enumerate()
            .map(|(i, (mode, limits, jitter, state, port))| {
                format!(
                    "- {{name: r{i}, {mode}match: {{ports: [{{port: {port}}}]}}, \
                     {limits}, jitter: {jitter}%, onReconnect: {state}}}\n"
                )
            })
            .collect();
        let rules = if rules.is_empty() {
            "- {name: z, match: {ports: [{port: 9}]}, limits: {maxAge: 1h}}\n".into()
        } else {
            rules
        };
        sample::policy(&format!(
            "mode: {mode}\nbudget: {{perNode: {per_node}, perService: {per_service}, \
             perEndpoint: {per_endpoint}, maxInFlight: {in_flight}}}\n\
             guards: {{minAge: {min_age}}}\nrules:\n{rules}"
        ))
    })
}

/// Any number, the ends of the range among them.
fn any_u64() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..(3 * HOUR),
        select(vec![0, 1, u64::MAX, u64::MAX - 1, i64::MAX as u64])
    ]
}

fn any_connection() -> impl Strategy<Value = Connection> {
    let cookie = prop_oneof![0..40u64, any_u64()];
    let port = select(vec![8080u16, 8080, 8080, 22, 5432, 0, 65535]);
    let state = select(vec![1u8, 1, 1, 1, 8, 4, 255]);
    let likely = || prop::bool::weighted(0.9);
    (
        cookie,
        port,
        any_u64(),
        any_u64(),
        any_u64(),
        state,
        likely(),
        any::<bool>(),
        select(vec![1, 1, 1, 1, 1, 2, 3]),
    )
        .prop_map(
            |(cookie, port, opened, bytes_in, bytes_out, state, plain, adopted, netns)| {
                Connection {
                    endpoint: endpoint(netns, port),
                    opened: KernelTime(opened),
                    bytes_in: Bytes(bytes_in),
                    bytes_out: Bytes(bytes_out),
                    state: TcpState::from_kernel(state),
                    mptcp: !plain,
                    adopted,
                    ..connection(cookie)
                }
            },
        )
}

fn any_connections() -> impl Strategy<Value = Vec<Connection>> {
    vec(any_connection(), 0..60)
}

/// A ledger with a past: what was chosen from other snapshots, ended in any way.
fn any_ledger() -> impl Strategy<Value = Ledger> {
    let outcome = select(vec![
        None,
        Some(Outcome::GaveUp),
        Some(Outcome::Reset),
        Some(Outcome::GoneBefore),
        Some(Outcome::Failed("EPERM".into())),
    ]);
    (any_policy(), any_connections(), vec(outcome, 60), any_u64()).prop_map(
        |(policy, connections, outcomes, now)| {
            let now = KernelTime(now);
            let mut ledger = Ledger::default();
            for (ago, part) in [(60 * SECOND, 4), (30 * SECOND, 2), (0, 1)] {
                let then = |c: &Connection| Connection {
                    bytes_in: Bytes(c.bytes_in.0 / part),
                    bytes_out: Bytes(c.bytes_out.0 / part),
                    ..c.clone()
                };
                let listed = connections.iter().map(then).collect();
                ledger.observe(&policy, &snapshot(now.0.saturating_sub(ago), listed));
            }
            let plan = decide(&policy, &snapshot(now.0, connections), &ledger, now);
            for (chosen, outcome) in plan.moves().zip(outcomes) {
                if chosen.mode() == Mode::DryRun {
                    ledger.reported(chosen, now);
                    continue;
                }
                ledger.started(chosen, now);
                if let Some(outcome) = outcome {
                    ledger.ended(chosen.cookie(), outcome, now);
                }
            }
            ledger
        },
    )
}

/// An agent with a past, and what it lists now.
fn any_pass() -> impl Strategy<Value = (Agent, Snapshot)> {
    let parts = (any_policy(), any_ledger(), any_u64(), any_connections());
    parts.prop_map(|(policy, ledger, now, connections)| {
        (Agent { policy, ledger }, snapshot(now, connections))
    })
}

/// The only connection with this cookie.
fn listed_as(listed: &Snapshot, cookie: Cookie) -> &Connection {
    let mut found = listed.connections.iter().filter(|c| c.cookie == cookie);
    let one = found.next().expect("it is listed");
    assert!(found.next().is_none(), "{cookie} is listed twice");
    one
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_connection_gets_exactly_one_decision((agent, listed) in any_pass()) {
        let plan = agent.plan(&listed);
        let mut decided: Vec<_> = plan.decisions().map(|decision| decision.cookie).collect();
        let mut given: Vec<_> = listed.connections.iter().map(|connection| connection.cookie).collect();
        decided.sort_unstable();
        given.sort_unstable();
        let all = given.len() as u64;
        prop_assert_eq!(decided, given);
        prop_assert_eq!(words(&plan).values().sum::<u64>(), all);
        prop_assert!(plan.overdue() <= all);
        for decision in plan.decisions() {
            if let Verdict::Skipped(reason) = decision.verdict {
                prop_assert!(!reason.as_str().is_empty() && !reason.to_string().is_empty());
            }
        }
    }

    #[test]
    fn a_move_is_a_connection_that_may_be_moved((agent, listed) in any_pass()) {
        let (policy, plan) = (&agent.policy, agent.plan(&listed));
        for chosen in plan.moves() {
            let connection = listed_as(&listed, chosen.cookie());
            prop_assert_eq!(chosen.endpoint(), connection.endpoint);
            prop_assert_eq!((chosen.local(), chosen.remote()), (connection.local, connection.remote));
            prop_assert!(!connection.mptcp);
            prop_assert_eq!(connection.state, TcpState::Established);
            prop_assert!(listed.taken.since(connection.opened) >= policy.guards().min_age());
            let rule = policy.rule_for(connection, &Who::NoPod).unwrap().unwrap();
            prop_assert_eq!(chosen.rule(), rule.name());
            prop_assert_eq!(chosen.steps(), rule.steps());
            prop_assert_eq!(chosen.mode(), policy.mode_of(rule));
            prop_assert_ne!(chosen.mode(), Mode::Disabled);
            prop_assert!(!chosen.reasons().is_empty());
            prop_assert!(chosen.reasons().iter().all(|reason| reason.exceeded()));
        }
    }

    /// Chosen never later than its limit: whoever is beyond it is moved or waits for a named
    /// cause other than its limits.
    #[test]
    fn nobody_beyond_the_limit_is_within_limits((agent, listed) in any_pass()) {
        let (now, plan) = (listed.taken, agent.plan(&listed));
        for decision in plan.decisions() {
            let Verdict::Skipped(SkipReason::WithinLimits { nearest }) = decision.verdict else { continue };
            prop_assert!(!nearest.overdue() && !nearest.exceeded());
            let connection = listed_as(&listed, decision.cookie);
            let limits = agent.policy.rule_for(connection, &Who::NoPod).unwrap().unwrap().limits();
            prop_assert!(limits.max_age().is_none_or(|max| now.since(connection.opened) < max));
            prop_assert!(limits.max_bytes().is_none_or(|max| connection.bytes().0 < max.get()));
        }
    }

    #[test]
    fn budgets_hold_for_each_mode((agent, listed) in any_pass()) {
        let (budget, plan) = (agent.policy.budget(), agent.plan(&listed));
        let per_node = budget.per_node().of(listed.connections.len() as u64);
        let in_flight = u64::from(budget.max_in_flight().get());
        for mode in [Mode::DryRun, Mode::Enforce] {
            let moves = plan.moves().filter(|chosen| chosen.mode() == mode).count() as u64;
            prop_assert!(moves <= per_node);
            let flying = if mode == Mode::Enforce { agent.ledger.in_flight() as u64 } else { 0 };
            prop_assert!(moves <= in_flight.saturating_sub(flying));
        }
    }

    /// Only what is in flight is recalled, and nothing for which the same plan would be made again.
    #[test]
    fn a_move_is_recalled_only_if_it_would_not_be_chosen_now((mut agent, listed) in any_pass()) {
        let plan = agent.plan(&listed);
        let flying = agent.ledger.moves_in_flight();
        let before: BTreeMap<Cookie, RuleName> =
            flying.map(|(cookie, _, charge)| (cookie, charge.rule.clone())).collect();
        let recalled: Vec<Cookie> = plan.recalls().iter().map(|recall| recall.cookie).collect();
        prop_assert!(recalled.is_sorted_by(|a, b| a < b));
        prop_assert!(recalled.iter().all(|cookie| before.contains_key(cookie)));
        for recall in plan.recalls() {
            prop_assert!(!recall.why.to_string().is_empty());
            agent.ledger.ended(recall.cookie, Outcome::Recalled(recall.why.to_string()), listed.taken);
        }
        for chosen in plan.moves().filter(|chosen| chosen.mode() == Mode::Enforce) {
            agent.ledger.started(chosen, listed.taken);
        }
        let again = agent.plan(&listed);
        // What was given back of budgets may be for others, who wait for a slot then.
        let mut recalls = again.recalls().iter();
        prop_assert!(recalls.all(|recall| recall.why.as_str() == "othersWait"));
        // What was recalled is not chosen again at once, unless another rule asks for it.
        for chosen in again.moves().filter(|chosen| chosen.mode() == Mode::Enforce) {
            let again = recalled.contains(&chosen.cookie());
            prop_assert!(!again || before[&chosen.cookie()] != *chosen.rule());
        }
    }

    /// None of them ever becomes quiet.
    #[test]
    fn no_queue_has_more_than_half_of_the_slots_while_another_waits(
        slots in 1..12u64,
        rounds in vec(vec((0..3usize, 0..12u64), 0..3), 1..6),
    ) {
        let rules: String = (0..3).map(|i| format!(
            "- {{name: r{i}, match: {{ports: [{{port: 808{i}}}]}}, limits: {{maxAge: 1h}}}}\n"
        )).collect();
        let budget = format!("budget: {{perNode: 1000000, maxInFlight: {slots}}}");
        let mut agent = Agent::new(policy(&budget, &rules));
        let (half, mut all) = (slots.div_ceil(2), Vec::new());
        let held = |ledger: &Ledger| {
            let mut held = BTreeMap::<String, u64>::new();
            for (_, _, by) in ledger.moves_in_flight() {
                *held.entry(by.rule.to_string()).or_default() += 1;
            }
            held
        };
        let waits = |plan: &Plan, held: &BTreeMap<String, u64>| -> u64 {
            let mut waits = BTreeMap::<&str, u64>::new();
            let is_waiting = |d: &Decision<'_>| {
                matches!(d.verdict, Verdict::Skipped(SkipReason::MaxInFlight { .. }))
            };
            for decision in plan.decisions().filter(is_waiting) {
                *waits.entry(decision.rule.unwrap().as_str()).or_default() += 1;
            }
            let held = |rule: &str| held.get(rule).copied().unwrap_or(0);
            waits.iter().map(|(rule, n)| half.saturating_sub(held(rule)).min(*n)).sum()
        };
        for (round, new) in (0..).zip(rounds) {
            for (rule, count) in new {
                let from = all.len() as u64;
                all.extend((from..from + count).map(|cookie| on(8080 + rule as u16, cookie)));
            }
            let listed = snapshot(9 * HOUR + round * MINUTE, all.clone());
            let pass = |agent: &mut Agent| {
                let plan = agent.plan(&listed);
                for recall in plan.recalls() {
                    prop_assert_eq!(recall.why.as_str(), "othersWait");
                    agent.ledger.ended(recall.cookie, Outcome::Recalled(recall.why.to_string()), listed.taken);
                }
                agent.begin(&plan, listed.taken);
                prop_assert!(agent.ledger.in_flight() as u64 <= slots);
                Ok(plan)
            };
            let plan = pass(&mut agent)?;
            let now = held(&agent.ledger);
            let is_beyond = |held: &BTreeMap<String, u64>| held.values().any(|n| *n > half);
            // There is room for all that wait, or as much as may be had.
            let left = slots - agent.ledger.in_flight() as u64;
            prop_assert!(!is_beyond(&now) || waits(&plan, &now) <= left);
            let plan = pass(&mut agent)?;
            let now = held(&agent.ledger);
            prop_assert!(!is_beyond(&now) || waits(&plan, &now) == 0, "{:?}", now);
            prop_assert_eq!(plan.recalls(), []);
            // No slot is left free while a connection waits.
            prop_assert_eq!(agent.ledger.in_flight(), all.len().min(slots as usize));
        }
    }

    #[test]
    fn the_order_of_the_snapshot_does_not_matter(
        policy in any_policy(), ledger in any_ledger(), now in any_u64(),
        (listed, shuffled) in any_connections().prop_flat_map(|listed| {
            (Just(listed.clone()), Just(listed).prop_shuffle())
        }),
    ) {
        let plan = decide(&policy, &snapshot(now, listed), &ledger, KernelTime(now));
        prop_assert_eq!(plan, decide(&policy, &snapshot(now, shuffled), &ledger, KernelTime(now)));
    }

    /// It is what the plan says, with all that the plan does not say.
    #[test]
    fn an_explanation_agrees_with_the_plan((agent, listed) in any_pass()) {
        let plan = agent.plan(&listed);
        for decision in plan.decisions().step_by(7) {
            let explained = agent.explain(&listed, &plan, decision.cookie.0).unwrap();
            prop_assert_eq!(explained.decision, decision);
            prop_assert_eq!(explained.needs().is_none(), matches!(decision.verdict, Verdict::Move(_)));
            let matched = explained.rules.last().filter(|(_, miss)| miss.is_none());
            if !matches!(decision.verdict, Verdict::Skipped(SkipReason::Duplicate)) {
                prop_assert_eq!(matched.map(|(rule, _)| rule.name()), decision.rule);
            }
            if let Verdict::Move(chosen) = decision.verdict {
                prop_assert!(explained.guards.is_empty());
                prop_assert!(chosen.reasons().iter().all(|r| explained.measures.contains(r)));
            }
        }
    }

    #[test]
    fn no_mode_is_exceeded((mut agent, listed) in any_pass()) {
        for most in [Mode::DryRun, Mode::Disabled] {
            agent.policy = agent.policy.with_mode_at_most(most);
            let plan = agent.plan(&listed);
            prop_assert!(plan.moves().all(|chosen| chosen.mode() <= most && most != Mode::Disabled));
        }
    }

    /// A connection's own limit depends on nothing but its cookie and its rule.
    #[test]
    fn jitter_is_stable(cookie: u64, jitter in 0..=100u8, others in any_connections(), age in 0..(2 * HOUR)) {
        let fields = format!("limits: {{maxAge: 1h}}, jitter: {jitter}%");
        let policy = one_rule("budget: {perNode: 1000000, maxInFlight: 10000}", &fields);
        let limit = |age: u64, mut listed: Vec<Connection>| {
            listed.retain(|c| c.cookie != Cookie(cookie));
            listed.push(connection(cookie));
            let plan = decided(&policy, &snapshot(age, listed));
            let decision = plan.decisions().find(|d| d.cookie == Cookie(cookie)).unwrap();
            match decision.verdict {
                Verdict::Move(chosen) => Some(chosen.reasons()[0]),
                Verdict::Skipped(SkipReason::WithinLimits { nearest }) => Some(*nearest),
                Verdict::Skipped(_) => None,
            }
            .map(|reason| match reason {
                Reason::Age { limit, .. } => limit,
                other => panic!("{other:?}: no such limit"),
            })
        };
        let alone = limit(2 * HOUR, vec![]).unwrap();
        prop_assert!(alone <= Duration::from_secs(3600));
        prop_assert!(alone >= Duration::from_secs(3600) * u32::from(100 - jitter) / 100);
        prop_assert!(limit(age, others).is_none_or(|limit| limit == alone));
    }

    /// An agent that lists at every interval, and whose moves end at once, starts the last of the
    /// chosen exactly when the forecast says.
    #[test]
    fn the_forecast_comes_true(
        chosen in 1..120u64, per_node in 1..30u64, in_flight in 1..10u64, interval in 1..90u64,
    ) {
        let head = format!(
            "interval: {interval}s\nbudget: {{perNode: {per_node}, maxInFlight: {in_flight}, window: 1m}}"
        );
        let policy = one_rule(&head, "limits: {maxBytes: 1}");
        let start = 2 * HOUR;
        let heavy = |cookie| Connection { bytes_in: Bytes(1), ..connection(cookie) };
        let mut live: Vec<u64> = (0..chosen).collect();
        let listed = |now, live: &[u64]| snapshot(now, live.iter().copied().map(heavy).collect());
        let mut agent = Agent::new(policy);
        let plan = agent.plan(&listed(start, &live));
        let [forecast] = plan.forecasts() else { panic!("{:?}", plan.forecasts()) };
        let (first, lasts) = (*forecast, forecast.lasts);
        prop_assert_eq!((first.chosen, first.now), (chosen, plan.moves().count() as u64));
        let mut last = 0;
        let mut now = start;
        while !live.is_empty() {
            let listed = listed(now, &live);
            let plan = agent.plan(&listed);
            let moved = cookies(&plan);
            // The forecast of the rest is as it was at the beginning.
            prop_assert_eq!(plan.forecasts()[0].per_window, first.per_window);
            if !moved.is_empty() {
                last = now;
            }
            agent.reset(&plan, listed.taken);
            live.retain(|cookie| !moved.contains(cookie));
            agent.prune(&listed);
            now += interval * SECOND;
        }
        prop_assert_eq!(Duration::from_nanos(last - start), lasts);
    }

    /// The chosen have places, all of them, in the order of their turns.
    #[test]
    fn places_are_in_a_row((agent, listed) in any_pass()) {
        let plan = agent.plan(&listed);
        let mut places: Vec<u64> = plan.decisions().filter_map(|d| d.place).collect();
        let moves = plan.decisions().filter(|d| matches!(d.verdict, Verdict::Move(_)));
        prop_assert!(moves.map(|d| d.place).is_sorted());
        places.sort_unstable();
        prop_assert!(places.iter().copied().eq(1..=places.len() as u64));
        let chosen: u64 = plan.forecasts().iter().map(|forecast| forecast.chosen).sum();
        prop_assert_eq!(chosen, places.len() as u64);
        let now: u64 = plan.forecasts().iter().map(|forecast| forecast.now).sum();
        prop_assert_eq!(now, plan.moves().count() as u64);
    }

    /// Over many rounds, with moves that end in any way, no window sees more harm than its
    /// budget, and no more are in flight than allowed.
    #[test]
    fn no_window_exceeds_the_budget(
        per_node in 1..8u64, in_flight in 1..8usize, rounds in vec((1..40u64, vec(0..7u8, 8)), 1..40),
    ) {
        let head = format!("budget: {{perNode: {per_node}, maxInFlight: {in_flight}, window: 1m}}");
        let mut agent = Agent::new(one_rule(&head, "limits: {maxAge: 1h}"));
        let window = agent.policy.budget().window();
        let mut live: Vec<u64> = (0..200).collect();
        let mut flying: Vec<u64> = Vec::new();
        let mut harmed: Vec<(u64, KernelTime)> = Vec::new();
        let mut now = 2 * HOUR;
        for (pause, ends) in rounds {
            now += pause * SECOND;
            let listed = listed(now, live.clone());
            let plan = agent.plan(&listed);
            agent.begin(&plan, listed.taken);
            for chosen in plan.moves() {
                prop_assert!(!flying.contains(&chosen.cookie().0));
                flying.push(chosen.cookie().0);
                harmed.push((chosen.cookie().0, KernelTime(now)));
            }
            prop_assert!(flying.len() <= in_flight);
            prop_assert_eq!(flying.len(), agent.ledger.in_flight());
            for end in ends {
                let Some(cookie) = flying.first().copied() else { break };
                let (outcome, lives) = match end {
                    0 => (Outcome::GaveUp, true),
                    1 => (Outcome::Reset, false),
                    2 => (Outcome::GoneBefore, false),
                    3 => (Outcome::Failed("EPERM".into()), true),
                    4 => (Outcome::LeftByItself, false),
                    _ => break,
                };
                if outcome.harmless() {
                    let last = harmed.iter().rposition(|(harmed, _)| *harmed == cookie).unwrap();
                    harmed.remove(last);
                }
                flying.remove(0);
                agent.ledger.ended(Cookie(cookie), outcome, KernelTime(now));
                live.retain(|alive| lives || *alive != cookie);
            }
            agent.prune(&listed);
            let recent = harmed.iter().filter(|(_, at)| KernelTime(now).since(*at) < window).count();
            prop_assert!(recent as u64 <= per_node, "{} of {}", recent, per_node);
        }
    }
}
