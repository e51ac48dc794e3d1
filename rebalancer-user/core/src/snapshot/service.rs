//! A Service, as a cluster knows it: facts, however they were come by.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

/// A Service's namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
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
    /// Those near this node, if its traffic keeps near where it can (`trafficDistribution`, or
    /// hints in its slices): of its zone, or of this node alone where it prefers the same node.
    pub ready_in_zone: Option<u32>,
    /// Addresses of all its endpoints, ready or not: a peer among them is a sibling. Shared by
    /// Services with the same ones.
    pub addresses: Arc<BTreeSet<IpAddr>>,
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

impl Service {
    /// Among how many ready endpoints a client that reconnects is sent, this node's view of it:
    /// all, or those of its zone, or those of this node, wherever the Service keeps traffic.
    ///
    /// Which policy counts depends on where the client is, and that is not known: either of the
    /// local ones makes it this node.
    pub fn comparable(&self) -> u32 {
        match self.local_policy() {
            Some(_) => self.ready_here,
            None => self.ready_in_zone.unwrap_or(self.ready),
        }
    }

    /// The policy that keeps traffic on the node it has reached.
    pub fn local_policy(&self) -> Option<&'static str> {
        if self.internal_local {
            Some("internalTrafficPolicy")
        } else {
            self.external_local.then_some("externalTrafficPolicy")
        }
    }

    /// Whether both lead to the same endpoints, seen from one of these with the address `at`: a
    /// Service of one family of addresses is no other for having fewer families.
    pub fn has_endpoints_of(&self, other: &Self, at: IpAddr) -> bool {
        if self.ready != other.ready {
            return false;
        }
        let of_family = |ip: &&IpAddr| ip.to_canonical().is_ipv4() == at.to_canonical().is_ipv4();
        // Shared ones are equal at once.
        self.addresses == other.addresses
            || self
                .addresses
                .iter()
                .filter(of_family)
                .eq(other.addresses.iter().filter(of_family))
    }
}
