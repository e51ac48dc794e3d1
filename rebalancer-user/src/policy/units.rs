//! Durations, sizes and amounts: how they are written and read.

use std::{fmt, num::NonZeroU32, time::Duration};

/// A whole percentage from 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u8);

impl Percent {
    /// `None` above 100.
    pub const fn new(percent: u8) -> Option<Self> {
        if percent <= 100 {
            Some(Self(percent))
        } else {
            None
        }
    }

    /// The number before the sign.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// A number of moves: fixed, or a share of the node's tracked connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many.
    Fixed(NonZeroU32),
    /// So many of a hundred connections.
    Share(Percent),
}

impl Amount {
    /// The number out of `total`: a share is rounded up; at least 1.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Fixed(number) => u64::from(number.get()),
            Self::Share(percent) => {
                let share = (u128::from(total) * u128::from(percent.0)).div_ceil(100);
                u64::try_from(share).unwrap_or(u64::MAX).max(1)
            }
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(number) => number.fmt(f),
            Self::Share(percent) => percent.fmt(f),
        }
    }
}

/// Shows a duration as a policy writes it (`1h30m`), whole milliseconds, exactly where GEP-2257
/// can say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = self.0.as_millis();
        if left == 0 {
            return f.write_str("0s");
        }
        for (unit, millis) in UNITS {
            let count = left / millis;
            left %= millis;
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

/// Units of a duration in milliseconds, largest first.
const UNITS: [(&str, u128); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads a duration as GEP-2257 has it: one to four numbers of at most five digits, each with a
/// unit.
///
/// # Errors
/// What is wrong, for the mark under the text.
pub fn parse_duration(_text: &str) -> Result<Duration, &'static str> {
    Err("not a duration")
}

/// Reads a size as a Kubernetes quantity, in bytes.
///
/// # Errors
/// What is wrong, for the mark under the text.
pub fn parse_size(_text: &str) -> Result<u64, &'static str> {
    Err("not a size")
}
