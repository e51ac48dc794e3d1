//! Cooldowns: times during which something is not tried again, as it was in vain.
//!
//! Ten minutes, twice as long each time, up to a day: of a connection whose move ended without its
//! end, of clients that come back to an endpoint, of a group in which an endpoint stays empty.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Group, Subject};
use crate::{
    policy::RuleName,
    snapshot::{Cookie, EndpointKey, KernelTime},
};

/// How long nothing is tried again after the first time in vain. For so long a connection is not
/// chosen again once a move of it has ended: one that lives on was refused, failed or never became
/// quiet, and would be so again at once; one that does not may still stand in a snapshot taken before
/// its end.
pub const FIRST_HOLD: Duration = Duration::from_secs(600);

const LONGEST_HOLD: Duration = Duration::from_secs(24 * 3600);

/// What nothing was known of for so long is forgotten, unless it is held.
const FORGET: Duration = Duration::from_secs(3600);

/// How often something was in vain, and until when it is not tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hold {
    /// How often.
    pub times: u32,
    /// Nothing is tried before; zero if it is not held.
    pub until: KernelTime,
}

impl Hold {
    /// Begins; for how long it lasts.
    pub(super) fn begin(&mut self, now: KernelTime) -> Duration {
        let doubled = 2_u32.saturating_pow(self.times.min(16));
        let lasts = FIRST_HOLD.saturating_mul(doubled).min(LONGEST_HOLD);
        self.times = self.times.saturating_add(1);
        self.until = now.after(lasts);
        lasts
    }

    /// Ends it before its time. The next is longer all the same.
    pub(super) fn end(&mut self, now: KernelTime) {
        self.until = self.until.min(now);
    }

    /// For how long still, if it lasts.
    pub(super) fn left(self, now: KernelTime) -> Option<Duration> {
        let left = self.until.since(now);
        (!left.is_zero()).then_some(left)
    }

    /// Whether it may be what was known `at` this time.
    pub(super) fn is_of(self, at: KernelTime) -> bool {
        self.until.since(at) <= LONGEST_HOLD
    }

    /// Whether what was last known `last` is to be forgotten. What was held is remembered for longer, so
    /// that the next hold is longer.
    pub(super) fn is_stale(self, last: KernelTime, now: KernelTime) -> bool {
        let kept = if self.times > 0 { LONGEST_HOLD } else { FORGET };
        now.since(last.max(self.until)) >= kept
    }
}

/// One cooldown that lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cooldown {
    /// What is not tried.
    pub of: CooldownOf,
    /// Why, as a stable word: an outcome, a refusal, or the word of the skipped.
    pub cause: &'static str,
    /// The same in words.
    pub why: String,
    /// Until when; without it, for as long as the connection lives.
    pub until: Option<KernelTime>,
    /// How often it was in vain so far.
    pub times: u32,
}

/// What is not tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CooldownOf {
    /// To move this connection.
    Connection(Cookie, Option<RuleName>),
    /// To move from this endpoint what is of these.
    Returns(Subject, EndpointKey),
    /// To move what balance chooses in this group.
    Fill(RuleName, Group),
}

impl fmt::Display for CooldownOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(cookie, Some(rule)) => write!(f, "connection {cookie} of rule {rule}"),
            Self::Connection(cookie, None) => write!(f, "connection {cookie}"),
            Self::Returns(subject, endpoint) => {
                write!(
                    f,
                    "{subject} at port {} of netns {}",
                    endpoint.port, endpoint.netns.0
                )
            }
            Self::Fill(rule, group) => write!(f, "rule {rule}, {group}"),
        }
    }
}
