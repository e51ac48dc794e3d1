//! Durations, sizes and amounts: how they are written and read.

mod amount;
mod duration;
mod size;

pub use amount::{Amount, Percent};
pub use duration::{Span, parse_duration};
pub use size::{Size, parse_size};

use std::fmt;

/// Why a text is not a duration or size, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitError {
    /// What is wrong with it.
    pub what: &'static str,
    /// What to write instead.
    pub remedy: String,
}

impl UnitError {
    fn new(what: &'static str, remedy: impl Into<String>) -> Self {
        Self {
            what,
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

impl std::error::Error for UnitError {}

/// The digits at the head of `text`, and the rest.
fn digits(text: &str) -> (&str, &str) {
    text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    )
}
