//! What a node reports.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Generation, Sums};

/// Services of a report; more are left out and counted.
pub const MOST_SERVICES: usize = 256;

/// Endpoints of a Service in a report; a Service that has more on one node is left out and counted.
pub const MOST_LOADS: usize = 256;

/// Whose endpoints are compared, and by what: loads in two units are never added up.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    /// `namespace/name` of the Service.
    #[schemars(length(max = 320))]
    pub service: String,
    /// The port of its endpoints.
    pub port: u16,
    /// The zone, if traffic stays in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub zone: Option<String>,
    /// The rule that balances it.
    #[schemars(length(max = 253))]
    pub rule: String,
    /// What a connection counts for, as the policy names it.
    #[schemars(length(max = 32))]
    pub by: String,
}

/// What the ready endpoints of a Service on one node hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceReport {
    /// Whose endpoints.
    #[serde(flatten)]
    pub key: Key,
    /// Which set of ready endpoints the node knows.
    pub generation: Generation,
    /// How many that set has, on all nodes.
    pub ready: u32,
    /// What each of those on this node holds, the most first; connections that are being moved
    /// are still there.
    #[schemars(length(max = 256))]
    pub loads: Vec<u64>,
    /// What the loads are made of.
    #[serde(flatten)]
    pub sums: Sums,
    /// Connections, whatever they count for.
    pub connections: u64,
    /// Connections that are being moved, or were and whose clients are looked for.
    #[serde(default)]
    pub moving: u64,
}

impl ServiceReport {
    /// With the numbers as they can be, whoever has written them; none if there is no endpoint, or more
    /// than fit.
    pub(super) fn checked(&self) -> Option<Self> {
        if self.loads.is_empty() || self.loads.len() > MOST_LOADS {
            return None;
        }
        let total = self
            .loads
            .iter()
            .fold(0, |sum: u64, load| sum.saturating_add(*load));
        let most = self.loads.iter().max().copied().unwrap_or(0);
        Some(Self {
            sums: self.sums.clamped(total, most),
            ..self.clone()
        })
    }
}

/// What a node reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Another number with each report, so that who reports the same is known to live.
    pub sequence: u64,
    /// Each balanced Service that has endpoints here and elsewhere.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub services: Vec<ServiceReport>,
    /// Services that did not fit.
    #[serde(default)]
    pub left_out: u32,
}

impl Report {
    /// Of these, in their order: as many as fit.
    pub fn of(sequence: u64, mut services: Vec<ServiceReport>) -> Self {
        let all = services.len();
        services.retain(|one| one.loads.len() <= MOST_LOADS);
        services.truncate(MOST_SERVICES);
        Self {
            sequence,
            left_out: u32::try_from(all - services.len()).unwrap_or(u32::MAX),
            services,
        }
    }

    /// Whether `now` is of other Services than this, or of other sets of their endpoints: the views that this
    /// was made for are of no use any more.
    pub fn is_of_others_than(&self, now: &[ServiceReport]) -> bool {
        let differs = |(before, now): (&ServiceReport, &ServiceReport)| {
            before.key != now.key
                || before.generation != now.generation
                || before.ready != now.ready
                || before.loads.len() != now.loads.len()
        };
        self.services.len() != now.len().min(MOST_SERVICES)
            || self.services.iter().zip(now).any(differs)
    }

    /// Whether `now` differs enough from this to be reported before its time: another set of
    /// endpoints, the first moves, or a load that has changed by a twentieth of the Service's here, and by two at least.
    pub fn is_outdated_by(&self, now: &[ServiceReport]) -> bool {
        let differs = |(before, now): (&ServiceReport, &ServiceReport)| {
            let total = now.sums.total.max(before.sums.total);
            let far = |(a, b): (&u64, &u64)| a.abs_diff(*b) >= (total / 20).max(2);
            let begins = before.moving == 0 && now.moving > 0;
            begins || before.loads.iter().zip(&now.loads).any(far)
        };
        self.is_of_others_than(now) || self.services.iter().zip(now).any(differs)
    }
}
