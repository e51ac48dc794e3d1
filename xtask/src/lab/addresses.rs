//! A lab's addresses, derived from its number, so that parallel labs share none and a rule can be
//! limited to one lab.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The maximum number of pods in a lab: half a /24 without network, node and broadcast address.
pub const MAX_PODS: usize = 125;
/// The port of the pods and of the Service.
pub const PORT: u16 = 80;

/// The second byte of an IPv4 address, and the third group of an IPv6 address.
type Network = (u8, u16);
const CLUSTER: Network = (244, 0x244);
const SERVICES: Network = (96, 0x96);

/// The addresses of lab number `lab` in one family; those of IPv6 are unique local addresses
/// (RFC 4193).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) lab: u8,
    pub(crate) ipv6: bool,
}

impl Addresses {
    /// The cluster's network: pods in the lower half, the client in the upper half. kube-proxy
    /// masquerades traffic from outside it.
    pub(crate) fn cluster(self) -> String {
        format!("{}/{}", self.host(0, 0), if self.ipv6 { 64 } else { 24 })
    }

    pub(crate) fn client_subnet(self) -> String {
        format!("{}/{}", self.host(1, 0), self.half())
    }

    /// The prefix length of a half of the cluster's network.
    pub(crate) fn half(self) -> u8 {
        if self.ipv6 { 112 } else { 25 }
    }

    /// Disables duplicate address detection, which would only take time. IPv4 has none.
    pub(crate) fn nodad(self) -> &'static str {
        if self.ipv6 { "nodad" } else { "" }
    }

    /// The node's address for the pods.
    pub(crate) fn bridge(self) -> IpAddr {
        self.host(0, 1)
    }

    pub(crate) fn pod(self, index: usize) -> IpAddr {
        assert!(index < MAX_PODS, "a lab has at most {MAX_PODS} pods");
        self.host(0, 2 + index as u8)
    }

    /// The node's address for the client.
    pub(crate) fn gateway(self) -> IpAddr {
        self.host(1, 1)
    }

    pub(crate) fn client(self) -> IpAddr {
        self.host(1, 2)
    }

    pub(crate) fn services(self) -> String {
        let network = self.address(SERVICES, 0, 0);
        format!("{network}/{}", if self.ipv6 { 112 } else { 24 })
    }

    /// The Service's ClusterIP.
    pub(crate) fn service(self) -> SocketAddr {
        SocketAddr::new(self.address(SERVICES, 0, 10), PORT)
    }

    fn host(self, half: u8, host: u8) -> IpAddr {
        self.address(CLUSTER, half, host)
    }

    fn address(self, (v4, v6): Network, half: u8, host: u8) -> IpAddr {
        if self.ipv6 {
            let [lab, half, host] = [self.lab, half, host].map(u16::from);
            Ipv6Addr::new(0xfd00, 0x10, v6, lab, 0, 0, half, host).into()
        } else {
            Ipv4Addr::new(10, v4, self.lab, 128 * half + host).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_stay_below_the_clients_subnet() {
        let [v4, v6] = [false, true].map(|ipv6| Addresses { lab: 7, ipv6 });
        assert_eq!(v4.pod(0).to_string(), "10.244.7.2");
        assert_eq!(v4.pod(MAX_PODS - 1).to_string(), "10.244.7.126");
        assert_eq!(v4.client_subnet(), "10.244.7.128/25");
        assert_eq!(v6.pod(0).to_string(), "fd00:10:244:7::2");
        assert_eq!(v6.client().to_string(), "fd00:10:244:7::1:2");
        assert_eq!(v6.client_subnet(), "fd00:10:244:7::1:0/112");
        assert_eq!(v6.cluster(), "fd00:10:244:7::/64");
        assert_eq!(v6.service().to_string(), "[fd00:10:96:7::a]:80");
    }
}
