//! What balance moves, and what it leaves: a hot endpoint sheds its excess and no more, and stops
//! where that does not help.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use proptest::{collection::vec, prelude::*, sample::select};
use rebalancer_core::{
    plan::{
        Decision, Entries, FIRST_FEW, FIRST_HOLD, Hold, Ledger, Move, NewHold, Outcome, Plan,
        Reason, SkipReason, Subject, Test, Verdict, decide,
    },
    policy::{self, By, Mode, Policy},
    snapshot::{
        Bytes, Connection, Cookie, EndpointKey, KernelTime, Netns, NetnsCookie, Snapshot, sample,
    },
};

mod agent;
use agent::{Agent, HOUR, MINUTE, SECOND, decided, words};

fn policy(fields: &str) -> Policy {
    with_budget(
        "perNode: 1000000, perService: 100%, perEndpoint: 100%",
        fields,
    )
}

fn with_budget(budget: &str, fields: &str) -> Policy {
    policy::sample::policy(&format!(
        "mode: Enforce\nbudget: {{{budget}, maxInFlight: 10000}}\nguards: {{minAge: 10s}}\n\
         rules:\n- {{name: web, match: {{ports: [{{port: 8080}}]}}, {fields}}}\n"
    ))
}

fn at(netns: u32) -> EndpointKey {
    sample::endpoint(netns, 8080)
}

/// One that `client` has at endpoint `netns`.
fn connection(cookie: u64, netns: u32, client: u8) -> Connection {
    let port = 1024 + u16::try_from(cookie % 60_000).unwrap();
    Connection {
        endpoint: at(netns),
        remote: SocketAddr::from(([10, 0, 0, client], port)),
        opened: KernelTime(cookie),
        ..sample::connection(cookie)
    }
}

/// So many endpoints that listen, and these connections.
fn snapshot(taken: u64, endpoints: u32, connections: Vec<Connection>) -> Snapshot {
    let listens = |netns| (at(netns), sample::listening());
    Snapshot {
        endpoints: (1..=endpoints).map(listens).collect(),
        ..sample::snapshot(taken, connections)
    }
}

/// What each endpoint holds, one client for each connection of the first 200.
fn holding(loads: &[u64]) -> Vec<Connection> {
    let mut all = Vec::new();
    for (netns, load) in (1..).zip(loads) {
        for _ in 0..*load {
            let cookie = all.len() as u64 + 1;
            all.push(connection(cookie, netns, (cookie % 200) as u8));
        }
    }
    all
}

/// A cluster whose clients reconnect by chance, all of it on this node.
struct Cluster {
    agent: Agent,
    endpoints: u32,
    /// What the third endpoint is, if it is another.
    dead: Option<u32>,
    interval: u64,
    /// Moves whose outcomes are reported only after the next listing.
    unreported: Option<Vec<Cookie>>,
    live: Vec<Connection>,
    now: u64,
    next: u64,
    seed: u64,
    moves: u64,
    rounds: u32,
}

impl Cluster {
    fn new(policy: Policy, loads: &[u64], seed: u64) -> Self {
        let live = holding(loads);
        Self {
            agent: Agent::new(policy),
            endpoints: loads.len() as u32,
            dead: None,
            interval: 60 * SECOND,
            unreported: None,
            next: live.len() as u64 + 1,
            live,
            now: HOUR,
            seed,
            moves: 0,
            rounds: 0,
        }
    }

    /// The same, with so many clients.
    fn of_clients(clients: u8, policy: Policy, loads: &[u64], seed: u64) -> Self {
        let mut cluster = Self::new(policy, loads, seed);
        for one in &mut cluster.live {
            let last = (one.cookie.0 % u64::from(clients)) as u8;
            one.remote.set_ip([10, 0, 0, last].into());
        }
        cluster
    }

    fn random(&mut self, below: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % below
    }

    fn snapshot(&self) -> Snapshot {
        let mut listed = snapshot(self.now, self.endpoints, self.live.clone());
        if let Some(dead) = self.dead
            && let Some(third) = listed.endpoints.remove(&at(3))
        {
            listed.endpoints.insert(at(dead), third);
        }
        listed
    }

    /// Lists, decides and moves; each moved client comes to where `place` says.
    fn step(&mut self, mut place: impl FnMut(&mut Self, &Move) -> Option<u32>) -> Plan {
        self.now += self.interval;
        let listed = self.snapshot();
        let plan = self.agent.observe(&listed);
        let waited = Duration::from_nanos(self.interval / 100);
        for cookie in self.unreported.iter_mut().flat_map(std::mem::take) {
            let ledger = &mut self.agent.ledger;
            ledger.ended_after(cookie, Outcome::Reset, waited, listed.taken);
        }
        match &mut self.unreported {
            Some(unreported) => {
                self.agent.begin(&plan, listed.taken);
                unreported.extend(plan.moves().map(Move::cookie));
            }
            None => self.agent.reset(&plan, listed.taken),
        }
        for chosen in plan.moves() {
            self.live.retain(|c| c.cookie != chosen.cookie());
            let Some(netns) = place(self, chosen) else {
                continue;
            };
            let opened = KernelTime(self.now + self.interval / 60);
            let again = Connection {
                opened,
                endpoint: at(netns),
                remote: chosen.remote(),
                ..sample::connection(self.next)
            };
            self.next += 1;
            self.live.push(again);
        }
        self.moves += plan.moves().count() as u64;
        self.rounds += u32::from(plan.moves().next().is_some());
        self.agent.prune(&listed);
        plan
    }

    /// So many steps, after which it has made so many moves in so many rounds.
    fn steps(
        &mut self,
        count: u32,
        mut place: impl FnMut(&mut Self, &Move) -> Option<u32>,
    ) -> (u64, u32) {
        for _ in 0..count {
            self.step(&mut place);
        }
        (self.moves, self.rounds)
    }

    /// What it would decide now, and of what.
    fn plan(&self) -> (Snapshot, Plan) {
        let listed = self.snapshot();
        let plan = self.agent.plan(&listed);
        (listed, plan)
    }

    fn new_holds(&mut self) -> Vec<NewHold> {
        self.agent.ledger.take_new_holds()
    }

    /// How many moves were made of each client.
    fn moved_in(
        &mut self,
        steps: u32,
        mut place: impl FnMut(&mut Self, &Move) -> Option<u32>,
    ) -> BTreeMap<String, u64> {
        let mut moved = BTreeMap::new();
        for _ in 0..steps {
            for chosen in self.step(&mut place).moves() {
                *moved.entry(chosen.remote().ip().to_string()).or_default() += 1;
            }
        }
        moved
    }

    /// Each client comes back to where it was.
    fn back(&mut self, chosen: &Move) -> Option<u32> {
        Some(chosen.endpoint().netns.0)
    }

    /// As kube-proxy places them.
    fn by_chance(&mut self, _: &Move) -> Option<u32> {
        let endpoints = u64::from(self.endpoints);
        Some(1 + self.random(endpoints) as u32)
    }

    fn loads(&self) -> Vec<u64> {
        let of = |netns| self.live.iter().filter(|c| c.endpoint == at(netns)).count() as u64;
        (1..=self.endpoints).map(of).collect()
    }
}

#[test]
fn a_fresh_placement_is_left_alone() {
    for loads in [
        &[13, 9, 8][..],
        &[120, 95, 85],
        &[38, 30, 22],
        &[4, 0, 3],
        &[9, 0, 0],
        &[700],
    ] {
        let listed = snapshot(HOUR, loads.len() as u32, holding(loads));
        let found = words(&decided(&policy("balance: {}"), &listed));
        let all = loads.iter().sum();
        assert_eq!(found, [("moved", 0), ("withinBalance", all)].into());
    }
}

#[test]
fn a_hot_endpoint_sheds_a_few_first_and_then_its_excess() {
    let mut cluster = Cluster::new(policy("balance: {tolerance: 20%}"), &[300, 0, 0], 7);
    let plan = cluster.step(Cluster::by_chance);
    let few = [("moved", FIRST_FEW), ("firstFew", 270 - FIRST_FEW)];
    let expected = few.into_iter().chain([("othersMoved", 30)]);
    assert_eq!(words(&plan), expected.collect());
    let reason = plan.moves().next().unwrap().reasons()[0].to_string();
    assert_eq!(reason, "endpoint holds 300 of mean 100, stop 120");
    let place = plan.decisions().filter_map(|d| d.place).max();
    assert_eq!((place, plan.forecasts()[0].chosen), (Some(270), FIRST_FEW));
}

/// All that a plan chooses are under way.
fn under_way(policy: Policy, loads: &[u64]) -> (Agent, Snapshot) {
    let listed = snapshot(HOUR, loads.len() as u32, holding(loads));
    let ledger = trusting();
    let mut agent = Agent { policy, ledger };
    let plan = agent.observe(&listed);
    agent.begin(&plan, listed.taken);
    (agent, listed)
}

/// One that knows that moves help, of all clients.
fn trusting() -> Ledger {
    let test = Test {
        moves: 20,
        elsewhere: 20,
        siblings: 3,
        score: -10_000_000,
        last: KernelTime(HOUR),
        ..Test::default()
    };
    let rule = policy("balance: {}").rules()[0].name().clone();
    let clients = (0..200).map(|client| Subject::Client([10, 0, 0, client].into()));
    let all = clients.chain([Subject::Rule(rule)]);
    Ledger::from_entries(Entries {
        returns: all.map(|subject| (subject, at(1), test)).collect(),
        ..Entries::default()
    })
}

#[test]
fn what_is_under_way_is_recalled_once_its_endpoint_is_not_hot_any_more() {
    let (mut agent, listed) = under_way(policy("balance: {tolerance: 20%}"), &[300, 0, 0]);
    assert_eq!(agent.ledger.in_flight(), 270);
    let ledger = agent.ledger.clone();
    let flies = |cookie| {
        ledger
            .moves_in_flight()
            .any(|(flying, ..)| flying == cookie)
    };
    for (left, recalled, word) in [
        // It holds as much as when they were chosen, as none has gone yet.
        (300, 0, None),
        // 20 above the stop: 30 moves, as one of three comes back, and 6 for chance.
        (140, 140 - 36, Some("othersMoved")),
        // One: 2 moves, and 2 for chance.
        (121, 121 - 4, Some("othersMoved")),
        (120, 120, Some("withinBalance")),
    ] {
        // The others go by themselves, those that stay the first.
        let mut listed = listed.clone();
        listed.connections.sort_by_key(|c| !flies(c.cookie));
        listed.connections.truncate(left as usize);
        // As many as came elsewhere: the mean stays.
        let elsewhere = (left..300).map(|n| connection(1000 + n, 2 + (n % 2) as u32, 7));
        listed.connections.extend(elsewhere);
        agent.ledger = ledger.clone();
        let plan = agent.observe(&listed);
        let words: Vec<_> = plan.recalls().iter().map(|r| r.why.as_str()).collect();
        let found = (words.len(), words.first().copied());
        assert_eq!(found, (recalled, word), "{left} left");
    }
}

#[test]
fn what_is_under_way_is_recalled_once_it_is_seen_not_to_help() {
    let (mut agent, listed) = under_way(policy("balance: {tolerance: 20%}"), &[300, 0, 0]);
    let mut entries = agent.ledger.entries();
    let client = Subject::Client([10, 0, 0, 7].into());
    for (subject, _, test) in &mut entries.returns {
        if *subject == client {
            (test.score, test.hold.until) = (6_000_000, KernelTime(2 * HOUR));
        }
    }
    agent.ledger = Ledger::from_entries(entries);
    let plan = agent.plan(&listed);
    let of_client = |cookie: Cookie| cookie.0 % 200 == 7;
    let flying = agent.ledger.moves_in_flight();
    let flying = flying.filter(|(c, ..)| of_client(*c)).count();
    assert!(flying > 0);
    assert_eq!(plan.recalls().len(), flying);
    for recall in plan.recalls() {
        assert!(of_client(recall.cookie) && recall.why.as_str() == "returns");
    }
}

#[test]
fn it_converges_in_three_rounds_with_little_more_than_the_least() {
    let (mut moves, mut least, mut slow) = (0, 0.0, 0);
    const RUNS: u64 = 60;
    for seed in 1..=RUNS {
        let policy = policy("balance: {tolerance: 20%}");
        let mut cluster = Cluster::new(policy, &[300, 0, 0], seed * 7919);
        let before = cluster.steps(12, Cluster::by_chance);
        let most = cluster.loads().into_iter().max().unwrap();
        assert!(most <= 120, "{:?}", cluster.loads());
        moves += cluster.moves;
        least += 180.0 * 1.5;
        // The first few are not a round.
        slow += u64::from(cluster.rounds > 4);
        let after = cluster.steps(40, Cluster::by_chance);
        assert_eq!(after, before, "no move while balanced");
    }
    let ratio = moves as f64 / least;
    println!("{RUNS} runs: moves ÷ least {ratio:.3}, {slow} took more than three rounds");
    assert!((0.97..1.05).contains(&ratio), "{ratio}");
    assert!(slow <= 1, "{slow}");
}

/// The agent's loop is busy while it lists: it lists the moved clients again before it receives the
/// outcomes of their moves.
#[test]
fn an_endpoint_reaches_its_stop_also_where_outcomes_arrive_late() {
    for seed in 1..=60 {
        let fields = "balance: {tolerance: 20%}";
        let mut cluster = Cluster::new(policy(fields), &[300, 0, 0], seed * 7919);
        (cluster.interval, cluster.unreported) = (SECOND / 2, Some(Vec::new()));
        // Those that have just come are left until they are ten seconds old.
        let before = cluster.steps(50, Cluster::by_chance);
        let loads = cluster.loads();
        assert!(loads.iter().all(|load| *load <= 120), "{seed}: {loads:?}");
        let (_, plan) = cluster.plan();
        assert_eq!(plan.balanced()[0].facts.unwrap().sum.total, 300);
        let after = cluster.steps(40, Cluster::by_chance);
        assert_eq!(after, before, "no move while balanced");
    }
}

#[test]
fn a_replica_added_to_many_gets_its_part() {
    let mut cluster = Cluster::new(policy("balance: {tolerance: 10%}"), &[100; 10], 3);
    cluster.endpoints = 11;
    let before = cluster.steps(60, Cluster::by_chance);
    let loads = cluster.loads();
    println!("moves and rounds: {before:?}, {loads:?}");
    assert!(loads[10] >= 40, "{loads:?}");
    let after = cluster.steps(60, Cluster::by_chance);
    assert_eq!(after, before, "and then there is an end");
    assert_eq!(cluster.loads()[10], loads[10]);
}

/// The endpoints stay where they are, whoever else is there.
#[test]
fn clients_that_always_come_back_are_left_after_a_few_moves() {
    for clients in [1_u8, 7, 200] {
        let mut cluster = Cluster::of_clients(clients, policy("balance: {}"), &[200, 0, 0], 5);
        let moved = cluster.moved_in(9, Cluster::back);
        let most = moved.values().max().copied().unwrap_or(0);
        let all: u64 = moved.values().sum();
        println!("{clients} clients: {all} moves, {most} of one");
        assert!(most <= FIRST_FEW && all <= 2 * FIRST_FEW, "{moved:?}");
        let holds = cluster.new_holds();
        assert!(
            matches!(&holds[..], [NewHold::Returns { test, .. }, ..] if test.returned == FIRST_FEW),
            "{holds:?}"
        );
        assert_eq!(cluster.agent.ledger.return_counts().returned, all);
        // For ten minutes nothing; then one more try, and twenty.
        if clients == 1 {
            let (listed, plan) = cluster.plan();
            let skipped = plan.skipped();
            assert!(skipped.contains_key("returns"), "{skipped:?}");
            let cookie = plan.decisions().next().unwrap().cookie.0;
            let explanation = cluster.agent.explain(&listed, &plan, cookie);
            assert_eq!(explanation.unwrap().returns[0].1.returned, 6);
        }
        let before = cluster.moves;
        let more = cluster.steps(60, Cluster::back).0 - before;
        assert!(more <= 3 * u64::from(clients.min(6)), "{more}");
    }
}

/// They connect again only after minutes: nobody sees them until then, and that proves nothing.
#[test]
fn clients_that_come_back_late_are_left_after_a_few_moves() {
    for clients in [1_u8, 7, 200] {
        let mut cluster = Cluster::of_clients(clients, policy("balance: {}"), &[200, 0, 0], 5);
        let mut away = Vec::new();
        for minute in 0..60 {
            away.retain(|(back, chosen): &(u32, Move)| {
                if *back == minute {
                    cluster.live.push(Connection {
                        opened: KernelTime(cluster.now + SECOND),
                        endpoint: chosen.endpoint(),
                        remote: chosen.remote(),
                        ..sample::connection(cluster.next)
                    });
                    cluster.next += 1;
                }
                *back > minute
            });
            cluster.step(|_, chosen| {
                away.push((minute + 5, chosen.clone()));
                None
            });
            if minute == 4 {
                assert_eq!(cluster.moves, FIRST_FEW, "before the first is back");
            }
        }
        println!("{clients} clients: {} moves in an hour", cluster.moves);
        assert!(cluster.moves <= 5 * FIRST_FEW, "{}", cluster.moves);
        assert_eq!(cluster.agent.ledger.return_counts().elsewhere, 0);
        let held = cluster.new_holds();
        assert!(matches!(&held[0], NewHold::Returns { .. }), "{held:?}");
    }
}

/// The last replica is ready and ends each connection at once: its client comes to another.
fn but_not_to_the_last(cluster: &mut Cluster, _: &Move) -> Option<u32> {
    Some(1 + cluster.random(u64::from(cluster.endpoints - 1)) as u32)
}

#[test]
fn a_replica_that_keeps_nothing_is_given_up() {
    for budget in ["perNode: 60", "perNode: 1000000"] {
        let budget = format!("{budget}, perService: 100%, perEndpoint: 100%");
        for (loads, fields) in [
            (vec![150, 150, 0], "balance: {}"),
            (vec![300, 0, 0], "balance: {tolerance: 20%}"),
            ([vec![30; 10], vec![0]].concat(), "balance: {}"),
        ] {
            let total: u64 = loads.iter().sum();
            let mut cluster = Cluster::new(with_budget(&budget, fields), &loads, 17);
            let mut held = Vec::new();
            for interval in 0..2000 {
                let plan = cluster.step(but_not_to_the_last);
                if cluster.new_holds().iter().any(is_failed_fill) {
                    held.push((interval, cluster.moves));
                    let words = words(&plan);
                    assert!(words["moved"] == 0 && words["fillFailed"] > 0, "{words:?}");
                }
            }
            println!(
                "{total} at {}: held at {held:?}, {} moves",
                loads.len(),
                cluster.moves
            );
            let (first, all) = (held[0].1, cluster.moves);
            assert!(first <= total * 3, "{first}");
            assert!((5..=8).contains(&held.len()), "{held:?}");
            assert!(all <= total * 8, "{all}");
        }
    }
}

/// Moves did not help, six times of six: they are held until this hour.
fn held_until(hour: u64) -> Test {
    let (times, until) = (1, KernelTime(hour * HOUR));
    Test {
        moves: 6,
        returned: 6,
        siblings: 3,
        hold: Hold { times, until },
        ..Test::default()
    }
}

/// Entries of a ledger that knows that this client always comes back to the first endpoint.
fn always_back(client: u8) -> Entries {
    let client = Subject::Client([10, 0, 0, client].into());
    Entries {
        returns: vec![(client, at(1), held_until(2))],
        ..Entries::default()
    }
}

/// What is left out of what an endpoint holds takes no part of its excess either.
#[test]
fn a_client_that_always_comes_back_takes_nothing_of_its_neighbours_excess() {
    let sticky = 250;
    let mut listed = snapshot(HOUR, 3, holding(&[300, 30, 30]));
    let mut agent = Agent::new(policy("balance: {}"));
    agent.ledger = Ledger::from_entries(always_back(sticky));
    let moved = |listed: &Snapshot| {
        let words = words(&agent.plan(listed));
        words.get("firstFew").unwrap_or(&0) + words["moved"]
    };
    let alone = moved(&listed);
    assert!(alone >= 150, "{alone}");
    let beside = (1000..1100).map(|cookie| connection(cookie, 1, sticky));
    listed.connections.extend(beside);
    assert_eq!(moved(&listed), alone);
}

/// Its bytes come back with it, but its connection is a new one.
#[test]
fn a_client_that_always_comes_back_is_moved_by_max_age_alone() {
    for (limits, minutes, bytes, expected) in [
        ("limits: {maxAge: 30m}", 40, 0, "moved"),
        ("limits: {maxAge: 30m}, balance: {}", 40, 0, "moved"),
        ("limits: {maxAge: 30m}, balance: {}", 20, 0, "returns"),
        ("limits: {maxAge: 30m, maxBytes: 1Ki}", 40, 4096, "moved"),
        ("limits: {maxAge: 30m, maxBytes: 1Ki}", 20, 4096, "returns"),
        ("limits: {maxBytes: 1Ki}", 40, 4096, "returns"),
    ] {
        let mut agent = Agent::new(policy(&format!("{limits}, jitter: 0%")));
        let one = Connection {
            opened: KernelTime(HOUR - minutes * MINUTE),
            bytes_out: Bytes(bytes),
            ..connection(1, 1, 7)
        };
        let listed = snapshot(HOUR, 3, vec![one]);
        let before = agent.plan(&listed);
        agent.ledger = Ledger::from_entries(always_back(7));
        let found = words(&agent.plan(&listed));
        assert_eq!(found[expected], 1, "{limits} {minutes}");

        // Likewise of a move that is under way already.
        agent.begin(&before, listed.taken);
        let started = before.moves().count();
        let plan = agent.plan(&listed);
        let recalls: Vec<_> = plan.recalls().iter().map(|r| r.why.as_str()).collect();
        let is_recalled = started == 1 && expected == "returns";
        assert_eq!(
            recalls,
            vec!["returns"; usize::from(is_recalled)],
            "{limits}"
        );
    }
}

/// The first rule moves in order to spread as well: that is held.
#[test]
fn max_age_goes_on_where_clients_always_come_back() {
    for (fields, is_held) in [("balance: {}, ", true), ("", false)] {
        let fields = format!("{fields}limits: {{maxAge: 2m}}, jitter: 0%");
        let mut cluster = Cluster::new(policy(&fields), &[20, 0, 0], 5);
        let (moves, _) = cluster.steps(60, Cluster::back);
        assert!(moves >= 20 * 60 / 4, "{fields}: {moves}");
        assert_eq!(!cluster.new_holds().is_empty(), is_held, "{fields}");
        let ledger = &cluster.agent.ledger;
        let cooldowns = ledger.cooldowns(KernelTime(cluster.now));
        assert_eq!(!cooldowns.is_empty(), is_held, "{fields}");
        assert!(ledger.return_counts().returned > 200, "{fields}");
    }
}

/// A pod ends, and the kernel gives the inode of its namespace to the next one's.
#[test]
fn what_is_known_of_endpoints_ends_with_their_namespace() {
    let policy = policy("balance: {}");
    let listed = |minute: u64, namespaces: &[(u32, u64)]| Snapshot {
        namespaces: (namespaces.iter())
            .map(|(netns, cookie)| (Netns(*netns), NetnsCookie(*cookie)))
            .collect(),
        ..snapshot(HOUR + minute * MINUTE, 3, holding(&[300, 30, 30]))
    };
    let rule = policy.rules()[0].name().clone();
    let held = Test {
        last: KernelTime(HOUR),
        ..held_until(3)
    };
    let returns = [at(1), at(2)].map(|at| (Subject::Rule(rule.clone()), at, held));
    let mut agent = Agent::new(policy);
    agent.ledger = Ledger::from_entries(Entries {
        returns: returns.to_vec(),
        ..Entries::default()
    });
    let known = |agent: &Agent| {
        let returns = agent.ledger.entries().returns.into_iter();
        returns.map(|(_, at, _)| at).collect::<Vec<_>>()
    };
    let moves = |agent: &mut Agent, listed: &Snapshot| {
        let plan = agent.observe(listed);
        agent.begin(&plan, listed.taken);
        agent.prune(listed);
        plan.moves().map(Move::cookie).collect::<Vec<_>>()
    };
    let before = [(1, 10), (2, 20), (3, 30)];
    // What was not known is no other.
    for namespaces in [&[][..], &before[1..], &before] {
        assert_eq!(moves(&mut agent, &listed(0, namespaces)), []);
        assert_eq!(known(&agent), [at(1), at(2)]);
    }
    // An agent in between.
    agent.ledger = Ledger::from_entries(agent.ledger.to_keep().entries());
    let after = listed(1, &[(1, 11), (2, 20)]);
    let moved = moves(&mut agent, &after);
    assert!(!moved.is_empty(), "another pod's clients are not held");
    assert_eq!(known(&agent), [at(2)]);
    // Their clients are looked for, until that endpoint is another one as well.
    for cookie in moved {
        agent.ledger.ended(cookie, Outcome::Reset, after.taken);
    }
    let entries = agent.ledger.entries();
    assert!(!entries.awaited.is_empty() && !entries.shedding.is_empty());
    let effort = |entries: &Entries| entries.fills[0].2.endpoints.clone();
    assert_eq!(effort(&entries), BTreeSet::from([at(1), at(2), at(3)]));
    let mut nothing_there = Snapshot {
        taken: after.taken,
        namespaces: BTreeMap::from([(Netns(1), NetnsCookie(12))]),
        ..Snapshot::default()
    };
    agent.observe(&nothing_there);
    let entries = agent.ledger.entries();
    assert!(entries.awaited.is_empty() && entries.shedding.is_empty());
    assert_eq!(effort(&entries), BTreeSet::from([at(2), at(3)]));
    // One that is away for a time is remembered.
    nothing_there.namespaces.clear();
    agent.observe(&nothing_there);
    agent.prune(&nothing_there);
    moves(&mut agent, &listed(2, &[(2, 21)]));
    assert_eq!(known(&agent), []);
}

fn is_failed_fill(hold: &NewHold) -> bool {
    matches!(hold, NewHold::FillFailed { .. })
}

#[test]
fn a_failed_fill_test_is_reported_and_a_new_replica_is_tried_once() {
    let mut cluster = Cluster::new(policy("balance: {}"), &[150, 150, 0], 17);
    let held = loop {
        cluster.step(but_not_to_the_last);
        if let Some(hold) = cluster.new_holds().into_iter().find(is_failed_fill) {
            break hold;
        }
    };
    let NewHold::FillFailed { failure, lasts, .. } = held else {
        panic!("{held:?}")
    };
    assert_eq!(
        (failure.moves, failure.mean, lasts),
        (cluster.moves, 100, FIRST_HOLD)
    );
    let sentence = |cluster: &Cluster| {
        let (listed, plan) = cluster.plan();
        let is_held =
            |d: &Decision<'_>| matches!(d.verdict, Verdict::Skipped(SkipReason::FillFailed { .. }));
        let cookie = plan.decisions().find(is_held).unwrap().cookie.0;
        let explanation = cluster.agent.explain(&listed, &plan, cookie).unwrap();
        assert_eq!(explanation.fill.as_ref().unwrap().moves, failure.moves);
        let Verdict::Skipped(skipped) = explanation.decision.verdict else {
            panic!()
        };
        skipped.to_string()
    };
    let text = sentence(&cluster);
    let begins = format!("{} moves have not filled", failure.moves);
    assert!(text.starts_with(&begins), "{text}");
    cluster.agent.ledger = Ledger::from_entries(cluster.agent.ledger.entries());
    assert_eq!(text, sentence(&cluster));
    // One is added that keeps what comes.
    let before = cluster.moves;
    cluster.endpoints = 4;
    let place = |cluster: &mut Cluster, _: &Move| Some([1, 2, 4][cluster.random(3) as usize]);
    assert!(cluster.steps(12, place).0 > before);
    assert!(cluster.loads()[3] > 60, "{:?}", cluster.loads());
}

/// One that ends each connection is ready for three minutes and unready for one, again and again; or it
/// is replaced each time.
#[test]
fn a_replica_that_comes_and_goes_does_not_make_its_siblings_shed_for_ever() {
    let budget = "perNode: 60, perService: 100%, perEndpoint: 100%";
    for is_replaced in [false, true] {
        let mut cluster = Cluster::new(with_budget(budget, "balance: {}"), &[150, 150, 0], 17);
        let mut held = Vec::new();
        for minute in 0..24 * 60 {
            let unready = minute % 4 == 3;
            cluster.endpoints = if unready { 2 } else { 3 };
            cluster.dead = Some(3 + if is_replaced { minute / 4 } else { 0 });
            cluster.step(|cluster, _| Some(1 + cluster.random(2) as u32));
            if cluster.new_holds().iter().any(is_failed_fill) {
                held.push((minute, cluster.moves));
            }
        }
        println!("held at {held:?}, {} moves in a day", cluster.moves);
        assert!(cluster.moves <= 300 * 8, "{}", cluster.moves);
        assert!(held.len() >= 5, "{held:?}");
    }
}

#[test]
fn by_rates_it_is_given_up_as_well() {
    let mut cluster = Cluster::new(policy("balance: {by: ByteRate}"), &[150, 150, 0], 23);
    for _ in 0..400 {
        // Each carries between one and three thousand in a second.
        for one in &mut cluster.live {
            one.bytes_out.0 += 60 * (1000 + one.cookie.0 * 7919 % 2000);
        }
        cluster.step(but_not_to_the_last);
    }
    let held = cluster.new_holds();
    let all: Vec<_> = held.iter().filter(|hold| is_failed_fill(hold)).collect();
    println!("{} moves: {all:?}", cluster.moves);
    assert!(
        (2..=6).contains(&all.len()) && cluster.moves < 2000,
        "{}",
        cluster.moves
    );
}

#[test]
fn what_fills_is_never_given_up() {
    for seed in 1..=60 {
        for (loads, fields) in [
            (vec![300, 0, 0], "balance: {}"),
            (vec![30, 0, 0], "balance: {tolerance: 1%}"),
            ([vec![60; 10], vec![0]].concat(), "balance: {tolerance: 1%}"),
        ] {
            let mut cluster = Cluster::new(policy(fields), &loads, seed * 7919);
            cluster.steps(12, Cluster::by_chance);
            let held = cluster.new_holds();
            let failed = held.iter().any(is_failed_fill);
            assert!(!failed, "{seed} {loads:?}: {held:?}");
        }
    }
}

#[test]
fn a_flood_of_one_client_does_not_move_its_neighbours() {
    let mut cluster = Cluster::new(policy("balance: {}"), &[100, 100, 100], 9);
    for index in 0..200 {
        cluster.live.push(connection(1000 + index, 1, 250));
    }
    let moved = cluster.moved_in(30, Cluster::back);
    println!("{moved:?}");
    assert_eq!(moved.keys().collect::<Vec<_>>(), ["10.0.0.250"]);
    assert!(moved["10.0.0.250"] <= FIRST_FEW + 3, "{moved:?}");
}

#[test]
fn a_young_flood_is_waited_for_and_its_neighbours_stay() {
    let mut listed = snapshot(HOUR, 3, holding(&[100, 100, 100]));
    for index in 0..200 {
        let young = Connection {
            opened: KernelTime(HOUR - SECOND),
            ..connection(1000 + index, 1, 250)
        };
        listed.connections.push(young);
    }
    let plan = decided(&policy("balance: {}"), &listed);
    assert_eq!(plan.moves().count(), 0);
    assert_eq!(plan.skipped().get("minAge"), Some(&174));
}

/// What is decided of connections of these endpoints and rates, which take two listings.
fn flowing(rates: &[(u32, u64)], fields: &str) -> (Agent, Snapshot, Plan) {
    let mut agent = Agent::new(policy(fields));
    let endpoints = rates.iter().map(|(netns, _)| *netns).max().unwrap();
    let listed = |second| {
        let connections = (1..).zip(rates).map(|(cookie, (netns, rate))| Connection {
            bytes_out: Bytes(second * rate),
            ..connection(cookie, *netns, (cookie % 200) as u8)
        });
        snapshot(HOUR + second * SECOND, endpoints, connections.collect())
    };
    agent.observe(&listed(1));
    let plan = agent.observe(&listed(2));
    (agent, listed(2), plan)
}

#[test]
fn one_that_carries_nearly_all_is_not_bounced_nor_are_its_neighbours() {
    let mut rates = vec![(1, 90_000)];
    rates.extend((0..600).map(|i| (1 + i % 3, 17)));
    let (_, _, plan) = flowing(&rates, "balance: {by: ByteRate}");
    assert_eq!(plan.moves().count(), 0);
    // Two of them in one place are a surprise, if there are enough places.
    let mut rates = vec![(1, 1000); 12];
    rates.push((1, 60_000));
    rates.extend((0..600).map(|i| (1 + i % 30, 10)));
    let (_, _, plan) = flowing(&rates, "balance: {by: ByteRate}");
    assert!(plan.moves().all(|chosen| chosen.cookie() != Cookie(13)));
}

/// Beyond chance, with many that are small. Without the large one it would hold too little.
#[test]
fn one_that_counts_for_more_than_the_excess_stays_and_so_do_the_small() {
    let mut rates = vec![(1, 20_000)];
    rates.extend([(1, 5_000); 398]);
    rates.extend([(2, 5_000); 99]);
    rates.extend([(3, 5_000); 99]);
    let (agent, listed, plan) = flowing(&rates, "balance: {by: ByteRate, tolerance: 100%}");
    let one_is_larger = [("largerThanExcess", 1), ("withinBalance", 596)];
    assert_eq!(plan.skipped(), one_is_larger.into());
    let explanation = agent.explain(&listed, &plan, 1).unwrap();
    let standing = explanation.balance.unwrap();
    assert!(standing.load >= standing.start.unwrap(), "{standing}");
    assert_eq!(
        explanation.decision.verdict,
        Verdict::Skipped(&SkipReason::LargerThanExcess {
            by: By::ByteRate,
            load: 20_000,
            excess: 10_000
        })
    );
}

#[test]
fn a_rate_is_balanced_by_the_fewest_that_carry_the_excess() {
    let mut rates: Vec<(u32, u64)> = (0..300).map(|_| (1, 100_000)).collect();
    rates.extend((0..300).map(|i| (2 + i % 2, 100_000)));
    rates.extend((0..300).map(|i| (1 + i % 3, 100)));
    let fields = "balance: {by: ByteRate, tolerance: 10%}, mode: DryRun";
    let (_, _, plan) = flowing(&rates, fields);
    let heavy = plan.moves().filter(|chosen| chosen.cookie().0 <= 300);
    let heavy = heavy.count();
    println!("{:?} {heavy}", words(&plan));
    // 300 of mean 200 and stop 220: 80 too many, and a third of those moved comes back.
    assert!((115..=120).contains(&heavy), "{heavy}");
    assert!(plan.moves().count() - heavy <= 30);
    let [Reason::Balance { load, mean, .. }] = plan.moves().next().unwrap().reasons() else {
        panic!("no excess")
    };
    assert!((30_000_000..30_100_000).contains(load) && (20_000_000..20_100_000).contains(mean));
}

#[test]
fn what_was_moved_and_not_seen_again_is_of_the_mean() {
    let mut cluster = Cluster::new(policy("balance: {tolerance: 20%}"), &[300, 0, 0], 7);
    // Nobody comes back.
    let plan = cluster.step(|_, _| None);
    assert_eq!(plan.moves().count() as u64, FIRST_FEW);
    cluster.now -= 59 * SECOND;
    let listed = cluster.snapshot();
    let plan = cluster.agent.observe(&listed);
    let facts = plan.balanced()[0].facts.unwrap();
    assert_eq!((facts.sum.total, facts.mean()), (300, 100));
    assert!(plan.skipped().contains_key("firstFew"));
}

#[test]
fn budgets_of_the_endpoint_and_the_service_hold_and_are_named() {
    let listed = snapshot(HOUR, 3, holding(&[300, 0, 0]));
    let by_age = "limits: {maxAge: 1m}";
    for (per_node, per_service, per_endpoint, fields, moved, word) in [
        ("1000", "10%", "100%", by_age, 30, "serviceBudget"),
        ("1000", "100%", "25%", by_age, 75, "endpointBudget"),
        ("7", "10%", "25%", by_age, 7, "budget"),
        ("1000", "4", "25%", "balance: {}", 4, "serviceBudget"),
    ] {
        let service = format!("perService: {per_service}, perEndpoint: {per_endpoint}");
        let budget = format!("perNode: {per_node}, {service}");
        let plan = decided(&with_budget(&budget, fields), &listed);
        assert_eq!(plan.moves().count(), moved, "{budget}");
        assert!(plan.skipped().contains_key(word), "{:?}", plan.skipped());
        assert!(plan.forecasts()[0].per_window <= moved as u64, "{budget}");
    }
}

/// Those that were moved away are of the Service's connections still, and of the endpoint's.
#[test]
fn a_share_of_a_budget_does_not_grow_or_shrink_as_it_is_spent() {
    for (shares, most) in [
        ("perService: 10%, perEndpoint: 100%", 30),
        ("perService: 100%, perEndpoint: 25%", 75),
    ] {
        for everyone_returns in [false, true] {
            let budget = format!("perNode: 1000, {shares}, window: 1h");
            let policy = with_budget(&budget, "limits: {maxAge: 50m}, jitter: 0%");
            let mut cluster = Cluster::new(policy, &[300, 0, 0], 7);
            let returns = |cluster: &mut Cluster, chosen: &Move| {
                everyone_returns.then(|| cluster.by_chance(chosen))?
            };
            cluster.steps(20, returns);
            assert_eq!(cluster.moves, most, "{budget} {everyone_returns}");
        }
    }
}

#[test]
fn a_noisy_rule_does_not_starve_the_others() {
    let policy = policy::sample::policy(
        "\
mode: Enforce
budget: {perNode: 10, perService: 100%, perEndpoint: 100%, maxInFlight: 100}
rules:
- {name: noisy, match: {ports: [{port: 8081}]}, limits: {maxAge: 1m}}
- {name: quiet, match: {ports: [{port: 8080}]}, limits: {maxAge: 50m}}
",
    );
    let mut connections = holding(&[5]);
    for index in 0..500 {
        let mut noisy = connection(100 + index, 1, 3);
        noisy.endpoint.port = 8081;
        connections.push(noisy);
    }
    let listed = snapshot(HOUR, 1, connections);
    let mut agent = Agent::new(policy);
    let plan = agent.plan(&listed);
    let of = |plan: &Plan, name: &str| plan.moves().filter(|m| m.rule().as_str() == name).count();
    assert_eq!((of(&plan, "quiet"), of(&plan, "noisy")), (5, 5));
    // One that has had its part waits for the one that has not.
    for chosen in plan.moves().filter(|m| m.rule().as_str() == "noisy") {
        agent.ledger.started(chosen, listed.taken);
    }
    let plan = agent.plan(&listed);
    assert_eq!((of(&plan, "quiet"), of(&plan, "noisy")), (5, 0));
}

#[test]
fn a_dry_run_reports_the_excess_once() {
    let dry = policy("balance: {tolerance: 20%}").with_mode_at_most(Mode::DryRun);
    let listed = snapshot(HOUR, 3, holding(&[300, 0, 0]));
    let mut agent = Agent::new(dry);
    for expected in [270, 0, 0] {
        let plan = agent.observe(&listed);
        assert_eq!(plan.moves().count(), expected);
        agent.report(&plan, listed.taken);
    }
}

fn any_loads() -> impl Strategy<Value = Vec<u64>> {
    vec(prop_oneof![0..40u64, 0..200u64], 1..6)
}

fn any_fields() -> impl Strategy<Value = &'static str> {
    select(vec![
        "balance: {}",
        "balance: {tolerance: 1%}",
        "balance: {tolerance: 100%}",
        "balance: {by: ByteRate}",
        "limits: {maxAge: 30m}, balance: {tolerance: 5%}",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Only an endpoint above the mean sheds, and never below it.
    #[test]
    fn an_endpoint_sheds_no_more_than_brings_it_to_its_stop(loads in any_loads(), fields in any_fields()) {
        let policy = policy(fields).with_mode_at_most(Mode::DryRun);
        let listed = snapshot(1000 * SECOND, loads.len() as u32, holding(&loads));
        let plan = decided(&policy, &listed);
        let all: u64 = loads.iter().sum();
        let n = loads.len() as u64;
        for (netns, load) in (1..).zip(&loads) {
            let moved = plan.moves().filter(|m| m.endpoint() == at(netns)).count() as u64;
            prop_assert!(moved <= *load);
            if moved > 0 {
                prop_assert!(load * n > all, "{} of {:?}", netns, loads);
                // So many stay that with those that come back by chance it is no less than its mean.
                let stay = (load - moved) as f64 + moved as f64 / n as f64;
                let spread = 2.0 * (moved as f64 * (n as f64 - 1.0)).sqrt() / n as f64 + 2.0;
                prop_assert!(stay + spread >= all as f64 / n as f64, "{} of {:?}: {}", netns, loads, moved);
            }
        }
    }

    #[test]
    fn the_order_of_the_snapshot_does_not_matter(
        (loads, order) in any_loads().prop_flat_map(|loads| {
            let all: u64 = loads.iter().sum();
            (Just(loads), Just((0..all as usize).collect::<Vec<_>>()).prop_shuffle())
        }),
        fields in any_fields(),
    ) {
        let policy = policy(fields);
        let connections = holding(&loads);
        let shuffled = order.iter().map(|index| connections[*index].clone()).collect();
        let plans = [connections, shuffled].map(|connections| {
            let mut agent = Agent::new(policy.clone());
            agent.observe(&snapshot(1000 * SECOND, loads.len() as u32, connections.clone()));
            agent.observe(&snapshot(1001 * SECOND, loads.len() as u32, connections))
        });
        prop_assert_eq!(&plans[0], &plans[1]);
    }

    /// A victim counts as what its endpoint holds for as long as it is there.
    #[test]
    fn no_move_is_recalled_for_its_own_sake(loads in any_loads(), fields in any_fields(), few: bool) {
        let ledger = if few { Ledger::default() } else { trusting() };
        let mut agent = Agent { policy: policy(fields), ledger };
        let listed = |second: u64| {
            let mut connections = holding(&loads);
            for one in &mut connections {
                one.bytes_out = Bytes(second * (1 + one.cookie.0 * 7919 % 100_000));
            }
            snapshot((1000 + second) * SECOND, loads.len() as u32, connections)
        };
        for second in 0..4 {
            let listed = listed(second);
            let plan = agent.observe(&listed);
            prop_assert_eq!(plan.recalls(), []);
            agent.begin(&plan, listed.taken);
            let plan = agent.plan(&listed);
            prop_assert_eq!(plan.recalls(), []);
        }
    }

    /// Whatever was moved before, and wherever it came.
    #[test]
    fn each_has_one_decision_and_none_is_moved_before_its_age(
        loads in any_loads(), fields in any_fields(), seed in 1..u64::MAX, sticky: bool,
    ) {
        let mut cluster = Cluster::new(policy(fields), &loads, seed);
        for _ in 0..6 {
            cluster.now -= 50 * SECOND;
            let before = cluster.live.clone();
            let plan = cluster.step(|cluster, chosen| {
                if sticky { Some(chosen.endpoint().netns.0) } else { cluster.by_chance(chosen) }
            });
            prop_assert_eq!(plan.decisions().count(), before.len());
            let now = KernelTime(cluster.now);
            for chosen in plan.moves() {
                let moved = before.iter().find(|c| c.cookie == chosen.cookie()).unwrap();
                prop_assert!(now.since(moved.opened) >= cluster.agent.policy.guards().min_age());
                prop_assert!(chosen.reasons().iter().all(|reason| reason.exceeded()));
            }
            let again = Ledger::from_entries(cluster.agent.ledger.entries());
            let (listed, next) = cluster.plan();
            prop_assert_eq!(decide(&cluster.agent.policy, &listed, &again, listed.taken), next);
            for decision in plan.decisions() {
                if let Verdict::Skipped(skipped) = decision.verdict {
                    prop_assert!(!matches!(skipped, SkipReason::NoRule), "{:?}", skipped);
                }
            }
        }
    }
}
