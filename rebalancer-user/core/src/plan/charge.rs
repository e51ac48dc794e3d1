//! Whose a move is: whose budgets and whose evidence it counts against.

use std::{fmt, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::Group;
use crate::{policy::RuleName, snapshot::EndpointKey};

/// Whose a move is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Charge {
    /// The rule that asked for it.
    pub rule: RuleName,
    /// The namespace of the pod, if it is known.
    pub namespace: Option<String>,
    /// The group of its endpoint.
    #[serde(with = "shared")]
    pub group: Arc<Group>,
    /// Its endpoint.
    pub endpoint: EndpointKey,
    /// Its client.
    pub client: IpAddr,
    /// Connections that its client had at that endpoint, itself among them.
    pub here: u64,
    /// What it counted for in its group.
    pub load: u64,
    /// If balance chose it, that in millionths of the group's mean; else 0.
    pub share: u64,
    /// Endpoints that its client may come to; 0 if that is not known.
    pub siblings: u32,
    /// All of these are seen here.
    pub whole: bool,
    /// Its pod was being deleted: neither a budget nor evidence, as the client cannot come back there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drains: bool,
    /// What became of it.
    #[serde(rename = "stage")]
    pub fate: Fate,
}

/// What became of a move that counts against a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Fate {
    /// The connection is there.
    There,
    /// It is gone, and its client has not been seen again.
    Away,
    /// Its client is back at the same endpoint.
    Returned,
    /// Its client is at another endpoint of the group.
    Elsewhere,
}

impl Charge {
    /// Neither the connection is in the group nor one that its client made instead.
    pub(super) fn is_away(&self) -> bool {
        self.fate == Fate::Away
    }

    /// Neither is at the endpoint.
    pub(super) fn has_left(&self) -> bool {
        matches!(self.fate, Fate::Away | Fate::Elsewhere)
    }
}

/// What an `Arc` leads to, as if it were held by value.
mod shared {
    use super::{Arc, Deserialize as _, Group, Serialize as _};

    pub(super) fn serialize<S: serde::Serializer>(
        group: &Arc<Group>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        Group::serialize(group, serializer)
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<Group>, D::Error> {
        Group::deserialize(deserializer).map(Arc::new)
    }
}

/// Whose returns are counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Subject {
    /// Those of one client.
    Client(IpAddr),
    /// Those of all clients of a rule.
    Rule(RuleName),
}

impl Subject {
    /// Under both of these a move of `client` by `rule` is counted.
    pub(super) fn both(client: IpAddr, rule: &RuleName) -> [Self; 2] {
        [Self::Client(client), Self::Rule(rule.clone())]
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(address) => write!(f, "client {address}"),
            Self::Rule(rule) => write!(f, "rule {rule}"),
        }
    }
}
