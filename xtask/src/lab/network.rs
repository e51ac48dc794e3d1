//! The lab's network: client and pods, each in a network namespace, connected by a node. The
//! machine's own network is not changed.
//!
//! ```text
//! client eth0 ── veth ── node ── bridge ── veth ── eth0 pod 0
//!                          │        └───── veth ── eth0 pod 1 …
//!                 kube-proxy's rules
//! ```

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::{Host, addresses::Addresses};
use crate::command;

/// Creates a network namespace.
pub(crate) fn make_namespace(name: &str) -> Result<()> {
    command::output(Command::new("ip").args(["netns", "add", name])).map(drop)
}

/// Connects the client to the node.
pub(crate) fn join_client(node: &str, client: &str, addresses: Addresses) -> Result<()> {
    let (gateway, address) = (addresses.gateway(), addresses.client());
    batch(
        node,
        &format!(
            "link set lo up\n\
             link add br0 type bridge\n\
             addr add {bridge}/25 dev br0\n\
             link set br0 up\n\
             route add {services} dev br0\n\
             link add client type veth peer name eth0 netns {client}\n\
             addr add {gateway}/25 dev client\n\
             link set client up\n",
            bridge = addresses.bridge(),
            // The rules rewrite or reject these addresses, but routing looks them up first.
            services = addresses.services(),
        ),
    )?;
    batch(
        client,
        &format!(
            "link set lo up\n\
             addr add {address}/25 dev eth0\n\
             link set eth0 up\n\
             route add default via {gateway}\n"
        ),
    )
}

/// Connects a pod to the node's bridge.
pub(crate) fn join_pod(node: &str, pod: &str, index: usize, addresses: Addresses) -> Result<()> {
    batch(
        node,
        &format!(
            "link add pod{index} type veth peer name eth0 netns {pod}\n\
             link set pod{index} master br0 up\n"
        ),
    )?;
    batch(
        pod,
        &format!(
            "link set lo up\n\
             addr add {address}/25 dev eth0\n\
             link set eth0 up\n\
             route add default via {gateway}\n",
            address = addresses.pod(index),
            gateway = addresses.bridge(),
        ),
    )
}

/// Adds IPv6 addresses to client and node.
pub(crate) fn join_client6(node: &str, client: &str, addresses: Addresses) -> Result<()> {
    let (gateway, address) = (addresses.gateway6(), addresses.client6());
    // `nodad`: duplicate address detection would only take time.
    batch(
        node,
        &format!(
            "addr add {bridge}/112 dev br0 nodad\n\
             route add {services} dev br0\n\
             addr add {gateway}/112 dev client nodad\n",
            bridge = addresses.bridge6(),
            services = addresses.services6(),
        ),
    )?;
    batch(
        client,
        &format!(
            "addr add {address}/112 dev eth0 nodad\n\
             route add default via {gateway}\n"
        ),
    )
}

/// Adds an IPv6 address to a pod.
pub(crate) fn join_pod6(pod: &str, index: usize, addresses: Addresses) -> Result<()> {
    batch(
        pod,
        &format!(
            "addr add {address}/112 dev eth0 nodad\n\
             route add default via {gateway}\n",
            address = addresses.pod6(index),
            gateway = addresses.bridge6(),
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

fn batch(namespace: &str, commands: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    command::output_with_input(ip.args(["-n", namespace, "-batch", "-"]), commands)
        .map(drop)
        .with_context(|| format!("set up the links of {namespace}"))
}
