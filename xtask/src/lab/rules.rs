//! kube-proxy's rules for one Service, as its iptables mode writes them: a chain for the Service
//! that chooses an endpoint at random, and a chain per endpoint that rewrites the destination.
//! Changing the endpoints replaces the Service's chain in one transaction and does not touch
//! conntrack, so existing connections keep their replica.

use std::net::SocketAddr;

use anyhow::Result;

use super::Host;
use crate::command;

const SERVICE: &str = "KUBE-SVC-REBALANCERLABWEB";
const NAME: &str = "lab/web:http";

/// A Service of one address family. kube-proxy writes the same rules for both families, each with
/// its own program.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    /// The network that is not masqueraded.
    pub(crate) cluster: String,
    /// `sessionAffinity: ClientIP`, which kube-proxy's iptables mode implements with xt_recent.
    pub(crate) client_ip_affinity: bool,
}

/// Writes the jumps to kube-proxy's chains, once per address family.
pub(crate) fn install(node: &Host, service: &Service) -> Result<()> {
    restore(
        node,
        service,
        "*nat\n\
         :KUBE-SERVICES - [0:0]\n\
         :KUBE-POSTROUTING - [0:0]\n\
         :KUBE-MARK-MASQ - [0:0]\n\
         -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" \
            -j MASQUERADE --random-fully\n\
         COMMIT\n\
         *filter\n\
         :KUBE-SERVICES - [0:0]\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES\n\
         -A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES\n\
         COMMIT\n",
    )
}

/// Replaces the Service's endpoints (index and address).
pub(crate) fn replace(
    node: &Host,
    service: &Service,
    endpoints: &[(usize, SocketAddr)],
) -> Result<()> {
    restore(node, service, &service_rules(service, endpoints))
}

/// The address as a network: `/32` or `/128`.
fn host_network(address: SocketAddr) -> String {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    format!("{}/{bits}", address.ip())
}

fn service_rules(service: &Service, endpoints: &[(usize, SocketAddr)]) -> String {
    let (cluster_ip, port) = (host_network(service.address), service.address.port());
    let to_service = format!("-d {cluster_ip} -p tcp -m tcp --dport {port}");
    let mut nat = format!("*nat\n:KUBE-SERVICES - [0:0]\n:{SERVICE} - [0:0]\n");
    // Without endpoints, connections are rejected at once.
    let mut filter = "*filter\n:KUBE-SERVICES - [0:0]\n".to_owned();
    if endpoints.is_empty() {
        filter.push_str(&format!(
            "-A KUBE-SERVICES {to_service} -m comment --comment \"{NAME} has no endpoints\" \
             -j REJECT\n"
        ));
    } else {
        nat.push_str(&format!(
            "-A KUBE-SERVICES {to_service} -m comment --comment \"{NAME} cluster IP\" \
             -j {SERVICE}\n\
             -A {SERVICE} ! -s {cluster} {to_service} -m comment --comment \"{NAME} cluster IP\" \
             -j KUBE-MARK-MASQ\n",
            cluster = service.cluster,
        ));
    }
    if service.client_ip_affinity {
        for (index, address) in endpoints {
            let chain = format!("KUBE-SEP-REBALANCERLAB{index:03}");
            nat.push_str(&format!(
                ":{chain} - [0:0]\n\
                 -A {SERVICE} -m comment --comment \"{NAME} -> {address}\" -m recent \
                 --name {chain} --rcheck --seconds 10800 --reap -j {chain}\n"
            ));
        }
    }
    for (position, (index, address)) in endpoints.iter().enumerate() {
        let chain = format!("KUBE-SEP-REBALANCERLAB{index:03}");
        let left = endpoints.len() - position;
        // The last endpoint takes the rest.
        let chance = match left {
            1 => String::new(),
            _ => format!(
                "-m statistic --mode random --probability {:.11} ",
                1.0 / left as f64
            ),
        };
        let pod = host_network(*address);
        let remember = if service.client_ip_affinity {
            format!("-m recent --name {chain} --set ")
        } else {
            String::new()
        };
        nat.push_str(&format!(
            ":{chain} - [0:0]\n\
             -A {SERVICE} -m comment --comment \"{NAME} -> {address}\" {chance}-j {chain}\n\
             -A {chain} -s {pod} -m comment --comment \"{NAME}\" -j KUBE-MARK-MASQ\n\
             -A {chain} -p tcp -m comment --comment \"{NAME}\" {remember}-m tcp \
             -j DNAT --to-destination {address}\n"
        ));
    }
    format!("{nat}COMMIT\n{filter}COMMIT\n")
}

fn restore(node: &Host, service: &Service, rules: &str) -> Result<()> {
    let program = match service.address {
        SocketAddr::V4(_) => "iptables-restore",
        SocketAddr::V6(_) => "ip6tables-restore",
    };
    let mut restore = node.command(program);
    command::output_with_input(restore.args(["--noflush", "--wait", "10"]), rules).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(count: u8) -> String {
        let service = Service {
            address: "10.96.3.10:80".parse().unwrap(),
            cluster: "10.244.3.0/24".to_owned(),
            client_ip_affinity: false,
        };
        let endpoints: Vec<_> = (0..count)
            .map(|index| {
                (
                    index.into(),
                    SocketAddr::from(([10, 244, 3, 2 + index], 80)),
                )
            })
            .collect();
        service_rules(&service, &endpoints)
    }

    #[test]
    fn ipv6_rules_have_the_same_shape() {
        let service = Service {
            address: "[fd00::a]:80".parse().unwrap(),
            cluster: "fd00:1::/64".to_owned(),
            client_ip_affinity: true,
        };
        let rules = service_rules(&service, &[(0, "[fd00:1::2]:80".parse().unwrap())]);
        assert!(rules.contains("-d fd00::a/128 -p tcp"), "{rules}");
        assert!(rules.contains("-s fd00:1::2/128"), "{rules}");
        assert!(rules.contains("--to-destination [fd00:1::2]:80"), "{rules}");
        assert!(rules.contains("--rcheck --seconds 10800"), "{rules}");
        assert!(rules.contains("--set -m tcp -j DNAT"), "{rules}");
    }

    #[test]
    fn endpoints_are_chosen_with_equal_probability() {
        let rules = rules(3);
        let chances: Vec<&str> = rules
            .split("--probability ")
            .skip(1)
            .map(|rest| rest.split(' ').next().unwrap())
            .collect();
        assert_eq!(chances, ["0.33333333333", "0.50000000000"]);
        assert_eq!(
            rules.matches("-j DNAT --to-destination 10.244.3.").count(),
            3
        );
        assert!(!rules.contains("REJECT"));
    }

    #[test]
    fn a_service_without_endpoints_rejects_connections() {
        let rules = rules(0);
        assert!(rules.contains("-d 10.96.3.10/32"));
        assert!(rules.contains("-j REJECT"));
        assert!(!rules.contains("DNAT"));
    }
}
