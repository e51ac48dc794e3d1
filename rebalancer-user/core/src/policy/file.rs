//! The file's own types: the shape of a policy document, no more. Their documentation is what
//! editors and the policy reference show. Every value keeps its place, and its meaning is checked
//! in `parse`, so that all errors of meaning are reported at once.

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

/// Which connections are moved: ended, so that their clients reconnect.
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
    /// The most that any rule may do. `Disabled`: no connection is selected. `DryRun`: reports what
    /// would be moved, and moves nothing. `Enforce`: moves connections.
    #[schemars(with = "schema::Modes", extend("default" = "DryRun"))]
    pub(super) mode: Field<Scalar>,
    /// The time between two passes, from 200ms to 1h. Each pass lists all connections and evaluates
    /// the policy.
    #[schemars(with = "schema::Duration", extend("default" = "5s"))]
    pub(super) interval: Field<Scalar>,
    /// Which connections are tracked.
    #[schemars(with = "TrackFile")]
    pub(super) track: Field<TrackFile>,
    /// How many connections may be moved. There is always a budget.
    #[schemars(with = "BudgetFile")]
    pub(super) budget: Field<BudgetFile>,
    /// Which connections no rule may move.
    #[schemars(with = "GuardsFile")]
    pub(super) guards: Field<GuardsFile>,
    /// The rules, in order: the first one that matches a connection applies to it. May be empty.
    #[schemars(with = "Vec<RuleFile>")]
    pub(super) rules: List<RuleFile>,
}

/// Which connections are tracked.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Track")]
pub(super) struct TrackFile {
    /// Whether connections from loopback addresses are tracked.
    #[schemars(with = "bool", extend("default" = false))]
    pub(super) loopback: Field<Scalar>,
    /// The maximum number of connections tracked for one endpoint.
    #[schemars(with = "schema::PerEndpoint", extend("default" = 65536))]
    pub(super) max_per_endpoint: Field<Scalar>,
    /// The maximum number of connections tracked on the node. Each takes about 0.4 KB of kernel
    /// memory.
    #[schemars(with = "schema::PerNode", extend("default" = 262144))]
    pub(super) max_per_node: Field<Scalar>,
    /// Globs over cgroup paths, as in `match.cgroups`. Sockets of the cgroups that match, and of
    /// their descendants, are not tracked.
    #[schemars(with = "Vec<schema::CgroupGlob>", extend("default" = []))]
    pub(super) exclude_cgroups: List<Scalar>,
}

/// How many connections may be moved. There is always a budget.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Budget")]
pub(super) struct BudgetFile {
    /// The sliding window over which moves are counted, from 1s to 24h.
    #[schemars(with = "schema::Duration", extend("default" = "1m"))]
    pub(super) window: Field<Scalar>,
    /// The maximum number of moves started per window on the node: a number, or a percentage of its
    /// tracked connections, rounded up and at least 1.
    #[schemars(with = "schema::Amounts", extend("default" = 60))]
    pub(super) per_node: Field<Scalar>,
    /// The maximum number of moves in flight: started and not ended yet.
    #[schemars(with = "schema::Counts", extend("default" = 20))]
    pub(super) max_in_flight: Field<Scalar>,
    /// The maximum number of moves started per window from one Service: a number, or a percentage
    /// of its connections on this node.
    #[schemars(with = "schema::Amounts", extend("default" = "10%"))]
    pub(super) per_service: Field<Scalar>,
    /// The maximum number of moves started per window from one endpoint: a number, or a percentage
    /// of its connections.
    #[schemars(with = "schema::Amounts", extend("default" = "25%"))]
    pub(super) per_endpoint: Field<Scalar>,
}

/// Which connections no rule may move.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Guards")]
pub(super) struct GuardsFile {
    /// Connections younger than this are skipped.
    #[schemars(with = "schema::Duration", extend("default" = "30s"))]
    pub(super) min_age: Field<Scalar>,
    /// System ports (SSH, DNS, kubelet, etcd and others) that rules may move connections from.
    #[schemars(with = "Vec<schema::Port>", extend("default" = []))]
    pub(super) allow_system_ports: List<Scalar>,
    /// Whether connections in the host's network namespace may be moved. Defaults to `true` on a
    /// plain host and to `false` with Kubernetes.
    #[schemars(with = "bool")]
    pub(super) allow_host_network: Field<Scalar>,
    /// Namespaces whose pods' connections are never moved. Defaults to `[kube-system]` with
    /// Kubernetes.
    #[schemars(with = "Vec<schema::Name>")]
    pub(super) exclude_namespaces: List<Scalar>,
    /// A Service with fewer ready endpoints is skipped.
    #[schemars(with = "schema::Counts", extend("default" = 2))]
    pub(super) min_ready_endpoints: Field<Scalar>,
    /// A Service whose ready endpoints changed less than this ago is skipped. It also bounds how
    /// long data from the API server is acted on after the server stopped answering: this long, but
    /// at least 20s and at most 1m.
    #[schemars(with = "schema::Duration", extend("default" = "1m"))]
    pub(super) stabilization_window: Field<Scalar>,
}

/// Which connections, how old or large they may grow, and how they are ended.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Rule", extend(
    "required" = ["name", "match"],
    "anyOf" = [{"required": ["limits"]}, {"required": ["balance"]}]
))]
pub(super) struct RuleFile {
    /// The rule's name: unique in this policy.
    #[schemars(with = "schema::Name")]
    pub(super) name: Field<Scalar>,
    /// The most that this rule may do; the policy's `mode` bounds it, and is the default.
    #[schemars(with = "schema::Modes")]
    pub(super) mode: Field<Scalar>,
    /// Which connections the rule applies to.
    #[serde(rename = "match")]
    #[schemars(with = "MatchFile")]
    pub(super) matches: Field<MatchFile>,
    /// How old or large a connection may grow. One that exceeds any limit is to be moved. A rule has
    /// `limits`, `balance`, or both.
    #[schemars(with = "LimitsFile")]
    pub(super) limits: Field<LimitsFile>,
    /// By how much, at most, each connection's own limits are below those of the rule, so that
    /// connections opened together are not moved together.
    #[schemars(with = "schema::Percentage", extend("default" = "10%"))]
    pub(super) jitter: Field<Scalar>,
    /// What a reconnect costs the client. `Detect`: unknown, so the agent sniffs the protocol and
    /// moves only HTTP/1 connections, between two exchanges. `Safe`: nothing, whatever the
    /// protocol. Both skip the ports of protocols that keep state in the connection (PostgreSQL,
    /// Redis, MQTT, gRPC and others). `LosesState`: that state, and losing it is acceptable. A rule
    /// with a step `AtOnce` or `atEnd: ResetNow` must set `Safe` or `LosesState`.
    #[schemars(with = "schema::OnReconnects", extend("default" = "Detect"))]
    pub(super) on_reconnect: Field<Scalar>,
    /// Ways to end a connection, the gentlest first. Defaults to one `Reset` at a quiet moment.
    #[schemars(with = "Vec<StepFile>")]
    pub(super) steps: List<StepFile>,
    /// What happens once all steps have timed out. `Skip`: the connection is kept. `ResetNow`: it is
    /// reset, whatever is under way.
    #[schemars(with = "schema::Ends", extend("default" = "Skip"))]
    pub(super) at_end: Field<Scalar>,
    /// `Messages`: the kernel counts the sends of the server on each connection, and their bytes, at
    /// some cost to each send. Without it no program runs on a send.
    #[schemars(with = "schema::Counted")]
    pub(super) count: Field<Scalar>,
    /// When an endpoint holds too much compared with the others of its Service; only the excess is
    /// moved.
    #[schemars(with = "BalanceFile")]
    pub(super) balance: Field<BalanceFile>,
}

/// When an endpoint holds too much compared with the others of its Service.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Balance")]
pub(super) struct BalanceFile {
    /// The load that is compared with the mean. `MessageRate` implies `count: Messages`.
    #[schemars(with = "schema::Loads", extend("default" = "Connections"))]
    pub(super) by: Field<Scalar>,
    /// How far above the mean an endpoint may stay. An excess that random placement explains is left
    /// in any case.
    #[schemars(with = "schema::Tolerance", extend("default" = "10%"))]
    pub(super) tolerance: Field<Scalar>,
}

/// Ports, peers, pods and cgroups: at least one field, and all that are given must match.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Match", extend("minProperties" = 1))]
pub(super) struct MatchFile {
    /// Local (server) ports.
    #[schemars(with = "Vec<PortFile>")]
    pub(super) ports: List<PortFile>,
    /// Remote (client) addresses.
    #[schemars(with = "Vec<PeerFile>")]
    pub(super) peers: List<PeerFile>,
    /// Services, of which one must target the port: `namespace/name`, or `*/name` for that name in
    /// every namespace, or in those that `namespaceSelector` selects.
    #[schemars(with = "Vec<schema::ServiceName>")]
    pub(super) services: List<Scalar>,
    /// Selects by the labels of the pod's namespace.
    #[schemars(with = "SelectorFile")]
    pub(super) namespace_selector: Field<SelectorFile>,
    /// Selects by the labels of the pod.
    #[schemars(with = "SelectorFile")]
    pub(super) pod_selector: Field<SelectorFile>,
    /// Globs over the path of the server's cgroup, as in `/proc/PID/cgroup`. Each matches a cgroup
    /// and its descendants. `*` also matches `/`; a backslash is a literal character.
    #[schemars(with = "Vec<schema::CgroupGlob>")]
    pub(super) cgroups: List<Scalar>,
}

/// A label selector as in a NetworkPolicy; an empty one selects everything.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "LabelSelector")]
pub(super) struct SelectorFile {
    /// Labels and the values they must have.
    #[schemars(with = "BTreeMap<String, schema::LabelValue>")]
    pub(super) match_labels: Field<BTreeMap<String, Spanned<Scalar>>>,
    /// Further requirements on labels.
    #[schemars(with = "Vec<RequirementFile>")]
    pub(super) match_expressions: List<RequirementFile>,
}

/// A requirement on one label.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "LabelSelectorRequirement", extend("required" = ["key", "operator"]))]
pub(super) struct RequirementFile {
    /// The label's key.
    #[schemars(with = "schema::LabelKey")]
    pub(super) key: Field<Scalar>,
    /// `In` and `NotIn` compare the label's value; `Exists` and `DoesNotExist` do not.
    #[schemars(with = "schema::Operators")]
    pub(super) operator: Field<Scalar>,
    /// The values for `In` and `NotIn`.
    #[schemars(with = "Vec<schema::LabelValue>")]
    pub(super) values: List<Scalar>,
}

/// A port, or a range of ports.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Port", extend("required" = ["port"]))]
pub(super) struct PortFile {
    /// The port, or the lowest of a range.
    #[schemars(with = "schema::Port")]
    pub(super) port: Field<Scalar>,
    /// The highest of a range, inclusive.
    #[schemars(with = "schema::Port")]
    pub(super) end_port: Field<Scalar>,
}

/// Clients, by address.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Peer", extend("required" = ["ipBlock"]))]
pub(super) struct PeerFile {
    /// A network.
    #[schemars(with = "IpBlockFile")]
    pub(super) ip_block: Field<IpBlockFile>,
}

/// A network, as in a NetworkPolicy.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "IpBlock", extend("required" = ["cidr"]))]
pub(super) struct IpBlockFile {
    /// The network, e.g. `10.0.0.0/8`.
    #[schemars(with = "schema::Network")]
    pub(super) cidr: Field<Scalar>,
    /// Networks inside it that are excluded.
    #[schemars(with = "Vec<schema::Network>")]
    pub(super) except: List<Scalar>,
}

/// How old or large a connection may grow: at least one limit.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Limits", extend("minProperties" = 1))]
pub(super) struct LimitsFile {
    /// The time since it was accepted.
    #[schemars(with = "schema::Duration")]
    pub(super) max_age: Field<Scalar>,
    /// The bytes it has carried, both directions together.
    #[schemars(with = "schema::Size")]
    pub(super) max_bytes: Field<Scalar>,
    /// Its byte rate, both directions together.
    #[schemars(with = "RateFile")]
    pub(super) max_rate: Field<RateFile>,
}

/// A rate that is too high if it is sustained without a pause; a burst is not.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Rate", extend("required" = ["bytesPerSecond", "for"]))]
pub(super) struct RateFile {
    /// The rate, in bytes per second.
    #[schemars(with = "schema::Size")]
    pub(super) bytes_per_second: Field<Scalar>,
    /// How long it must have been sustained: at least twice the interval.
    #[serde(rename = "for")]
    #[schemars(with = "schema::Duration")]
    pub(super) sustained_for: Field<Scalar>,
}

/// One way to end a connection.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[schemars(rename = "Step", extend("required" = ["step"]))]
pub(super) struct StepFile {
    /// `Close`: gives the server an end of file, as if its client had closed, so that it closes.
    /// `Reset`: resets the connection at both ends.
    #[schemars(with = "schema::StepKinds")]
    pub(super) step: Field<Scalar>,
    /// `Quiet`: once all data has been read and acknowledged, the server has sent last, and nothing
    /// has been exchanged for `idleFor`. `AtOnce`: immediately, whatever is under way.
    #[schemars(with = "schema::Conditions", extend("default" = "Quiet"))]
    pub(super) when: Field<Scalar>,
    /// How long nothing must have been exchanged for a moment to be quiet.
    #[schemars(with = "schema::Duration", extend("default" = "200ms"))]
    pub(super) idle_for: Field<Scalar>,
    /// How long the step may take before the next one is tried.
    #[schemars(with = "schema::Duration", extend("default" = "2m"))]
    pub(super) timeout: Field<Scalar>,
}
