//! `cargo xtask test answers`: a policy with only `maxAge`, against servers that pause within their
//! responses, directly and behind nginx and haproxy. It fails if a response is cut off, if a tunnel
//! is ended, or if movable connections are not moved.

mod client;
mod load;
mod observations;
mod request;
mod routes;
mod server;
mod table;
mod wire;

use std::{path::PathBuf, time::Instant};

use anyhow::{Result, ensure};
use xtask::lab::{Lab, Spec};

use crate::{
    agent::Agent,
    build,
    policy::{Policy, QUICK},
    progress::Step,
    setup::{self, Need},
    terminal::{green, heading, red},
};
use client::Load;
use observations::{Cell, Sums};
use routes::Route;
use table::table;

pub(crate) use server::{Args as ServerArgs, run as serve};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Number of responses
    #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
    answers: u64,
    /// Longest pause within a response, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=60))]
    longest: u64,
    /// Instead, make this many moves of clients with think time while two compilers run [default:
    /// 500]
    #[arg(long, value_name = "MOVES", num_args = 0..=1, default_missing_value = "500")]
    beside_load: Option<u64>,
    /// Set `onReconnect: Safe`, so that a pause counts as an end; fails if no response is cut off
    #[arg(long, conflicts_with = "beside_load")]
    vouched: bool,
    /// Test this agent instead of building one
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
}

/// The percentage of chosen connections in use that must be moved within two exchanges.
const MOVED: u64 = 95;
/// From this number of responses per cell on, some connection of the cell must be moved.
const MANY: u64 = 50;
const RULE: &str = "old";
/// Number of problems printed.
const SHOWN: usize = 20;

pub(crate) fn run(arguments: &Args) -> Result<()> {
    setup::needs_this_kernel()?;
    let needs = [Need::Host, Need::Answers];
    let program = build::given_or_built(arguments.agent.as_deref(), &needs)?;
    if let Some(moves) = arguments.beside_load {
        return load::run(&program, moves);
    }
    let answers = arguments.answers;
    let cells = Cell::all().count() as u64;
    let plain = Cell::all().filter(|cell| !cell.kind.is_tunnel()).count() as u64;
    let load = Load {
        answers: answers.div_ceil(plain),
        // About ten exchanges each.
        connections: (answers / cells / 10).clamp(3, 10),
        longest: 1000 * arguments.longest,
    };
    heading("Responses with pauses, under a policy with only maxAge");
    let started = Instant::now();
    let lab = Lab::start(Spec {
        pods: 1,
        serving: 0,
    })?;
    let pod = lab.pod(0);
    let mut servers = routes::start(&lab, pod)?;
    let policy = policy(&lab, &Route::ALL.map(Route::port), arguments.vouched);
    let agent = Agent::start_for(&lab, pod, &program, &policy)?;
    let title = format!(
        "{} responses of each kind on each route, {cells} cells, {} connections",
        load.answers,
        cells * load.connections
    );
    let mut seen = Step::run(&title, |_| client::run(lab.client(), pod.addr, load))?;
    let log = agent.stop()?;
    for server in &mut servers {
        if !server.is_alive()? {
            seen.problems.push("a server or a proxy died".to_owned());
        }
    }
    seen.add(&log.ended);
    if load.answers >= MANY && !arguments.vouched {
        let stayed = Cell::all().filter(|cell| cell.can_move() && !seen.has_moved(*cell));
        let stayed: Vec<_> = stayed
            .map(|cell| format!("{cell:?}: no connection was moved"))
            .collect();
        seen.problems.extend(stayed);
    }
    println!("\n{}", table(&seen));
    if !seen.problems.is_empty() {
        for problem in seen.problems.iter().chain(&log.problems).take(SHOWN) {
            println!("  {} {problem}", red("✗"));
        }
    }
    let all = |of: fn(&Sums) -> u64| seen.cells.values().map(of).sum::<u64>();
    let tunnels = seen.cells.iter().filter(|(cell, _)| cell.kind.is_tunnel());
    let tunnels: u64 = tunnels.map(|(_, sums)| sums.answers).sum();
    let (broken, in_time) = (all(|sums| sums.broken), all(|sums| sums.in_time));
    let judged = in_time + all(|sums| sums.late);
    println!(
        "{} complete responses, {tunnels} complete tunnels, {broken} cut off or ended; {} requests \
         crossed a reset; {} connections moved, {in_time} of {judged} within two exchanges; {:.0} s.",
        all(|sums| sums.answers) - tunnels,
        all(|sums| sums.crossed),
        all(|sums| sums.moved),
        started.elapsed().as_secs_f64()
    );
    if arguments.vouched {
        ensure!(
            broken > 0,
            "no response was cut off: the test proves nothing"
        );
        return Ok(());
    }
    let problems = seen.problems.len();
    ensure!(problems == 0, "{problems} problems, see above");
    ensure!(
        in_time > 0 && in_time * 100 >= MOVED * judged,
        "fewer than {MOVED} % were moved within two exchanges"
    );
    println!("{}", green("Nothing was lost."));
    Ok(())
}

/// A policy with only `maxAge`.
fn policy(lab: &Lab, ports: &[u16], vouched: bool) -> String {
    let policy = Policy {
        pace: QUICK,
        rule: RULE,
        ports,
        client_subnet: &lab.client_subnet(),
        limits: "maxAge: 2s",
        more: if vouched { "  onReconnect: Safe\n" } else { "" },
    };
    policy.file("Enforce")
}
