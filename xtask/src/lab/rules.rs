//! kube-proxy's rules for one Service, in the shape that its iptables mode writes: a chain
//! for the Service that chooses by chance, and one for each endpoint that rewrites the
//! destination. Changing the endpoints replaces the Service's chain in one transaction and
//! leaves conntrack alone, so connections that exist keep their replica.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;

use super::{Host, addresses::Addresses, network::feed};

const SERVICE: &str = "KUBE-SVC-REBALANCERLABWEB";
const NAME: &str = "lab/web:http";

/// What jumps to kube-proxy's chains; written once.
pub(crate) fn install(node: &Host) -> Result<()> {
    restore(
        node,
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

/// Makes `endpoints` (index and address) the Service's, in place of those before.
pub(crate) fn replace(
    node: &Host,
    addresses: Addresses,
    endpoints: &[(usize, SocketAddrV4)],
) -> Result<()> {
    restore(node, &service_rules(addresses, endpoints))
}

fn service_rules(addresses: Addresses, endpoints: &[(usize, SocketAddrV4)]) -> String {
    let service = addresses.service();
    let (cluster_ip, port) = (service.ip(), service.port());
    let to_service = format!("-d {cluster_ip}/32 -p tcp -m tcp --dport {port}");
    let mut nat = format!("*nat\n:KUBE-SERVICES - [0:0]\n:{SERVICE} - [0:0]\n");
    // Without endpoints a connection is refused at once.
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
            cluster = addresses.cluster(),
        ));
    }
    for (position, (index, address)) in endpoints.iter().enumerate() {
        let chain = format!("KUBE-SEP-REBALANCERLAB{index:03}");
        let left = endpoints.len() - position;
        // The last takes whatever the others left.
        let chance = match left {
            1 => String::new(),
            _ => format!(
                "-m statistic --mode random --probability {:.11} ",
                1.0 / left as f64
            ),
        };
        let pod: &Ipv4Addr = address.ip();
        nat.push_str(&format!(
            ":{chain} - [0:0]\n\
             -A {SERVICE} -m comment --comment \"{NAME} -> {address}\" {chance}-j {chain}\n\
             -A {chain} -s {pod}/32 -m comment --comment \"{NAME}\" -j KUBE-MARK-MASQ\n\
             -A {chain} -p tcp -m comment --comment \"{NAME}\" -m tcp \
             -j DNAT --to-destination {address}\n"
        ));
    }
    format!("{nat}COMMIT\n{filter}COMMIT\n")
}

fn restore(node: &Host, rules: &str) -> Result<()> {
    feed(
        node.command("iptables-restore")
            .args(["--noflush", "--wait", "10"]),
        rules,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(count: usize) -> String {
        let addresses = Addresses(3);
        let endpoints: Vec<_> = (0..count)
            .map(|index| (index, SocketAddrV4::new(addresses.pod(index), 80)))
            .collect();
        service_rules(addresses, &endpoints)
    }

    #[test]
    fn each_endpoint_has_the_same_chance() {
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
    fn a_service_without_endpoints_refuses() {
        let rules = rules(0);
        assert!(rules.contains("-d 10.96.3.10/32"));
        assert!(rules.contains("-j REJECT"));
        assert!(!rules.contains("DNAT"));
    }
}
