//! Nodes, the replicas of Services on them, and their connections.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, seq::index};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Exp1};
use rebalancer_core::{
    snapshot::{
        Connection, Cookie, Endpoint, EndpointKey, Identity, KernelTime, Labels, Naming, Netns,
        Service, ServiceAt, ServiceName, Snapshot, Who, sample,
    },
    views::Generation,
};

use super::Size;

pub(super) const PORT: u16 = 8080;
const NAMESPACE: &str = "shop";
/// The clock at the start: nodes that have been up for a while.
const START: u64 = 7_200_000_000_000;
/// Replicas of a Service at the start.
const REPLICAS: usize = 10;
/// How many of the Services are scaled out, of 1.
const SCALED: f64 = 0.1;
/// How long half of the clients stay, on average; the others stay for ever.
const STAY: Duration = Duration::from_secs(600);
/// Addresses of the clients of a Service.
const CLIENTS: u32 = 200;
/// The first inode of a network namespace.
const NETNS: u32 = 4_026_532_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    Second,
    ScaleOut,
    /// The agent of a node lists and decides.
    Pass(usize),
    /// A move of that node ends its connection.
    End(usize, usize, Cookie),
    /// A client of a Service connects; whether it stays for ever.
    Connect(usize, Client, bool),
    /// A client of a replica leaves, and another comes.
    Leave(usize, Cookie),
}

/// The number of a client's address.
type Client = u32;

struct Held {
    cookie: Cookie,
    client: Client,
    opened: KernelTime,
    stays: bool,
}

struct Replica {
    node: usize,
    service: usize,
    who: Who,
    held: Vec<Held>,
}

struct ServiceState {
    replicas: Vec<usize>,
    addresses: Arc<BTreeSet<IpAddr>>,
    changed: Option<Duration>,
    away: u64,
}

pub(super) struct World {
    pub(super) now: Duration,
    replicas: Vec<Replica>,
    services: Vec<ServiceState>,
    of_node: Vec<Vec<usize>>,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    count: u64,
    last_cookie: u64,
    random: ChaCha8Rng,
}

impl World {
    pub(super) fn new(size: Size) -> Self {
        let service = |_| ServiceState {
            replicas: Vec::new(),
            addresses: Arc::default(),
            changed: None,
            away: 0,
        };
        let mut world = Self {
            now: Duration::ZERO,
            replicas: Vec::new(),
            services: (0..size.services as usize).map(service).collect(),
            of_node: vec![Vec::new(); size.nodes as usize],
            events: BinaryHeap::new(),
            count: 0,
            last_cookie: 0,
            random: ChaCha8Rng::seed_from_u64(1),
        };
        for service in 0..size.services as usize {
            world.add_replicas(service, REPLICAS);
        }
        for number in 0..size.connections {
            let client = world.random.random_range(0..CLIENTS);
            world.connect(number % size.services as usize, client, number % 2 == 0);
        }
        world
    }

    pub(super) fn after(&mut self, time: Duration, event: Event) {
        self.count += 1;
        let at = self.now + time;
        self.events.push(Reverse((at, self.count, event)));
    }

    /// The next event before `end`.
    pub(super) fn next(&mut self, end: Duration) -> Option<Event> {
        let Reverse((at, _, event)) = self.events.pop()?;
        self.now = at;
        (at <= end).then_some(event)
    }

    /// Handles the events of clients.
    pub(super) fn happens(&mut self, event: Event) {
        match event {
            Event::Connect(service, client, stays) => {
                self.services[service].away -= 1;
                self.connect(service, client, stays);
            }
            Event::Leave(replica, cookie) => {
                if let Some(held) = self.take(replica, cookie) {
                    self.comes(self.replicas[replica].service, held.client, false);
                }
            }
            Event::Second | Event::ScaleOut | Event::Pass(_) | Event::End(..) => {}
        }
    }

    /// Ends a connection, whose client reconnects. Returns whether it was open.
    pub(super) fn end(&mut self, replica: usize, cookie: Cookie) -> bool {
        let Some(held) = self.take(replica, cookie) else {
            return false;
        };
        self.comes(self.replicas[replica].service, held.client, held.stays);
        true
    }

    /// Half as many replicas again, of some Services; which.
    pub(super) fn scale_out(&mut self) -> Vec<usize> {
        let count = (self.services.len() as f64 * SCALED).ceil() as usize;
        let chosen = index::sample(&mut self.random, self.services.len(), count).into_vec();
        for service in &chosen {
            self.add_replicas(*service, REPLICAS / 2);
            self.services[*service].changed = Some(self.now);
        }
        chosen
    }

    /// The load of each connection of a Service, by replica.
    pub(super) fn loads(&self, service: usize) -> Vec<Vec<u64>> {
        let replicas = self.services[service].replicas.iter();
        replicas
            .map(|replica| vec![1; self.replicas[*replica].held.len()])
            .collect()
    }

    /// Clients of a Service that are about to connect.
    pub(super) fn away(&self, service: usize) -> u64 {
        self.services[service].away
    }

    pub(super) fn service_of(&self, endpoint: EndpointKey) -> usize {
        self.replicas[replica_of(endpoint)].service
    }

    /// The connection is quiet soon, and is then moved.
    pub(super) fn move_soon(&mut self, node: usize, endpoint: EndpointKey, cookie: Cookie) {
        let quiet = self.random.random_range(0.02..1.0);
        let end = Event::End(node, replica_of(endpoint), cookie);
        self.after(Duration::from_secs_f64(quiet), end);
    }

    pub(super) fn snapshot(&self, node: usize) -> Snapshot {
        let here = || {
            self.of_node[node]
                .iter()
                .map(|number| &self.replicas[*number])
        };
        let mut services = BTreeMap::new();
        for replica in here() {
            services
                .entry(name_of(replica.service))
                .or_insert_with(|| self.facts(replica.service, node));
        }
        let endpoints = self.of_node[node].iter().map(|number| {
            let endpoint = Endpoint {
                who: self.replicas[*number].who.clone(),
                listeners: 1,
                ..Endpoint::default()
            };
            (key(*number), endpoint)
        });
        let connections = self.of_node[node].iter().flat_map(|number| {
            let held = self.replicas[*number].held.iter();
            held.map(|held| connection(*number, held))
        });
        Snapshot {
            taken: self.kernel_time(),
            connections: connections.collect(),
            endpoints: endpoints.collect(),
            naming: Naming::Fresh,
            services,
            ..Snapshot::default()
        }
    }

    fn facts(&self, service: usize, node: usize) -> Service {
        let state = &self.services[service];
        let count = |n: usize| u32::try_from(n).expect("few replicas");
        let here = (state.replicas.iter()).filter(|replica| self.replicas[**replica].node == node);
        Service {
            ready: count(state.replicas.len()),
            ready_here: count(here.count()),
            generation: Some(Generation(state.replicas.len() as u64)),
            addresses: Arc::clone(&state.addresses),
            changed: state.changed.map(|at| self.now - at),
            ..Service::default()
        }
    }

    pub(super) fn kernel_time(&self) -> KernelTime {
        KernelTime(START + self.now.as_nanos() as u64)
    }

    /// On nodes chosen at random.
    fn add_replicas(&mut self, service: usize, count: usize) {
        for _ in 0..count {
            let node = self.random.random_range(0..self.of_node.len());
            let number = self.replicas.len();
            let at = ServiceAt {
                name: name_of(service).name,
                ready: true,
                ..ServiceAt::default()
            };
            let pod = Identity {
                namespace: NAMESPACE.to_owned(),
                namespace_labels: Some(Labels::new()),
                pod: format!("pod-{number}"),
                uid: number.to_string(),
                services: Some(vec![at]),
                ready: true,
                ..Identity::default()
            };
            self.replicas.push(Replica {
                node,
                service,
                who: Who::Pod(Arc::new(pod)),
                held: Vec::new(),
            });
            self.of_node[node].push(number);
            let state = &mut self.services[service];
            state.replicas.push(number);
            Arc::make_mut(&mut state.addresses).insert(address(number).into());
        }
    }

    /// A client of a Service connects in a moment.
    fn comes(&mut self, service: usize, client: Client, stays: bool) {
        self.services[service].away += 1;
        let backoff = Duration::from_secs_f64(self.random.random_range(0.01..1.5));
        self.after(backoff, Event::Connect(service, client, stays));
    }

    fn connect(&mut self, service: usize, client: Client, stays: bool) {
        let replicas = &self.services[service].replicas;
        let replica = replicas[self.random.random_range(0..replicas.len())];
        self.last_cookie += 1;
        let cookie = Cookie(self.last_cookie);
        let opened = self.kernel_time();
        self.replicas[replica].held.push(Held {
            cookie,
            client,
            opened,
            stays,
        });
        if !stays {
            let times: f64 = Exp1.sample(&mut self.random);
            self.after(STAY.mul_f64(times), Event::Leave(replica, cookie));
        }
    }

    fn take(&mut self, replica: usize, cookie: Cookie) -> Option<Held> {
        let held = &mut self.replicas[replica].held;
        let at = held.iter().position(|held| held.cookie == cookie)?;
        Some(held.swap_remove(at))
    }
}

fn name_of(service: usize) -> ServiceName {
    ServiceName {
        namespace: NAMESPACE.to_owned(),
        name: format!("service-{service}"),
    }
}

fn key(replica: usize) -> EndpointKey {
    EndpointKey {
        netns: Netns(NETNS + replica as u32),
        cgroup: None,
        port: PORT,
    }
}

fn replica_of(endpoint: EndpointKey) -> usize {
    (endpoint.netns.0 - NETNS) as usize
}

fn address(replica: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 1).to_bits() + replica as u32)
}

fn connection(replica: usize, held: &Held) -> Connection {
    let client = Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 1).to_bits() + held.client);
    Connection {
        endpoint: key(replica),
        local: (address(replica), PORT).into(),
        remote: (client, 10_000 + (held.cookie.0 % 50_000) as u16).into(),
        opened: held.opened,
        ..sample::connection(held.cookie.0)
    }
}
