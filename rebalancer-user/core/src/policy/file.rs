//! The file's own types: the shape of a policy document, no more. Their documentation is what
//! editors show. Every value keeps its place,
//! and what it means is judged in `parse`, so that all errors of meaning are found at once.

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

use super::schema;

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

/// A list of which each item keeps its place.
pub(super) type List<T> = Field<Vec<Spanned<T>>>;

/// Which connections are ended so that their clients reconnect.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "RebalancePolicy", extend("required" = ["apiVersion", "kind", "rules"]))]
pub(super) struct PolicyFile {
    /// The version of this format.
    #[schemars(with = "schema::ApiVersion")]
    pub(super) api_version: Field<Scalar>,
    /// The kind of this document.
    #[schemars(with = "schema::Kind")]
    pub(super) kind: Field<Scalar>,
    /// The most that any rule may do: `Disabled` chooses nothing, `DryRun` tells what it would
    /// move, `Enforce` moves it.
    #[schemars(with = "schema::Modes", extend("default" = "DryRun"))]
    pub(super) mode: Field<Scalar>,
    /// Time from one listing to the next, from 200ms to 1h.
    #[schemars(with = "schema::Duration", extend("default" = "5s"))]
    pub(super) interval: Field<Scalar>,
    /// What the kernel records.
    #[schemars(with = "TrackFile")]
    pub(super) track: Field<TrackFile>,
    /// How many moves there may be.
    #[schemars(with = "BudgetFile")]
    pub(super) budget: Field<BudgetFile>,
    /// What is never moved, whatever a rule says.
    #[schemars(with = "GuardsFile")]
    pub(super) guards: Field<GuardsFile>,
    /// The first rule that matches a connection is the one for it.
    #[schemars(with = "Vec<RuleFile>")]
    pub(super) rules: List<RuleFile>,
}

/// What the kernel records.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Track")]
pub(super) struct TrackFile {
    /// Whether connections from loopback addresses are recorded.
    #[schemars(with = "bool", extend("default" = false))]
    pub(super) loopback: Field<Scalar>,
    /// The most connections recorded for one endpoint.
    #[schemars(with = "schema::PerEndpoint", extend("default" = 65536))]
    pub(super) max_per_endpoint: Field<Scalar>,
    /// The most connections recorded on the node: each takes some 0.4 KB of kernel memory.
    #[schemars(with = "schema::PerNode", extend("default" = 262144))]
    pub(super) max_per_node: Field<Scalar>,
    /// Cgroups whose sockets are not recorded, nor those of any cgroup below: globs over their
    /// paths, as in `match.cgroups`.
    #[schemars(with = "Vec<schema::CgroupGlob>", extend("default" = []))]
    pub(super) exclude_cgroups: List<Scalar>,
}

/// How many moves there may be.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Budget")]
pub(super) struct BudgetFile {
    /// The sliding time over which moves are counted, from 1s to 24h.
    #[schemars(with = "schema::Duration", extend("default" = "1m"))]
    pub(super) window: Field<Scalar>,
    /// Moves within a window: a number, or a percentage of the node's tracked connections, rounded
    /// up and at least 1.
    #[schemars(with = "schema::Amounts", extend("default" = 60))]
    pub(super) per_node: Field<Scalar>,
    /// Moves started and not ended.
    #[schemars(with = "schema::Counts", extend("default" = 20))]
    pub(super) max_in_flight: Field<Scalar>,
    /// Moves within a window from one Service: a number, or a percentage of its connections, as
    /// `perNode`.
    #[schemars(with = "schema::Amounts", extend("default" = "10%"))]
    pub(super) per_service: Field<Scalar>,
    /// Moves within a window from one endpoint: a number, or a percentage of its connections, as
    /// `perNode`.
    #[schemars(with = "schema::Amounts", extend("default" = "25%"))]
    pub(super) per_endpoint: Field<Scalar>,
}

/// What is never moved, whatever a rule says.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Guards")]
pub(super) struct GuardsFile {
    /// Younger connections are skipped.
    #[schemars(with = "schema::Duration", extend("default" = "30s"))]
    pub(super) min_age: Field<Scalar>,
    /// Ports of the node's own services (SSH, DNS, kubelet, etcd…) that rules may name after all.
    #[schemars(with = "Vec<schema::Port>", extend("default" = []))]
    pub(super) allow_system_ports: List<Scalar>,
    /// Whether connections of the host's own network namespace may be moved. Without it: yes on a
    /// plain host, no with Kubernetes.
    #[schemars(with = "bool")]
    pub(super) allow_host_network: Field<Scalar>,
    /// Namespaces whose pods are left alone. Without it: `kube-system` with Kubernetes.
    #[schemars(with = "Vec<schema::Name>")]
    pub(super) exclude_namespaces: List<Scalar>,
    /// A Service with fewer ready endpoints is left alone.
    #[schemars(with = "schema::Counts", extend("default" = 2))]
    pub(super) min_ready_endpoints: Field<Scalar>,
    /// A Service whose ready endpoints changed less than this ago is left alone. What the API server
    /// said is trusted for as long, 20 s at least and 1 min at most, and then not acted on.
    #[schemars(with = "schema::Duration", extend("default" = "1m"))]
    pub(super) stabilization_window: Field<Scalar>,
}

/// Which connections, how old or heavy they may grow, and how they are ended.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Rule", extend(
    "required" = ["name", "match"],
    "anyOf" = [{"required": ["limits"]}, {"required": ["balance"]}]
))]
pub(super) struct RuleFile {
    /// A DNS label, unique in this policy.
    #[schemars(with = "schema::Name")]
    pub(super) name: Field<Scalar>,
    /// The most that this rule may do; the policy's own mode bounds it.
    #[schemars(with = "schema::Modes")]
    pub(super) mode: Field<Scalar>,
    /// Which connections it is for.
    #[serde(rename = "match")]
    #[schemars(with = "MatchFile")]
    pub(super) matches: Field<MatchFile>,
    /// How old or heavy they may grow; whoever exceeds any is chosen. A rule has limits, or
    /// `balance`, or both.
    #[schemars(with = "LimitsFile")]
    pub(super) limits: Field<LimitsFile>,
    /// By how much, at most, a connection's own limit is below the rule's, so that those opened
    /// together do not end together.
    #[schemars(with = "schema::Percentage", extend("default" = "10%"))]
    pub(super) jitter: Field<Scalar>,
    /// What a connection's end costs its client. `Detect`: only those are moved that are heard to
    /// speak HTTP/1, which loses nothing at a quiet moment. `Safe`: no more than a reconnect,
    /// whatever they speak. Both skip ports of protocols that hold state in their connections
    /// (PostgreSQL, Redis, MQTT, gRPC…). `LosesState`: losing that state is fine. Where a step is `AtOnce`, or
    /// `atEnd` is `ResetNow`, `Safe` or `LosesState` must be said.
    #[schemars(with = "schema::OnReconnects", extend("default" = "Detect"))]
    pub(super) on_reconnect: Field<Scalar>,
    /// Ways to end a connection, the gentlest first. Without it: a reset at a quiet moment.
    #[schemars(with = "Vec<StepFile>")]
    pub(super) steps: List<StepFile>,
    /// What happens when all steps have timed out.
    #[schemars(with = "schema::Ends", extend("default" = "Skip"))]
    pub(super) at_end: Field<Scalar>,
    /// `Messages`: how often its servers send on each connection, and how many bytes, is counted in
    /// the kernel, at some cost to each send. Without it nothing runs for a send.
    #[schemars(with = "schema::Counted")]
    pub(super) count: Field<Scalar>,
    /// What is too much for one of several endpoints that share clients; only the excess is moved.
    #[schemars(with = "BalanceFile")]
    pub(super) balance: Field<BalanceFile>,
}

/// When an endpoint holds too much, beside its siblings.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Balance")]
pub(super) struct BalanceFile {
    /// What is held against the mean. `MessageRate` implies `count: Messages`.
    #[schemars(with = "schema::Loads", extend("default" = "Connections"))]
    pub(super) by: Field<Scalar>,
    /// How far above the mean an endpoint may stay. What chance alone brings about is left in
    /// any case.
    #[schemars(with = "schema::Tolerance", extend("default" = "10%"))]
    pub(super) tolerance: Field<Scalar>,
}

/// Ports, peers, pods and cgroups; what is given must all match.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Match", extend("minProperties" = 1))]
pub(super) struct MatchFile {
    /// Ports of the server's side.
    #[schemars(with = "Vec<PortFile>")]
    pub(super) ports: List<PortFile>,
    /// Clients.
    #[schemars(with = "Vec<PeerFile>")]
    pub(super) peers: List<PeerFile>,
    /// Services of which one leads to the port: `namespace/name`, or `*/name` for a Service in any
    /// namespace that `namespaceSelector` selects, or in any at all.
    #[schemars(with = "Vec<schema::ServiceName>")]
    pub(super) services: List<Scalar>,
    /// Labels of the pod's namespace.
    #[schemars(with = "SelectorFile")]
    pub(super) namespace_selector: Field<SelectorFile>,
    /// Labels of the pod.
    #[schemars(with = "SelectorFile")]
    pub(super) pod_selector: Field<SelectorFile>,
    /// Cgroups of the server's side: globs over their paths, as `/proc/PID/cgroup` shows them. Each
    /// names the cgroups it matches and all below them. `*` also stands for `/`, a backslash for
    /// itself.
    #[schemars(with = "Vec<schema::CgroupGlob>")]
    pub(super) cgroups: List<Scalar>,
}

/// Labels as a NetworkPolicy selects by them; an empty one selects everything.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "LabelSelector")]
pub(super) struct SelectorFile {
    /// Labels and the values that they must have.
    #[schemars(with = "BTreeMap<String, schema::LabelValue>")]
    pub(super) match_labels: Field<BTreeMap<String, Spanned<Scalar>>>,
    /// What else must hold of labels.
    #[schemars(with = "Vec<RequirementFile>")]
    pub(super) match_expressions: List<RequirementFile>,
}

/// What must hold of one label.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "LabelSelectorRequirement", extend("required" = ["key", "operator"]))]
pub(super) struct RequirementFile {
    /// The label.
    #[schemars(with = "schema::LabelKey")]
    pub(super) key: Field<Scalar>,
    /// `In` and `NotIn` look at the label's value, `Exists` and `DoesNotExist` at the label alone.
    #[schemars(with = "schema::Operators")]
    pub(super) operator: Field<Scalar>,
    /// The values of `In` and `NotIn`.
    #[schemars(with = "Vec<schema::LabelValue>")]
    pub(super) values: List<Scalar>,
}

/// A port, or a range of them.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Port", extend("required" = ["port"]))]
pub(super) struct PortFile {
    /// The port, or the lowest of a range.
    #[schemars(with = "schema::Port")]
    pub(super) port: Field<Scalar>,
    /// The highest of a range.
    #[schemars(with = "schema::Port")]
    pub(super) end_port: Field<Scalar>,
}

/// Clients by address.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Peer", extend("required" = ["ipBlock"]))]
pub(super) struct PeerFile {
    /// A network.
    #[schemars(with = "IpBlockFile")]
    pub(super) ip_block: Field<IpBlockFile>,
}

/// A network as a NetworkPolicy has it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "IpBlock", extend("required" = ["cidr"]))]
pub(super) struct IpBlockFile {
    /// The network, e.g. `10.0.0.0/8`.
    #[schemars(with = "schema::Network")]
    pub(super) cidr: Field<Scalar>,
    /// Networks inside it that are not meant.
    #[schemars(with = "Vec<schema::Network>")]
    pub(super) except: List<Scalar>,
}

/// How old or heavy a connection may grow; one limit at least.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Limits", extend("minProperties" = 1))]
pub(super) struct LimitsFile {
    /// Time since it was accepted.
    #[schemars(with = "schema::Duration")]
    pub(super) max_age: Field<Scalar>,
    /// Bytes both ways.
    #[schemars(with = "schema::Size")]
    pub(super) max_bytes: Field<Scalar>,
    /// Bytes both ways per second.
    #[schemars(with = "RateFile")]
    pub(super) max_rate: Field<RateFile>,
}

/// A rate that is too high if it is held without a pause.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Rate", extend("required" = ["bytesPerSecond", "for"]))]
pub(super) struct RateFile {
    /// The rate.
    #[schemars(with = "schema::Size")]
    pub(super) bytes_per_second: Field<Scalar>,
    /// How long it must have been held; twice the interval or more.
    #[serde(rename = "for")]
    #[schemars(with = "schema::Duration")]
    pub(super) sustained_for: Field<Scalar>,
}

/// One way to end a connection.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Step", extend("required" = ["step"]))]
pub(super) struct StepFile {
    /// `Close`: the server is told that its client has finished, and closes. `Reset`: a reset to
    /// both ends.
    #[schemars(with = "schema::StepKinds")]
    pub(super) step: Field<Scalar>,
    /// `Quiet` waits until all was read and acknowledged, the server spoke last, and nothing was
    /// exchanged for `idleFor`. `AtOnce` waits for nothing.
    #[schemars(with = "schema::Conditions", extend("default" = "Quiet"))]
    pub(super) when: Field<Scalar>,
    /// For how long nothing must have been exchanged.
    #[schemars(with = "schema::Duration", extend("default" = "200ms"))]
    pub(super) idle_for: Field<Scalar>,
    /// How long the step may take.
    #[schemars(with = "schema::Duration", extend("default" = "2m"))]
    pub(super) timeout: Field<Scalar>,
}
