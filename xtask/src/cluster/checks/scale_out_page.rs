//! The page of deploy/ that shows a scale-out without balance and with it, second by second, as it was.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use fs_err as fs;

use super::{
    Outcome, State,
    balance::{balanced, ended},
    policy,
    workload::EVEN,
};
use crate::keepalive_client::Report;

/// How long each scale-out is watched.
const WATCHED: Duration = Duration::from_secs(60);
const REPLICAS: usize = 3;

/// A scale-out from one replica to three.
struct ScaleOut {
    /// The connections of each replica, in each second since all three were ready.
    connections: Vec<[u64; REPLICAS]>,
    moves: u64,
    requests: u64,
    failed: u64,
}

pub(super) fn written(state: &mut State) -> Outcome {
    let file = state.page.clone().context("--page")?;
    EVEN.apply()?;
    EVEN.ready(1)?;
    policy::enforce(&balanced().replace("mode: Enforce", "mode: DryRun"))?;
    let without = watched()?;
    EVEN.scale(1)?;
    policy::enforce(&balanced())?;
    let with = watched()?;
    ensure!(without.moves == 0, "{} moves in a dry run", without.moves);
    fs::write(&file, page(&without, &with))?;
    Ok(format!(
        "{} moves, {} of {} requests failed: {}",
        with.moves,
        with.failed,
        with.requests,
        file.display()
    ))
}

fn watched() -> Result<ScaleOut> {
    let answers = |report: &Report| report.answers.values().sum::<u64>();
    let (before, first) = (ended()?, EVEN.wait_answered()?);
    let pods = EVEN.scale(REPLICAS)?;
    let started = Instant::now();
    let mut connections = Vec::new();
    let mut last = EVEN.report()?;
    while started.elapsed() < WATCHED {
        let of = |pod: &String| last.connections.get(pod).copied().unwrap_or(0);
        let mut now: Vec<u64> = pods.iter().map(of).collect();
        if connections.is_empty() {
            ensure!(now.iter().sum::<u64>() == EVEN.connections, "{now:?}");
        }
        now.resize(REPLICAS, 0);
        connections.push([now[0], now[1], now[2]]);
        let next = Duration::from_secs(connections.len() as u64);
        std::thread::sleep(next.saturating_sub(started.elapsed()));
        last = EVEN.report()?;
    }
    Ok(ScaleOut {
        connections,
        moves: ended()? - before,
        requests: answers(&last) - answers(&first),
        failed: last.errors - first.errors,
    })
}

fn page(without: &ScaleOut, with: &ScaleOut) -> String {
    let mut page = format!(
        "\
# A scale-out, without balance and with it

Made by `cargo xtask test cluster --nodes 3 --only coordinator --only page --page deploy/SCALE-OUT.md`: Kubernetes on
three nodes, kube-proxy, the manifests of this folder with `components/coordinator`. {} connections of HTTP/1.1 with
pauses of 300 to 600 ms are on the one replica of a Service, which is then scaled to three, one on each node. Second 0
is when all three are ready. The rule is

```yaml
{}```
",
        EVEN.connections,
        balanced()
            .lines()
            .skip_while(|line| !line.starts_with("rules:"))
            .fold(String::new(), |text, line| text + line + "\n")
    );
    for (title, what, of) in [
        ("In a dry run", "Nothing changes", without),
        ("Enforced", "The excess is moved", with),
    ] {
        let _ = write!(
            page,
            "\n## {title}\n\n{what}: {} moves, {} of {} requests failed, at the end {:?} connections.\n\n```mermaid\n\
             xychart-beta\n  x-axis \"seconds\" 0 --> {}\n  y-axis \"connections of each replica\" 0 --> {}\n",
            of.moves,
            of.failed,
            of.requests,
            of.connections.last().unwrap_or(&[0; REPLICAS]),
            of.connections.len() - 1,
            EVEN.connections
        );
        for replica in 0..REPLICAS {
            let line: Vec<u64> = of.connections.iter().map(|now| now[replica]).collect();
            let _ = writeln!(page, "  line {line:?}");
        }
        page.push_str("```\n");
    }
    page
}
