//! A connection measured against its rule's limits.
//!
//! Each connection has limits of its own, a little below the rule's, so that connections opened
//! together do not end together: `limit = max × (1 − jitter × h)`. `h`, from 0 to below 1, is a
//! hash of the cookie: fixed for the connection's life, the same in a replay. A connection older
//! than tracking has an unknown age; for it `limit = maxAge × (1 − h)`, so that those found at
//! an install are spread over the whole of `maxAge` and come no later than it.

use std::{cmp::Ordering, fmt, time::Duration};

use bytesize::ByteSize;

use super::{DrainCause, Ledger, Load};
use crate::{
    policy::{By, MaxRate, Rule, Span},
    snapshot::{Bytes, Connection, Cookie, KernelTime},
};

/// One limit and the value held against it. `limit` is the connection's own, jitter taken off;
/// `max` is the rule's; 0 < `limit` ≤ `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Time since accept.
    Age {
        /// At the moment of the decision; a lower bound if adopted.
        value: Duration,
        /// The connection's own limit.
        limit: Duration,
        /// The rule's limit.
        max: Duration,
    },
    /// Bytes both ways.
    Bytes {
        /// When listed.
        value: Bytes,
        /// The connection's own limit.
        limit: Bytes,
        /// The rule's limit.
        max: Bytes,
    },
    /// Bytes both ways per second.
    Rate {
        /// The rate that it has held: the lowest between any two listings within `held`.
        value: Bytes,
        /// The connection's own limit.
        limit: Bytes,
        /// The rule's limit.
        max: Bytes,
        /// The time over which it counts.
        held: Duration,
    },
    /// Its endpoint is drained.
    Drain {
        /// Why.
        cause: DrainCause,
        /// Until its pod is asked to stop, or the drain ends.
        left: Duration,
    },
    /// The connection is of the excess of its endpoint.
    Balance {
        /// What is balanced.
        by: By,
        /// What the endpoint holds.
        load: u64,
        /// What each endpoint of the group would hold.
        mean: u64,
        /// What it keeps.
        stop: u64,
    },
}

impl Reason {
    /// A stable word, for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Age { .. } => "age",
            Self::Bytes { .. } => "bytes",
            Self::Rate { .. } => "rate",
            Self::Drain { .. } => "drain",
            Self::Balance { .. } => "balance",
        }
    }

    /// The connection has reached its own limit.
    pub fn exceeded(self) -> bool {
        match self {
            Self::Age { value, limit, .. } => value >= limit,
            Self::Bytes { value, limit, .. } | Self::Rate { value, limit, .. } => value >= limit,
            Self::Drain { .. } => true,
            Self::Balance { load, stop, .. } => load > stop,
        }
    }

    /// The connection has reached the rule's limit: it should be gone already. Never of an excess,
    /// which is its endpoint's.
    pub fn overdue(self) -> bool {
        match self {
            Self::Age { value, max, .. } => value >= max,
            Self::Bytes { value, max, .. } | Self::Rate { value, max, .. } => value >= max,
            Self::Drain { .. } | Self::Balance { .. } => false,
        }
    }

    /// Which of two is further beyond its own limit.
    pub(super) fn compare(self, other: Self) -> Ordering {
        compare(self.fraction(), other.fraction())
    }

    /// Value and limit in one unit; the limit is not 0. What must leave in time is before all others.
    pub(super) fn fraction(self) -> (u64, u64) {
        match self {
            Self::Age { value, limit, .. } => (nanos(value), nanos(limit).max(1)),
            Self::Bytes { value, limit, .. } | Self::Rate { value, limit, .. } => {
                (value.0, limit.0.max(1))
            }
            Self::Drain { .. } => (u64::MAX, 1),
            Self::Balance { load, stop, .. } => (load, stop.max(1)),
        }
    }
}

/// Compares two values, each by the ratio to its limit.
pub(super) fn compare(
    (value, limit): (u64, u64),
    (other_value, other_limit): (u64, u64),
) -> Ordering {
    (u128::from(value) * u128::from(other_limit))
        .cmp(&(u128::from(other_value) * u128::from(limit)))
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Age { value, limit, max } => {
                let [value, limit, max] = [value, limit, max].map(rounded);
                write!(f, "age {value} of {limit} (maxAge {max})")
            }
            Self::Bytes { value, limit, max } => {
                let [value, limit, max] = [value, limit, max].map(|bytes| ByteSize::b(bytes.0));
                write!(f, "{value} of {limit} (maxBytes {max})")
            }
            Self::Rate {
                value,
                limit,
                max,
                held,
            } => {
                let [value, limit, max] = [value, limit, max].map(|bytes| ByteSize::b(bytes.0));
                let held = rounded(held);
                write!(
                    f,
                    "{value}/s of {limit}/s held for {held} (maxRate {max}/s)"
                )
            }
            Self::Drain { cause, left } => {
                let left = rounded(left);
                match cause {
                    DrainCause::Terminating => write!(
                        f,
                        "its pod is being deleted, and is asked to stop in {left}"
                    ),
                    DrainCause::Removed => write!(
                        f,
                        "its pod is no endpoint of its Service any more; {left} of `within` are left"
                    ),
                    DrainCause::Unready => write!(
                        f,
                        "its pod is not ready any more; {left} of `within` are left"
                    ),
                    DrainCause::Requested => {
                        write!(f, "an operator drains its endpoint, for another {left}")
                    }
                }
            }
            Self::Balance {
                by,
                load,
                mean,
                stop,
            } => {
                let [load, mean, stop] = [load, mean, stop].map(|load| Load(by, load));
                write!(f, "endpoint holds {load} of mean {mean}, stop {stop}")
            }
        }
    }
}

/// A limit of which it is not known how near a connection is: its rate has not been watched for
/// long enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown(pub MaxRate);

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = rounded(self.0.sustained_for());
        write!(f, "its rate over {held} is not known")
    }
}

/// A duration as people read it: no milliseconds beyond ten seconds.
pub(super) fn rounded(duration: Duration) -> Span {
    Span(match duration.as_secs() {
        0 => duration,
        1..10 => Duration::from_millis(duration.as_millis() as u64 / 100 * 100),
        whole => Duration::from_secs(whole),
    })
}

/// Hands each limit of `rule` with what `connection` holds against it at `now` to `each`. The limit of which
/// that is not known; at least one of all.
pub(super) fn measure(
    rule: &Rule,
    connection: &Connection,
    ledger: &Ledger,
    now: KernelTime,
    mut each: impl FnMut(Reason),
) -> Option<Unknown> {
    let jitter = rule.jitter().get();
    let own = |max, percent| own_limit(max, percent, connection.cookie);
    if let Some(max) = rule.limits().max_age() {
        let percent = if connection.adopted { 100 } else { jitter };
        each(Reason::Age {
            value: now.since(connection.opened),
            limit: Duration::from_nanos(own(nanos(max), percent)),
            max,
        });
    }
    if let Some(max) = rule.limits().max_bytes() {
        each(Reason::Bytes {
            value: connection.bytes(),
            limit: Bytes(own(max.get(), jitter)),
            max: Bytes(max.get()),
        });
    }
    let asked = rule.limits().max_rate()?;
    let (max, held) = (asked.bytes_per_second().get(), asked.sustained_for());
    let Some(value) = ledger.rates().sustained(connection.cookie, held) else {
        return Some(Unknown(asked));
    };
    each(Reason::Rate {
        value,
        limit: Bytes(own(max, jitter)),
        max: Bytes(max),
        held,
    });
    None
}

/// The limits of a rule beside what a connection holds against them.
#[derive(Clone, Copy)]
pub(super) struct Furthest {
    /// The one that it is furthest beyond, or nearest to.
    pub(super) reason: Reason,
    /// It has reached any limit of the rule.
    pub(super) overdue: bool,
    /// It has reached its own `maxAge`.
    pub(super) is_too_old: bool,
}

/// Those of which that is known, if there are any; and the one of which it is not.
pub(super) fn furthest(
    rule: &Rule,
    connection: &Connection,
    ledger: &Ledger,
    now: KernelTime,
) -> (Option<Furthest>, Option<Unknown>) {
    let mut furthest: Option<Furthest> = None;
    let unknown = measure(rule, connection, ledger, now, |reason| {
        let overdue = reason.overdue();
        let is_too_old = matches!(reason, Reason::Age { .. }) && reason.exceeded();
        match &mut furthest {
            None => {
                furthest = Some(Furthest {
                    reason,
                    overdue,
                    is_too_old,
                });
            }
            Some(so_far) => {
                so_far.overdue |= overdue;
                so_far.is_too_old |= is_too_old;
                if reason.compare(so_far.reason).is_gt() {
                    so_far.reason = reason;
                }
            }
        }
    });
    (furthest, unknown)
}

/// `max` less the connection's share of `percent` of it: from 1 to `max` for a `max` of 1 or
/// more.
fn own_limit(max: u64, percent: u8, cookie: Cookie) -> u64 {
    // h has 32 bits, so that nothing here is beyond 64 + 7 + 32.
    let h = u128::from(hash(cookie) >> 32);
    let off = (u128::from(max) * u128::from(percent) * h) >> 32;
    // Most are small, and division of 128 bits is slow.
    let off = u64::try_from(off).map_or_else(|_| off / 100, |off| u128::from(off / 100));
    max.saturating_sub(u64::try_from(off).unwrap_or(u64::MAX))
}

/// splitmix64 of the cookie. Fixed for good: a replay of an old dump depends on it.
pub(super) fn hash(Cookie(cookie): Cookie) -> u64 {
    let mut z = cookie.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_hash_is_splitmix64() {
        // The first outputs of the reference implementation from the seed 0: its state grows by
        // the same constant with each.
        let step = 0x9e37_79b9_7f4a_7c15_u64;
        assert_eq!(hash(Cookie(0)), 0xe220_a839_7b1d_cdaf);
        assert_eq!(hash(Cookie(step)), 0x6e78_9e6a_a1b9_65f4);
        assert_eq!(hash(Cookie(step.wrapping_mul(2))), 0x06c4_5d18_8009_454f);
    }

    #[test]
    fn cookies_in_a_row_are_spread_over_the_whole_span() {
        const TENTHS: u64 = 10;
        let mut counts = [0; TENTHS as usize];
        for cookie in 0..10_000 {
            let limit = own_limit(1_000_000, 100, Cookie(cookie));
            counts[usize::try_from((limit - 1) * TENTHS / 1_000_000).unwrap()] += 1;
        }
        assert!(
            counts.iter().all(|count| (900..1100).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn reasons_read_as_sentences() {
        let (minute, mebi) = (Duration::from_secs(60), 1 << 20);
        let age = Reason::Age {
            value: minute * 61,
            limit: minute * 58,
            max: minute * 60,
        };
        let [value, limit, max] = [1, 9, 10].map(|n| Bytes(n * mebi));
        let bytes = Reason::Bytes { value, limit, max };
        assert_eq!(age.to_string(), "age 1h1m of 58m (maxAge 1h)");
        assert_eq!(bytes.to_string(), "1.0 MiB of 9.0 MiB (maxBytes 10.0 MiB)");
        assert_eq!(age.compare(bytes), Ordering::Greater);
        let excess = |by| Reason::Balance {
            by,
            load: 300,
            mean: 100,
            stop: 110,
        };
        for (by, unit) in [
            (By::Connections, ""),
            (By::ByteRate, " B/s"),
            (By::MessageRate, " messages/s"),
        ] {
            let expected = format!("endpoint holds 300{unit} of mean 100{unit}, stop 110{unit}");
            assert_eq!(excess(by).to_string(), expected);
        }
        assert_eq!(excess(By::Connections).compare(age), Ordering::Greater);
        let rate = Reason::Rate {
            value,
            limit,
            max,
            held: minute / 2,
        };
        let expected = "1.0 MiB/s of 9.0 MiB/s held for 30s (maxRate 10.0 MiB/s)";
        assert_eq!(rate.to_string(), expected);
        for (cause, expected) in [
            (
                DrainCause::Terminating,
                "its pod is being deleted, and is asked to stop in 1m",
            ),
            (
                DrainCause::Removed,
                "its pod is no endpoint of its Service any more; 1m of `within` are left",
            ),
            (
                DrainCause::Unready,
                "its pod is not ready any more; 1m of `within` are left",
            ),
            (
                DrainCause::Requested,
                "an operator drains its endpoint, for another 1m",
            ),
        ] {
            let left = minute;
            let drain = Reason::Drain { cause, left };
            assert_eq!(drain.to_string(), expected);
            assert_eq!(drain.compare(age), Ordering::Greater);
            assert!(drain.exceeded() && !drain.overdue());
        }
    }

    proptest! {
        #[test]
        fn an_own_limit_is_within_its_jitter(max in 1..=u64::MAX, percent in 0..=100u8, cookie: u64) {
            let limit = own_limit(max, percent, Cookie(cookie));
            prop_assert!((1..=max).contains(&limit));
            let least = u128::from(max) * u128::from(100 - percent) / 100;
            prop_assert!(u128::from(limit) >= least);
            prop_assert_eq!(limit, own_limit(max, percent, Cookie(cookie)));
        }
    }
}
