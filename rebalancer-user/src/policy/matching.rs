//! Which connections a rule is for.

use std::{fmt, net::IpAddr, num::NonZeroU16};

use ipnet::IpNet;

use super::{CgroupGlobs, visible};
use crate::snapshot::{CgroupPath, Connection};

/// Ports, peers and cgroups; of what is given, all must match. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    pub(super) ports: Vec<PortRange>,
    pub(super) peers: Vec<Peer>,
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

    /// Cgroups of the server's side; empty if any.
    pub fn cgroups(&self) -> &CgroupGlobs {
        &self.cgroups
    }

    /// Whether `connection` is one of those meant.
    pub fn covers(&self, connection: &Connection) -> bool {
        self.misses(connection).is_none()
    }

    /// Why `connection` is not one of those meant; `None` if it is.
    pub fn misses(&self, connection: &Connection) -> Option<Miss> {
        let port = connection.endpoint.port;
        let peer = connection.remote.ip().to_canonical();
        if !self.ports.is_empty() && !self.ports.iter().any(|range| range.contains(port)) {
            return Some(Miss::Port(port));
        }
        if !self.peers.is_empty() && !self.peers.iter().any(|block| block.contains(peer)) {
            let excepted = self.peers.iter().any(|block| block.cidr.contains(&peer));
            return Some(Miss::Peer { peer, excepted });
        }
        if self.cgroups.is_empty() {
            return None;
        }
        // Last: who is missed by port or peer need not be known better.
        match &connection.cgroup_path {
            None => Some(Miss::CgroupUnknown),
            Some(path) => (!self.cgroups.name(path)).then(|| Miss::Cgroup(path.clone())),
        }
    }
}

/// Why a rule is not for a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
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
    /// The path of its cgroup is not known, so that no glob can be held against it.
    CgroupUnknown,
}

impl fmt::Display for Miss {
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
            Self::CgroupUnknown => {
                f.write_str("it names cgroups, and the connection's own is gone or not known")
            }
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
