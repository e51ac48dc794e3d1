//! Runs checks one after the other, each shown while it runs, and summarizes them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::{progress::Step, terminal};

/// What a check found, in a few words, or why it failed.
pub(crate) type Outcome = Result<String>;

/// A finished check.
pub(crate) struct CheckReport {
    name: &'static str,
    time: Duration,
    outcome: Outcome,
}

impl CheckReport {
    pub(crate) fn new(name: &'static str, time: Duration, outcome: Outcome) -> Self {
        Self {
            name,
            time,
            outcome,
        }
    }

    /// Runs a check and shows its progress; prints an error at once.
    pub(crate) fn run(name: &'static str, work: impl FnOnce() -> Outcome) -> Self {
        let started = Instant::now();
        let outcome = Step::run(name, |_| work());
        if let Err(error) = &outcome {
            eprintln!("{error:#}");
        }
        Self::new(name, started.elapsed(), outcome)
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.outcome.is_err()
    }

    /// Prints its line of a summary whose name column is `width` wide.
    fn summarize(&self, width: usize) {
        let Self {
            name,
            time,
            outcome,
        } = self;
        let text = match outcome {
            Ok(text) => text.clone(),
            Err(error) => error.to_string(),
        };
        let text = format!("{:>6.1} s  {text}", time.as_secs_f64());
        terminal::check(outcome.is_ok(), &format!("{name:<width$}"), text.trim_end());
    }
}

/// Prints a summary. Fails if a check has failed.
pub(crate) fn summarize(title: &str, reports: &[CheckReport]) -> Result<()> {
    terminal::heading(title);
    let width = reports.iter().map(|report| report.name.len()).max();
    let width = width.unwrap_or(0);
    reports.iter().for_each(|report| report.summarize(width));
    let all: Duration = reports.iter().map(|report| report.time).sum();
    println!(
        "  {:>width$} {:>8.1} s",
        "in all",
        all.as_secs_f64(),
        width = width + 2
    );
    let failed = reports.iter().filter(|report| report.has_failed());
    let failed: Vec<_> = failed.map(|report| report.name).collect();
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}
