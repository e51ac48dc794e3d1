//! The lab's network: client and pods, each in a network namespace, connected by a node. The
//! machine's own network is not changed.
//!
//! ```text
//! client eth0 ── veth ── node ── bridge ── veth ── eth0 pod 0
//!                          │        └───── veth ── eth0 pod 1 …
//!                 kube-proxy's rules
//! ```

use std::{fs, net::IpAddr};

use anyhow::{Context as _, Result, ensure};

use super::{Host, addresses::Addresses};
use crate::netns::batch;

/// Connects the client to the node.
pub(crate) fn join_client(node: &str, client: &str) -> Result<()> {
    batch(
        node,
        &format!(
            "link set lo up\n\
             link add br0 type bridge\n\
             link set br0 up\n\
             link add client type veth peer name eth0 netns {client}\n\
             link set client up\n"
        ),
    )?;
    batch(client, "link set lo up\nlink set eth0 up\n")
}

/// Connects a pod to the node's bridge.
pub(crate) fn join_pod(node: &str, pod: &str, index: usize) -> Result<()> {
    batch(
        node,
        &format!(
            "link add pod{index} type veth peer name eth0 netns {pod}\n\
             link set pod{index} master br0 up\n"
        ),
    )?;
    batch(pod, "link set lo up\nlink set eth0 up\n")
}

/// Adds the addresses of a family to the node.
pub(crate) fn address_node(node: &str, addresses: Addresses) -> Result<()> {
    let (half, nodad) = (addresses.half(), addresses.nodad());
    batch(
        node,
        &format!(
            "addr add {bridge}/{half} dev br0 {nodad}\n\
             route add {services} dev br0\n\
             addr add {gateway}/{half} dev client {nodad}\n",
            bridge = addresses.bridge(),
            // The rules rewrite or reject these addresses, but routing looks them up first.
            services = addresses.services(),
            gateway = addresses.gateway(),
        ),
    )
}

/// Adds `address` to the client or a pod.
pub(crate) fn address(
    host: &str,
    address: IpAddr,
    gateway: IpAddr,
    addresses: Addresses,
) -> Result<()> {
    let (half, nodad) = (addresses.half(), addresses.nodad());
    batch(
        host,
        &format!(
            "addr add {address}/{half} dev eth0 {nodad}\n\
             route add default via {gateway}\n"
        ),
    )
}

/// Enables IPv6 in a host, as the machine's defaults may disable it.
///
/// # Errors
/// The kernel has no IPv6.
pub(crate) fn enable6(host: &Host) -> Result<()> {
    host.enter(|| {
        ensure!(
            fs::exists("/proc/sys/net/ipv6").unwrap_or(false),
            "the kernel has no IPv6: built without CONFIG_IPV6, or booted with ipv6.disable=1"
        );
        write("net/ipv6/conf/all/disable_ipv6", "0")?;
        write("net/ipv6/conf/default/disable_ipv6", "0")
    })?
}

/// Enables IPv6 forwarding on the node.
pub(crate) fn tune6(node: &Host) -> Result<()> {
    node.enter(|| {
        write("net/ipv6/conf/all/forwarding", "1")?;
        write_if_exists("net/bridge/bridge-nf-call-ip6tables", "1")
    })?
}

/// Sets per-namespace sysctls.
pub(crate) fn tune(node: &Host, client: &Host) -> Result<()> {
    node.enter(|| {
        write("net/ipv4/ip_forward", "1")?;
        // Exists with br_netfilter only. Then replies from pod to pod pass conntrack, as on a
        // Kubernetes node.
        write_if_exists("net/bridge/bridge-nf-call-iptables", "1")
    })??;
    client.enter(|| {
        // `ab` without -k uses many ports.
        write("net/ipv4/ip_local_port_range", "1024 65535")?;
        write("net/ipv4/tcp_tw_reuse", "1")
    })?
}

fn write_if_exists(name: &str, value: &str) -> Result<()> {
    if fs::exists(format!("/proc/sys/{name}")).unwrap_or(false) {
        write(name, value)?;
    }
    Ok(())
}

fn write(name: &str, value: &str) -> Result<()> {
    fs::write(format!("/proc/sys/{name}"), value).with_context(|| format!("sysctl {name}"))
}
