//! One row per scenario and strategy, for the table and the CSV file.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{Played, simulation::Measures, spread::Spread};

pub(crate) struct Row {
    pub(crate) scenario: &'static str,
    pub(crate) strategy: &'static str,
    pub(crate) runs: usize,
    /// The number of runs that became balanced.
    pub(crate) balanced: usize,
    pub(crate) moves: Spread,
    /// `None` where placement is not only random.
    pub(crate) least: Option<Spread>,
    pub(crate) rounds: Spread,
    pub(crate) seconds: Option<Spread>,
    pub(crate) while_balanced: Spread,
    pub(crate) worst_client: Spread,
    pub(crate) last_move: Spread,
    pub(crate) hottest: Spread,
    /// The most frequent reason to skip, and its share.
    pub(crate) skipped: String,
}

impl Row {
    pub(crate) fn of(played: &Played<'_>) -> Self {
        let Played {
            scenario,
            strategy,
            runs,
            measures,
        } = played;
        let spread = |of: fn(&Measures) -> f64| {
            Spread::of(measures.iter().map(of)).expect("there is a run at least")
        };
        let seconds = || measures.iter().filter_map(|m| m.seconds);
        Self {
            scenario: scenario.name,
            strategy: strategy.name(),
            runs: runs.len(),
            balanced: seconds().count(),
            moves: spread(|m| m.moves),
            least: scenario.has_least().then(|| spread(|m| m.least)),
            rounds: spread(|m| m.rounds),
            seconds: Spread::of(seconds()),
            while_balanced: spread(|m| m.while_balanced),
            worst_client: spread(|m| m.worst_client),
            last_move: spread(|m| m.last_move),
            hottest: spread(|m| m.hottest),
            skipped: skipped(played),
        }
    }

    /// Moves relative to the least, with the standard deviation.
    pub(crate) fn ratio(&self) -> Option<(f64, f64)> {
        let least = self
            .least
            .map(|least| least.mean)
            .filter(|least| *least > 0.0)?;
        Some((self.moves.mean / least, self.moves.deviation / least))
    }
}

fn skipped(played: &Played<'_>) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for (why, count) in played.runs.iter().flat_map(|run| &run.skipped) {
        *counts.entry(*why).or_insert(0_u64) += count;
    }
    let all: u64 = counts.values().sum();
    let most = counts.into_iter().max_by_key(|(_, count)| *count);
    most.map_or_else(String::new, |(why, count)| {
        format!("{why} {:.0} %", 100.0 * count as f64 / all as f64)
    })
}

const HEAD: &str = "scenario,strategy,runs,balanced,moves,moves_sd,moves_most,least,least_sd,\
ratio,ratio_sd,rounds,rounds_sd,rounds_most,seconds,seconds_sd,moves_while_balanced,\
moves_while_balanced_most,worst_client_share,last_move_seconds_most,hottest_at_end";

pub(crate) fn write(folder: &Path, rows: &[Row]) -> Result<()> {
    let mut text = format!("{HEAD}\n");
    for row in rows {
        let number = |value: Option<f64>| value.map_or_else(String::new, |v| format!("{v:.4}"));
        let fields = [
            Some(row.moves.mean),
            Some(row.moves.deviation),
            Some(row.moves.most),
            row.least.map(|least| least.mean),
            row.least.map(|least| least.deviation),
            row.ratio().map(|ratio| ratio.0),
            row.ratio().map(|ratio| ratio.1),
            Some(row.rounds.mean),
            Some(row.rounds.deviation),
            Some(row.rounds.most),
            row.seconds.map(|seconds| seconds.mean),
            row.seconds.map(|seconds| seconds.deviation),
            Some(row.while_balanced.mean),
            Some(row.while_balanced.most),
            Some(row.worst_client.mean),
            Some(row.last_move.most),
            Some(row.hottest.mean),
        ];
        let Row {
            scenario,
            strategy,
            runs,
            balanced,
            ..
        } = row;
        text += &format!(
            "{scenario},{strategy},{runs},{balanced},{}\n",
            fields.map(number).join(",")
        );
    }
    let path = folder.join("measures.csv");
    fs::write(&path, text).with_context(|| path.display().to_string())
}
