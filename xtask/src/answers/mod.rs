//! `cargo xtask test answers`: a policy with nothing but `maxAge`, against servers that pause amid
//! their answers, directly and behind nginx and haproxy. It fails if an answer is broken off, if what
//! has become a tunnel is ended, or if what can be moved is not.

mod client;
mod load;
mod proxies;
mod question;
mod seen;
mod server;
mod table;
mod wire;

use std::{path::PathBuf, time::Instant};

use anyhow::{Result, bail, ensure};
use xtask::lab::{Lab, Spec};

use crate::{
    agent::Agent,
    build,
    progress::Step,
    setup::{self, Need},
    terminal::{green, heading, red},
};
use client::Load;
use proxies::Way;
use seen::Cell;
use table::{Total, table};

pub(crate) use server::{Args as Serving, run as serve};

#[derive(clap::Args)]
pub(crate) struct Wanted {
    /// How many answers [default: 10000]
    #[arg(long, value_name = "COUNT")]
    answers: Option<u64>,
    /// The longest pause within one, in seconds [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=60))]
    longest: Option<u64>,
    /// Instead: so many moves of clients that think, while two compilers run [500 if not said]
    #[arg(long, value_name = "MOVES", num_args = 0..=1, default_missing_value = "500")]
    beside_load: Option<u64>,
    /// Let the rule vouch, so that a pause counts as an end: it fails if nothing breaks off then
    #[arg(long, conflicts_with = "beside_load")]
    vouched: bool,
    /// Try this agent instead of building one
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
}

impl Wanted {
    /// Whether something was said for this suite.
    pub(crate) fn any(&self) -> bool {
        self.answers.is_some()
            || self.longest.is_some()
            || self.beside_load.is_some()
            || self.vouched
            || self.agent.is_some()
    }
}

/// Of the connections that are old enough and whose clients go on, so many of a hundred must be
/// moved within two exchanges.
const MOVED: u64 = 95;
/// Of so many answers some connection must be moved.
const MANY: u64 = 50;
const RULE: &str = "old";
/// So many troubles are shown.
const SHOWN: usize = 20;

pub(crate) fn run(arguments: &Wanted) -> Result<()> {
    setup::needs_this_kernel()?;
    setup::ensure(&[Need::Kernel, Need::Host, Need::Answers])?;
    let program = match &arguments.agent {
        Some(agent) => agent.clone(),
        None => build::agent()?,
    };
    if let Some(moves) = arguments.beside_load {
        return load::run(&program, moves);
    }
    let answers = arguments.answers.unwrap_or(10_000);
    let cells = Cell::all().count() as u64;
    let plain = Cell::all().filter(|cell| !cell.kind.is_tunnel()).count() as u64;
    let load = Load {
        answers: answers.div_ceil(plain),
        // Ten exchanges each, and not too many at once.
        connections: (answers / cells / 10).clamp(3, 10),
        longest: 1000 * arguments.longest.unwrap_or(30),
    };
    heading("Answers with pauses, by a policy with nothing but maxAge");
    let started = Instant::now();
    let lab = Lab::start(Spec {
        pods: 1,
        serving: 0,
    })?;
    let pod = lab.pod(0);
    let mut running = proxies::start(&lab, pod)?;
    let policy = policy(&lab, &Way::ALL.map(Way::port), arguments.vouched);
    let agent = Agent::start_for(&lab, pod, &program, &policy)?;
    let step = Step::start(&format!(
        "{} answers of each kind by each way, {cells} in all, on {} connections",
        load.answers,
        cells * load.connections
    ));
    let seen = client::run(lab.client(), pod.addr, load);
    match seen {
        Ok(_) => step.done(),
        Err(_) => step.failed(),
    }
    let mut seen = seen?;
    let log = agent.stop()?;
    for server in &mut running {
        if !server.survives()? {
            seen.troubles
                .push("a server or a proxy has died".to_owned());
        }
    }
    seen.add(&log.ended);
    if load.answers >= MANY && !arguments.vouched {
        let stayed = Cell::all().filter(|cell| cell.can_move() && !seen.has_moved(*cell));
        let stayed: Vec<_> = stayed
            .map(|cell| format!("{cell:?}: none was moved"))
            .collect();
        seen.troubles.extend(stayed);
    }
    println!("\n{}", table(&seen));
    if !seen.troubles.is_empty() {
        for trouble in seen.troubles.iter().chain(&log.troubles).take(SHOWN) {
            println!("  {} {trouble}", red("✗"));
        }
    }
    let total = Total::of(&seen);
    println!(
        "{} whole answers, {} whole tunnels, {} broken off or ended; {} requests crossed a reset; \
         {} connections moved, {} of {} within two exchanges; {:.0} s.",
        total.answers,
        total.tunnels,
        total.broken,
        total.crossed,
        total.moved,
        total.in_time,
        total.in_time + total.late,
        started.elapsed().as_secs_f64()
    );
    if arguments.vouched {
        ensure!(total.broken > 0, "nothing broke off: this measures nothing");
        return Ok(());
    }
    judge(&total, &seen.troubles)
}

fn judge(total: &Total, troubles: &[String]) -> Result<()> {
    if !troubles.is_empty() {
        bail!("{} troubles: see above", troubles.len());
    }
    if total.in_time == 0 || total.in_time * 100 < MOVED * (total.in_time + total.late) {
        bail!("fewer than {MOVED} of 100 were moved within two exchanges");
    }
    println!("{}", green("Nothing was lost."));
    Ok(())
}

/// Nothing but `maxAge`, for the lab's client alone. Only times and budgets are not the defaults:
/// nobody wants to wait for them.
fn policy(lab: &Lab, ports: &[u16], vouched: bool) -> String {
    let ports: Vec<String> = ports
        .iter()
        .map(|port| format!("{{port: {port}}}"))
        .collect();
    let vouches = if vouched { "  onReconnect: Safe\n" } else { "" };
    format!(
        "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: Enforce
interval: 500ms
budget: {{window: 1s, perNode: 1000, perService: 100%, perEndpoint: 100%, maxInFlight: 1000}}
guards: {{minAge: 1s}}
rules:
- name: {RULE}
  match:
    ports: [{}]
    peers: [{{ipBlock: {{cidr: {}}}}}]
  limits: {{maxAge: 2s}}
{vouches}",
        ports.join(", "),
        lab.client_subnet()
    )
}
