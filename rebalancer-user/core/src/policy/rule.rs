//! One rule: which connections, how old or heavy they may grow, and how they are ended.

use std::{fmt, num::NonZeroU64, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Match, Mode, Percent, error::quoted};

/// A rule's name: a DNS label, unique in its policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct RuleName(pub(super) Arc<str>);

impl RuleName {
    /// What stands for a rule in a move by hand. No policy can name a rule so.
    pub fn manual() -> Self {
        Self("(by hand)".into())
    }

    /// A name that was written by an agent; `None` if no rule can have it.
    pub fn known(text: &str) -> Option<Self> {
        let manual = Self::manual();
        if text == manual.as_str() {
            return Some(manual);
        }
        super::values::is_label(text).then(|| Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RuleName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::known(&text).ok_or_else(|| format!("{} is not a rule's name", quoted(&text)))
    }
}

impl From<RuleName> for String {
    fn from(name: RuleName) -> Self {
        name.to_string()
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub(super) name: RuleName,
    pub(super) mode: Option<Mode>,
    pub(super) matches: Match,
    pub(super) limits: Limits,
    pub(super) balance: Option<Balance>,
    pub(super) jitter: Percent,
    pub(super) on_reconnect: OnReconnect,
    pub(super) steps: Arc<[Step]>,
    pub(super) at_end: AtEnd,
    pub(super) count: Option<Count>,
}

impl Rule {
    /// Its name.
    pub fn name(&self) -> &RuleName {
        &self.name
    }

    /// Its own mode; see [`super::Policy::mode_of`] for what counts.
    pub fn mode(&self) -> Option<Mode> {
        self.mode
    }

    /// Which connections it is for.
    pub fn matches(&self) -> &Match {
        &self.matches
    }

    /// How old or heavy they may grow.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// What is too much for one of several endpoints; always given where there are no limits.
    pub fn balance(&self) -> Option<Balance> {
        self.balance
    }

    /// By how much, at most, a connection's own limit is below the rule's.
    pub fn jitter(&self) -> Percent {
        self.jitter
    }

    /// Whether its servers keep a session's state beyond a connection.
    pub fn on_reconnect(&self) -> OnReconnect {
        self.on_reconnect
    }

    /// Ways to end a connection, in order; never empty.
    pub fn steps(&self) -> &Arc<[Step]> {
        &self.steps
    }

    /// What happens when all steps have timed out.
    pub fn at_end(&self) -> AtEnd {
        self.at_end
    }

    /// What is counted on its connections beyond what the kernel counts anyway; also if it is
    /// only implied by what they are balanced by.
    pub fn count(&self) -> Option<Count> {
        self.count
    }
}

/// A rule's limits: at least one is set, unless the rule balances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub(super) max_age: Option<Duration>,
    pub(super) max_bytes: Option<NonZeroU64>,
    pub(super) max_rate: Option<MaxRate>,
}

impl Limits {
    /// Time since accept; more than 0.
    pub fn max_age(self) -> Option<Duration> {
        self.max_age
    }

    /// Bytes both ways.
    pub fn max_bytes(self) -> Option<NonZeroU64> {
        self.max_bytes
    }

    /// Bytes both ways per second, for a time without a pause.
    pub fn max_rate(self) -> Option<MaxRate> {
        self.max_rate
    }
}

/// When an endpoint holds too much, beside those that share clients with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    pub(super) by: By,
    pub(super) tolerance: Percent,
}

impl Balance {
    /// What is held against the mean.
    pub fn by(self) -> By {
        self.by
    }

    /// How far above the mean an endpoint may stay; 1 % or more.
    pub fn tolerance(self) -> Percent {
        self.tolerance
    }
}

/// What of endpoints is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// How many connections they hold.
    #[default]
    Connections,
    /// Bytes both ways per second.
    ByteRate,
    /// Sends of the server per second.
    MessageRate,
}

impl By {
    /// The word in the policy file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "Connections",
            Self::ByteRate => "ByteRate",
            Self::MessageRate => "MessageRate",
        }
    }
}

/// A rate that is too high if it is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxRate {
    pub(super) bytes_per_second: NonZeroU64,
    pub(super) sustained_for: Duration,
}

impl MaxRate {
    /// The rate.
    pub fn bytes_per_second(self) -> NonZeroU64 {
        self.bytes_per_second
    }

    /// How long it must have been held; twice the policy's interval or more, so that no single
    /// burst is long enough.
    pub fn sustained_for(self) -> Duration {
        self.sustained_for
    }
}

/// Whether a connection's end costs its client more than a reconnect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnReconnect {
    /// Nobody has said: only connections that are heard to speak HTTP/1 are moved, once all that was
    /// asked is answered. The default; a rule that lets connections be ended at any moment must say
    /// one of the others.
    Detect,
    /// The operator says that a reconnect at a quiet moment costs nothing: what they speak is not
    /// asked. Ports known for state in their connections (a transaction, a subscription) are skipped.
    Safe,
    /// The operator says that losing what the connection holds is fine.
    LosesState,
}

/// One way to end a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub(super) kind: StepKind,
    pub(super) when: When,
    pub(super) timeout: Duration,
}

impl Step {
    /// What `atEnd: ResetNow` comes to.
    pub const RESET_NOW: Self = Self {
        kind: StepKind::Reset,
        when: When::AtOnce,
        timeout: Duration::from_secs(5),
    };

    /// A step; `None` if its times are not more than 0.
    pub fn new(kind: StepKind, when: When, timeout: Duration) -> Option<Self> {
        let waits = match when {
            When::Quiet { idle_for } => !idle_for.is_zero(),
            When::AtOnce => true,
        };
        (waits && !timeout.is_zero()).then_some(Self {
            kind,
            when,
            timeout,
        })
    }

    /// What is done.
    pub fn kind(self) -> StepKind {
        self.kind
    }

    /// The condition waited for.
    pub fn when(self) -> When {
        self.when
    }

    /// How long it is waited for; more than 0.
    pub fn timeout(self) -> Duration {
        self.timeout
    }
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// The server is told that its client has finished: it may still answer, and closes by
    /// itself.
    Close,
    /// A reset to both ends.
    Reset,
}

impl StepKind {
    /// The word in the policy file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Close => "Close",
            Self::Reset => "Reset",
        }
    }
}

/// When a step acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// All received was read, all sent was acknowledged, the server spoke last, and nothing
    /// was exchanged for `idle_for`.
    Quiet {
        /// More than 0.
        idle_for: Duration,
    },
    /// Without a condition.
    AtOnce,
}

/// What happens when all steps have timed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtEnd {
    /// The connection is left.
    #[default]
    Skip,
    /// It is reset without a condition.
    ResetNow,
}

/// What a program of ours counts on a connection, at some cost to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Each send of the server, and its bytes.
    Messages,
}
