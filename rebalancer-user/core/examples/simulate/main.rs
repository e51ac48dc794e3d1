//! Simulates clusters around the agent's own decisions and measures what these cost the clients. Prints
//! a table, and writes CSV and plots. Run by `cargo xtask simulate`.

mod csv;
mod fleet;
mod plots;
mod simulation;
mod spread;
mod table;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Parser;

use self::simulation::{
    Measures, Run, run,
    scenario::{self, Scenario},
    strategy::Strategy,
};

/// Simulate clusters around the agent's decisions.
#[derive(Parser)]
#[command(name = "cargo xtask simulate", bin_name = "cargo xtask simulate")]
struct Arguments {
    /// Runs of each scenario and strategy
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Intervals of each run of balanced churn
    #[arg(long, default_value_t = 10_000)]
    intervals: u32,
    /// Where CSV and plots are written
    #[arg(long, default_value = "target/simulate")]
    out: PathBuf,
    /// Only scenarios with this in their name
    #[arg(value_name = "NAME", default_value = "")]
    name: String,
    #[command(flatten)]
    fleet: fleet::Size,
}

/// The name of the scenario that is a large cluster.
const FLEET: &str = "fleet";

/// A scenario under a strategy, once for each seed.
struct Played<'a> {
    scenario: &'a Scenario,
    strategy: Strategy,
    runs: Vec<Run>,
    measures: Vec<Measures>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let folder = &arguments.out;
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let all = scenario::all(arguments.intervals);
    let chosen = all.iter().filter(|s| s.name.contains(&arguments.name));
    let mut rows = Vec::new();
    for scenario in chosen {
        eprintln!("{}: {}", scenario.name, scenario.about);
        let played = play(scenario, arguments.seeds);
        plots::draw(folder, scenario, &played).context("drawing")?;
        rows.extend(played.iter().map(csv::Row::of));
    }
    let is_fleet = FLEET.contains(&arguments.name);
    anyhow::ensure!(
        is_fleet || !rows.is_empty(),
        "no scenario has {:?} in its name",
        arguments.name
    );
    if !rows.is_empty() {
        csv::write(folder, &rows)?;
        println!("{}", table::of(&rows));
        println!("CSV and plots: {}", folder.display());
    }
    if is_fleet {
        eprintln!("{FLEET}: a large cluster in which a tenth of the Services is scaled out");
        println!("{}", fleet::run(arguments.fleet)?);
    }
    Ok(())
}

fn play(scenario: &Scenario, seeds: u64) -> Vec<Played<'_>> {
    let untouched: Vec<Run> = (0..seeds)
        .map(|seed| run(scenario, Strategy::Nothing, seed))
        .collect();
    let least: Vec<f64> = (0..seeds)
        .zip(&untouched)
        .map(|(seed, run)| {
            if scenario.has_least() {
                run.least(seed)
            } else {
                0.0
            }
        })
        .collect();
    let played = |strategy, runs: Vec<Run>| Played {
        scenario,
        strategy,
        measures: runs
            .iter()
            .zip(&least)
            .map(|(run, least)| run.measures(*least))
            .collect(),
        runs,
    };
    let mut all = vec![played(Strategy::Nothing, untouched)];
    for strategy in Strategy::COMPARED {
        let runs = (0..seeds)
            .map(|seed| run(scenario, strategy, seed))
            .collect();
        all.push(played(strategy, runs));
    }
    all
}
