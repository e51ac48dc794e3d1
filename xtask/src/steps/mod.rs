//! `cargo xtask test steps`: what each step does to real servers and their clients, as a table.
//! A column has a pod and an agent of its own, so that all columns of a row are measured at once
//! and alike. It fails if the defaults lose what they must skip, or a server dies.

mod clients;
mod columns;
mod nginx;
mod postgres;
mod redis;
mod sigpipe;
mod table;
mod tally;
mod websocket;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use xtask::lab::{Lab, Pod, Spec};

use crate::server::{self, Running};
use crate::{
    agent::Agent,
    build,
    progress::Step,
    setup::{self, Need},
    terminal::{green, heading, red},
};
use clients::Clients;
use columns::Column;
use table::{Cell, Row};
use tally::Seen;

/// How long connections are moved.
const MOVING: Duration = Duration::from_secs(7);
/// How long the clients go on, so that each hears of the last moves.
const AFTERWARDS: Duration = Duration::from_millis(1500);

/// One real server, and what its clients are in the middle of.
struct Server {
    start: fn(&Lab, &Pod) -> Result<Running>,
    situations: &'static [Situation],
}

/// A row of the table.
#[derive(Clone, Copy)]
struct Situation {
    title: &'static str,
    /// The clients' library or program.
    client: &'static str,
    rule: &'static str,
    port: u16,
    /// What is counted as lost, in the plural.
    lost: &'static str,
    defaults: Defaults,
    /// Whether its connections have quiet moments at all.
    ever_quiet: bool,
    run: fn(&Clients<'_>) -> Result<Seen>,
}

/// What a policy with no more than it must say shall do.
#[derive(Clone, Copy)]
enum Defaults {
    /// Move, and lose nothing.
    Moves,
    /// Wait, as there is no quiet moment.
    Waits,
    /// Skip, by a guard that the policy can lift.
    Skips(&'static str),
    /// Move none, as nothing is heard of it; a policy can lift that.
    Stays,
    /// Refuse, by what it hears; a policy can lift that too.
    Hears(&'static str),
    /// Refuse, by a guard that no policy lifts.
    Refused(&'static str),
}

/// The whole table.
pub(crate) fn run() -> Result<()> {
    setup::needs_this_kernel()?;
    setup::ensure(&[Need::Kernel, Need::Host, Need::Steps])?;
    heading("The agent");
    let servers = [
        nginx::SERVER,
        redis::SERVER,
        postgres::SERVER,
        websocket::SERVER,
        sigpipe::SERVER,
    ];
    measure(&build::agent()?, &servers)
}

fn measure(program: &Path, servers: &[Server]) -> Result<()> {
    heading("What each step does");
    let started = Instant::now();
    let lab = Lab::start(Spec {
        pods: Column::ALL.len(),
        serving: 0,
    })?;
    let bench = Bench::start(&lab, program)?;
    let mut rows = Vec::new();
    for server in servers {
        bench.rows(server, &mut rows)?;
    }
    bench.stop()?;
    println!("\n{}", table::head());
    rows.iter().for_each(|row| println!("{row}"));
    report(&rows, started.elapsed())
}

fn report(rows: &[Row], took: Duration) -> Result<()> {
    let mut broken: Vec<String> = rows.iter().flat_map(Row::broken).collect();
    // Or the measuring would prove nothing.
    let at_once = rows.iter().map(|row| row.cells[2].seen.lost);
    if at_once.sum::<u64>() == 0 {
        broken.push("resets at once lost nothing at all".to_owned());
    }
    println!();
    for what in &broken {
        println!("  {} {what}", red("✗"));
    }
    match broken.len() {
        0 => println!("{} in {:.0} s.", green("Measured"), took.as_secs_f64()),
        count => bail!("{count} expectations do not hold"),
    }
    Ok(())
}

/// A column's pod and agent.
struct Place<'a> {
    column: Column,
    pod: &'a Pod,
    agent: Agent,
}

struct Bench<'a> {
    lab: &'a Lab,
    places: Vec<Place<'a>>,
}

impl<'a> Bench<'a> {
    fn start(lab: &'a Lab, program: &Path) -> Result<Self> {
        let step = Step::start("an agent for each column");
        let places = Column::ALL
            .into_iter()
            .zip(lab.pods())
            .map(|(column, pod)| {
                let policy = column.rest("none", 1, &lab.client_subnet());
                let agent = Agent::start_for(lab, pod, program, &policy)?;
                Ok(Place { column, pod, agent })
            });
        let places = places.collect::<Result<_>>()?;
        step.done();
        Ok(Self { lab, places })
    }

    fn stop(self) -> Result<()> {
        for place in self.places {
            place.agent.stop()?;
        }
        Ok(())
    }

    /// Starts the server in every pod and measures its rows, one after the other.
    fn rows(&self, server: &Server, rows: &mut Vec<Row>) -> Result<()> {
        let mut running: Vec<Running> = std::thread::scope(|scope| {
            let starts = self.places.iter().map(|place| {
                let start = || (server.start)(self.lab, place.pod);
                scope.spawn(start)
            });
            // All of them begin before the first is waited for.
            let starts: Vec<_> = starts.collect();
            let started = starts
                .into_iter()
                .map(|start| start.join().expect("a start"));
            started.collect::<Result<_>>()
        })?;
        for situation in server.situations {
            let step = Step::start(situation.title);
            match self.row(situation, &mut running) {
                Ok(row) => rows.push(row),
                Err(error) => {
                    step.failed();
                    return Err(error.context(situation.title));
                }
            }
            step.done();
        }
        Ok(())
    }

    fn row(&self, situation: &Situation, running: &mut [Running]) -> Result<Row> {
        let subnet = self.lab.client_subnet();
        for place in &self.places {
            let Situation { rule, port, .. } = situation;
            place
                .agent
                .reload(&place.column.enforce(rule, *port, &subnet))?;
        }
        let rest = Instant::now() + MOVING;
        let mut seen = Vec::new();
        let mut skipped = Vec::new();
        let mut survived = Vec::new();
        let folders: Vec<_> = running.iter().map(|r| r.folder().to_owned()).collect();
        std::thread::scope(|scope| -> Result<()> {
            let clients = self.places.iter().zip(&folders).map(|(place, folder)| {
                let clients = Clients {
                    client: self.lab.client(),
                    pod: place.pod.addr,
                    port: situation.port,
                    folder,
                    until: rest + AFTERWARDS,
                };
                scope.spawn(move || (situation.run)(&clients))
            });
            let clients: Vec<_> = clients.collect();
            std::thread::sleep(rest.saturating_duration_since(Instant::now()));
            for place in &self.places {
                skipped.push(place.agent.skipped()?);
                let Situation { rule, port, .. } = situation;
                place
                    .agent
                    .reload(&place.column.rest(rule, *port, &subnet))?;
            }
            // Before the clients leave: what their own end does to a server is not counted.
            let last = rest + AFTERWARDS - Duration::from_millis(300);
            std::thread::sleep(last.saturating_duration_since(Instant::now()));
            for server in running.iter_mut() {
                survived.push(server.is_alive().context("look at the server")?);
            }
            for client in clients {
                seen.push(client.join().expect("clients do not panic")?);
            }
            Ok(())
        })?;
        // The clients have gone, and with them whatever still waited for a quiet moment.
        std::thread::sleep(Duration::from_millis(500));
        let parts = self.places.iter().zip(survived).zip(seen).zip(skipped);
        let cells = parts.map(|(((place, survived), seen), mut skipped)| {
            for cause in ["noRule", "withinLimits", "minAge", "inFlight"] {
                skipped.remove(cause);
            }
            let log = place.agent.log();
            let outcomes = log.outcomes(situation.rule).into_iter();
            Ok(Cell {
                outcomes: outcomes.map(|(o, n)| (o.to_owned(), n)).collect(),
                skipped,
                seen,
                survived,
            })
        });
        Ok(Row {
            situation: *situation,
            cells: cells.collect::<Result<_>>()?,
        })
    }
}
