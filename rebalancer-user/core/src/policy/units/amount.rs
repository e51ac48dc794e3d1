//! Amounts: a number or a percentage.

use std::{fmt, num::NonZeroU32};

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

    /// 100 %.
    pub const WHOLE: Self = Self(100);

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

/// A number of moves: fixed, or a share of the connections that exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// This many.
    Fixed(NonZeroU32),
    /// This share of the connections.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_rounded_up_and_at_least_one() {
        let share = |percent, total| Amount::Share(Percent::new(percent).unwrap()).of(total);
        assert_eq!(share(10, 0), 1);
        assert_eq!(share(10, 10), 1);
        assert_eq!(share(10, 11), 2);
        assert_eq!(share(1, 100_001), 1001);
        assert_eq!(share(100, u64::MAX), u64::MAX);
        assert_eq!(Percent::new(101), None);
    }
}
