//! `cargo xtask bench notice`: what real clients of HTTP/2 lose when they are asked to leave again and again.

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xtask::{
    command::output,
    lab::{Lab, Spec},
    process::Process,
};

use crate::{
    agent::{Agent, shown},
    build,
    cluster::build_rollouts,
    policy::{Policy, QUICK},
    progress::Step,
    server::{self, Running},
    setup::{self, Need},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Number of moves of each client's connections
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    moves: u64,
    /// Measure this agent instead of building one
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
}

/// Of each client.
const CONNECTIONS: &str = "40";
/// Calls at one time on each connection.
const PARALLEL: &str = "3";
const RULE: &str = "notice";
const PORT: u16 = 80;
/// A second is needed for some twenty moves.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client, in a folder with the programs.
struct Client {
    title: &'static str,
    /// The program, its arguments, and what its target begins with.
    program: [&'static str; 3],
    /// The server's command of `rollouts`.
    server: &'static str,
    version: &'static [&'static str],
    /// Whether it is known to lose calls by any GOAWAY.
    is_lossy: bool,
}

const PYTHON: &str = "/usr/bin/python3";

const CLIENTS: [Client; 4] = [
    Client {
        title: "grpc-go",
        program: ["./rollouts", "ask-grpc", ""],
        server: "serve-grpc",
        version: &["./rollouts", "version"],
        is_lossy: false,
    },
    Client {
        title: "Python grpcio",
        program: [PYTHON, "rollouts.py ask-grpc", ""],
        server: "serve-grpc",
        version: &[PYTHON, "-c", "import grpc; print(grpc.__version__)"],
        is_lossy: false,
    },
    Client {
        title: "Go net/http",
        program: ["./rollouts", "ask-h2c", "http://"],
        server: "serve-h2c",
        version: &["./rollouts", "version"],
        is_lossy: false,
    },
    Client {
        title: "Node http2",
        program: ["node", "node.js ask-h2c", "http://"],
        server: "serve-h2c",
        version: &["node", "--version"],
        is_lossy: true,
    },
];

/// A client with its server and its agent.
struct Case {
    client: &'static Client,
    agent: Agent,
    asks: Process,
    _server: Running,
}

pub(crate) fn run(arguments: &Args) -> Result<()> {
    setup::needs_this_kernel()?;
    let needs = [Need::Host, Need::Rollouts, Need::Calls];
    let program = build::given_or_built(arguments.agent.as_deref(), &needs)?;
    let lab = Lab::start(Spec {
        pods: CLIENTS.len(),
        serving: 0,
    })?;
    let folder = lab.folder().join("programs");
    build_rollouts(&folder)?;
    let subnet = lab.client_subnet();
    let policy = Policy {
        pace: QUICK,
        rule: RULE,
        ports: &[PORT],
        client_subnet: &subnet,
        limits: "maxAge: 1s",
        more: "  steps: [{step: Notice, idleFor: 10ms, timeout: 30s}]\n",
    };
    let mut cases = Vec::new();
    for (client, pod) in CLIENTS.iter().zip(lab.pods()) {
        let mut serve = pod.host.command(folder.join("rollouts"));
        let logs = server::folder(&lab, pod, client.server)?;
        let server = Running::start(&lab, pod, &logs, serve.arg(client.server), &[PORT])?;
        let [program_of_client, command, scheme] = client.program;
        let mut ask = lab.client().command(program_of_client);
        ask.current_dir(&folder)
            .env("PARALLEL", PARALLEL)
            .args(command.split(' '))
            .args([CONNECTIONS, &format!("server={scheme}{}:{PORT}", pod.addr)]);
        cases.push(Case {
            client,
            asks: Process::start(&mut ask, logs.join("client"))?,
            agent: Agent::start_for(&lab, pod, &program, &policy.file("Enforce"))?,
            _server: server,
        });
    }
    let step = Step::start("asking clients to leave");
    let started = Instant::now();
    let patience = PATIENCE + Duration::from_millis(200) * u32::try_from(arguments.moves)?;
    loop {
        let moves = cases.iter().map(|case| case.agent.log().ended.len() as u64);
        let moves: Vec<u64> = moves.collect();
        step.update(&format!("{moves:?} of {} moves", arguments.moves));
        if moves.iter().all(|moves| *moves >= arguments.moves) {
            break;
        }
        ensure!(
            started.elapsed() < patience,
            "{moves:?} moves in {patience:?}"
        );
        std::thread::sleep(Duration::from_secs(1));
    }
    step.end(true);
    println!(
        "\n| Client | Version | Moves, by outcome | Failed of all calls | Last error |\n|---|---|---|---|---|"
    );
    let mut lost = Vec::new();
    for case in cases {
        let client = case.client;
        // Those under way are not counted: the agent recalls them when it stops.
        let moves = case.agent.log().outcomes(RULE);
        case.agent.stop()?;
        // Reports come every second.
        std::thread::sleep(Duration::from_millis(1500));
        let [calls, failed, last] = report(&case.asks.output())?;
        let mut version = Command::new(client.version[0]);
        let version = output(version.args(&client.version[1..]).current_dir(&folder))?;
        println!(
            "| {} | {} | {} | {failed} of {calls} | {last} |",
            client.title,
            version.trim(),
            shown(&moves)
        );
        let noticed = moves.get("noticed").copied().unwrap_or_default();
        if noticed * 100 < arguments.moves * 95 {
            lost.push(format!("{}: only {noticed} have left", client.title));
        }
        if failed != "0" && !client.is_lossy {
            lost.push(format!("{}: {failed} calls failed", client.title));
        }
    }
    ensure!(lost.is_empty(), "{}", lost.join(", "));
    Ok(())
}

/// Calls, those that failed, and the last error of the last report.
fn report(output: &str) -> Result<[String; 3]> {
    let last = output.lines().next_back().context("no report")?;
    let report: Value = serde_json::from_str(last).with_context(|| last.to_owned())?;
    let field = |name: &str| report["server"][name].to_string().replace('"', "");
    Ok(["requests", "errors", "last"].map(field))
}
