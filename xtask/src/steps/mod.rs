//! `cargo xtask test steps`: a table of what each step does to real servers and their clients. Each
//! column has its own pod and agent, so that all columns of a row are measured at the same time
//! under the same conditions. It fails if the defaults lose requests, or if a server dies.

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
/// How long the clients continue, so that each notices the last moves.
const AFTERWARDS: Duration = Duration::from_millis(1500);

/// A server and the situations in which its clients are moved.
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
    port: u16,
    /// Name of the losses, such as "requests failed".
    lost: &'static str,
    defaults: Defaults,
    /// Whether its connections ever have quiet moments.
    ever_quiet: bool,
    run: fn(&Clients<'_>) -> Result<Seen>,
}

/// The expected effect of a policy with required fields only.
#[derive(Clone, Copy)]
enum Defaults {
    /// Moves and loses nothing.
    Moves,
    /// Waits, as there is no quiet moment.
    Waits,
    /// Skips, for this cause; a policy can disable the guard.
    Skips(&'static str),
    /// Moves nothing, as the protocol is not detected; a policy can disable detection.
    Undetected,
    /// Refuses, because of the detected protocol; a policy can disable detection.
    Detected(&'static str),
    /// Refuses, by a guard that no policy can disable.
    Refused(&'static str),
}

/// Measures and prints the whole table.
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
    // Otherwise the measurement proves nothing.
    let at_once = rows.iter().map(|row| row.cells[2].seen.lost);
    if at_once.sum::<u64>() == 0 {
        broken.push("resets at once lost nothing".to_owned());
    }
    println!();
    for what in &broken {
        println!("  {} {what}", red("✗"));
    }
    match broken.len() {
        0 => println!("{} in {:.0} s.", green("Measured"), took.as_secs_f64()),
        count => bail!("{count} expectations failed"),
    }
    Ok(())
}

/// A column's pod and agent.
struct ColumnRun<'a> {
    column: Column,
    pod: &'a Pod,
    agent: Agent,
}

struct Bench<'a> {
    lab: &'a Lab,
    columns: Vec<ColumnRun<'a>>,
}

impl<'a> Bench<'a> {
    fn start(lab: &'a Lab, program: &Path) -> Result<Self> {
        let start = |(column, pod): (Column, &'a Pod)| {
            let policy = column.policy("Disabled", "none", 1, &lab.client_subnet());
            let agent = Agent::start_for(lab, pod, program, &policy)?;
            Ok(ColumnRun { column, pod, agent })
        };
        let columns = Column::ALL.into_iter().zip(lab.pods()).map(start);
        let columns = Step::run("an agent for each column", |_| columns.collect())?;
        Ok(Self { lab, columns })
    }

    fn stop(self) -> Result<()> {
        for run in self.columns {
            run.agent.stop()?;
        }
        Ok(())
    }

    /// Starts the server in every pod and measures its rows, one after the other.
    fn rows(&self, server: &Server, rows: &mut Vec<Row>) -> Result<()> {
        let mut running: Vec<Running> = std::thread::scope(|scope| {
            let starts = self.columns.iter().map(|run| {
                let start = || (server.start)(self.lab, run.pod);
                scope.spawn(start)
            });
            // Start all before waiting for the first.
            let starts: Vec<_> = starts.collect();
            let started = starts
                .into_iter()
                .map(|start| start.join().expect("starting a server does not panic"));
            started.collect::<Result<_>>()
        })?;
        for situation in server.situations {
            let rule = format!("row-{}", rows.len());
            let row = Step::run(situation.title, |_| {
                self.row(situation, &rule, &mut running)
            });
            rows.push(row.context(situation.title)?);
        }
        Ok(())
    }

    fn row(&self, situation: &Situation, rule: &str, running: &mut [Running]) -> Result<Row> {
        let subnet = self.lab.client_subnet();
        let reload = |run: &ColumnRun<'_>, mode: &str| {
            let policy = run.column.policy(mode, rule, situation.port, &subnet);
            run.agent.reload(&policy)
        };
        for run in &self.columns {
            reload(run, "Enforce")?;
        }
        let end = Instant::now() + MOVING;
        let mut seen = Vec::new();
        let mut skipped = Vec::new();
        let mut survived = Vec::new();
        let folders: Vec<_> = running.iter().map(|r| r.folder.clone()).collect();
        std::thread::scope(|scope| -> Result<()> {
            let clients = self.columns.iter().zip(&folders).map(|(run, folder)| {
                let clients = Clients {
                    client: self.lab.client(),
                    pod: run.pod.addr,
                    port: situation.port,
                    folder,
                    until: end + AFTERWARDS,
                };
                scope.spawn(move || (situation.run)(&clients))
            });
            let clients: Vec<_> = clients.collect();
            std::thread::sleep(end.saturating_duration_since(Instant::now()));
            for run in &self.columns {
                skipped.push(run.agent.skipped()?);
                reload(run, "Disabled")?;
            }
            // Before the clients stop, as stopping them may affect the server.
            let last = end + AFTERWARDS - Duration::from_millis(300);
            std::thread::sleep(last.saturating_duration_since(Instant::now()));
            for server in running.iter_mut() {
                survived.push(server.is_alive().context("check the server")?);
            }
            for client in clients {
                seen.push(client.join().expect("clients do not panic")?);
            }
            Ok(())
        })?;
        // The clients have stopped, so moves that waited for a quiet moment end.
        std::thread::sleep(Duration::from_millis(500));
        let parts = self.columns.iter().zip(survived).zip(seen).zip(skipped);
        let cells = parts.map(|(((run, survived), seen), mut skipped)| {
            for cause in ["noRule", "withinLimits", "minAge", "inFlight"] {
                skipped.remove(cause);
            }
            Cell {
                outcomes: run.agent.log().outcomes(rule),
                skipped,
                seen,
                survived,
            }
        });
        Ok(Row {
            situation: *situation,
            cells: cells.collect(),
        })
    }
}
