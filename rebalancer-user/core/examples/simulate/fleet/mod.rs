//! A large cluster: thousands of nodes with the real decisions, whose reports go through the real merge. Some of its
//! Services are scaled out, while connections come and go everywhere.

mod world;

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::Result;
use rebalancer_core::{
    policy::{Policy, parse},
    views::REPORT_EVERY,
};

use self::world::{Event, World};
use crate::{
    simulation::{
        agent::Agent,
        exchange::{Delivery, Exchange, Traffic},
        oracle,
    },
    spread::quantile,
};

/// Until the first scale-out.
const QUIET: Duration = Duration::from_secs(90);
const SECOND: Duration = Duration::from_secs(1);
/// The interval of the agents' passes.
const INTERVAL: Duration = Duration::from_secs(5);
const STABILIZATION: Duration = Duration::from_secs(15);
/// Writes to a busy API server, a few of which fail.
const DELIVERY: Delivery = Delivery {
    delay: Duration::from_secs(2),
    lost: 0.02,
};
/// Bytes of an object beside its report and its views (names, managed fields); an estimate.
const ENVELOPE: u64 = 900;

/// How large the cluster is.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Size {
    /// Nodes of the large cluster
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub(crate) nodes: u32,
    /// Services of the large cluster
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub(crate) services: u32,
    /// Connections of the large cluster
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) connections: usize,
    /// Seconds that the large cluster is simulated for, 90 of them before the scale-out
    #[arg(long, default_value_t = 480, value_parser = clap::value_parser!(u64).range(120..=86_400))]
    pub(crate) seconds: u64,
}

/// What became of the Services that were scaled out, and what it has cost.
pub(crate) struct Results {
    size: Size,
    scaled: usize,
    /// Of each that became so, after how many periods of reports.
    cool_after: Vec<f64>,
    even_after: Vec<f64>,
    moves: u64,
    least: f64,
    moves_elsewhere: u64,
    traffic: Traffic,
    took: Duration,
}

/// Plays it once.
pub(crate) fn run(size: Size) -> Result<Results> {
    let began = Instant::now();
    let policy = policy();
    let tolerance = (policy.rules().iter())
        .find_map(|rule| rule.balance())
        .expect("its rule balances")
        .tolerance();
    let mut world = World::new(size);
    let nodes = size.nodes as usize;
    let mut agents: Vec<Agent> = (0..nodes)
        .map(|node| Agent::new(node, policy.clone()))
        .collect();
    let mut exchange = Exchange::new(nodes, DELIVERY, 1);
    let end = Duration::from_secs(size.seconds);
    for node in 0..nodes {
        let phase = INTERVAL.mul_f64(node as f64 / nodes as f64);
        world.after(phase, Event::Pass(node));
    }
    world.after(SECOND, Event::Second);
    world.after(QUIET, Event::ScaleOut);
    let mut scaled: Vec<Scaled> = Vec::new();
    let mut moves_elsewhere = 0;
    let mut at_rest = Traffic::default();
    while let Some(event) = world.next(end) {
        match event {
            Event::Second => {
                world.after(SECOND, event);
                exchange.second(world.now);
                for one in scaled.iter_mut().filter(|one| one.even_after.is_none()) {
                    let facts = oracle::facts(&world.loads(one.service));
                    if facts.one_is_empty() || world.away(one.service) > 0 {
                        continue;
                    }
                    let is_hot = (facts.start(tolerance)).is_some_and(|start| facts.most >= start);
                    if one.cool_after.is_none() && !is_hot {
                        one.cool_after = Some(world.now - one.since);
                    }
                    if facts.most <= facts.stop(tolerance) {
                        one.even_after = Some(world.now - one.since);
                    }
                }
                let seconds = world.now.as_secs();
                if seconds.is_multiple_of(30) {
                    let even = scaled.iter().filter(|one| one.even_after.is_some()).count();
                    eprintln!("  {seconds} s: {even} of {} are even", scaled.len());
                }
            }
            Event::ScaleOut => {
                at_rest = exchange.traffic;
                for service in world.scale_out() {
                    let loads = world.loads(service);
                    scaled.push(Scaled {
                        service,
                        since: world.now,
                        least: oracle::least(&loads, tolerance, service as u64),
                        moves: 0,
                        cool_after: None,
                        even_after: None,
                    });
                }
            }
            Event::Pass(node) => {
                world.after(INTERVAL, event);
                let snapshot = world.snapshot(node);
                let plan = agents[node].pass(snapshot, world.now, Some(&mut exchange));
                for chosen in plan.moves() {
                    let service = world.service_of(chosen.endpoint());
                    match scaled.iter_mut().find(|one| one.service == service) {
                        Some(one) => one.moves += 1,
                        None => moves_elsewhere += 1,
                    }
                    world.move_soon(node, chosen.endpoint(), chosen.cookie());
                }
            }
            Event::End(node, _, cookie) if !agents[node].moves(cookie) => {}
            Event::End(node, replica, cookie) => {
                let was_there = world.end(replica, cookie);
                agents[node].ended(cookie, was_there, world.kernel_time());
            }
            other => world.happens(other),
        }
    }
    Ok(Results {
        size,
        scaled: scaled.len(),
        cool_after: (scaled.iter())
            .filter_map(|one| Scaled::periods(one.cool_after))
            .collect(),
        even_after: (scaled.iter())
            .filter_map(|one| Scaled::periods(one.even_after))
            .collect(),
        moves: scaled.iter().map(|one| one.moves).sum(),
        least: scaled.iter().map(|one| one.least).sum(),
        moves_elsewhere,
        traffic: since(exchange.traffic, at_rest),
        took: began.elapsed(),
    })
}

/// What it has cost since then.
fn since(traffic: Traffic, before: Traffic) -> Traffic {
    Traffic {
        reports: traffic.reports - before.reports,
        views: traffic.views - before.views,
        report_bytes: traffic.report_bytes - before.report_bytes,
        view_bytes: traffic.view_bytes - before.view_bytes,
        merging: traffic.merging - before.merging,
        longest_merge: traffic.longest_merge,
    }
}

/// A Service that was scaled out.
struct Scaled {
    service: usize,
    since: Duration,
    least: f64,
    moves: u64,
    /// Until no endpoint held more, and none less, than tolerance and chance explain.
    cool_after: Option<Duration>,
    /// Until also none held more than the tolerance alone.
    even_after: Option<Duration>,
}

impl Scaled {
    /// Periods of reports, beside the time that the policy waits after a change of the endpoints.
    fn periods(after: Option<Duration>) -> Option<f64> {
        let moving = after?.saturating_sub(STABILIZATION);
        Some(moving.as_secs_f64() / REPORT_EVERY.as_secs_f64())
    }
}

/// Budgets allow everything at once, so that reports and views alone set the pace.
fn policy() -> Policy {
    let text = format!(
        "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: Enforce
interval: {}s
budget: {{window: 10s, perNode: 100%, perService: 100%, perEndpoint: 100%, maxInFlight: 10000}}
guards: {{minAge: 1s, stabilizationWindow: {}s}}
rules:
- name: web
  match: {{ports: [{{port: {}}}]}}
  balance: {{}}
",
        INTERVAL.as_secs(),
        STABILIZATION.as_secs(),
        world::PORT
    );
    parse("simulated", &text).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Size {
            nodes,
            services,
            connections,
            seconds,
        } = self.size;
        let time = (seconds - QUIET.as_secs()) as f64;
        let Traffic {
            reports,
            views,
            report_bytes,
            view_bytes,
            merging,
            longest_merge,
        } = self.traffic;
        // Each write is seen by the coordinator and by the node that it is about, with the whole object.
        let writes = reports + views;
        let object = report_bytes as f64 / reports.max(1) as f64
            + view_bytes as f64 / views.max(1) as f64
            + ENVELOPE as f64;
        let watched = writes as f64 * object / time;
        writeln!(
            f,
            "{nodes} nodes, {services} Services, {connections} connections: {} Services are scaled out by half; \
             simulated {seconds} s in {:.0} s",
            self.scaled,
            self.took.as_secs_f64()
        )?;
        for (what, after) in [
            ("no endpoint is hot", &self.cool_after),
            ("all within the tolerance", &self.even_after),
        ] {
            let of = |part| quantile(after, part);
            writeln!(
                f,
                "  {what}: {} of {}, after {:.1} periods of reports (half of them), {:.1} (9 of 10), {:.1} (all)",
                after.len(),
                self.scaled,
                of(0.5),
                of(0.9),
                of(1.0)
            )?;
        }
        writeln!(
            f,
            "  moves: {}, {:.2} × the least; of Services that were not scaled: {}",
            self.moves,
            self.moves as f64 / self.least.max(1.0),
            self.moves_elsewhere
        )?;
        writeln!(
            f,
            "  API server: {:.0} writes a second ({:.0} reports, {:.0} views); {:.4} a second and node",
            writes as f64 / time,
            reports as f64 / time,
            views as f64 / time,
            writes as f64 / time / f64::from(nodes)
        )?;
        writeln!(
            f,
            "  watched: {:.2} MB/s by the coordinator, {:.0} B/s by an agent; an object has {object:.0} bytes",
            watched / 1e6,
            watched / f64::from(nodes)
        )?;
        write!(
            f,
            "  coordinator: {:.1} % of a CPU, {:.0} ms for the longest merge",
            100.0 * merging.as_secs_f64() / time,
            1e3 * longest_merge.as_secs_f64()
        )
    }
}
