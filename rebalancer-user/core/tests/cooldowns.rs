//! Cooldowns: those that are listed prevent moves, and one that is cleared does not.

use std::time::Duration;

use rebalancer_core::{
    plan::{
        CooldownOf, Entries, FIRST_HOLD, FillTest, Group, Hold, Ledger, Outcome, Refusal, Subject,
        Test,
    },
    policy::{RuleName, sample},
    snapshot::{
        Cookie, KernelTime, Snapshot,
        sample::{connection, snapshot},
    },
};

mod agent;
use agent::{Agent, HOUR};

const NOW: KernelTime = KernelTime(2 * HOUR);

const POLICY: &str = "\
mode: Enforce
budget: {perService: 1000000, perEndpoint: 1000000}
rules:
- {name: web, match: {ports: [{port: 8080}]}, limits: {maxAge: 30m}}
";

fn listed() -> Snapshot {
    snapshot(NOW.0, vec![connection(1)])
}

fn rule(name: &str) -> RuleName {
    RuleName::known(name).unwrap()
}

/// After a move of the connection with this outcome.
fn moved(outcome: Outcome) -> Agent {
    let mut agent = Agent::new(sample::policy(POLICY));
    let plan = agent.plan(&listed());
    agent.moved(plan.moves().next().unwrap(), outcome, NOW);
    agent
}

fn moves(agent: &Agent) -> usize {
    agent.plan(&listed()).moves().count()
}

#[test]
fn a_failed_move_has_a_cooldown_until_it_is_cleared() {
    let once = Some(NOW.after(FIRST_HOLD));
    for (outcome, cause, until) in [
        (Outcome::Refused(Refusal::Sigpipe), "sigpipe", once),
        (
            Outcome::Refused(Refusal::ProtocolUnknown),
            "protocolUnknown",
            once,
        ),
        (Outcome::Refused(Refusal::Http2), "http2", None),
        (Outcome::GaveUp, "gaveUp", once),
        (Outcome::Failed("EPERM".into()), "failed", once),
    ] {
        let mut agent = moved(outcome);
        assert_eq!(moves(&agent), 0, "{cause}");
        let all = agent.ledger.cooldowns(NOW);
        let [one] = all.as_slice() else {
            panic!("{all:?}")
        };
        assert_eq!(one.of, CooldownOf::Connection(Cookie(1), Some(rule("web"))));
        assert_eq!((one.cause, one.until, one.times), (cause, until, 1));
        // It ends by itself as it is listed.
        let over = agent.ledger.cooldowns(NOW.after(FIRST_HOLD)).is_empty();
        assert_eq!(over, until.is_some(), "{cause}");

        let mut clear = |name| agent.ledger.clear_cooldowns(Some(&rule(name)), NOW);
        assert_eq!(clear("another"), []);
        assert_eq!(clear("web"), all);
        assert_eq!(moves(&agent), 1, "{cause}");
        assert_eq!(agent.ledger.cooldowns(NOW), []);
    }
}

/// The first is not listed any more; nothing prevents a move of the second.
#[test]
fn moved_and_recalled_connections_have_no_cooldown() {
    for outcome in [
        Outcome::Reset,
        Outcome::Closed,
        Outcome::Recalled("paused".into()),
    ] {
        assert_eq!(moved(outcome).ledger.cooldowns(NOW), []);
    }
}

#[test]
fn clearing_selects_clients_and_groups() {
    let endpoint = connection(1).endpoint;
    let hold = Hold {
        times: 3,
        until: NOW.after(Duration::from_secs(2400)),
    };
    let test = Test {
        moves: 6,
        returned: 6,
        siblings: 3,
        hold,
        ..Test::default()
    };
    let not_held = Test {
        hold: Hold::default(),
        ..test
    };
    let client = Subject::Client([10, 0, 0, 7].into());
    let (service, port) = (None, 8080);
    let group = Group { service, port };
    let effort = FillTest {
        hold,
        ..FillTest::default()
    };
    let web = || rule("web");
    let mut ledger = Ledger::from_entries(Entries {
        returns: vec![
            (client.clone(), endpoint, test),
            // The client's moves were this rule's.
            (Subject::Rule(web()), endpoint, not_held),
            (Subject::Rule(rule("another")), endpoint, test),
        ],
        fills: vec![(web(), group.clone(), effort)],
        ..Entries::default()
    });
    let of_web = [
        CooldownOf::Returns(client, endpoint),
        CooldownOf::Fill(web(), group),
    ];
    let cleared = ledger.clear_cooldowns(Some(&web()), NOW);
    assert!(cleared.iter().map(|one| &one.of).eq(&of_web), "{cleared:?}");
    for one in cleared {
        assert_eq!((one.times, one.until), (3, Some(hold.until)));
    }
    let [rest] = &ledger.cooldowns(NOW)[..] else {
        panic!("{ledger:?}")
    };
    let another = Subject::Rule(rule("another"));
    assert_eq!(rest.of, CooldownOf::Returns(another, endpoint));
    assert_eq!(ledger.clear_cooldowns(None, NOW).len(), 1);
    // As if the time had passed.
    let over = Hold { until: NOW, ..hold };
    let entries = ledger.entries();
    assert_eq!(entries.fills[0].2.hold, over);
    let holds = entries.returns.iter().map(|(.., test)| test.hold);
    let held: Vec<Hold> = holds.filter(|hold| hold.times > 0).collect();
    assert_eq!(held, [over, over]);
    assert!(entries.is_of(NOW));
}
