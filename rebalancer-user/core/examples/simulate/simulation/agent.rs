//! One node's agent: the real decisions and ledger on simulated snapshots.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rebalancer_core::{
    plan::{Ledger, Outcome, Plan, decide, report},
    policy::Policy,
    snapshot::{
        Bytes, CgroupId, Connection, Cookie, KernelTime, Naming, Service, ServiceName, Snapshot,
        TcpState,
    },
    views::Generation,
};

use super::{
    exchange::Exchange,
    replica::{NAMESPACE, SERVICE},
    world::{Held, START, World},
};

pub(crate) struct Agent {
    node: usize,
    policy: Policy,
    ledger: Ledger,
}

impl Agent {
    pub(crate) fn new(node: usize, policy: Policy) -> Self {
        Self {
            node,
            policy,
            ledger: Ledger::default(),
        }
    }

    /// Takes a snapshot, decides and starts the moves of the plan, and offers a report.
    pub(crate) fn list(&mut self, world: &World, exchange: Option<&mut Exchange>) -> Plan {
        self.pass(snapshot(world, self.node), world.now.since(START), exchange)
    }

    /// The same with this snapshot, so long after the start.
    pub(crate) fn pass(
        &mut self,
        mut snapshot: Snapshot,
        after_start: Duration,
        exchange: Option<&mut Exchange>,
    ) -> Plan {
        let now = snapshot.taken;
        if let Some(exchange) = &exchange {
            snapshot.views = exchange.views(self.node, after_start);
        }
        self.ledger.observe(&self.policy, &snapshot);
        let plan = decide(&self.policy, &snapshot, &self.ledger, now);
        for recall in plan.recalls() {
            let outcome = Outcome::Recalled(recall.why.to_string());
            self.ledger.ended(recall.cookie, outcome, now);
        }
        for chosen in plan.moves() {
            self.ledger.started(chosen, now);
        }
        if let Some(exchange) = exchange {
            exchange.offer(self.node, report(&self.policy, &snapshot, &self.ledger));
        }
        let window = self.policy.budget().window();
        self.ledger.prune(&snapshot, window, now);
        plan
    }

    /// Whether the move of `cookie` is in flight: it was not recalled.
    pub(crate) fn moves(&self, cookie: Cookie) -> bool {
        self.ledger.is_in_flight(cookie)
    }

    /// Records the end of a move; whether its connection was still open.
    pub(crate) fn ended(&mut self, cookie: Cookie, was_there: bool, now: KernelTime) {
        let outcome = if was_there {
            Outcome::Reset
        } else {
            Outcome::LeftByItself
        };
        self.ledger.ended(cookie, outcome, now);
    }
}

/// The snapshot of the agent on `node`.
fn snapshot(world: &World, node: usize) -> Snapshot {
    let here = |replica: usize| world.replicas[replica].node() == node;
    let endpoints = world
        .replicas
        .iter()
        .filter(|r| r.node() == node && !r.is_gone());
    let seen = world
        .connections
        .iter()
        .filter(|(_, held)| here(held.replica));
    let naming = if world.is_named() {
        Naming::Fresh
    } else {
        Naming::Off
    };
    Snapshot {
        taken: world.now,
        connections: seen
            .map(|(cookie, held)| connection(world, *cookie, held))
            .collect(),
        endpoints: endpoints.map(|r| (r.key(), r.endpoint())).collect(),
        naming,
        services: if world.is_named() {
            services(world, node)
        } else {
            BTreeMap::new()
        },
        ..Snapshot::default()
    }
}

fn services(world: &World, node: usize) -> BTreeMap<ServiceName, Service> {
    let count = |n: usize| u32::try_from(n).expect("few replicas");
    let here = world.ready().filter(|r| world.replicas[*r].node() == node);
    let service = Service {
        ready: count(world.ready().count()),
        ready_here: count(here.count()),
        generation: Some(Generation(world.ready().count() as u64)),
        addresses: Arc::new(world.replicas.iter().map(|r| r.address().into()).collect()),
        changed: world.changed.map(|at| world.now.since(at)),
        ..Service::default()
    };
    BTreeMap::from([(service_name(), service)])
}

fn service_name() -> ServiceName {
    ServiceName {
        namespace: NAMESPACE.to_owned(),
        name: SERVICE.to_owned(),
    }
}

fn connection(world: &World, cookie: Cookie, held: &Held) -> Connection {
    let replica = &world.replicas[held.replica];
    // Ephemeral ports, unique among open connections.
    let port = 10_000 + (cookie.0 % 50_000) as u16;
    Connection {
        cookie,
        endpoint: replica.key(),
        cgroup: CgroupId(1),
        cgroup_path: None,
        local: (replica.address(), replica.key().port).into(),
        remote: (held.client, port).into(),
        device: 0,
        opened: held.opened,
        adopted: false,
        state: TcpState::Established,
        mptcp: false,
        bytes_in: Bytes(0),
        bytes_out: Bytes(held.bytes as u64),
        receive_queue: 0,
        send_queue: 0,
        server_spoke_last: true,
        since_sent: Duration::from_secs(1),
        since_received: Duration::from_secs(1),
        segments_in: 1,
        segments_out: 1,
        retransmits: 0,
        rtt: Duration::from_millis(1),
        sends: None,
    }
}
