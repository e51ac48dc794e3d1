//! A simulated cluster around the product's own `decide`. Time and chance are made up and follow
//! from one number; what is decided is not.

mod agent;
mod measures;
mod oracle;
mod random;
mod replica;
pub(crate) mod scenario;
pub(crate) mod strategy;
mod world;

pub(crate) use measures::{Measures, Run, Spread};

use rebalancer_user::{
    plan::Move,
    policy::parse,
    snapshot::{EndpointKey, KernelTime},
};

use self::{
    agent::Agent,
    measures::{Sample, Start},
    scenario::{Nodes, Scenario},
    strategy::Strategy,
    world::{Event, START, World},
};

/// Plays `scenario` once.
pub(crate) fn run(scenario: &Scenario, strategy: Strategy, seed: u64) -> Run {
    let text = strategy.policy(scenario);
    let policy = parse("simulated", &text).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    let mut world = World::new(scenario, seed);
    let most = scenario.acts.len() + scenario.most_replicas();
    let nodes = if scenario.nodes == Nodes::Own { most } else { 1 };
    let mut agents: Vec<Agent> = (0..nodes).map(|node| Agent::new(node, policy.clone())).collect();
    for node in 0..nodes {
        // Agents do not list at the same moment.
        let phase = scenario.interval / nodes as u32 * node as u32;
        world.after(scenario.interval + phase, Event::List(node));
    }
    let judged = KernelTime(START.0 + scenario.judged.as_nanos() as u64);
    let end = KernelTime(START.0 + scenario.ends.as_nanos() as u64);
    let mut run = Run::new(scenario, judged);
    while let Some(event) = world.next(end) {
        match event {
            Event::List(node) => {
                world.after(scenario.interval, event);
                let before = Sample::of(&world, scenario.tolerance);
                if node == 0 {
                    world.carry(scenario.interval);
                    run.sample(before.clone(), &world);
                }
                let once_done = strategy == Strategy::All && run.has_moved_at(node);
                if once_done || strategy == Strategy::All && world.now < judged {
                    continue;
                }
                let plan = agents[node].list(&world);
                let starts = plan.moves().map(|chosen| start(&world, node, chosen));
                run.planned(&plan, starts.collect(), &before);
                for chosen in plan.moves() {
                    let quiet = world.random.quiet();
                    world.after(quiet, Event::End(node, chosen.cookie()));
                }
            }
            Event::End(node, cookie) => {
                let was_there = world.end(cookie);
                agents[node].ended(cookie, was_there, world.now);
            }
            other => world.happens(other),
        }
    }
    run
}

fn start(world: &World, node: usize, chosen: &Move) -> Start {
    let by_key = |key: EndpointKey| world.replicas.iter().position(|r| r.key() == key);
    Start {
        at: world.now,
        node,
        client: chosen.remote().ip(),
        replica: by_key(chosen.endpoint()).unwrap_or(usize::MAX),
    }
}
