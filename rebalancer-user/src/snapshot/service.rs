//! A Service, as a cluster knows it: facts, however they were come by.

use std::{collections::BTreeSet, fmt, net::IpAddr, time::Duration};

/// A Service's namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: String,
    /// Its name in there.
    pub name: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is known of a Service that leads to an endpoint of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its ready endpoints, on all nodes: pods, each once.
    pub ready: u32,
    /// Of these, on this node.
    pub ready_here: u32,
    /// Its ready endpoints in this node's zone, if its traffic keeps to zones where it can
    /// (`trafficDistribution`, or hints in its slices).
    pub ready_in_zone: Option<u32>,
    /// Addresses of all its endpoints, ready or not: a peer among them is a sibling.
    pub addresses: BTreeSet<IpAddr>,
    /// `sessionAffinity: ClientIP`: a client comes back to the same endpoint.
    pub client_ip_affinity: bool,
    /// It has no cluster IP: clients choose an endpoint by themselves.
    pub headless: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// Since its ready endpoints last changed; `None`: not since they were first seen.
    pub changed: Option<Duration>,
    /// Ports of its pods that say HTTP/2, by `appProtocol` or by the port's name.
    pub http2: BTreeSet<u16>,
}
