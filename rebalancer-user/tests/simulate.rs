//! What balance is held to, in simulated clusters: `cargo xtask simulate` shows more of the same,
//! for more seeds and longer.

use std::time::Duration;

#[path = "../examples/simulate/simulation/mod.rs"]
mod simulation;

use simulation::{
    Measures, Run, run,
    scenario::{self, Scenario},
    strategy::Strategy,
};

/// Intervals of churn: a tenth of what `cargo xtask simulate` plays.
const INTERVALS: u32 = 1_000;

fn scenario(name: &str) -> Scenario {
    let all = scenario::all(INTERVALS);
    let found = all.into_iter().find(|scenario| scenario.name == name);
    found.unwrap_or_else(|| panic!("no scenario {name}"))
}

fn played(scenario: &Scenario, seeds: u64) -> Vec<(Run, Measures)> {
    let play = |seed| {
        let least = if scenario.has_least() {
            run(scenario, Strategy::Nothing, seed).least(seed)
        } else {
            0.0
        };
        let run = run(scenario, Strategy::Excess, seed);
        let measures = run.measures(least);
        (run, measures)
    };
    (0..seeds).map(play).collect()
}

/// Plays it; all runs must come to be balanced. Moves over the least, and the most rounds.
fn cured(scenario: &Scenario, seeds: u64) -> (f64, f64) {
    let played = played(scenario, seeds);
    let measures = || played.iter().map(|(_, measures)| measures);
    for (seed, measures) in measures().enumerate() {
        let Measures {
            seconds, hottest, ..
        } = *measures;
        assert!(
            seconds.is_some(),
            "{} {seed}: hottest {hottest}",
            scenario.name
        );
    }
    let sum = |of: fn(&Measures) -> f64| measures().map(of).sum::<f64>();
    let ratio = sum(|m| m.moves) / sum(|m| m.least);
    let rounds = measures().map(|m| m.rounds).fold(0.0, f64::max);
    println!(
        "{}: {ratio:.3} of the least, {rounds} rounds at most",
        scenario.name
    );
    (ratio, rounds)
}

#[test]
fn added_replicas_get_their_share_with_hardly_more_moves_than_the_least() {
    for name in ["scale-out-3", "ingress", "scale-out-11"] {
        let (ratio, _) = cured(&scenario(name), 12);
        assert!(ratio <= 1.05, "{name}: {ratio}");
    }
}

#[test]
fn what_the_lab_does_takes_three_rounds() {
    let (ratio, rounds) = cured(&scenario("lab"), 12);
    assert!(ratio <= 1.05, "{ratio}");
    assert!(rounds <= 3.0, "{rounds}");
}

#[test]
fn what_chance_places_is_left_alone() {
    for name in ["churn-3", "churn-10"] {
        let (_, measures) = played(&scenario(name), 1).remove(0);
        assert!(measures.moves <= 1.0, "{name}: {} moves", measures.moves);
    }
}

#[test]
fn the_connection_that_is_the_load_is_not_bounced() {
    for (run, _) in played(&scenario("elephant"), 6) {
        // The clients of the second kind.
        let heavy = run
            .starts
            .iter()
            .filter(|start| start.client.to_string().starts_with("10.2.1."));
        assert_eq!(heavy.count(), 0);
    }
}

#[test]
fn moves_that_do_not_help_stop() {
    let scenario = Scenario {
        ends: Duration::from_secs(3600),
        ..scenario("sticky")
    };
    for (run, measures) in played(&scenario, 4) {
        assert!(measures.moves > 0.0, "nothing was tried");
        assert!(
            measures.moves <= 12.0,
            "{} moves in an hour",
            measures.moves
        );
        let late = run
            .starts
            .iter()
            .filter(|start| start.after_start() > Duration::from_secs(120));
        assert!(late.count() <= 4);
    }
}

#[test]
fn a_flood_pushes_no_neighbour_out() {
    for (run, measures) in played(&scenario("flood"), 4) {
        let neighbours = run
            .starts
            .iter()
            .filter(|start| start.client.to_string().starts_with("10.2.0."));
        assert_eq!(neighbours.count(), 0, "of {} moves", measures.moves);
    }
}
