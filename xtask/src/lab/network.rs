//! The lab's wires: a client and pods, each in a network namespace, joined by a node. The
//! machine's own network is not touched.
//!
//! ```text
//! client eth0 ── veth ── node ── bridge ── veth ── eth0 pod 0
//!                          │        └───── veth ── eth0 pod 1 …
//!                 kube-proxy's rules
//! ```

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::{Host, addresses::Addresses};

/// Makes one namespace; links of the kernel's own come with it.
pub(crate) fn make_namespace(name: &str) -> Result<()> {
    let output = Command::new("ip").args(["netns", "add", name]).output();
    let output = output.context("ip netns add: is iproute2 installed?")?;
    let problem = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "ip netns add {name}: {}",
        problem.trim()
    );
    Ok(())
}

/// Joins the client to the node.
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
            // Rewritten or refused by the rules, but looked up first.
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

/// Joins one pod to the node's bridge.
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

/// Gives client and node their IPv6 addresses, beside the others.
pub(crate) fn join_client6(node: &str, client: &str, addresses: Addresses) -> Result<()> {
    let (gateway, address) = (addresses.gateway6(), addresses.client6());
    // Nobody else is here, so that looking for duplicates would only take time.
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

/// Gives one pod its IPv6 address.
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

/// Switches IPv6 on in a host that a default of the machine may have switched it off in.
///
/// # Errors
/// The kernel has none.
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

/// The node forwards IPv6 too.
pub(crate) fn tune6(node: &Host) -> Result<()> {
    node.enter(|| {
        write("net/ipv6/conf/all/forwarding", "1")?;
        write_if_there("net/bridge/bridge-nf-call-ip6tables", "1")
    })?
}

/// Settings of the kernel, each namespace's own.
pub(crate) fn tune(node: &Host, client: &Host) -> Result<()> {
    node.enter(|| {
        write("net/ipv4/ip_forward", "1")?;
        // Only there with the bridge filter; then, as on a Kubernetes node, replies from pod
        // to pod pass conntrack too.
        write_if_there("net/bridge/bridge-nf-call-iptables", "1")
    })??;
    client.enter(|| {
        // `ab` without -k uses up ports quickly.
        write("net/ipv4/ip_local_port_range", "1024 65535")?;
        write("net/ipv4/tcp_tw_reuse", "1")
    })?
}

fn write_if_there(name: &str, value: &str) -> Result<()> {
    if fs::exists(format!("/proc/sys/{name}")).unwrap_or(false) {
        write(name, value)?;
    }
    Ok(())
}

fn write(name: &str, value: &str) -> Result<()> {
    fs::write(format!("/proc/sys/{name}"), value).with_context(|| format!("sysctl {name}"))
}

fn batch(namespace: &str, commands: &str) -> Result<()> {
    feed(
        Command::new("ip").args(["-n", namespace, "-batch", "-"]),
        commands,
    )
    .with_context(|| format!("set up the links of {namespace}"))
}

/// Runs a command with `input`; an error holds what it said.
pub(super) fn feed(command: &mut Command, input: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let mut stdin = child.stdin.take().expect("its input is a pipe");
    let written = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().with_context(|| program.clone())?;
    let problem = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}", problem.trim());
    written.with_context(|| format!("write to {program}"))
}
