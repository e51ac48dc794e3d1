//! What a node learns.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Generation, Key, Share, Sums};

/// What all ready endpoints of a Service hold, for one of its nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// Whose endpoints.
    #[serde(flatten)]
    pub key: Key,
    /// Which set of ready endpoints was reported.
    pub generation: Generation,
    /// How many it has.
    pub endpoints: u32,
    /// What they hold together.
    #[serde(flatten)]
    pub sums: Sums,
    /// The same of the other nodes' endpoints; an earlier coordinator does not say it.
    #[serde(default)]
    pub others: Option<Sums>,
    /// What each would hold; of the endpoints of its zone, if traffic stays there.
    pub mean: u64,
    /// The least that one of them holds.
    pub least: u64,
    /// The most that one of them holds.
    pub most: u64,
    /// Connections of all nodes that are being moved, or were and whose clients are looked for.
    #[serde(default)]
    pub moving: u64,
    /// Connections, whatever they count for: of these a budget may be a percentage.
    pub connections: u64,
    /// Of these, what the other nodes have.
    #[serde(default)]
    pub elsewhere: u64,
    /// What the other nodes' endpoints hold, each up to the mean: it grows by what comes to those that lack, and
    /// not by what those above the mean give to each other.
    #[serde(default)]
    pub filled: u64,
    /// How many of the other nodes' endpoints hold the mean or more.
    #[serde(default)]
    pub full: u32,
    /// What this node's endpoints hold above the mean.
    pub excess: u64,
    /// This node's part of the Service's budget, by its part of what all hold above the mean.
    pub share: Share,
}

/// What a node knows of the cluster at one moment. A dump leaves `Off` out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum Views {
    /// Nobody is asked: a plain host, or there is nothing to ask for.
    #[default]
    #[serde(skip)]
    Off,
    /// No coordinator has given a view since this node's agent began to wait for one.
    Awaited,
    /// The last views are too old to be used.
    Expired,
    /// These are known.
    Valid {
        /// A view of each Service of which all ready endpoints were reported.
        #[serde(with = "as_list")]
        services: BTreeMap<Key, View>,
        /// For how long they count still.
        #[serde(rename = "leftNanoseconds", with = "as_nanoseconds")]
        left: Duration,
    },
}

impl Views {
    /// Those of a node, by what they are of; what is left of their time.
    pub fn valid(views: Vec<View>, left: Duration) -> Self {
        let by_key = views.into_iter().map(|view| (view.key.clone(), view));
        Self::Valid {
            services: by_key.collect(),
            left,
        }
    }

    /// What [`Views::state`] may say.
    pub const STATES: [&str; 3] = ["awaited", "expired", "valid"];

    /// How much is known, as a stable word; none if nobody is asked.
    pub fn state(&self) -> Option<&'static str> {
        let [awaited, expired, valid] = Self::STATES;
        match self {
            Self::Off => None,
            Self::Awaited => Some(awaited),
            Self::Expired => Some(expired),
            Self::Valid { .. } => Some(valid),
        }
    }

    /// Whether nobody is asked.
    pub fn is_off(&self) -> bool {
        *self == Self::Off
    }
}

/// Views have their keys in themselves.
mod as_list {
    use std::collections::BTreeMap;

    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::{Key, View};

    pub(super) fn serialize<S: Serializer>(
        views: &BTreeMap<Key, View>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(views.values())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<Key, View>, D::Error> {
        let views = Vec::<View>::deserialize(from)?;
        let by_key = views.into_iter().map(|view| (view.key.clone(), view));
        Ok(by_key.collect())
    }
}

/// A number of nanoseconds.
mod as_nanoseconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_nanos)
    }
}
