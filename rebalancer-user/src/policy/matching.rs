//! Which connections a rule is for.

use std::{net::IpAddr, num::NonZeroU16};

use ipnet::IpNet;

use crate::snapshot::Connection;

/// Ports and peers; where both are given, both must match. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    pub(super) ports: Vec<PortRange>,
    pub(super) peers: Vec<Peer>,
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

    /// Whether `connection` is one of those meant.
    pub fn covers(&self, connection: &Connection) -> bool {
        let port = connection.endpoint.port;
        let peer = connection.remote.ip().to_canonical();
        (self.ports.is_empty() || self.ports.iter().any(|range| range.contains(port)))
            && (self.peers.is_empty() || self.peers.iter().any(|block| block.contains(peer)))
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
