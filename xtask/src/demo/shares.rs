//! Counts per pod as shares and bars, and the criterion for spread connections.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::terminal::{bold, cyan, dim};

const WIDTH: f64 = 24.0;
/// The share of the connections, in percent, that every pod has once they are spread. 60
/// connections placed on three pods at random meet it in 499 of 500 cases.
pub(crate) const SPREAD: std::ops::RangeInclusive<f64> = 15.0..=55.0;

/// The count of every pod, in the pods' order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shares(Vec<(String, u64)>);

impl Shares {
    pub(crate) fn new(counts: impl IntoIterator<Item = (String, u64)>) -> Self {
        Self(counts.into_iter().collect())
    }

    /// The counts of `pods`, 0 for those that `counts` lacks.
    pub(crate) fn of(pods: &[String], counts: &BTreeMap<String, u64>) -> Self {
        Self::new(
            pods.iter()
                .map(|pod| (pod.clone(), counts.get(pod).copied().unwrap_or(0))),
        )
    }

    fn total(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    fn percent(&self, count: u64) -> f64 {
        100.0 * count as f64 / self.total().max(1) as f64
    }

    pub(crate) fn is_spread(&self) -> bool {
        self.0
            .iter()
            .all(|(_, count)| SPREAD.contains(&self.percent(*count)))
    }

    /// All counts in one line, for a running step.
    pub(crate) fn line(&self) -> String {
        let counts: Vec<String> = self.0.iter().map(|(pod, n)| format!("{pod} {n}")).collect();
        counts.join("  ")
    }

    fn cell(&self, count: u64) -> String {
        let percent = self.percent(count);
        format!("{count:>6} {percent:>4.0} %  {}", cyan(bar(percent)))
    }

    /// One line per pod.
    pub(crate) fn table(&self, title: &str) -> String {
        let mut table = format!("  {}\n", bold(title));
        for (pod, count) in &self.0 {
            let _ = writeln!(table, "    {pod:<8}{}", self.cell(*count).trim_end());
        }
        table
    }

    /// One line per pod, with these shares on the left and `after` on the right.
    pub(crate) fn beside(&self, after: &Self) -> String {
        let left = format!(
            "{:<8}{:>6}{:width$}",
            "",
            "before",
            "",
            width = WIDTH as usize + 9
        );
        let mut table = format!("    {}\n", dim(format!("{left}{:>6}", "after")));
        for ((pod, before), (_, later)) in self.0.iter().zip(&after.0) {
            let (left, right) = (self.cell(*before), after.cell(*later));
            let _ = writeln!(table, "    {pod:<8}{left}{}", right.trim_end());
        }
        table
    }
}

/// A bar of at most [`WIDTH`] cells, to an eighth of a cell, padded to the width.
fn bar(percent: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (percent / 100.0 * WIDTH * 8.0).round() as usize;
    let (full, rest) = (eighths / 8, EIGHTHS[eighths % 8]);
    format!(
        "{:<width$}",
        format!("{}{rest}", "█".repeat(full)),
        width = WIDTH as usize
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(counts: [u64; 3]) -> Shares {
        let counts: Vec<u64> = counts.into();
        Shares::new(
            counts
                .into_iter()
                .enumerate()
                .map(|(i, n)| (format!("web-{i}"), n)),
        )
    }

    #[test]
    fn connections_are_spread_if_every_pod_is_within_bounds() {
        assert!(shares([20, 20, 20]).is_spread());
        assert!(shares([27, 24, 9]).is_spread());
        assert!(!shares([60, 0, 0]).is_spread());
        assert!(!shares([26, 26, 8]).is_spread());
        assert!(!shares([0, 0, 0]).is_spread());
    }

    #[test]
    fn bars_have_the_same_width() {
        for percent in [0.0, 0.3, 33.3, 50.0, 99.9, 100.0] {
            assert_eq!(bar(percent).chars().count(), WIDTH as usize, "{percent}");
        }
        assert_eq!(bar(100.0).trim_end().chars().count(), WIDTH as usize);
    }

    #[test]
    fn pods_without_a_count_have_zero() {
        let pods = ["web-0".to_owned(), "web-1".to_owned()];
        let counts = BTreeMap::from([("web-1".to_owned(), 3)]);
        assert_eq!(Shares::of(&pods, &counts).line(), "web-0 0  web-1 3");
    }
}
