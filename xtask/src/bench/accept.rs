//! `cargo xtask bench accept`: the cost of recording an accepted connection.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use xtask::{
    lab::{Lab, Spec},
    sock_ops::SockOps,
};

use super::ratios::Quartiles;
use crate::{
    ab,
    agent::Agent,
    build,
    progress::Step,
    setup::{self, Need},
    terminal::{dim, heading},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Number of rounds; each measures every case once, in rotating order
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Connections per measurement
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    connections: u64,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Measure this agent instead of building one
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
}

/// ab's concurrency.
const CONCURRENCY: u64 = 8;

/// Its one rule matches none of the connections. The interval is long, so that listing is not measured.
const POLICY: &str = "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: Disabled
interval: 1h
rules: [{name: none, match: {ports: [{port: 1}]}, limits: {maxAge: 1h}}]
";

/// What is attached to the servers' cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    Untouched,
    Empty,
    Recorded,
}

impl Case {
    const ALL: [Self; 3] = [Self::Untouched, Self::Empty, Self::Recorded];

    fn name(self) -> &'static str {
        match self {
            Self::Untouched => "untouched",
            Self::Empty => "an empty program",
            Self::Recorded => "recorded",
        }
    }
}

pub(crate) fn run(arguments: &Args) -> Result<()> {
    setup::needs_this_kernel()?;
    let program = build::given_or_built(arguments.agent.as_deref(), &[Need::Host])?;
    let lab = Lab::start(Spec {
        pods: 1,
        serving: 1,
    })?;
    let bench = Bench {
        lab,
        program,
        connections: arguments.connections,
        quiet: arguments.json,
    };
    let rates = bench.rounds(arguments.rounds as usize)?;
    let report = Report::new(arguments, &rates)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.print();
    }
    Ok(())
}

struct Bench {
    lab: Lab,
    program: PathBuf,
    connections: u64,
    /// Standard output is JSON only.
    quiet: bool,
}

impl Bench {
    /// Connections per second of each round, in the order of [`Case::ALL`].
    fn rounds(&self, count: usize) -> Result<Vec<[f64; Case::ALL.len()]>> {
        let cases = Case::ALL.len();
        let connections = self.connections;
        let title = format!("{count} rounds of {cases} × {connections} connections");
        let step = (!self.quiet).then(|| Step::start(&title));
        let on_terminal = step.is_some() && std::io::stderr().is_terminal();
        let mut rounds = Vec::with_capacity(count);
        for round in 0..count {
            let mut rates = [0.0; Case::ALL.len()];
            for turn in 0..cases {
                // Rotate the order, so that no case always follows the same one.
                let index = (round + turn) % cases;
                let case = Case::ALL[index];
                if let Some(step) = &step {
                    step.update(&format!("round {} of {count}: {}", round + 1, case.name()));
                }
                rates[index] = self
                    .measure(case, round == 0)
                    .with_context(|| format!("round {}, {}", round + 1, case.name()))?;
            }
            rounds.push(rates);
            if !on_terminal {
                eprintln!("    round {} of {count}", round + 1);
            }
        }
        if let Some(step) = step {
            step.end(true);
        }
        Ok(rounds)
    }

    fn measure(&self, case: Case, check: bool) -> Result<f64> {
        let cgroup = self.cgroup()?;
        if case == Case::Untouched {
            return self.load();
        }
        if case == Case::Empty {
            let _attached = SockOps::attach_empty(cgroup).context("attach an empty program")?;
            return self.load();
        }
        let cgroup = cgroup.to_str().context("the cgroup's path")?;
        let agent = Agent::start(&self.lab, &self.program, POLICY, &["--cgroup", cgroup])?;
        let rate = self.load()?;
        if check {
            self.check(&agent)?;
        }
        agent.stop()?;
        Ok(rate)
    }

    /// The lab's cgroup: programs attached to it see the lab's connections only.
    fn cgroup(&self) -> Result<&Path> {
        let client = self.lab.client().cgroup();
        client.parent().context("the lab has a cgroup")
    }

    fn load(&self) -> Result<f64> {
        let pod = self.lab.pod(0).address();
        let done = ab::run(&self.lab, pod, self.connections, CONCURRENCY, false)?;
        ensure!(
            done.complete == self.connections && done.failed == 0 && done.kept == 0,
            "ab did not make {} connections: {done:?}",
            self.connections
        );
        Ok(done.per_second)
    }

    /// Checks that all connections were recorded.
    fn check(&self, agent: &Agent) -> Result<()> {
        let endpoints: Value = serde_json::from_str(&agent.dump_endpoints("json")?)?;
        let netns = self.lab.pod(0).host.netns_inode();
        let accepted: u64 = endpoints["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|endpoint| endpoint["netns"] == netns)
            .filter_map(|endpoint| endpoint["accepted"].as_u64())
            .sum();
        // ab opens a few more at the end, which it never uses.
        let expected = self.connections;
        ensure!(
            (expected..=expected + CONCURRENCY).contains(&accepted),
            "{accepted} connections were recorded, not {expected} or a few more"
        );
        Ok(())
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    kernel: String,
    cpus: usize,
    rounds: usize,
    connections_per_measurement: u64,
    connections: u64,
    cases: Vec<CaseReport>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CaseReport {
    name: &'static str,
    connections_per_second: Quartiles,
    /// Its rate divided by the untouched rate of the same round.
    ratio: Quartiles,
}

impl Report {
    fn new(arguments: &Args, rounds: &[[f64; Case::ALL.len()]]) -> Result<Self> {
        let kernel = rustix::system::uname().release().to_string_lossy().into();
        let case = |(index, case): (usize, &Case)| {
            let rates = rounds.iter().map(|rates| rates[index]);
            let ratios = rounds.iter().map(|rates| rates[index] / rates[0]);
            Some(CaseReport {
                name: case.name(),
                connections_per_second: Quartiles::of(rates)?,
                ratio: Quartiles::of(ratios)?,
            })
        };
        let cases: Option<Vec<_>> = Case::ALL.iter().enumerate().map(case).collect();
        let measurements = (rounds.len() * Case::ALL.len()) as u64;
        Ok(Self {
            kernel,
            cpus: std::thread::available_parallelism()?.get(),
            rounds: rounds.len(),
            connections_per_measurement: arguments.connections,
            connections: arguments.connections * measurements,
            cases: cases.context("no rounds")?,
        })
    }

    fn print(&self) {
        heading(format!(
            "Accepted connections: nginx, one worker; ab -c {CONCURRENCY}, no keep-alive; Linux {}, {} CPUs",
            self.kernel, self.cpus
        ));
        println!(
            "{:28}{:>14}{:>9}   middle half",
            "", "connections/s", "ratio"
        );
        for case in &self.cases {
            let ratio = case.ratio;
            println!(
                "  {:<26}{:>14.0}{:>9.3}   {:.3} to {:.3}",
                case.name,
                case.connections_per_second.median,
                ratio.median,
                ratio.lower,
                ratio.upper
            );
        }
        println!(
            "  {}",
            dim(format!(
                "medians of {} interleaved rounds, {} connections in total; ratios to the \
                 untouched rate of the same round",
                self.rounds, self.connections
            ))
        );
    }
}
