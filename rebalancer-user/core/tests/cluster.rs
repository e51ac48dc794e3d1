//! Balance across nodes: by a valid view of the same endpoints each node sheds its own excess, within
//! its share and never beyond its own budgets; without one nothing is moved.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use rebalancer_core::{
    plan::{Ledger, Move, NoClusterView, SkipReason, Verdict, decide, report},
    policy::{self, Policy},
    snapshot::{Connection, Cookie, EndpointKey, KernelTime, Naming, Service, Snapshot, sample},
    views::{Generation, Key, Merger, Report, Share, Sums, View, Views},
};

mod agent;
mod named;
use agent::{Agent, HOUR, SECOND, decided, words};
use named::{behind, named, snapshot};

const GENERATION: Generation = Generation(3);

const BALANCE: &str = "balance: {tolerance: 10%}";

fn policy(mode: &str, budget: &str, fields: &str) -> Policy {
    policy_with(mode, budget, fields, "guards: {}")
}

fn policy_with(mode: &str, budget: &str, fields: &str, guards: &str) -> Policy {
    policy::sample::policy(&format!(
        "mode: {mode}\n\
         budget: {{perNode: 1000000, perEndpoint: 100%, maxInFlight: 10000, {budget}}}\n\
         {guards}\nrules:\n- {{name: even, match: {{services: [shop/web]}}, {fields}}}\n"
    ))
}

fn dry_run(budget: &str) -> Policy {
    policy("DryRun", budget, BALANCE)
}

/// One of three ready endpoints of Service `web`, on a node of its own, with so many connections.
fn node(connections: Vec<Connection>, views: Views) -> Snapshot {
    let mut seen = snapshot(named(behind(&["web"])), Naming::Fresh);
    let facts = seen.services.get_mut(&sample::service("web")).unwrap();
    (facts.ready, facts.ready_here, facts.generation) = (3, 1, Some(GENERATION));
    for endpoint in seen.endpoints.values_mut() {
        endpoint.listeners = 1;
    }
    Snapshot {
        connections,
        views,
        ..seen
    }
}

fn connection(cookie: u64) -> Connection {
    let client = [10, 9, (cookie / 250) as u8, (cookie % 250) as u8];
    Connection {
        remote: SocketAddr::from((client, 40_000)),
        ..sample::connection(cookie)
    }
}

fn hot(views: Views) -> Snapshot {
    node((1..=300).map(connection).collect(), views)
}

fn key() -> Key {
    Key {
        service: "shop/web".to_owned(),
        port: sample::connection(1).endpoint.port,
        zone: None,
        rule: "even".to_owned(),
        by: "Connections".to_owned(),
    }
}

/// All of the 300 connections of three endpoints are on the first.
fn view() -> View {
    View {
        key: key(),
        generation: GENERATION,
        endpoints: 3,
        sums: Sums {
            total: 300,
            squares: 300,
            largest: 1,
        },
        mean: 100,
        most: 300,
        connections: 300,
        excess: 200,
        share: Share::ALL,
        ..View::default()
    }
}

fn valid(view: View) -> Views {
    Views::valid(vec![view], Duration::from_secs(30))
}

fn words_of(policy: &Policy, view: View) -> BTreeMap<&'static str, u64> {
    words(&decided(policy, &hot(valid(view))))
}

/// Why nothing is moved.
fn cause(views: Views) -> NoClusterView {
    let plan = decided(&dry_run("perService: 100%"), &hot(views));
    assert_eq!(plan.moves().count(), 0);
    let causes = plan.decisions().map(|one| match one.verdict {
        Verdict::Skipped(SkipReason::NoClusterView { view }) => view.cause,
        other => panic!("{other:?}"),
    });
    let mut causes: Vec<NoClusterView> = causes.collect();
    causes.dedup();
    assert_eq!(causes.len(), 1);
    causes[0]
}

/// What another node has just moved may be in neither its new report nor the earlier ones of those that received it.
#[test]
fn a_view_that_lacks_what_others_move_does_not_lower_the_mean() {
    let (policy, mut ledger) = (dry_run("perService: 100%"), Ledger::default());
    let mut mean = |others: u64| {
        let others = Sums {
            total: others,
            squares: others.into(),
            largest: 1,
        };
        let view = View {
            others: Some(others),
            ..view()
        };
        let seen = node((1..=88).map(connection).collect(), valid(view));
        ledger.observe(&policy, &seen);
        let plan = decide(&policy, &seen, &ledger, seen.taken);
        plan.balanced()[0].facts.unwrap().mean()
    };
    assert_eq!([212, 131, 131].map(&mut mean), [100; 3]);
    assert_eq!([131, 131].map(mean), [73; 2], "they do not arrive");
}

#[test]
fn without_a_valid_view_of_these_endpoints_nothing_is_moved() {
    assert_eq!(cause(Views::Off), NoClusterView::Off);
    assert_eq!(cause(Views::Awaited), NoClusterView::Awaited);
    assert_eq!(cause(Views::Expired), NoClusterView::Expired);
    let none = Views::valid(Vec::new(), Duration::from_secs(30));
    assert_eq!(cause(none), NoClusterView::Incomplete);
    let changes: [fn(&mut View); 2] = [
        |view| view.generation = Generation(8),
        |view| view.endpoints = 4,
    ];
    for change in changes {
        let mut other = view();
        change(&mut other);
        assert_eq!(cause(valid(other)), NoClusterView::OtherGeneration);
    }
    let keys: [fn(&mut Key); 5] = [
        |key| key.service.push('2'),
        |key| key.port += 1,
        |key| key.zone = Some("z".to_owned()),
        |key| key.rule.push('2'),
        |key| key.by = "ByteRate".to_owned(),
    ];
    for change in keys {
        let mut other = view();
        change(&mut other.key);
        assert_eq!(cause(valid(other)), NoClusterView::Incomplete);
    }
}

/// Their clients do not come to other nodes.
#[test]
fn where_traffic_stays_on_its_node_no_view_is_used() {
    let mut seen = hot(valid(view()));
    for service in seen.services.values_mut() {
        (service.internal_local, service.ready_here) = (true, 2);
    }
    let plan = decided(&dry_run("perService: 100%"), &seen);
    assert_eq!(plan.skipped(), [("noClusterView", 300)].into());
}

#[test]
fn by_a_valid_view_an_endpoint_sheds_its_excess_over_the_clusters_mean() {
    // 300 − 110, and of three that are moved one comes back.
    let found = words_of(&dry_run("perService: 100%"), view());
    assert_eq!(found, [("moved", 285), ("othersMoved", 15)].into());
    let balanced = View {
        sums: Sums {
            total: 900,
            squares: 900,
            largest: 1,
        },
        least: 290,
        ..view()
    };
    let plan = decided(&dry_run("perService: 100%"), &hot(valid(balanced)));
    assert_eq!(plan.skipped(), [("withinBalance", 300)].into());
    let facts = plan.balanced()[0].facts.unwrap();
    assert_eq!((facts.endpoints, facts.mean()), (3, 300));
}

#[test]
fn a_node_moves_no_more_than_its_share_and_no_more_than_its_own_budget() {
    let moved = |policy: &Policy, change: &dyn Fn(&mut View)| {
        let mut view = view();
        change(&mut view);
        let words = words_of(policy, view);
        let waits = |word| words.get(word).copied().unwrap_or_default();
        (words["moved"], waits("shareBudget"), waits("serviceBudget"))
    };
    let share = |from, to| move |view: &mut View| view.share = Share { from, to };
    let tenth = dry_run("perService: 10%");
    assert_eq!(moved(&tenth, &|_| ()), (30, 0, 255));
    assert_eq!(moved(&tenth, &share(0, 500_000)), (15, 270, 0));
    assert_eq!(moved(&tenth, &share(500_000, 500_000)), (0, 285, 0));
    let three = dry_run("perService: 3");
    assert_eq!(moved(&three, &share(0, 400_000)), (2, 283, 0));
    assert_eq!(moved(&three, &share(400_000, 1_000_000)), (1, 284, 0));
    // Whatever is claimed of the others.
    let claimed = |view: &mut View| {
        view.connections = u64::MAX;
        view.excess = u64::MAX;
    };
    assert_eq!(moved(&tenth, &claimed), (30, 0, 255));
    assert_eq!(moved(&tenth, &share(0, u32::MAX)), (30, 0, 255));
}

#[test]
fn a_share_is_of_balance_alone() {
    let policy = policy(
        "DryRun",
        "perService: 10%",
        "limits: {maxAge: 1h}, jitter: 0%, balance: {tolerance: 10%}",
    );
    let view = View {
        share: Share::default(),
        ..view()
    };
    let words = words_of(&policy, view);
    assert_eq!(words["moved"], 30, "a limit is one on each node: {words:?}");
}

#[test]
fn a_report_is_of_what_balance_compares_and_of_empty_endpoints_too() {
    let policy = dry_run("perService: 100%");
    let reported = |seen: &Snapshot| report(&policy, seen, &Ledger::default());
    let [one] = &reported(&hot(Views::Off))[..] else {
        panic!();
    };
    assert_eq!(
        (&one.key, one.generation, one.ready),
        (&key(), GENERATION, 3)
    );
    assert_eq!((&one.loads[..], one.connections), (&[300][..], 300));
    assert_eq!(
        (one.sums.total, one.sums.squares, one.sums.largest),
        (300, 300, 1)
    );
    let empty = reported(&node(Vec::new(), Views::Off));
    assert_eq!(empty[0].loads, [0], "a new replica");

    let change = |change: &dyn Fn(&mut Snapshot)| {
        let mut seen = hot(Views::Off);
        change(&mut seen);
        reported(&seen).len()
    };
    let facts = |change: fn(&mut Service)| {
        move |seen: &mut Snapshot| seen.services.values_mut().for_each(change)
    };
    assert_eq!(change(&|_| ()), 1);
    assert_eq!(change(&facts(|s| s.ready = 1)), 0, "all of it is here");
    assert_eq!(change(&facts(|s| s.generation = None)), 0);
    assert_eq!(change(&facts(|s| s.headless = true)), 0);
    assert_eq!(change(&facts(|s| s.internal_local = true)), 0);
    assert_eq!(change(&facts(|s| s.external_local = true)), 0);
    assert_eq!(change(&|s| s.naming = Naming::Stale { silent: None }), 0);
    assert_eq!(change(&|s| s.services.clear()), 0);
    let not_ready = |seen: &mut Snapshot| {
        let mut pod = behind(&["web"]);
        pod.services.as_mut().unwrap()[0].ready = false;
        for endpoint in seen.endpoints.values_mut() {
            endpoint.who = named(pod.clone());
        }
    };
    assert_eq!(change(&not_ready), 0);
    let limits = self::policy("DryRun", "perService: 10%", "limits: {maxAge: 1h}");
    assert!(report(&limits, &hot(Views::Off), &Ledger::default()).is_empty());
}

#[test]
fn two_endpoints_on_one_node_are_reported_apart() {
    let mut seen = hot(Views::Off);
    seen.endpoints.insert(at(1), seen.endpoints[&at(0)].clone());
    for one in &mut seen.connections[..100] {
        one.endpoint = at(1);
    }
    let reports = report(&dry_run("perService: 10%"), &seen, &Ledger::default());
    assert_eq!((reports.len(), &reports[0].loads[..]), (1, &[200, 100][..]));
}

/// Nodes with as many endpoints each, three with one at first, the coordinator, and clients that reconnect at once to one of
/// them by chance.
struct Cluster {
    nodes: Vec<(Agent, Vec<Connection>)>,
    /// Endpoints on each.
    per_node: u32,
    merger: Merger,
    views: BTreeMap<String, Vec<View>>,
    now: u64,
    next: u64,
    seed: u64,
    moves: usize,
    /// When the ready endpoints last changed, and when some were lost.
    changed: Option<u64>,
    lost: Option<u64>,
}

/// An endpoint of a node, by its number there.
fn at(number: u32) -> EndpointKey {
    sample::endpoint(1 + number, 8080)
}

/// Where new endpoints are.
#[derive(Clone, Copy, Debug)]
enum Place {
    OtherNodes,
    SameNodes,
}

#[derive(Clone, Copy, Debug)]
enum Clients {
    One,
    Many,
}

impl Cluster {
    /// `clients`: each connection is of one of its own, or all are of one.
    fn new(seed: u64, clients: Clients) -> Self {
        let policy = policy("Enforce", "perService: 100%", BALANCE);
        Self::by(&policy, seed, clients)
    }

    fn by(policy: &Policy, seed: u64, clients: Clients) -> Self {
        let of_one = |cookie| Connection {
            remote: sample::connection(1).remote,
            ..connection(cookie)
        };
        let all = match clients {
            Clients::Many => (1..=300).map(connection).collect(),
            Clients::One => (1..=300).map(of_one).collect(),
        };
        Self {
            nodes: [all, Vec::new(), Vec::new()]
                .map(|all| (Agent::new(policy.clone()), all))
                .into(),
            per_node: 1,
            merger: Merger::default(),
            views: BTreeMap::new(),
            now: 10 * HOUR,
            next: 301,
            seed,
            moves: 0,
            changed: None,
            lost: None,
        }
    }

    fn random(&mut self, below: usize) -> usize {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.seed >> 33) as usize % below
    }

    fn seen(&self, number: usize) -> Snapshot {
        let views = match self.views.get(&number.to_string()) {
            Some(views) => Views::valid(views.clone(), Duration::from_secs(30)),
            None => Views::Awaited,
        };
        let mut seen = node(self.nodes[number].1.clone(), views);
        seen.taken = KernelTime(self.now);
        let ago = |at| Duration::from_nanos(self.now - at);
        for facts in seen.services.values_mut() {
            facts.changed = self.changed.map(ago);
            facts.lost = self.lost.map(ago);
            facts.ready = u32::try_from(self.endpoints()).unwrap();
            facts.ready_here = self.per_node;
            facts.generation = Some(Generation(facts.ready.into()));
        }
        for number in 1..self.per_node {
            let like_the_first = seen.endpoints[&at(0)].clone();
            seen.endpoints.insert(at(number), like_the_first);
        }
        seen
    }

    fn endpoints(&self) -> usize {
        self.nodes.len() * self.per_node as usize
    }

    /// There are twice as many endpoints.
    fn scale_out(&mut self, place: Place) {
        self.changed = Some(self.now);
        match place {
            Place::OtherNodes => {
                let policy = self.nodes[0].0.policy.clone();
                let new = || (Agent::new(policy.clone()), Vec::new());
                let nodes = self.nodes.len();
                self.nodes.extend(std::iter::repeat_with(new).take(nodes));
            }
            Place::SameNodes => self.per_node *= 2,
        }
    }

    /// Endpoints of other nodes go, and the connections of their clients come to these three. These know of it so many
    /// passes later. Had the endpoints come just before, they are flapping, and their end is no change.
    fn scale_in(&mut self, connections: u64, known_after: u32, are_flapping: bool) {
        for number in 0..3 {
            for _ in 0..connections {
                let new = Connection {
                    opened: KernelTime(self.now + 1),
                    remote: sample::connection(1).remote,
                    ..connection(self.next)
                };
                self.next += 1;
                self.nodes[number].1.push(new);
            }
        }
        (0..known_after).for_each(|_| self.pass());
        self.lost = Some(self.now);
        if !are_flapping {
            self.changed = Some(self.now);
        }
    }

    /// All report, and get their views ten seconds later.
    fn report(&mut self) {
        let now = Duration::from_nanos(self.now);
        self.views = self.merger.views(now);
        for number in 0..self.nodes.len() {
            let Agent { policy, ledger } = &self.nodes[number].0;
            let services = report(policy, &self.seen(number), ledger);
            let report = Report::of(self.now, services);
            self.merger.report(&number.to_string(), report, true, now);
        }
    }

    /// So many times a report and two passes.
    fn rounds(&mut self, count: u32) {
        for _ in 0..count {
            self.report();
            self.pass();
            self.pass();
        }
    }

    fn pass(&mut self) {
        self.now += 5 * SECOND;
        for number in 0..self.nodes.len() {
            let seen = self.seen(number);
            let (agent, live) = &mut self.nodes[number];
            let plan = agent.observe(&seen);
            agent.reset(&plan, seen.taken);
            agent.prune(&seen);
            let chosen: Vec<Cookie> = plan.moves().map(Move::cookie).collect();
            let (gone, kept) = live.drain(..).partition(|one| chosen.contains(&one.cookie));
            *live = kept;
            let gone: Vec<Connection> = gone;
            self.moves += gone.len();
            for one in gone {
                let to = self.random(self.endpoints());
                let to_endpoint = u32::try_from(to / self.nodes.len()).unwrap();
                let to = to % self.nodes.len();
                let again = Connection {
                    endpoint: at(to_endpoint),
                    cookie: Cookie(self.next),
                    opened: KernelTime(self.now + 1),
                    ..one
                };
                self.next += 1;
                self.nodes[to].1.push(again);
            }
        }
    }

    fn loads(&self) -> Vec<usize> {
        let mut loads = Vec::new();
        for number in 0..self.per_node {
            let here = |one: &&Connection| one.endpoint == at(number);
            let nodes = self.nodes.iter();
            loads.extend(nodes.map(|(_, live)| live.iter().filter(here).count()));
        }
        loads
    }
}

#[test]
fn clients_that_come_from_endpoints_that_are_gone_are_not_taken_for_those_that_were_moved() {
    let ways = [(0, false), (1, false), (0, true), (1, true)];
    let runs = (1..=5).flat_map(|seed| ways.map(|way| (seed, way)));
    for (seed, (known_after, are_flapping)) in runs {
        let mut cluster = Cluster::new(seed, Clients::One);
        while cluster.moves < 100 {
            cluster.rounds(1);
        }
        // No view shows that they have arrived elsewhere.
        (0..8).for_each(|_| cluster.pass());
        cluster.scale_in(200, known_after, are_flapping);
        cluster.rounds(10);
        let now = KernelTime(cluster.now);
        for (agent, _) in &cluster.nodes {
            let cooldowns = agent.ledger.cooldowns(now);
            assert_eq!(cooldowns, [], "{seed}, known after {known_after}");
        }
    }
}

#[test]
fn three_nodes_become_even_and_stay_so() {
    let runs = (1..=5).flat_map(|seed| [(seed, Clients::Many), (seed, Clients::One)]);
    for (seed, clients) in runs {
        let mut cluster = Cluster::new(seed, clients);
        let (mut even_after, mut soon) = (None, 0);
        for round in 0..60 {
            cluster.rounds(1);
            if round == 10 {
                soon = cluster.moves;
            }
            let most = cluster.loads().into_iter().max().unwrap_or(0);
            if most > 143 {
                even_after = None;
            } else if even_after.is_none() {
                even_after = Some(round);
            }
        }
        println!(
            "seed {seed}, {clients:?}: {:?} after {} moves, even after {even_after:?} rounds",
            cluster.loads(),
            cluster.moves
        );
        assert!(
            even_after.is_some_and(|round| round <= 3),
            "in four rounds of reports"
        );
        assert_eq!(cluster.moves, soon, "then nothing is moved");
        // 285 are the least, as a third comes back.
        assert!(cluster.moves <= 285 * 115 / 100, "{}", cluster.moves);
    }
}

/// Of three hot nodes the first knows that moves help. Its clients come to the other two as well while these still
/// find out whether theirs do: that must not hide what has arrived at the new ones.
#[test]
fn three_nodes_whose_service_is_scaled_to_six_become_even() {
    let ways = [
        (Clients::Many, Place::OtherNodes),
        (Clients::One, Place::OtherNodes),
        (Clients::Many, Place::SameNodes),
        (Clients::One, Place::SameNodes),
    ];
    for (seed, (clients, place)) in (1..=10).flat_map(|seed| ways.map(|way| (seed, way))) {
        let guards = "guards: {minAge: 2s, stabilizationWindow: 2s}";
        let policy = policy_with("Enforce", "window: 10s, perService: 100%", BALANCE, guards);
        let mut cluster = Cluster::by(&policy, seed, clients);
        cluster.rounds(10);
        let before = cluster.loads();
        let moves = cluster.moves;
        cluster.scale_out(place);
        let mut even_after = None;
        for number in 0..30 {
            cluster.rounds(1);
            // As far as chance explains, beside the tolerance.
            if cluster.loads().into_iter().max() > Some(70) {
                even_after = None;
            } else if even_after.is_none() {
                even_after = Some(number);
            }
        }
        let moves = cluster.moves - moves;
        // Half of those moved come to one of the three that were hot.
        let least: usize = before.iter().map(|load| (load - 55) * 2).sum();
        println!(
            "seed {seed}, {clients:?}, {place:?}: {before:?} to {:?} after {moves} moves of {least}, even after {even_after:?} rounds",
            cluster.loads()
        );
        // One round until all nodes have a view of the new set, as views come a round late; two until one shows that
        // those tried have arrived; two more until the first has a share for what has come to it from the others.
        assert!(even_after.is_some_and(|round| round <= 9), "{even_after:?}");
        assert!(moves * 100 <= least * 115, "{moves} of {least}");
    }
}
