//! Checks that tell how they went: each in a line while it runs, and all of them in a summary.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{progress::Step, terminal};

/// What a check found, in a few words.
pub(crate) type Found = Result<String>;

/// A check that has been made.
pub(crate) struct Checked {
    name: &'static str,
    time: Duration,
    found: Found,
}

impl Checked {
    /// One that was made meanwhile, in `time`.
    pub(crate) fn made(name: &'static str, time: Duration, found: Found) -> Self {
        Self { name, time, found }
    }

    /// Makes it, shown; an error is told at once.
    pub(crate) fn make(name: &'static str, work: impl FnOnce() -> Found) -> Self {
        let step = Step::start(name);
        let started = Instant::now();
        let found = work();
        match &found {
            Ok(_) => step.done(),
            Err(error) => {
                step.failed();
                eprintln!("{error:#}");
            }
        }
        Self::made(name, started.elapsed(), found)
    }

    pub(crate) fn failed(&self) -> bool {
        self.found.is_err()
    }

    /// Its line in a summary whose names take `width` columns.
    pub(crate) fn summarize(&self, width: usize) {
        let Self { name, time, found } = self;
        let text = match found {
            Ok(text) => text.clone(),
            Err(error) => error.to_string(),
        };
        let text = format!("{:>6.1} s  {text}", time.as_secs_f64());
        terminal::check(found.is_ok(), &format!("{name:<width$}"), text.trim_end());
    }
}
