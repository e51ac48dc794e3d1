//! What balance must achieve in simulated clusters. `cargo xtask simulate` plays more seeds, for longer.

use std::time::Duration;

#[path = "../examples/simulate/simulation/mod.rs"]
mod simulation;

use simulation::{
    Measures, Run, Start, run,
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
        // What there is to do is known when it begins.
        let untouched = Scenario {
            ends: scenario.judged + scenario.interval,
            ..scenario.clone()
        };
        let least = if scenario.has_least() {
            run(&untouched, Strategy::Nothing, seed).least(seed)
        } else {
            0.0
        };
        let run = run(scenario, Strategy::Excess, seed);
        let measures = run.measures(least);
        (run, measures)
    };
    (0..seeds).map(play).collect()
}

/// Plays it for four minutes. Returns moves relative to the least, and for each run that was never
/// balanced its final maximum relative to the mean.
fn cured(name: &str, seeds: u64) -> (f64, Vec<f64>) {
    let scenario = Scenario {
        ends: Duration::from_secs(240),
        ..scenario(name)
    };
    let played = played(&scenario, seeds);
    let measures = || played.iter().map(|(_, measures)| measures);
    let sum = |of: fn(&Measures) -> f64| measures().map(of).sum::<f64>();
    let ratio = sum(|m| m.moves) / sum(|m| m.least);
    let uncured = measures().filter(|m| m.seconds.is_none());
    let left: Vec<f64> = uncured.map(|m| m.hottest).collect();
    println!("{name}: {ratio:.3} of the least; left at {left:?} of the mean");
    (ratio, left)
}

/// How many moves began between these seconds.
fn within(run: &Run, from: u64, to: u64) -> usize {
    let at = run.starts.iter().map(|start| start.after_start().as_secs());
    at.filter(|at| (from..to).contains(at)).count()
}

/// How many began in each ten minutes of the first hours.
fn by_ten_minutes(run: &Run, hours: u64) -> Vec<usize> {
    let tenths = (0..6 * hours).map(|i| within(run, i * 600, (i + 1) * 600));
    tenths.collect()
}

/// How many were of clients whose address begins so.
fn of_clients(run: &Run, begins: &str) -> usize {
    let clients = run.starts.iter().map(|start| start.client.to_string());
    clients.filter(|client| client.starts_with(begins)).count()
}

fn lasting(hours: u64, name: &str) -> Scenario {
    Scenario {
        ends: Duration::from_secs(hours * 3600),
        ..scenario(name)
    }
}

/// The number of moves started in each interval that has any.
fn rounds(run: &Run, interval: Duration) -> Vec<usize> {
    let number = |start: &Start| start.after_start().as_nanos() / interval.as_nanos();
    let rounds = run.starts.chunk_by(|a, b| number(a) == number(b));
    rounds.map(<[Start]>::len).collect()
}

#[test]
fn added_replicas_get_their_share_with_few_moves_above_the_least() {
    for (name, seeds) in [("scale-out-3", 12), ("ingress", 6), ("scale-out-11", 6)] {
        let (ratio, left) = cured(name, seeds);
        assert!(ratio <= 1.05, "{name}: {ratio}");
        // A new one may get more than its part, within what chance explains: it is left.
        assert!(left.len() <= 1, "{name}: {left:?}");
        assert!(
            left.iter().all(|hottest| *hottest <= 1.15),
            "{name}: {left:?}"
        );
    }
}

#[test]
fn replicas_on_nodes_of_their_own_are_nearly_as_even() {
    for (name, seeds) in [("own-nodes", 8), ("ingress-own-nodes", 4)] {
        let (ratio, left) = cured(name, seeds);
        assert!(ratio <= 1.15, "{name}: {ratio}");
        assert!(
            left.iter().all(|hottest| *hottest <= 1.2),
            "{name}: {left:?}"
        );
    }
}

/// Besides the trials.
#[test]
fn the_lab_is_balanced_in_three_rounds() {
    let (ratio, left) = cured("lab", 12);
    assert!(ratio <= 1.05, "{ratio}");
    assert!(left.is_empty(), "{left:?}");
    let scenario = scenario("lab");
    for (run, _) in played(&scenario, 12) {
        let rounds = rounds(&run, scenario.interval);
        println!("{rounds:?}");
        let few = rounds.iter().take_while(|moves| **moves <= 6).count();
        assert!(rounds.len() - few <= 3, "{rounds:?}");
    }
}

#[test]
fn random_placement_is_left_alone() {
    for name in ["churn-3", "churn-10"] {
        let (_, measures) = played(&scenario(name), 1).remove(0);
        assert!(measures.moves <= 1.0, "{name}: {} moves", measures.moves);
    }
}

/// Two of five replicas are removed, all filled by random placement.
#[test]
fn scaling_in_moves_nothing_unlike_max_age_or_moving_all() {
    let scenario = scenario("scale-in");
    let idle = Strategy::COMPARED.map(|strategy| {
        let measures = run(&scenario, strategy, 1).measures(0.0);
        println!(
            "{}, {}: {} moves in {} rounds, {} of them idle, the last after {} s, {:.0} % of one client",
            scenario.about,
            strategy.name(),
            measures.moves,
            measures.rounds,
            measures.while_balanced,
            measures.last_move,
            100.0 * measures.worst_client,
        );
        (strategy, measures.while_balanced)
    });
    for (strategy, idle) in idle {
        let excess = strategy == Strategy::Excess;
        assert_eq!(idle == 0.0, excess, "{}: {idle}", strategy.name());
    }
}

#[test]
fn a_connection_that_is_most_of_the_load_is_not_moved_around() {
    for (run, _) in played(&scenario("elephant"), 6) {
        assert_eq!(of_clients(&run, "10.2.1."), 0, "the second kind");
    }
}

/// Clients return to their endpoint after minutes. That they are unseen until then is no proof that a
/// move has helped.
#[test]
fn moves_of_clients_that_return_late_stop() {
    for (name, first, most) in [
        ("sticky-late", 6, 40.0),
        ("sticky-shared", 24, 40.0),
        // Where a client that has gone elsewhere would not be seen either, all may be tried before the
        // first are back, but only once.
        ("sticky-late-own-nodes", 300, 450.0),
    ] {
        for (run, measures) in played(&lasting(2, name), 2) {
            let (moves, tenths) = (measures.moves, by_ten_minutes(&run, 2));
            println!("{name}: {moves} moves, by ten minutes: {tenths:?}");
            assert!(within(&run, 0, 60 + 90) <= first, "{name}: {tenths:?}");
            assert!(moves <= most, "{name}: {tenths:?}");
            assert!(within(&run, 3600, 7200) <= 12, "{name}: {tenths:?}");
        }
    }
}

/// The trial's clients are awaited, however long that takes; then the others are moved.
#[test]
fn clients_with_a_long_backoff_are_balanced() {
    for (run, measures) in played(&scenario("late"), 3) {
        let seconds = measures.seconds.expect("it was balanced");
        println!("{} moves, balanced after {seconds} s", run.starts.len());
        assert!(seconds <= 900.0, "{seconds}");
        assert!(measures.moves <= 1.2 * measures.least, "{}", measures.moves);
    }
}

#[test]
fn a_flood_on_one_endpoint_evicts_no_other() {
    for (run, measures) in played(&scenario("flood"), 2) {
        let neighbours = of_clients(&run, "10.2.0.");
        assert_eq!(neighbours, 0, "of {} moves", measures.moves);
    }
}
