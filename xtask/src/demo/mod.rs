//! `cargo xtask demo`: demonstrates the problem with real programs in three acts, then fixes it. It
//! fails if the connections do not spread.

pub(crate) mod fleet;
pub(crate) mod shares;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use xtask::lab::{Counts, Lab, PORT, Pod, Spec};

use crate::{
    ab,
    agent::{Agent, shown},
    build::{self, HeadStart},
    policy::Policy,
    progress::Step,
    setup::{self, Need},
    terminal::{bold, dim, green, heading, red},
};
use fleet::{Fleet, SIZE};
use shares::{SPREAD, Shares};

const REQUESTS: u64 = 3000;
const PACE: &str = "\
interval: 1s
budget: {window: 10s, perNode: 30, perService: 100%, perEndpoint: 100%, maxInFlight: 20}
guards: {minAge: 2s}
";
const STEPS: &str =
    "  jitter: 50%\n  steps: [{step: Reset, when: Quiet, idleFor: 100ms, timeout: 10s}]\n";
/// Seconds that the second act observes.
const WATCH: u32 = 10;
/// How long the third act waits for the connections to spread under each policy.
const PATIENCE: Duration = Duration::from_secs(45);
/// Number of consecutive reports that must show spread connections.
const STEADY: u32 = 3;

pub(crate) fn run() -> Result<()> {
    setup::needs_this_kernel()?;
    let head_start = HeadStart::take()?;
    setup::ensure(&[Need::Kernel, Need::Host])?;
    drop(head_start);
    heading("The agent");
    println!("  That of the tests, which is not optimized.");
    let program = build::unoptimized()?;
    println!("  {}", program.display());

    let started = Instant::now();
    let lab = Lab::start(Spec::default())?;
    let demo = Demo {
        pods: lab.pods().iter().map(|pod| pod.name.clone()).collect(),
        lab,
    };
    println!(
        "\n{} A client, a node with kube-proxy's rules and three pods with nginx,\n\
         each in its own network namespace. The Service is {}.",
        bold("The lab."),
        demo.lab.service()
    );
    demo.requests_spread_connections_do_not()?;
    let subnet = demo.lab.client_subnet();
    let old = Policy {
        pace: PACE,
        rule: "too-old",
        ports: &[PORT],
        client_subnet: &subnet,
        limits: "maxAge: 8s",
        more: STEPS,
    };
    let heavy = Policy {
        rule: "too-heavy",
        limits: "maxBytes: 4Mi",
        ..old
    };
    // Started before the first connection, in DryRun for now.
    let agent = Agent::start(&demo.lab, &program, &old.file("DryRun"), &[])?;
    let (fleet, before) = demo.scaling_out_does_not_help(&agent)?;
    act(
        "Act 3",
        "the rebalancer moves what is too old, then what is too heavy",
    );
    println!("\n{}", dim(indent(&old.file("Enforce"))));
    println!("  Connections are reset by {}.", agent.log().reset_by);
    demo.moves_until_spread(&agent, &old, fleet, &before)?;
    println!("\n  The same with downloads of 256 KiB and another limit:");
    println!("\n    {}", dim(format!("limits: {{{}}}", heavy.limits)));
    agent.reload(&heavy.file("DryRun"))?;
    let (fleet, before) = demo.skew("/blob")?;
    demo.moves_until_spread(&agent, &heavy, fleet, &before)?;
    for problem in agent.stop()?.problems.iter().take(5) {
        println!("  {} {}", red("the agent logged:"), dim(problem));
    }
    let seconds = started.elapsed().as_secs();
    println!(
        "\n{} The demo took {seconds} s; removing the lab.",
        green("Done.")
    );
    Ok(())
}

struct Demo {
    lab: Lab,
    pods: Vec<String>,
}

impl Demo {
    fn requests_spread_connections_do_not(&self) -> Result<()> {
        act(
            "Act 1",
            "kube-proxy chooses a replica for a connection, not for a request",
        );
        for keep in [false, true] {
            let before = self.counts()?;
            let done = ab::run(&self.lab, self.lab.service(), REQUESTS, 1, keep)?;
            let after = self.counts()?;
            ensure!(
                done.failed == 0,
                "ab: {} of {} requests failed",
                done.failed,
                done.complete
            );
            let since = before.iter().zip(&after);
            let requests = since.clone().map(|(b, a)| a.requests - b.requests);
            let requests = Shares::new(self.pods.iter().cloned().zip(requests));
            let connections: u64 = since.map(|(b, a)| a.accepted - b.accepted).sum();
            let (option, plural) = if keep { (" -k", "") } else { ("", "s") };
            let title = format!(
                "ab{option}: {} requests, {connections} connection{plural}",
                done.complete
            );
            print!("{}", requests.table(&title));
            ensure!(
                requests.is_spread() != keep && (done.kept > 0) == keep,
                "unexpected distribution of ab's requests: {}",
                requests.line()
            );
        }
        Ok(())
    }

    fn scaling_out_does_not_help(&self, agent: &Agent) -> Result<(Fleet, Shares)> {
        act(
            "Act 2",
            "kept connections stay where they are, even when replicas are added",
        );
        let (fleet, before) = self.skew("/")?;
        println!("  One replica; {SIZE} clients keep a connection and think 300 to 600 ms.");
        let step = Step::start(&format!("scaled to three replicas, waiting {WATCH} s"));
        let mut last = before.clone();
        for _ in 0..WATCH {
            let report = fleet.next()?;
            last = Shares::of(&self.pods, &report.connections);
            step.update(&last.line());
        }
        step.end(true);
        print!(
            "{}",
            last.table(&format!("connections, {WATCH} s after scaling out"))
        );
        ensure!(
            last == before,
            "connections moved without an agent: {}",
            last.line()
        );
        println!("  Nothing moved: the two new replicas are idle. What the agent sees, still in");
        println!(
            "  DryRun (it would have moved {}):\n",
            agent.log().would_move
        );
        println!("{}", indent(&agent.dump_endpoints("table")?));
        Ok((fleet, last))
    }

    /// Starts a new fleet on one replica, then scales to three.
    fn skew(&self, path: &str) -> Result<(Fleet, Shares)> {
        // Scale to zero first: the agent must see the listener being created.
        self.lab.scale(0)?;
        self.lab.scale(1)?;
        let fleet = Fleet::start(&self.lab, path)?;
        let shares = Shares::of(&self.pods, &fleet.next()?.connections);
        self.lab.scale(self.pods.len())?;
        self.lab.wait_ready()?;
        Ok((fleet, shares))
    }

    fn moves_until_spread(
        &self,
        agent: &Agent,
        policy: &Policy<'_>,
        fleet: Fleet,
        before: &Shares,
    ) -> Result<()> {
        agent.reload(&policy.file("Enforce"))?;
        let step = Step::start("the agent moves, at most 30 in 10 s");
        let started = Instant::now();
        let (mut steady, mut after) = (0, before.clone());
        while steady < STEADY && started.elapsed() < PATIENCE {
            let report = fleet.next()?;
            after = Shares::of(&self.pods, &report.connections);
            let moves: u64 = agent.log().outcomes(policy.rule).values().sum();
            step.update(&format!("{moves} moves: {}", after.line()));
            steady = if after.is_spread() { steady + 1 } else { 0 };
        }
        let spread = steady == STEADY;
        step.end(spread);
        agent.reload(&policy.file("DryRun"))?;
        let report = fleet.stop()?;
        println!("  {}", bold("connections"));
        print!("{}", before.beside(&after));
        show_moves(&agent.log().outcomes(policy.rule));
        let answers: u64 = report.answers.values().sum();
        show_errors(answers, report.errors, report.last_error.as_deref());
        if !spread {
            bail!(
                "the connections did not spread in {} s: every pod should have {} to {} % of them",
                PATIENCE.as_secs(),
                SPREAD.start(),
                SPREAD.end()
            );
        }
        Ok(())
    }

    fn counts(&self) -> Result<Vec<Counts>> {
        self.lab.pods().iter().map(Pod::counts).collect()
    }
}

fn act(number: &str, title: &str) {
    heading(format!("{number}: {title}"));
}

fn show_moves(outcomes: &BTreeMap<String, u64>) {
    let moves = match outcomes.is_empty() {
        true => "none".to_owned(),
        false => shown(outcomes),
    };
    println!("    {:<26}{moves}", "moves, by outcome");
}

fn show_errors(answers: u64, errors: u64, last: Option<&str>) {
    let count = if errors == 0 {
        green("none")
    } else {
        red(errors)
    };
    println!(
        "    {:<26}{count} in {answers} requests",
        "errors the clients saw"
    );
    if let Some(last) = last {
        println!("    {:<26}{last}", "last error");
    }
}

fn indent(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| format!("    {line}")).collect();
    lines.join("\n")
}
