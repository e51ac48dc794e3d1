//! What the operator wants: a [`Policy`], read from one strict YAML document.
//!
//! ```yaml
#![doc = include_str!("example.yaml")]
//! ```
//!
#![doc = include_str!("semantics.md")]
//!
//! # Implementation
//!
//! [`parse`] gives [`PolicyErrors`], each with its line, column and remedy. Syntax and types stop at
//! the first; errors of meaning are reported all at once.
//!
//! Pure. The file's types are private to this module; the types seen from outside are built from
//! them once, and only valid ones exist.

mod cgroups;
mod error;
mod explain;
mod file;
mod matching;
mod parse;
mod pods;
mod reference;
mod rule;
mod schema;
mod syntax;
#[cfg(test)]
mod tests;
mod units;
mod values;

pub use cgroups::CgroupGlobs;
pub use error::visible;
pub use error::{PolicyError, PolicyErrors};
pub use explain::explain;
pub use matching::{Match, Mismatch, Peer, PortRange};
pub use parse::parse;
pub use pods::{MissingFact, Operator, Pods, Requirement, Selector, ServiceRef};
pub use reference::reference;
pub use rule::{
    AtEnd, Balance, By, Count, Limits, MaxRate, OnReconnect, Rule, RuleName, Step, StepKind, When,
};
pub use schema::schema;
pub use units::{Amount, Percent, Size, Span, UnitError, parse_duration, parse_size};

use std::{collections::BTreeSet, num::NonZeroU32, time::Duration};

use crate::snapshot::{Connection, Snapshot, Who};

/// A policy with every field that has a default set to it.
const EXAMPLE: &str = include_str!("example.yaml");

/// The largest policy file that is read, in bytes.
pub const LARGEST_FILE: u64 = 16 << 20;

/// How much a policy may do. Ordered from the safest.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Deserialize,
    serde::Serialize,
)]
pub enum Mode {
    /// Nothing is chosen.
    Disabled,
    /// Moves are chosen and told, not made.
    #[default]
    DryRun,
    /// Moves are made.
    Enforce,
}

impl Mode {
    /// The safer of two.
    pub fn safest(self, other: Self) -> Self {
        self.min(other)
    }

    /// The word in the policy file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "Disabled",
            Self::DryRun => "DryRun",
            Self::Enforce => "Enforce",
        }
    }
}

/// A valid policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    mode: Mode,
    interval: Duration,
    track: Track,
    budget: Budget,
    guards: Guards,
    rules: Vec<Rule>,
}

impl Policy {
    /// The most that any rule may do.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// This policy, in no mode above `mode`: how a command line's flag is applied.
    #[must_use]
    pub fn with_mode_at_most(mut self, mode: Mode) -> Self {
        self.mode = self.mode.safest(mode);
        self
    }

    /// This policy with the defaults of a Kubernetes node: the host's own network namespace and
    /// the pods of `kube-system` are left alone.
    #[must_use]
    pub fn with_kubernetes_defaults(mut self) -> Self {
        self.guards.allow_host_network.get_or_insert(false);
        let system = || BTreeSet::from(["kube-system".to_owned()]);
        self.guards.exclude_namespaces.get_or_insert_with(system);
        self
    }

    /// Time from one listing to the next; 200 ms or more.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// What the kernel records.
    pub fn track(&self) -> &Track {
        &self.track
    }

    /// How many moves there may be.
    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// What is never moved.
    pub fn guards(&self) -> &Guards {
        &self.guards
    }

    /// The rules, in the order of the file.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The first rule that matches `connection`, accepted by `who`.
    ///
    /// # Errors
    /// The first rule of which it is not known whether it does, if none before it does: what a
    /// later rule says must not count until that is known.
    pub fn rule_for(
        &self,
        connection: &Connection,
        who: &Who,
    ) -> Result<Option<&Rule>, (&Rule, MissingFact)> {
        for rule in &self.rules {
            match rule.matches().misses(connection, who) {
                None => return Ok(Some(rule)),
                Some(Mismatch::Undetermined(lack)) => return Err((rule, lack)),
                Some(_) => {}
            }
        }
        Ok(None)
    }

    /// The first rule that surely matches a connection of `snapshot`.
    pub fn matching_rule(&self, connection: &Connection, snapshot: &Snapshot) -> Option<&Rule> {
        let who = snapshot.who(&connection.endpoint);
        self.rule_for(connection, who).ok().flatten()
    }

    /// The rules that match pods alone: none of them matches on a host without Kubernetes.
    pub fn rules_for_pods(&self) -> impl Iterator<Item = &Rule> {
        self.rules
            .iter()
            .filter(|rule| !rule.matches().pods().is_any())
    }

    /// Whether it names cgroups anywhere: only then must their paths be known.
    pub fn names_cgroups(&self) -> bool {
        let by_rule = |rule: &Rule| !rule.matches().cgroups().is_empty();
        !self.track.exclude_cgroups.is_empty() || self.rules.iter().any(by_rule)
    }

    /// What `rule` may do under this policy.
    pub fn mode_of(&self, rule: &Rule) -> Mode {
        rule.mode().map_or(self.mode, |mode| self.mode.safest(mode))
    }
}

/// What the kernel records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Track {
    loopback: bool,
    max_per_endpoint: NonZeroU32,
    max_per_node: NonZeroU32,
    exclude_cgroups: CgroupGlobs,
}

impl Track {
    /// Whether connections from loopback addresses are recorded.
    pub fn loopback(&self) -> bool {
        self.loopback
    }

    /// The most connections recorded for one endpoint.
    pub fn max_per_endpoint(&self) -> NonZeroU32 {
        self.max_per_endpoint
    }

    /// The most connections recorded on the node.
    pub fn max_per_node(&self) -> NonZeroU32 {
        self.max_per_node
    }

    /// Cgroups whose sockets are not recorded.
    pub fn exclude_cgroups(&self) -> &CgroupGlobs {
        &self.exclude_cgroups
    }
}

/// How many moves there may be; never without a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    window: Duration,
    per_node: Amount,
    per_service: Amount,
    per_endpoint: Amount,
    max_in_flight: NonZeroU32,
}

impl Budget {
    /// The sliding time over which moves are counted.
    pub fn window(self) -> Duration {
        self.window
    }

    /// Moves started within the window.
    pub fn per_node(self) -> Amount {
        self.per_node
    }

    /// Moves started within the window from one Service; of its connections.
    pub fn per_service(self) -> Amount {
        self.per_service
    }

    /// Moves started within the window from one endpoint; of its connections.
    pub fn per_endpoint(self) -> Amount {
        self.per_endpoint
    }

    /// Moves started and not ended.
    pub fn max_in_flight(self) -> NonZeroU32 {
        self.max_in_flight
    }
}

/// What is never moved, whatever a rule says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guards {
    min_age: Duration,
    min_ready_endpoints: NonZeroU32,
    stabilization_window: Duration,
    allow_system_ports: BTreeSet<u16>,
    allow_host_network: Option<bool>,
    exclude_namespaces: Option<BTreeSet<String>>,
}

impl Guards {
    /// Younger connections are skipped.
    pub fn min_age(&self) -> Duration {
        self.min_age
    }

    /// Services with fewer ready endpoints are left alone; 1 or more.
    pub fn min_ready_endpoints(&self) -> u32 {
        self.min_ready_endpoints.get()
    }

    /// Services whose ready endpoints changed less than this ago are left alone.
    pub fn stabilization_window(&self) -> Duration {
        self.stabilization_window
    }

    /// Ports of the node's own services that rules may name after all.
    pub fn allow_system_ports(&self) -> &BTreeSet<u16> {
        &self.allow_system_ports
    }

    /// Whether connections of the host's own network namespace may be moved; `None` if the
    /// policy does not say, which is yes on a plain host.
    pub fn allow_host_network(&self) -> Option<bool> {
        self.allow_host_network
    }

    /// Namespaces whose pods are left alone; `None` if the policy does not say, which is none on
    /// a plain host.
    pub fn exclude_namespaces(&self) -> Option<&BTreeSet<String>> {
        self.exclude_namespaces.as_ref()
    }
}
