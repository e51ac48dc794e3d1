//! The file's own types: the shape of a policy document, no more. Every value keeps its place,
//! and what it means is judged in `parse`, so that all errors of meaning are found at once.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

/// A field that may be left out. One that is there and empty is not left out.
#[derive(Debug)]
pub(super) struct Field<T>(pub(super) Option<Spanned<T>>);

impl<T> Default for Field<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(|value| Self(Some(value)))
    }
}

/// Whatever stands where one value is meant. Its text is in the source, at its place.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Number,
    Text(String),
    List,
    Map,
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Scalar, E> {
        Ok(Scalar::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Scalar, E> {
        Ok(Scalar::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Scalar, E> {
        Ok(Scalar::Bool(value))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Scalar, E> {
        Ok(Scalar::Number)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Scalar, E> {
        Ok(Scalar::Number)
    }

    fn visit_i128<E: Error>(self, _: i128) -> Result<Scalar, E> {
        Ok(Scalar::Number)
    }

    fn visit_u128<E: Error>(self, _: u128) -> Result<Scalar, E> {
        Ok(Scalar::Number)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Scalar, E> {
        Ok(Scalar::Number)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Scalar, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::List)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Map)
    }
}

/// A field of the format that this version does not know how to serve.
pub(super) type Unsupported = Field<IgnoredAny>;

/// A list of which each item keeps its place.
pub(super) type List<T> = Field<Vec<Spanned<T>>>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct PolicyFile {
    pub(super) api_version: Field<Scalar>,
    pub(super) kind: Field<Scalar>,
    pub(super) mode: Field<Scalar>,
    pub(super) interval: Field<Scalar>,
    pub(super) track: Field<TrackFile>,
    pub(super) budget: Field<BudgetFile>,
    pub(super) guards: Field<GuardsFile>,
    pub(super) rules: List<RuleFile>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct TrackFile {
    pub(super) sockets: Field<Scalar>,
    pub(super) loopback: Field<Scalar>,
    pub(super) max_per_endpoint: Field<Scalar>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct BudgetFile {
    pub(super) window: Field<Scalar>,
    pub(super) per_node: Field<Scalar>,
    pub(super) max_in_flight: Field<Scalar>,
    pub(super) per_service: Unsupported,
    pub(super) per_endpoint: Unsupported,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct GuardsFile {
    pub(super) min_age: Field<Scalar>,
    pub(super) allow_system_ports: List<Scalar>,
    pub(super) exclude_namespaces: Unsupported,
    pub(super) min_ready_endpoints: Unsupported,
    pub(super) settle: Unsupported,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct RuleFile {
    pub(super) name: Field<Scalar>,
    pub(super) mode: Field<Scalar>,
    #[serde(rename = "match")]
    pub(super) matches: Field<MatchFile>,
    pub(super) limits: Field<LimitsFile>,
    pub(super) jitter: Field<Scalar>,
    pub(super) session_state: Field<Scalar>,
    pub(super) steps: List<StepFile>,
    pub(super) at_end: Field<Scalar>,
    pub(super) balance: Unsupported,
    pub(super) count: Unsupported,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct MatchFile {
    pub(super) ports: List<PortFile>,
    pub(super) peers: List<PeerFile>,
    pub(super) services: Unsupported,
    pub(super) namespace_selector: Unsupported,
    pub(super) pod_selector: Unsupported,
    pub(super) cgroups: Unsupported,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct PortFile {
    pub(super) port: Field<Scalar>,
    pub(super) end_port: Field<Scalar>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct PeerFile {
    pub(super) ip_block: Field<IpBlockFile>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct IpBlockFile {
    pub(super) cidr: Field<Scalar>,
    pub(super) except: List<Scalar>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct LimitsFile {
    pub(super) max_age: Field<Scalar>,
    pub(super) max_bytes: Field<Scalar>,
    pub(super) max_rate: Unsupported,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct StepFile {
    pub(super) step: Field<Scalar>,
    pub(super) when: Field<Scalar>,
    pub(super) idle_for: Field<Scalar>,
    pub(super) timeout: Field<Scalar>,
}
