//! Cooldowns: after an attempt without success, how long the same is not tried again.
//!
//! Ten minutes, doubling each time up to a day, for a connection that survived its move, for clients
//! that come back to the same endpoint, and for a group in which an endpoint stays empty.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Group, Subject};
use crate::{
    policy::RuleName,
    snapshot::{Cookie, EndpointKey, KernelTime},
};

/// The first cooldown. A connection is not chosen again within this time after its move has ended: if
/// it lives on, the move was refused or failed, or the connection never became quiet, and another move
/// would end the same way; if not, a snapshot taken before its end may still list it.
pub const FIRST_HOLD: Duration = Duration::from_secs(600);

const LONGEST_HOLD: Duration = Duration::from_secs(24 * 3600);

/// A record without news for this long is forgotten, unless it is on cooldown.
const FORGET: Duration = Duration::from_secs(3600);

/// How often attempts had no success, and until when none is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hold {
    /// How often.
    pub times: u32,
    /// When the next attempt may be made; zero without a cooldown.
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
    /// Attempts without success so far.
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
