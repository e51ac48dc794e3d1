//! The lab: a client, a node with kube-proxy's rules, and pods, each in its own network namespace
//! and cgroup on this machine, separate from the machine's network. Used by the demo, by tests and
//! by `cargo xtask lab`. It is removed without a trace when its [`Lab`] is dropped or its process
//! dies, even by SIGKILL. Needs root.

mod addresses;
mod cgroup;
mod host;
mod network;
mod nginx;
mod pod;
mod rules;
mod slot;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

pub use addresses::{MAX_PODS, PORT};
pub use host::Host;
pub use nginx::nginx;
pub use pod::{BLOB_BYTES, Counts, Pod};
pub use slot::{LabState, PodState, Slot, State, remove_unused};

use crate::{netns, wait};
use addresses::Addresses;
use rules::Service;
use slot::Claim;

/// The size of a lab.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Number of pods.
    pub pods: usize,
    /// Number of pods, from the first, that run nginx and are the Service's endpoints.
    pub serving: usize,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            pods: 3,
            serving: 3,
        }
    }
}

/// A running lab; dropping it removes it.
#[derive(Debug)]
pub struct Lab {
    /// IPv4 and IPv6.
    families: [Addresses; 2],
    client: Host,
    node: Host,
    machine: Host,
    pods: Vec<Pod>,
    /// The reason if the lab has no IPv6.
    ipv6: Result<(), String>,
    /// The last field: dropping it kills the processes and removes the namespaces of the others.
    claim: Claim,
}

impl Lab {
    /// Starts a lab and waits until its pods answer. Removes abandoned labs first.
    pub fn start(spec: Spec) -> Result<Self> {
        ensure!(spec.pods <= MAX_PODS, "a lab has at most {MAX_PODS} pods");
        ensure!(
            spec.serving <= spec.pods,
            "serving: more than the number of pods"
        );
        let claim = Claim::take()?;
        let lab = claim.slot.0;
        let [v4, v6] = [false, true].map(|ipv6| Addresses { lab, ipv6 });
        let node = make_host(claim.slot, "node", Path::new("node"))?;
        let client = make_host(claim.slot, "client", Path::new("client"))?;
        let name = |host| claim.slot.namespace(host);
        network::join_client(&name("node"), &name("client"))?;
        network::tune(&node, &client)?;
        add_family(claim.slot, &node, v4)?;
        let ipv6 = add_ipv6(claim.slot, &node, &client, v6).map_err(|reason| format!("{reason:#}"));
        let pods = (0..spec.pods)
            .map(|index| make_pod(claim.slot, v4, ipv6.is_ok().then_some(v6), index))
            .collect::<Result<Vec<Pod>>>()?;
        let machine = Host::new(
            "/proc/self/ns/net".into(),
            claim.slot.cgroup()?.join("machine"),
        )?;
        let lab = Self {
            families: [v4, v6],
            client,
            node,
            machine,
            pods,
            ipv6,
            claim,
        };
        lab.claim.slot.write_state(&lab.state())?;
        lab.scale(spec.serving)?;
        lab.wait_ready()?;
        Ok(lab)
    }

    /// The lab's number on this machine.
    pub fn id(&self) -> u8 {
        self.claim.slot.0
    }

    /// A folder for files, removed with the lab.
    pub fn folder(&self) -> PathBuf {
        self.claim.slot.folder()
    }

    /// A folder on the bpffs for the pins of an agent of this lab. Not created yet; removed with
    /// the lab.
    pub fn pins(&self) -> PathBuf {
        self.claim.slot.pins()
    }

    /// The host of the Service's clients.
    pub fn client(&self) -> &Host {
        &self.client
    }

    /// The subnet that contains the client and nothing else on this machine.
    pub fn client_subnet(&self) -> String {
        self.families[0].client_subnet()
    }

    /// The host with kube-proxy's rules.
    pub fn node(&self) -> &Host {
        &self.node
    }

    /// The machine's own network namespace, for programs that are killed with the lab.
    pub fn machine(&self) -> &Host {
        &self.machine
    }

    pub fn pod(&self, index: usize) -> &Pod {
        &self.pods[index]
    }

    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// The Service's ClusterIP and port.
    pub fn service(&self) -> SocketAddr {
        self.families[0].service()
    }

    /// The Service's IPv6 ClusterIP and port.
    ///
    /// # Errors
    /// Why the lab has no IPv6.
    pub fn service6(&self) -> Result<SocketAddr, &str> {
        let ipv6 = self.ipv6.as_ref();
        ipv6.map(|()| self.families[1].service())
            .map_err(String::as_str)
    }

    /// The subnet that contains the client's IPv6 address and nothing else on this machine.
    pub fn client_subnet6(&self) -> String {
        self.families[1].client_subnet()
    }

    /// Makes these pods the Service's endpoints. Existing connections stay where they are.
    pub fn set_endpoints(&self, pods: &[usize]) -> Result<()> {
        self.set_rules(pods, false)
    }

    /// The same with `sessionAffinity: ClientIP`: a client returns to its previous endpoint.
    pub fn set_sticky_endpoints(&self, pods: &[usize]) -> Result<()> {
        self.set_rules(pods, true)
    }

    fn set_rules(&self, pods: &[usize], client_ip_affinity: bool) -> Result<()> {
        let usable = |family: &&Addresses| !family.ipv6 || self.ipv6.is_ok();
        for family in self.families.iter().filter(usable) {
            let service = Service {
                client_ip_affinity,
                ..service(*family)
            };
            let endpoints: Vec<_> = pods
                .iter()
                .map(|&index| (index, SocketAddr::new(family.pod(index), PORT)))
                .collect();
            rules::replace(&self.node, &service, &endpoints).context("kube-proxy's rules")?;
        }
        Ok(())
    }

    /// Like `kubectl scale`: only the first `count` pods serve and are endpoints.
    pub fn scale(&self, count: usize) -> Result<()> {
        for pod in &self.pods[..count] {
            pod.start_server()?;
        }
        self.set_endpoints(&(0..count).collect::<Vec<_>>())?;
        self.pods[count..].iter().try_for_each(Pod::stop_server)
    }

    /// Waits until the client can connect to every serving pod, and to the Service if there is one.
    pub fn wait_ready(&self) -> Result<()> {
        let serving = self.pods.iter().filter(|pod| pod.counts().is_ok());
        let mut targets: Vec<SocketAddr> = serving
            .flat_map(|pod| [Some(pod.address()), pod.address6()].into_iter().flatten())
            .collect();
        if !targets.is_empty() {
            targets.push(self.service());
            targets.extend(self.service6());
        }
        for target in targets {
            let connects = || Ok(self.client.connects(target).then_some(()));
            wait::until(Duration::from_secs(10), connects)
                .with_context(|| format!("the client cannot connect to {target}"))?;
        }
        Ok(())
    }

    /// The description of the lab for its state file.
    pub fn state(&self) -> State {
        State {
            owner: std::process::id(),
            service: self.service().to_string(),
            service6: self.service6().ok().map(|service| service.to_string()),
            no_ipv6: self.ipv6.clone().err(),
            client: self.client.netns().to_owned(),
            node: self.node.netns().to_owned(),
            pods: self.pods.iter().map(pod_state).collect(),
        }
    }

    /// Leaves the lab running until `cargo xtask lab down` removes it.
    pub fn keep(self) -> Result<Slot> {
        self.claim.keep()?;
        Ok(self.claim.slot)
    }
}

fn make_host(slot: Slot, name: &str, cgroup: &Path) -> Result<Host> {
    let namespace = slot.namespace(name);
    netns::add(&namespace)?;
    Host::new(
        Path::new("/run/netns").join(namespace),
        slot.cgroup()?.join(cgroup),
    )
}

fn make_pod(slot: Slot, v4: Addresses, v6: Option<Addresses>, index: usize) -> Result<Pod> {
    let name = format!("web-{index}");
    let host = make_host(slot, &name, &cgroup::container()?)?;
    let namespace = slot.namespace(&name);
    network::join_pod(&slot.namespace("node"), &namespace, index)?;
    network::address(&namespace, v4.pod(index), v4.bridge(), v4)?;
    if let Some(v6) = v6 {
        network::enable6(&host)?;
        network::address(&namespace, v6.pod(index), v6.bridge(), v6)?;
    }
    let folder = slot.folder().join(&name);
    let addr6 = v6.map(|v6| v6.pod(index));
    Ok(Pod::new(name, v4.pod(index), addr6, host, folder))
}

/// Adds a family's addresses and the Service to client and node.
fn add_family(slot: Slot, node: &Host, family: Addresses) -> Result<()> {
    network::address_node(&slot.namespace("node"), family)?;
    let client = slot.namespace("client");
    network::address(&client, family.client(), family.gateway(), family)?;
    rules::install(node, &service(family)).context("kube-proxy's rules")
}

/// The same for IPv6.
///
/// # Errors
/// The kernel lacks IPv6 or NAT for it.
fn add_ipv6(slot: Slot, node: &Host, client: &Host, family: Addresses) -> Result<()> {
    network::enable6(node)?;
    network::enable6(client)?;
    network::tune6(node)?;
    add_family(slot, node, family).context("IPv6")
}

fn service(family: Addresses) -> Service {
    Service {
        address: family.service(),
        cluster: family.cluster(),
        client_ip_affinity: false,
    }
}

fn pod_state(pod: &Pod) -> PodState {
    PodState {
        name: pod.name.clone(),
        address: pod.address().to_string(),
        address6: pod.address6().map(|address| address.to_string()),
        netns: pod.host.netns().to_owned(),
        cgroup: pod.host.cgroup().to_owned(),
    }
}
