//! Which connections a rule is for.

use std::{fmt, net::IpAddr, num::NonZeroU16};

use ipnet::IpNet;

use super::{CgroupGlobs, MissingFact, Pods, visible};
use crate::snapshot::{CgroupPath, Connection, Who};

/// Ports, peers, pods and cgroups; what is given must all match. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    pub(super) ports: Vec<PortRange>,
    pub(super) peers: Vec<Peer>,
    pub(super) pods: Pods,
    pub(super) cgroups: CgroupGlobs,
}

impl Match {
    /// Ports; empty if any.
    pub fn ports(&self) -> &[PortRange] {
        &self.ports
    }

    /// Peers; empty if any.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// Pods, by the names that a cluster gives them.
    pub fn pods(&self) -> &Pods {
        &self.pods
    }

    /// Cgroups of the server's side; empty if any.
    pub fn cgroups(&self) -> &CgroupGlobs {
        &self.cgroups
    }

    /// Why `connection`, accepted by `who`, is not one of those meant; `None` if it is.
    ///
    /// Who is missed by port or peer need not be known better. And what is surely another is
    /// another, whatever else is not known of it.
    pub fn misses(&self, connection: &Connection, who: &Who) -> Option<Mismatch> {
        let lack = match self.of_endpoint(connection.endpoint.port, who) {
            Ok(lack) => lack,
            Err(of_port @ Mismatch::Port(_)) => return Some(of_port),
            // By its peer, if by that as well: it is said first.
            Err(of_pod) => return Some(self.misses_peer(connection).unwrap_or(of_pod)),
        };
        match self.of_connection(connection, lack) {
            Ok(lack) => lack.map(Mismatch::Undetermined),
            Err(mismatch) => Some(mismatch),
        }
    }

    /// Whether connections accepted at `port` by `who` can be of those meant: what is not known of
    /// the endpoint, if anything.
    ///
    /// # Errors
    /// They are not.
    pub(crate) fn of_endpoint(
        &self,
        port: u16,
        who: &Who,
    ) -> Result<Option<MissingFact>, Mismatch> {
        if !self.ports.is_empty() && !self.ports.iter().any(|range| range.contains(port)) {
            return Err(Mismatch::Port(port));
        }
        match self.pods.misses(who) {
            None => Ok(None),
            Some(Mismatch::Undetermined(lack)) => Ok(Some(lack)),
            Some(other) => Err(other),
        }
    }

    /// Whether a connection of such an endpoint, of which `lack` is not known, is one of those meant:
    /// what is not known of it, if anything.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn of_connection(
        &self,
        connection: &Connection,
        lack: Option<MissingFact>,
    ) -> Result<Option<MissingFact>, Mismatch> {
        if let Some(mismatch) = self.misses_peer(connection) {
            return Err(mismatch);
        }
        match self.misses_cgroup(connection) {
            Some(Mismatch::Undetermined(cgroup)) => Ok(Some(lack.unwrap_or(cgroup))),
            Some(mismatch) => Err(mismatch),
            None => Ok(lack),
        }
    }

    fn misses_peer(&self, connection: &Connection) -> Option<Mismatch> {
        let peer = connection.remote.ip().to_canonical();
        if self.peers.is_empty() || self.peers.iter().any(|block| block.contains(peer)) {
            return None;
        }
        let excepted = self.peers.iter().any(|block| block.cidr.contains(&peer));
        Some(Mismatch::Peer { peer, excepted })
    }

    /// Whether connections accepted at `port` by `who` are of those meant, if their clients are.
    /// What is asked of cgroups is known of connections only.
    pub fn may_be_at(&self, port: u16, who: &Who) -> bool {
        let ports = self.ports.is_empty() || self.ports.iter().any(|range| range.contains(port));
        ports && self.cgroups.is_empty() && self.pods.misses(who).is_none()
    }

    fn misses_cgroup(&self, connection: &Connection) -> Option<Mismatch> {
        if self.cgroups.is_empty() {
            return None;
        }
        match &connection.cgroup_path {
            None => Some(Mismatch::Undetermined(MissingFact::Cgroup)),
            Some(path) => (!self.cgroups.name(path)).then(|| Mismatch::Cgroup(path.clone())),
        }
    }
}

/// Why a rule is not for a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// It was accepted on another port.
    Port(u16),
    /// It comes from elsewhere.
    Peer {
        /// The client's address.
        peer: IpAddr,
        /// In one of the networks, but excepted from it.
        excepted: bool,
    },
    /// It belongs to another cgroup.
    Cgroup(CgroupPath),
    /// It was accepted by no pod, as far as is known.
    NoPod,
    /// Its port is behind none of the Services.
    Services,
    /// The labels of its namespace are not selected.
    Namespace,
    /// Its pod's labels are not selected.
    PodLabels,
    /// Not known: the rule may be for it.
    Undetermined(MissingFact),
}

impl Mismatch {
    /// Whether the rule is surely not for it.
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

/// Ports of the server's side, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    pub(super) first: NonZeroU16,
    pub(super) last: NonZeroU16,
}

impl PortRange {
    /// The lowest port.
    pub fn first(self) -> NonZeroU16 {
        self.first
    }

    /// The highest port.
    pub fn last(self) -> NonZeroU16 {
        self.last
    }

    /// Whether `port` lies in it.
    pub fn contains(self, port: u16) -> bool {
        (self.first.get()..=self.last.get()).contains(&port)
    }
}

/// Clients by address, as a NetworkPolicy's `ipBlock`. IPv4-mapped IPv6 counts as IPv4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub(super) cidr: IpNet,
    pub(super) except: Vec<IpNet>,
}

impl Peer {
    /// The network.
    pub fn cidr(&self) -> IpNet {
        self.cidr
    }

    /// Networks inside `cidr` that are not meant.
    pub fn except(&self) -> &[IpNet] {
        &self.except
    }

    /// Whether `address` lies in it; a mapped one must be made IPv4 first.
    fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address) && !self.except.iter().any(|net| net.contains(&address))
    }
}
