//! A Service that targets endpoints of this node, as the API server describes it.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::wire;
use crate::views::Generation;

/// A Service's namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceName {
    /// Its namespace.
    #[serde(deserialize_with = "wire::name")]
    pub namespace: String,
    /// Its name.
    #[serde(deserialize_with = "wire::name")]
    pub name: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is known of a Service that targets an endpoint of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// The number of its ready pods on all nodes.
    pub ready: u32,
    /// The number of these on this node.
    pub ready_here: u32,
    /// The number of these that traffic from this node prefers, if it prefers any
    /// (`trafficDistribution`, or hints in its slices): in its zone, or on this node alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_in_zone: Option<u32>,
    /// Which ready endpoints those are, or all if it prefers none, as the nodes' reports name such a
    /// set; `None` if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// The zone in which traffic from this node is kept, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Addresses of all its endpoints, ready or not: a peer among them is a sibling.
    #[serde(with = "wire::addresses")]
    pub addresses: Arc<BTreeSet<IpAddr>>,
    /// `sessionAffinity: ClientIP`: a client returns to the same endpoint.
    pub client_ip_affinity: bool,
    /// It has no cluster IP: clients choose an endpoint themselves.
    pub headless: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// Time since its ready endpoints last changed; `None`: not since they were first seen.
    #[serde(
        default,
        rename = "sinceChangedNanoseconds",
        skip_serializing_if = "Option::is_none",
        with = "wire::optional_nanoseconds"
    )]
    pub changed: Option<Duration>,
    /// Time since it last lost ready endpoints, a flapping one included; of a large Service more than a few. `None`:
    /// not since they were first seen.
    #[serde(
        default,
        rename = "sinceLostNanoseconds",
        skip_serializing_if = "Option::is_none",
        with = "wire::optional_nanoseconds"
    )]
    pub lost: Option<Duration>,
    /// Ports of its pods that are declared as HTTP/2, by `appProtocol` or by the port's name.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub http2: BTreeSet<u16>,
}

impl Service {
    /// The number of ready endpoints that a reconnecting client may reach, as seen from this node: all,
    /// those of its zone, or those of this node.
    ///
    /// Which traffic policy applies depends on the client's place, which is unknown: either local policy
    /// limits them to this node.
    pub fn comparable(&self) -> u32 {
        match self.local_policy() {
            Some(_) => self.ready_here,
            None => self.ready_in_zone.unwrap_or(self.ready),
        }
    }

    /// The field of the policy that keeps traffic on its node, if any.
    pub fn local_policy(&self) -> Option<&'static str> {
        if self.internal_local {
            Some("internalTrafficPolicy")
        } else {
            self.external_local.then_some("externalTrafficPolicy")
        }
    }

    /// Whether both have the same endpoints, as seen from one of these with the address `at`: only
    /// addresses of its family count, as a Service may have one family or two.
    pub fn has_endpoints_of(&self, other: &Self, at: IpAddr) -> bool {
        if self.ready != other.ready {
            return false;
        }
        let of_family = |ip: &&IpAddr| ip.to_canonical().is_ipv4() == at.to_canonical().is_ipv4();
        // Services often share the set: then this is a comparison of pointers.
        self.addresses == other.addresses
            || self
                .addresses
                .iter()
                .filter(of_family)
                .eq(other.addresses.iter().filter(of_family))
    }
}
