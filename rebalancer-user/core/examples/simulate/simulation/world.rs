//! A cluster's replicas, clients and connections, and the events that change them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use rebalancer_core::{
    policy::By,
    snapshot::{Cookie, KernelTime},
};

use super::{
    random::Random,
    replica::Replica,
    scenario::{Act, Backoff, Clients, Dial, Nodes, Rate, Scenario},
};

/// The clock at the start: a node that has been up for a while.
pub(crate) const START: KernelTime = KernelTime(7_200_000_000_000);

/// The grace period of a replica that is removed.
const GRACE: Duration = Duration::from_secs(10);

/// An event and its time. Events at the same time happen in the order of their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    Act(usize),
    /// A client of this kind arrives.
    Arrive(usize),
    Connect(usize),
    Leave(usize),
    /// The replica ends its remaining connections.
    Stop(usize),
    /// An agent's move ends its connection.
    End(usize, Cookie),
    /// A second has passed for what lies between nodes.
    Second,
    /// An agent lists and decides.
    List(usize),
}

/// A client that keeps one connection, through reconnects.
struct Wish {
    client: IpAddr,
    dial: Dial,
    rate: f64,
    backoff: Backoff,
    connection: Option<Cookie>,
    over: bool,
}

/// An open connection.
pub(crate) struct Held {
    wish: usize,
    pub(crate) client: IpAddr,
    pub(crate) replica: usize,
    pub(crate) opened: KernelTime,
    pub(crate) bytes: f64,
    pub(crate) rate: f64,
}

pub(crate) struct World {
    pub(crate) now: KernelTime,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) connections: BTreeMap<Cookie, Held>,
    /// When the ready replicas last changed.
    pub(crate) changed: Option<KernelTime>,
    pub(crate) random: Random,
    pub(crate) by: By,
    nodes: Nodes,
    kinds: Vec<Clients>,
    acts: Vec<Act>,
    wishes: Vec<Wish>,
    wanted: usize,
    /// Ready, but ends each connection at once.
    dead: Option<usize>,
    stuck: BTreeMap<IpAddr, usize>,
    events: BinaryHeap<Reverse<(KernelTime, u64, Event)>>,
    count: u64,
    last_cookie: u64,
}

impl World {
    pub(crate) fn new(scenario: &Scenario, seed: u64) -> Self {
        let mut world = Self {
            now: START,
            replicas: Vec::new(),
            connections: BTreeMap::new(),
            changed: None,
            random: Random::new(seed),
            by: scenario.by,
            nodes: scenario.nodes,
            kinds: scenario.clients.clone(),
            acts: scenario.acts.iter().map(|(_, act)| *act).collect(),
            wishes: Vec::new(),
            wanted: 0,
            dead: None,
            stuck: BTreeMap::new(),
            events: BinaryHeap::new(),
            count: 0,
            last_cookie: 0,
        };
        for _ in 0..scenario.replicas {
            world.add_replica();
        }
        for (index, (at, _)) in scenario.acts.iter().enumerate() {
            world.after(*at, Event::Act(index));
        }
        for kind in 0..world.kinds.len() {
            for _ in 0..world.kinds[kind].connections {
                let wish = world.wish(kind);
                world.connect(wish);
            }
            if let Some(gap) = world.gap(kind) {
                world.after(gap, Event::Arrive(kind));
            }
        }
        // Those of the start are old.
        for held in world.connections.values_mut() {
            let age = world.random.share(Duration::from_secs(300));
            held.opened.0 -= age.as_nanos() as u64;
        }
        world
    }

    /// The next event before `end`.
    pub(crate) fn next(&mut self, end: KernelTime) -> Option<Event> {
        let Reverse((at, _, event)) = self.events.pop()?;
        if at > end {
            return None;
        }
        self.now = at;
        Some(event)
    }

    pub(crate) fn after(&mut self, time: Duration, event: Event) {
        let at = KernelTime(self.now.0 + time.as_nanos() as u64);
        self.count += 1;
        self.events.push(Reverse((at, self.count, event)));
    }

    /// Handles the events of replicas and clients.
    pub(crate) fn happens(&mut self, event: Event) {
        match event {
            Event::Act(index) => match self.acts[index] {
                Act::Scale(count) => self.scale(count),
                Act::Replace => {
                    self.add_replica();
                    let oldest = self.ready().next();
                    if let Some(oldest) = oldest {
                        self.take_out(oldest);
                    }
                }
                Act::AddDead => {
                    self.dead = Some(self.replicas.len());
                    self.add_replica();
                    self.changed = Some(self.now);
                }
            },
            Event::Arrive(kind) => {
                let wish = self.wish(kind);
                self.connect(wish);
                if let Some(gap) = self.gap(kind) {
                    self.after(gap, Event::Arrive(kind));
                }
            }
            Event::Connect(wish) => self.connect(wish),
            Event::Leave(wish) => {
                self.wishes[wish].over = true;
                self.wanted -= 1;
                if let Some(cookie) = self.wishes[wish].connection.take() {
                    self.connections.remove(&cookie);
                }
            }
            Event::Stop(replica) => {
                let left = self
                    .connections
                    .iter()
                    .filter(|(_, h)| h.replica == replica);
                let left: Vec<Cookie> = left.map(|(cookie, _)| *cookie).collect();
                for cookie in left {
                    self.end(cookie);
                }
                self.replicas[replica].stop();
            }
            Event::End(..) | Event::Second | Event::List(_) => {}
        }
    }

    /// Ends a connection, whose client reconnects. Returns whether it was open.
    pub(crate) fn end(&mut self, cookie: Cookie) -> bool {
        let Some(held) = self.connections.remove(&cookie) else {
            return false;
        };
        self.wishes[held.wish].connection = None;
        let backoff = match self.wishes[held.wish].backoff {
            Backoff::None => Duration::from_millis(10),
            Backoff::Short => self.random.backoff(),
            Backoff::Long(mean) => self.random.around(mean),
        };
        self.after(backoff, Event::Connect(held.wish));
        true
    }

    /// Ready replicas, the oldest first.
    pub(crate) fn ready(&self) -> impl Iterator<Item = usize> {
        (0..self.replicas.len()).filter(|index| self.replicas[*index].is_ready())
    }

    /// The load of each connection, by ready replica.
    pub(crate) fn loads(&self) -> Vec<Vec<u64>> {
        let mut loads = vec![Vec::new(); self.replicas.len()];
        for held in self.connections.values() {
            loads[held.replica].push(match self.by {
                By::Connections => 1,
                By::ByteRate | By::MessageRate => held.rate as u64,
            });
        }
        self.ready()
            .map(|index| std::mem::take(&mut loads[index]))
            .collect()
    }

    /// Whether there is an API server with names.
    pub(crate) fn is_named(&self) -> bool {
        self.nodes != Nodes::Plain
    }

    /// Whether a client is about to reconnect.
    pub(crate) fn is_someone_away(&self) -> bool {
        self.wanted > self.connections.len()
    }

    /// Adds the bytes that connections carry meanwhile.
    pub(crate) fn carry(&mut self, time: Duration) {
        for held in self.connections.values_mut() {
            let time = time.min(self.now.since(held.opened));
            held.bytes += held.rate * time.as_secs_f64() * self.random.burst();
        }
    }

    fn add_replica(&mut self) {
        let number = self.replicas.len();
        self.replicas.push(Replica::new(number, self.nodes));
    }

    fn take_out(&mut self, replica: usize) {
        self.replicas[replica].terminate();
        self.changed = Some(self.now);
        self.after(GRACE, Event::Stop(replica));
    }

    fn scale(&mut self, count: usize) {
        self.changed = Some(self.now);
        while self.ready().count() < count {
            self.add_replica();
        }
        let surplus: Vec<usize> = self.ready().skip(count).collect();
        for replica in surplus {
            self.take_out(replica);
        }
    }

    /// Time until another client of this kind arrives; `None` for those that stay for ever.
    fn gap(&mut self, kind: usize) -> Option<Duration> {
        let clients = &self.kinds[kind];
        let mean = clients.stay? / clients.connections as u32;
        Some(self.random.gap(mean))
    }

    fn wish(&mut self, kind: usize) -> usize {
        let Clients {
            addresses,
            dial,
            stay,
            rate,
            backoff,
            ..
        } = self.kinds[kind];
        let number = self.random.client(addresses);
        let address = Ipv4Addr::new(10, 2, kind as u8, 1);
        let client = Ipv4Addr::from_bits(address.to_bits() + number as u32);
        let rate = match rate {
            Rate::Mean(mean) => mean * self.random.rate(),
            Rate::Each(rate) => rate,
        };
        self.wishes.push(Wish {
            client: client.into(),
            dial,
            rate,
            backoff,
            connection: None,
            over: false,
        });
        self.wanted += 1;
        let wish = self.wishes.len() - 1;
        if let Some(mean) = stay {
            let stay = self.random.lifetime(mean);
            self.after(stay, Event::Leave(wish));
        }
        wish
    }

    fn connect(&mut self, wish: usize) {
        if self.wishes[wish].over {
            return;
        }
        let Some(replica) = self.place(wish) else {
            return self.after(Duration::from_secs(1), Event::Connect(wish));
        };
        if self.dead == Some(replica) {
            let backoff = self.random.backoff();
            return self.after(backoff, Event::Connect(wish));
        }
        self.last_cookie += 1;
        let cookie = Cookie(self.last_cookie);
        let Wish { client, rate, .. } = self.wishes[wish];
        self.wishes[wish].connection = Some(cookie);
        let held = Held {
            wish,
            client,
            replica,
            opened: self.now,
            bytes: 0.0,
            rate,
        };
        self.connections.insert(cookie, held);
    }

    fn place(&mut self, wish: usize) -> Option<usize> {
        let Wish { client, dial, .. } = self.wishes[wish];
        if let Dial::Pod(replica) = dial {
            return self.replicas[replica].is_ready().then_some(replica);
        }
        let known = self.stuck.get(&client).copied();
        if let Some(replica) = known.filter(|replica| self.replicas[*replica].is_ready()) {
            return Some(replica);
        }
        let ready: Vec<usize> = self.ready().collect();
        if ready.is_empty() {
            return None;
        }
        let replica = ready[self.random.place(ready.len())];
        if dial == Dial::Sticky {
            self.stuck.insert(client, replica);
        }
        Some(replica)
    }
}
