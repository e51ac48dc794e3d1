//! How long the budgets make it take.

use std::{fmt, time::Duration};

use serde::Serialize;

use super::{Ramp, limits::rounded};
use crate::{policy::Mode, snapshot::wire};

/// What the budgets make of the connections chosen in one mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Forecast {
    /// The mode.
    pub mode: Mode,
    /// Connections that have reached a limit and that no guard skips.
    pub chosen: u64,
    /// Of them, those that may be moved now.
    pub now: u64,
    /// Moves that may be started in each window.
    pub per_window: u64,
    /// The window.
    #[serde(rename = "windowNanoseconds", with = "wire::nanoseconds")]
    pub window: Duration,
    /// Until the last of them may be started, if none is chosen besides and each move ends
    /// within an interval: at best, where a move must wait for a quiet moment.
    #[serde(rename = "lastsNanoseconds", with = "wire::nanoseconds")]
    pub lasts: Duration,
    /// What there is of the budgets yet, if not the whole.
    #[serde(rename = "rampParts", skip_serializing_if = "Option::is_none")]
    pub ramp: Option<Ramp>,
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Self {
            mode,
            chosen,
            now,
            per_window,
            window,
            lasts,
            ramp,
        } = self;
        let would = if mode == Mode::DryRun { "would" } else { "may" };
        let window = rounded(window);
        write!(f, "{chosen} to move: {now} {would} move now")?;
        if now < chosen {
            write!(
                f,
                ", at most {per_window} in a window of {window}, all in about {}",
                rounded(lasts)
            )?;
        }
        if let Some(ramp) = ramp {
            write!(f, "; {ramp}")?;
        }
        if mode == Mode::DryRun {
            f.write_str(" (dry run: none is)")?;
        }
        Ok(())
    }
}

/// What bounds the moves. All numbers but `interval` more than 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) limit: u64,
    pub(super) max_in_flight: u64,
    pub(super) window: Duration,
    pub(super) interval: Duration,
}

impl Pace {
    /// Moves that may be started in each window: at every listing in it as many as may be in
    /// flight, and no more than the budget.
    pub(super) fn per_window(self) -> u64 {
        let in_flight = self.max_in_flight.saturating_mul(self.listings());
        self.limit.min(in_flight).max(1)
    }

    /// From the first of `moves` to the start of the last. The budget slides, so each window is
    /// as the first was.
    pub(super) fn last_start(self, moves: u64) -> Duration {
        let last = moves.saturating_sub(1);
        let (windows, rest) = (last / self.per_window(), last % self.per_window());
        let listings = windows
            .saturating_mul(self.listings())
            .saturating_add(rest / self.max_in_flight.max(1));
        let nanos = self.interval.as_nanos().saturating_mul(listings.into());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Listings from one start to the first at which the window has forgotten it.
    fn listings(self) -> u64 {
        let interval = self.interval.as_nanos().max(1);
        u64::try_from(self.window.as_nanos().div_ceil(interval)).unwrap_or(u64::MAX)
    }
}
