//! The policy document: its top level, what is tracked, budgets and guards.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    time::Duration,
};

use super::{
    cgroups::CgroupGlobs,
    error::Fault,
    matching::{Mismatch, MissingFact},
    mode::Mode,
    node::{Given, Node},
    notation::{AmountUpTo, Exactly, Flag, Name, Port, Time, UpTo, word},
    rule::Rule,
    section::{
        Constraints, Fields, Reader, always, globs, items, list, optional, or, part, required,
        section,
    },
    units::{Amount, Percent, Span},
};
use crate::{
    snapshot::{Connection, Snapshot, Who},
    text::quoted,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The most moves that a budget can allow.
const MOST_MOVES: u32 = 1_000_000;

section! {
    /// Which connections are moved: ended, so that their clients reconnect.
    pub struct Policy "RebalancePolicy" {
        /// The version of this format.
        api_version "apiVersion": &'static str = required(
            Exactly("rebalancer.dev/v1alpha1"), "apiVersion: rebalancer.dev/v1alpha1");
        /// The kind of this document.
        kind "kind": &'static str = required(Exactly("RebalancePolicy"), "kind: RebalancePolicy");
        /// The most that any rule may do.
        mode "mode": Mode = or(word(), Mode::default());
        /// The time between two passes. Each pass lists all connections and evaluates the policy.
        interval "interval": Duration = or(Time(Duration::from_millis(200)..=HOUR), 5 * SECOND);
        /// Which connections are tracked.
        track "track": Track as &Track = always();
        /// How many connections may be moved. There is always a budget.
        budget "budget": Budget = always();
        /// Which connections no rule may move.
        guards "guards": Guards as &Guards = always();
        /// The rules, in order: the first one that matches a connection applies to it. May be empty.
        rules "rules": Vec<Rule> as &[Rule] = required(
            list(part(), 256), "rules, or `rules: []`");
    }
}

impl Constraints for Policy {
    fn check(policy: Option<&Self>, fields: &Fields<'_>, reader: &mut Reader<'_>) {
        names_differ(items(fields.get("rules")), reader);
        let Some(policy) = policy else { return };
        for (rule, given) in policy.rules.iter().zip(items(fields.get("rules"))) {
            let within = |path: &[&str]| {
                let at = path
                    .iter()
                    .try_fold(given, |given, name| given.value.field(name));
                at.map_or(0..0, |given| reader.place(given))
            };
            let age = within(&["limits", "maxAge"]);
            let sustained_for = within(&["limits", "maxRate", "for"]);
            let (limits, min_age) = (rule.limits(), policy.guards.min_age);
            if limits.max_age().is_some_and(|age| age < min_age) {
                let min_age = Span(min_age);
                let label = format!("below guards.minAge, {min_age}");
                let remedy = format!("write {min_age} or more, or lower guards.minAge");
                let fault = Fault::new("a limit that a guard forbids", label, remedy);
                reader.report(age, fault);
            }
            let (rate, least) = (limits.max_rate(), 2 * policy.interval);
            if rate.is_some_and(|rate| rate.sustained_for() < least) {
                let label = format!("below twice the interval, {}", Span(policy.interval));
                let remedy = format!("write {} or more, or lower `interval`", Span(least));
                let fault = Fault::new("too short to tell a burst from a rate", label, remedy);
                reader.report(sustained_for, fault);
            }
        }
    }
}

/// Reports rules of one name, whatever else is wrong with them.
fn names_differ(rules: &[Given], reader: &mut Reader<'_>) {
    let mut names = BTreeMap::new();
    for given in rules.iter().filter_map(|rule| rule.value.field("name")) {
        let Node::Text(name) = &given.value else {
            continue;
        };
        let at = reader.place(given);
        if let Some(first) = names.insert(name, at.start) {
            let line = reader.text[..first].matches('\n').count() + 1;
            let message = format!("two rules are named {}", quoted(name));
            let label = format!("the first is on line {line}");
            reader.report(at, Fault::new(message, label, "give each its own name"));
        }
    }
}

impl Policy {
    /// This policy, limited to `mode`: how a command-line flag is applied.
    #[must_use]
    pub fn with_mode_at_most(mut self, mode: Mode) -> Self {
        self.mode = self.mode.safest(mode);
        self
    }

    /// This policy with the defaults of a Kubernetes node: connections in the host's network
    /// namespace and of pods in `kube-system` are skipped.
    #[must_use]
    pub fn with_kubernetes_defaults(mut self) -> Self {
        self.guards.allow_host_network.get_or_insert(false);
        let system = || BTreeSet::from(["kube-system".to_owned()]);
        self.guards.exclude_namespaces.get_or_insert_with(system);
        self
    }

    /// The first rule that matches `connection`, accepted by `who`.
    ///
    /// # Errors
    /// The first rule of which it is undetermined whether it matches, if none before it matches: no
    /// later rule may apply until that is known.
    pub fn rule_for(
        &self,
        connection: &Connection,
        who: &Who,
    ) -> Result<Option<&Rule>, (&Rule, MissingFact)> {
        for rule in &self.rules {
            match rule.mismatch(connection, who) {
                None => return Ok(Some(rule)),
                Some(Mismatch::Undetermined(lack)) => return Err((rule, lack)),
                Some(_) => {}
            }
        }
        Ok(None)
    }

    /// The first rule that certainly matches a connection of `snapshot`.
    pub fn matching_rule(&self, connection: &Connection, snapshot: &Snapshot) -> Option<&Rule> {
        let who = snapshot.who(&connection.endpoint);
        self.rule_for(connection, who).ok().flatten()
    }

    /// The rules that name Services, namespaces or pods: on a host without Kubernetes none of them
    /// matches.
    pub fn rules_for_pods(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(|rule| rule.matches().names_pods())
    }

    /// Whether it uses cgroup paths anywhere: only then must they be read.
    pub fn names_cgroups(&self) -> bool {
        let by_rule = |rule: &Rule| !rule.matches().cgroups().is_empty();
        !self.track.exclude_cgroups.is_empty() || self.rules.iter().any(by_rule)
    }

    /// The mode in which `rule` applies under this policy.
    pub fn mode_of(&self, rule: &Rule) -> Mode {
        rule.mode().map_or(self.mode, |mode| self.mode.safest(mode))
    }
}

section! {
    /// Which connections are tracked.
    pub struct Track "Track" {
        /// Whether connections from loopback addresses are tracked.
        loopback "loopback": bool = or(Flag, false);
        /// The maximum number of connections tracked for one endpoint.
        max_per_endpoint "maxPerEndpoint": NonZeroU32 = or(UpTo(1 << 20), number(65_536));
        /// The maximum number of connections tracked on the node. Each takes about 0.4 KB of kernel
        /// memory.
        max_per_node "maxPerNode": NonZeroU32 = or(UpTo(1 << 22), number(262_144));
        /// Globs over cgroup paths, as in `match.cgroups`. Sockets of the cgroups that match, and
        /// of their descendants, are not tracked.
        exclude_cgroups "excludeCgroups": CgroupGlobs as &CgroupGlobs = or(
            globs(), CgroupGlobs::default());
    }
}

impl Constraints for Track {}

section! {
    /// How many connections may be moved. There is always a budget.
    #[derive(Copy)]
    pub struct Budget "Budget" {
        /// The sliding window over which moves are counted.
        window "window": Duration = or(Time(SECOND..=DAY), MINUTE);
        /// The maximum number of moves started per window on the node: a number, or a percentage of
        /// its tracked connections, rounded up and at least 1.
        per_node "perNode": Amount = or(AmountUpTo(MOST_MOVES), Amount::Fixed(number(60)));
        /// The maximum number of moves started per window from one Service: a number, or a
        /// percentage of its connections on this node. Without Kubernetes all endpoints at one port
        /// count as one Service.
        per_service "perService": Amount = or(AmountUpTo(MOST_MOVES), share(10));
        /// The maximum number of moves started per window from one endpoint: a number, or a
        /// percentage of its connections.
        per_endpoint "perEndpoint": Amount = or(AmountUpTo(MOST_MOVES), share(25));
        /// The maximum number of moves in flight: started and not ended yet.
        max_in_flight "maxInFlight": NonZeroU32 = or(UpTo(10_000), number(20));
    }
}

impl Constraints for Budget {}

section! {
    /// Which connections no rule may move.
    pub struct Guards "Guards" {
        /// Connections younger than this are skipped.
        min_age "minAge": Duration = or(Time(Duration::ZERO..=YEAR), 30 * SECOND);
        /// A Service with fewer ready endpoints is skipped.
        min_ready_endpoints "minReadyEndpoints": NonZeroU32 = or(UpTo(10_000), number(2));
        /// A Service whose ready endpoints changed less than this ago is skipped. It also bounds
        /// how long data from the API server is acted on after the server stopped answering: this
        /// long, but at least 20s and at most 1m.
        stabilization_window "stabilizationWindow": Duration = or(Time(Duration::ZERO..=DAY), MINUTE);
        /// System ports (SSH, DNS, kubelet, etcd and others) that rules may move connections from.
        allow_system_ports "allowSystemPorts": BTreeSet<u16> as &BTreeSet<u16> = or(
            list(Port, u16::MAX.into()), BTreeSet::new());
        /// Whether connections in the host's network namespace may be moved.
        allow_host_network "allowHostNetwork": Option<bool> = optional(Flag).means("`true`; `false` with Kubernetes");
        /// Namespaces whose pods' connections are never moved.
        exclude_namespaces "excludeNamespaces": Option<BTreeSet<String>>
            as Option<&BTreeSet<String>> = optional(list(Name, 1024)).means("`[]`; `[kube-system]` with Kubernetes");
    }
}

impl Constraints for Guards {}

fn number(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN)
}

fn share(percent: u8) -> Amount {
    Amount::Share(Percent::new(percent).unwrap_or(Percent::WHOLE))
}
