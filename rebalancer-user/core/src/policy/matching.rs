//! Which connections a rule matches.

use std::{fmt, net::IpAddr, time::Duration};

use ipnet::IpNet;
use serde_json::{Value as Json, json};

use super::{
    cgroups::CgroupGlobs,
    error::Fault,
    notation::{Network, Port, Service},
    section::{
        Constraints, Fields, Reader, globs, items, list, optional, or_empty, part, required,
        section,
    },
    selector::Selector,
    service_ref::ServiceRef,
};
use crate::{
    snapshot::{CgroupPath, Connection, Identity, Who},
    text::visible,
};

/// The most items of a list: each connection is compared with each.
const MOST: usize = 256;

section! {
    /// Ports, peers, pods and cgroups: at least one field, and all that are given must match.
    #[derive(Default)]
    pub struct Match "Match" {
        /// Local (server) ports.
        ports "ports": Vec<PortRange> as &[PortRange] = or_empty(list(part(), MOST).not_empty());
        /// Remote (client) addresses.
        peers "peers": Vec<Peer> as &[Peer] = or_empty(list(part(), MOST).not_empty());
        /// Services, of which one must target the port: `namespace/name`, or `*/name` for that name
        /// in every namespace, or in those that `namespaceSelector` selects.
        services "services": Vec<ServiceRef> as &[ServiceRef] = or_empty(
            list(Service, MOST).not_empty());
        /// Selects by the labels of the pod's namespace.
        namespace_selector "namespaceSelector": Option<Selector> as Option<&Selector> = optional(
            part());
        /// Selects by the labels of the pod.
        pod_selector "podSelector": Option<Selector> as Option<&Selector> = optional(part());
        /// Globs over the path of the server's cgroup, as in `/proc/PID/cgroup`. Each matches a
        /// cgroup and its descendants. `*` also matches `/`; a backslash is a literal character.
        cgroups "cgroups": CgroupGlobs as &CgroupGlobs = or_empty(globs().not_empty());
    }
}

impl Constraints for Match {
    fn check(_: Option<&Self>, fields: &Fields<'_>, reader: &mut Reader<'_>) {
        if fields.is_empty() {
            let remedy = "write what it is for, e.g. `match: {ports: [{port: 8080}]}`";
            let fault = Fault::new("an empty match", "matches nothing", remedy);
            reader.report(fields.at.clone(), fault);
        }
    }

    fn schema() -> Json {
        json!({"minProperties": 1})
    }
}

impl Match {
    /// Why this does not match `connection`, accepted by `who`; `None` if it does. A Service that `who` was
    /// removed from within `removed` counts as one that targets it.
    ///
    /// A certain mismatch takes precedence over facts that are missing.
    pub(super) fn mismatch(
        &self,
        connection: &Connection,
        who: &Who,
        removed: Duration,
    ) -> Option<Mismatch> {
        let lack = match self.of_endpoint(connection.endpoint.port, who, removed) {
            Ok(lack) => lack,
            Err(of_port @ Mismatch::Port(_)) => return Some(of_port),
            // A mismatch of the peer, if there is one, is reported first.
            Err(of_pod) => return Some(self.peer_mismatch(connection).unwrap_or(of_pod)),
        };
        match self.of_connection(connection, lack) {
            Ok(lack) => lack.map(Mismatch::Undetermined),
            Err(mismatch) => Some(mismatch),
        }
    }

    /// Whether connections accepted at `port` by `who` can match: which fact about the endpoint is
    /// missing, if any.
    ///
    /// # Errors
    /// They cannot.
    pub(super) fn of_endpoint(
        &self,
        port: u16,
        who: &Who,
        removed: Duration,
    ) -> Result<Option<MissingFact>, Mismatch> {
        if !self.ports.is_empty() && !self.ports.iter().any(|range| range.contains(port)) {
            return Err(Mismatch::Port(port));
        }
        match self.pod_mismatch(who, removed) {
            None => Ok(None),
            Some(Mismatch::Undetermined(lack)) => Ok(Some(lack)),
            Some(other) => Err(other),
        }
    }

    /// Whether a connection of such an endpoint matches, where `lack` is missing about the endpoint:
    /// which fact is missing, if any.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn of_connection(
        &self,
        connection: &Connection,
        lack: Option<MissingFact>,
    ) -> Result<Option<MissingFact>, Mismatch> {
        if let Some(mismatch) = self.peer_mismatch(connection) {
            return Err(mismatch);
        }
        match self.cgroup_mismatch(connection) {
            Some(Mismatch::Undetermined(cgroup)) => Ok(Some(lack.unwrap_or(cgroup))),
            Some(mismatch) => Err(mismatch),
            None => Ok(lack),
        }
    }

    /// Whether it names Services, namespaces or pods.
    pub fn names_pods(&self) -> bool {
        !self.services.is_empty()
            || self.namespace_selector.is_some()
            || self.pod_selector.is_some()
    }

    /// Why an endpoint of `who` does not match, or not certainly; `None` if it does.
    fn pod_mismatch(&self, who: &Who, removed: Duration) -> Option<Mismatch> {
        if !self.names_pods() {
            return None;
        }
        let pod = match who {
            Who::NoPod => return Some(Mismatch::NoPod),
            Who::Unknown => return Some(Mismatch::Undetermined(MissingFact::Pod)),
            Who::Pod(pod) => pod,
        };
        let all = [
            self.services_mismatch(pod, removed),
            self.namespace_mismatch(pod),
            self.labels_mismatch(pod),
        ];
        // A certain mismatch takes precedence over facts that are missing.
        let mut misses = all.into_iter().flatten();
        let first = misses.next()?;
        let sure = misses.find(|miss| miss.is_sure());
        Some(if first.is_sure() {
            first
        } else {
            sure.unwrap_or(first)
        })
    }

    fn services_mismatch(&self, pod: &Identity, removed: Duration) -> Option<Mismatch> {
        if self.services.is_empty() {
            return None;
        }
        // A Service has endpoints in its own namespace only.
        let here = |named: &&ServiceRef| {
            let namespace = named.namespace.as_ref();
            namespace.is_none_or(|namespace| *namespace == pod.namespace)
        };
        let named: Vec<&ServiceRef> = self.services.iter().filter(here).collect();
        if named.is_empty() {
            return Some(Mismatch::Services);
        }
        let Some(services) = &pod.services else {
            return Some(Mismatch::Undetermined(MissingFact::Services));
        };
        let is_named = |name: &str| named.iter().any(|named| named.name == name);
        let removed_from = pod.removed_from.iter().filter(|from| from.since < removed);
        let mut services = services
            .iter()
            .chain(removed_from.map(|from| &from.service));
        let found = services.any(|at| is_named(&at.name));
        (!found).then_some(Mismatch::Services)
    }

    fn namespace_mismatch(&self, pod: &Identity) -> Option<Mismatch> {
        let selector = self.namespace_selector.as_ref()?;
        match &pod.namespace_labels {
            None if selector.is_any() => None,
            None => Some(Mismatch::Undetermined(MissingFact::NamespaceLabels)),
            Some(labels) => (!selector.selects(labels)).then_some(Mismatch::Namespace),
        }
    }

    fn labels_mismatch(&self, pod: &Identity) -> Option<Mismatch> {
        let selector = self.pod_selector.as_ref()?;
        (!selector.selects(&pod.labels)).then_some(Mismatch::PodLabels)
    }

    fn peer_mismatch(&self, connection: &Connection) -> Option<Mismatch> {
        let peer = connection.remote.ip().to_canonical();
        if self.peers.is_empty() || self.peers.iter().any(|from| from.ip_block.contains(peer)) {
            return None;
        }
        let excepted = self
            .peers
            .iter()
            .any(|from| from.ip_block.cidr.contains(&peer));
        Some(Mismatch::Peer { peer, excepted })
    }

    /// Whether connections accepted at `port` by `who` match, if their peers do. Never if it names
    /// cgroups: these are known of connections only.
    pub fn may_be_at(&self, port: u16, who: &Who) -> bool {
        let ports = self.ports.is_empty() || self.ports.iter().any(|range| range.contains(port));
        ports && self.cgroups.is_empty() && self.pod_mismatch(who, Duration::ZERO).is_none()
    }

    fn cgroup_mismatch(&self, connection: &Connection) -> Option<Mismatch> {
        if self.cgroups.is_empty() {
            return None;
        }
        match &connection.cgroup_path {
            None => Some(Mismatch::Undetermined(MissingFact::Cgroup)),
            Some(path) => (!self.cgroups.matches(path)).then(|| Mismatch::Cgroup(path.clone())),
        }
    }
}

/// A fact without which it is undetermined whether a rule matches a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingFact {
    /// The pod.
    Pod,
    /// The labels of its namespace.
    NamespaceLabels,
    /// The Services that target the endpoint.
    Services,
    /// The path of the server's cgroup.
    Cgroup,
}

impl fmt::Display for MissingFact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "which pod it is",
            Self::NamespaceLabels => "which labels its namespace has",
            Self::Services => "which Services lead to it",
            Self::Cgroup => "which cgroup it belongs to",
        })
    }
}

/// Why a rule does not match a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// It was accepted on another port.
    Port(u16),
    /// It comes from elsewhere.
    Peer {
        /// The client's address.
        peer: IpAddr,
        /// In one of the networks, but excluded from it.
        excepted: bool,
    },
    /// It belongs to another cgroup.
    Cgroup(CgroupPath),
    /// No pod is known to have accepted it.
    NoPod,
    /// None of the Services targets its port.
    Services,
    /// The labels of its namespace are not selected.
    Namespace,
    /// Its pod's labels are not selected.
    PodLabels,
    /// A fact is missing: the rule may match.
    Undetermined(MissingFact),
}

impl Mismatch {
    /// Whether the rule certainly does not match.
    pub fn is_sure(&self) -> bool {
        !matches!(self, Self::Undetermined(_))
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "port {port} is not among its ports"),
            Self::Peer {
                peer,
                excepted: false,
            } => write!(f, "{peer} is not among its peers"),
            Self::Peer {
                peer,
                excepted: true,
            } => write!(f, "{peer} is excepted from its peers"),
            Self::Cgroup(path) => {
                let path = visible(path.as_str());
                write!(f, "the cgroup {path} is not among its cgroups")
            }
            Self::NoPod => f.write_str("no pod accepted it, as far as is known"),
            Self::Services => f.write_str("none of its services leads there"),
            Self::Namespace => f.write_str("namespaceSelector does not select its namespace"),
            Self::PodLabels => f.write_str("podSelector does not select its pod"),
            Self::Undetermined(MissingFact::Cgroup) => {
                f.write_str("it names cgroups, and the connection's own is gone or not known")
            }
            Self::Undetermined(lack) => write!(f, "it is not known {lack}"),
        }
    }
}

section! {
    /// A port, or a range of ports.
    #[derive(Copy)]
    pub struct PortRange "Port" {
        /// The port, or the lowest of a range.
        port "port": u16 = required(Port, "a port, e.g. `port: 8080`");
        /// The highest of a range, inclusive.
        end_port "endPort": Option<u16> = optional(Port);
    }
}

impl Constraints for PortRange {
    fn check(range: Option<&Self>, fields: &Fields<'_>, reader: &mut Reader<'_>) {
        let Some(Self { port, end_port }) = range else {
            return;
        };
        if end_port.is_some_and(|end| end < *port) {
            let label = format!("below `port`, {port}");
            let remedy = "write the lower one in `port`, the higher one in `endPort`";
            let fault = Fault::new("an empty range", label, remedy);
            reader.report(reader.place_of(fields.get("endPort")), fault);
        }
    }
}

impl PortRange {
    /// Whether `port` lies in it.
    pub fn contains(&self, port: u16) -> bool {
        (self.port..=self.end_port.unwrap_or(self.port)).contains(&port)
    }
}

section! {
    /// Clients, by address.
    pub struct Peer "Peer" {
        /// A network.
        ip_block "ipBlock": IpBlock as &IpBlock = required(
            part(), "`ipBlock: {cidr: 10.0.0.0/8}`");
    }
}

impl Constraints for Peer {}

section! {
    /// A network, as in a NetworkPolicy. IPv4-mapped IPv6 counts as IPv4.
    pub struct IpBlock "IpBlock" {
        /// The network.
        cidr "cidr": IpNet = required(Network, "`ipBlock: {cidr: 10.0.0.0/8}`");
        /// Networks inside it that are excluded.
        except "except": Vec<IpNet> as &[IpNet] = or_empty(list(Network, MOST));
    }
}

impl Constraints for IpBlock {
    fn check(block: Option<&Self>, fields: &Fields<'_>, reader: &mut Reader<'_>) {
        let Some(Self { cidr, except }) = block else {
            return;
        };
        for (inside, given) in except.iter().zip(items(fields.get("except"))) {
            if inside == cidr || !cidr.contains(inside) {
                let label = format!("not a part of {cidr}");
                let remedy = format!("write a network that is smaller than {cidr} and inside it");
                let fault = Fault::new("an exception from nothing", label, remedy);
                reader.report(reader.place(given), fault);
            }
        }
    }
}

impl IpBlock {
    /// Whether `address` lies in it; a mapped one must be made IPv4 first.
    fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address) && !self.except.iter().any(|net| net.contains(&address))
    }
}
