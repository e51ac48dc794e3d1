//! A lab's addresses, derived from its number, so that parallel labs share none and a rule can be
//! limited to one lab.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

/// The maximum number of pods in a lab: half a /24 without network, node and broadcast address.
pub const MAX_PODS: usize = 125;
/// The port of the pods and of the Service.
pub const PORT: u16 = 80;

/// The addresses of lab number `.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses(pub(crate) u8);

impl Addresses {
    /// The cluster's network: pods in the lower half, the client in the upper half. kube-proxy
    /// masquerades traffic from outside it.
    pub(crate) fn cluster(self) -> String {
        format!("10.244.{}.0/24", self.0)
    }

    pub(crate) fn client_subnet(self) -> String {
        format!("10.244.{}.128/25", self.0)
    }

    /// The node's address for the pods.
    pub(crate) fn bridge(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.0, 1)
    }

    pub(crate) fn pod(self, index: usize) -> Ipv4Addr {
        assert!(index < MAX_PODS, "a lab has at most {MAX_PODS} pods");
        Ipv4Addr::new(10, 244, self.0, 2 + index as u8)
    }

    /// The node's address for the client.
    pub(crate) fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.0, 129)
    }

    pub(crate) fn client(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.0, 130)
    }

    pub(crate) fn services(self) -> String {
        format!("10.96.{}.0/24", self.0)
    }

    /// The Service's ClusterIP.
    pub(crate) fn service(self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(10, 96, self.0, 10), PORT)
    }

    /// From here on the same for IPv6, with unique local addresses (RFC 4193).
    pub(crate) fn cluster6(self) -> String {
        format!("{}/64", self.address6(CLUSTER6, 0, 0))
    }

    pub(crate) fn client_subnet6(self) -> String {
        format!("{}/112", self.address6(CLUSTER6, 1, 0))
    }

    pub(crate) fn bridge6(self) -> Ipv6Addr {
        self.address6(CLUSTER6, 0, 1)
    }

    pub(crate) fn pod6(self, index: usize) -> Ipv6Addr {
        assert!(index < MAX_PODS, "a lab has at most {MAX_PODS} pods");
        self.address6(CLUSTER6, 0, 2 + index as u16)
    }

    pub(crate) fn gateway6(self) -> Ipv6Addr {
        self.address6(CLUSTER6, 1, 1)
    }

    pub(crate) fn client6(self) -> Ipv6Addr {
        self.address6(CLUSTER6, 1, 2)
    }

    pub(crate) fn services6(self) -> String {
        format!("{}/112", self.address6(SERVICES6, 0, 0))
    }

    pub(crate) fn service6(self) -> SocketAddrV6 {
        SocketAddrV6::new(self.address6(SERVICES6, 0, 10), PORT, 0, 0)
    }

    fn address6(self, network: u16, part: u16, host: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x10, network, self.0.into(), 0, 0, part, host)
    }
}

/// The third group of an IPv6 address, like the second byte of the IPv4 address.
const CLUSTER6: u16 = 0x244;
const SERVICES6: u16 = 0x96;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_stay_below_the_clients_subnet() {
        let addresses = Addresses(7);
        assert_eq!(addresses.pod(0), Ipv4Addr::new(10, 244, 7, 2));
        assert_eq!(addresses.pod(MAX_PODS - 1), Ipv4Addr::new(10, 244, 7, 126));
        assert_eq!(addresses.client_subnet(), "10.244.7.128/25");
        assert_eq!(addresses.pod6(0).to_string(), "fd00:10:244:7::2");
        assert_eq!(addresses.client6().to_string(), "fd00:10:244:7::1:2");
        assert_eq!(addresses.client_subnet6(), "fd00:10:244:7::1:0/112");
        assert_eq!(addresses.cluster6(), "fd00:10:244:7::/64");
        assert_eq!(addresses.service6().to_string(), "[fd00:10:96:7::a]:80");
    }
}
