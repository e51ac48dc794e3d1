//! Sizes, ages and spans of time for people.

use std::time::Duration;

use bytesize::ByteSize;
use jiff::Timestamp;

use crate::snapshot::Bytes;

pub(super) fn size(bytes: Bytes) -> String {
    ByteSize::b(bytes.0).display().iec_short().to_string()
}

/// A number of things, whose name forms its plural with an s.
pub(super) fn counted(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

/// Two units at most, as `kubectl get` shows ages.
pub(super) fn age(age: Duration) -> String {
    let s = age.as_secs();
    let (m, h, d) = (s / 60, s / 3600, s / 86_400);
    match s {
        0..10 => format!("{:.1}s", age.as_secs_f64()),
        10..120 => format!("{s}s"),
        120..7_200 => format!("{m}m{}s", s % 60),
        7_200..172_800 => format!("{h}h{}m", m % 60),
        _ => format!("{d}d{}h", h % 24),
    }
}

/// The time between them; zero if `later` is the earlier one, as clocks may be set back.
pub(super) fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    later
        .duration_since(earlier)
        .try_into()
        .unwrap_or(Duration::ZERO)
}

/// A time that may be far below a second; an invalid one is shown as zero.
pub(super) fn span(seconds: f64) -> String {
    let time = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    match time.as_micros() {
        micros @ 0..1_000 => format!("{micros}us"),
        1_000..1_000_000 => format!("{:.1}ms", time.as_secs_f64() * 1000.0),
        _ => age(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units_at_most() {
        let shown = [0, 9, 10, 119, 120, 7_199, 7_200, 172_799, 172_800]
            .map(|s| age(Duration::from_secs(s)));
        assert_eq!(
            shown,
            [
                "0.0s", "9.0s", "10s", "119s", "2m0s", "119m59s", "2h0m", "47h59m", "2d0h"
            ]
        );
    }
}
