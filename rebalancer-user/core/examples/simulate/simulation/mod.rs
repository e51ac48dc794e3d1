//! A simulated cluster around the real `decide`. Time is simulated, and chance follows from a seed.

pub(crate) mod agent;
pub(crate) mod exchange;
pub(crate) mod measures;
pub(crate) mod oracle;
mod random;
mod replica;
pub(crate) mod scenario;
pub(crate) mod strategy;
mod world;

pub(crate) use measures::{Measures, Run, Start};

use std::time::Duration;

use rebalancer_core::{
    plan::Move,
    policy::{Percent, Policy, parse},
    snapshot::KernelTime,
};

use self::{
    agent::Agent,
    exchange::{Delivery, Exchange},
    measures::Sample,
    scenario::{Nodes, Scenario},
    strategy::Strategy,
    world::{Event, START, World},
};

const SECOND: Duration = Duration::from_secs(1);

/// Writes to a busy API server, a few of which fail.
const DELIVERY: Delivery = Delivery {
    delay: Duration::from_secs(2),
    lost: 0.02,
};

/// Plays `scenario` once.
pub(crate) fn run(scenario: &Scenario, strategy: Strategy, seed: u64) -> Run {
    let policy = policy(scenario, strategy);
    let tolerance = tolerance(scenario);
    let mut world = World::new(scenario, seed);
    let most = scenario.acts.len() + scenario.most_replicas();
    let nodes = if scenario.nodes == Nodes::Own {
        most
    } else {
        1
    };
    let mut agents: Vec<Agent> = (0..nodes)
        .map(|node| Agent::new(node, policy.clone()))
        .collect();
    for node in 0..nodes {
        // Agents do not run in step.
        let phase = scenario.interval / nodes as u32 * node as u32;
        world.after(scenario.interval + phase, Event::List(node));
    }
    let judged = KernelTime(START.0 + scenario.judged.as_nanos() as u64);
    let end = KernelTime(START.0 + scenario.ends.as_nanos() as u64);
    let mut exchange = (scenario.nodes == Nodes::Own).then(|| Exchange::new(nodes, DELIVERY, seed));
    if exchange.is_some() {
        world.after(SECOND, Event::Second);
    }
    let mut run = Run::new(scenario, tolerance, judged);
    while let Some(event) = world.next(end) {
        match event {
            Event::List(node) => {
                world.after(scenario.interval, event);
                let before = Sample::of(&world, tolerance);
                if node == 0 {
                    world.carry(scenario.interval);
                    run.sample(before.clone(), &world);
                }
                let once_done = strategy == Strategy::All && run.has_moved_at(node);
                if once_done || strategy == Strategy::All && world.now < judged {
                    continue;
                }
                let plan = agents[node].list(&world, exchange.as_mut());
                let starts = plan.moves().map(|chosen| start(&world, node, chosen));
                run.planned(&plan, starts.collect(), &before);
                for chosen in plan.moves() {
                    let quiet = world.random.quiet();
                    world.after(quiet, Event::End(node, chosen.cookie()));
                }
            }
            Event::Second => {
                world.after(SECOND, event);
                if let Some(exchange) = &mut exchange {
                    exchange.second(world.now.since(START));
                }
            }
            Event::End(node, cookie) if !agents[node].moves(cookie) => {}
            Event::End(node, cookie) => {
                let was_there = world.end(cookie);
                agents[node].ended(cookie, was_there, world.now);
            }
            other => world.happens(other),
        }
    }
    run
}

fn policy(scenario: &Scenario, strategy: Strategy) -> Policy {
    let text = strategy.policy(scenario);
    parse("simulated", &text).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

fn tolerance(scenario: &Scenario) -> Percent {
    let balancing = policy(scenario, Strategy::Excess);
    let balance = balancing.rules().iter().find_map(|rule| rule.balance());
    balance.expect("its rule balances").tolerance()
}

fn start(world: &World, node: usize, chosen: &Move) -> Start {
    Start {
        at: world.now,
        node,
        client: chosen.remote().ip(),
    }
}
