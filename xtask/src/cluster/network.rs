//! The cluster's network: each node's network namespace is connected to a bridge in that of the
//! control plane. The machine's own network is not changed.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};
use xtask::netns;

use super::{
    layout::{self, Node},
    process::{self, in_namespace, output},
};

pub(super) const CONTROL_PLANE: &str = "control-plane";

pub(super) fn make(nodes: &[Node]) -> Result<()> {
    add(CONTROL_PLANE)?;
    batch(
        CONTROL_PLANE,
        &format!(
            "link set lo up\n\
             link add br0 type bridge\n\
             addr add {}/{} dev br0\n\
             link set br0 up\n",
            layout::CONTROL_PLANE,
            layout::NODE_BITS
        ),
    )?;
    nodes.iter().try_for_each(|node| join(*node))
}

/// Removes the node's interfaces, routes and rules, as a reboot does, and connects it again.
pub(super) fn reset(node: Node) -> Result<()> {
    let namespace = layout::namespace(&node.name());
    output(Command::new("ip").args(["netns", "del", &namespace]))?;
    // The veth's other end is removed with the namespace, but asynchronously.
    process::wait("removal of the node's veth", 10, || {
        let link = ["link", "show", &node.name()];
        output(in_namespace(CONTROL_PLANE, "ip").args(link))
            .is_err()
            .then_some(())
    })?;
    join(node)
}

fn join(node: Node) -> Result<()> {
    let name = node.name();
    add(&name)?;
    let namespace = layout::namespace(&name);
    batch(
        CONTROL_PLANE,
        &format!(
            "link add {name} type veth peer name eth0 netns {namespace}\n\
             link set {name} master br0 up\n"
        ),
    )?;
    batch(
        &name,
        &format!(
            "link set lo up\n\
             addr add {}/{} dev eth0\n\
             link set eth0 up\n\
             route add default via {}\n",
            node.address(),
            layout::NODE_BITS,
            layout::CONTROL_PLANE
        ),
    )?;
    sysctl(&name, "net.ipv4.ip_forward=1")?;
    // Exists with br_netfilter only. Then traffic from a pod to a Service endpoint on the same node
    // passes kube-proxy's rules in both directions.
    if fs::exists("/proc/sys/net/bridge/bridge-nf-call-iptables").unwrap_or(false) {
        sysctl(&name, "net.bridge.bridge-nf-call-iptables=1")?;
    }
    Ok(())
}

/// Adds routes to each node's pods on the others, and to Services on the control plane.
pub(super) fn route(pods: &[(Node, String)]) -> Result<()> {
    for (node, range) in pods {
        let route = format!("route replace {range} via {}\n", node.address());
        batch(CONTROL_PLANE, &route)?;
        for (other, _) in pods.iter().filter(|(other, _)| other != node) {
            batch(&other.name(), &route)?;
        }
    }
    let (first, _) = pods.first().context("a cluster has a node")?;
    let services = format!(
        "route replace {} via {}\n",
        layout::SERVICES,
        first.address()
    );
    batch(CONTROL_PLANE, &services)
}

fn add(host: &str) -> Result<()> {
    netns::add(&layout::namespace(host))
}

fn sysctl(host: &str, setting: &str) -> Result<()> {
    output(in_namespace(host, "sysctl").args(["-qw", setting])).map(drop)
}

fn batch(host: &str, commands: &str) -> Result<()> {
    netns::batch(&layout::namespace(host), commands)
}
