//! What a decision costs, by how many connections there are: `cargo bench -p rebalancer-core`.
//!
//! A node with a thousand endpoints of a hundred Services, a rule that balances them and has limits,
//! and, as where it matters, three in four connections on a few hot endpoints.
#![allow(
    missing_docs,
    reason = "criterion's macros make functions without them"
)]

use std::{collections::BTreeMap, hint::black_box, net::SocketAddr, sync::Arc, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rebalancer_core::{
    plan::{Ledger, decide},
    policy::{Policy, parse},
    snapshot::{
        CgroupId, Connection, Cookie, Endpoint, EndpointKey, Identity, KernelTime, Naming, Netns,
        Service, ServiceAt, ServiceName, Snapshot, Who, sample::connection,
    },
};

const ENDPOINTS: u64 = 1_000;
const SERVICES: u64 = 100;
const HOUR: u64 = 3_600_000_000_000;

fn policy() -> Policy {
    let text = "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: Enforce
rules:
- {name: other, match: {services: [other/web]}, limits: {maxAge: 1h}}
- {name: system, match: {namespaceSelector: {matchLabels: {team: infra}}}, limits: {maxAge: 1h}}
- {name: old, match: {ports: [{port: 9000}]}, limits: {maxAge: 1h}}
- {name: shop, match: {namespaceSelector: {matchLabels: {team: shop}}}, limits: {maxAge: 12h}, balance: {}}
";
    parse("bench", text)
        .expect("a policy")
        .with_kubernetes_defaults()
}

fn name(service: u64) -> ServiceName {
    ServiceName {
        namespace: "shop".to_owned(),
        name: format!("service-{service}"),
    }
}

fn key(endpoint: u64) -> EndpointKey {
    EndpointKey {
        netns: Netns(4_026_532_000 + endpoint as u32),
        cgroup: None,
        port: 8080,
    }
}

fn endpoint(endpoint: u64) -> Endpoint {
    let at = ServiceAt {
        name: name(endpoint % SERVICES).name,
        ready: true,
        ..ServiceAt::default()
    };
    Endpoint {
        who: Who::Pod(Arc::new(Identity {
            namespace: "shop".to_owned(),
            namespace_labels: Some([("team".to_owned(), "shop".to_owned())].into()),
            pod: format!("pod-{endpoint}"),
            uid: format!("uid-{endpoint}"),
            services: Some(vec![at]),
            ..Identity::default()
        })),
        listeners: 1,
        ..Endpoint::default()
    }
}

fn node(connections: u64) -> Snapshot {
    let services = (0..SERVICES).map(|service| {
        let ready = ENDPOINTS / SERVICES;
        let facts = Service {
            ready: ready as u32,
            ..Service::default()
        };
        (name(service), facts)
    });
    let one = |cookie: u64| {
        // A tenth of the endpoints is hot: those that have the first pods of their Services.
        let at = if cookie.is_multiple_of(4) {
            cookie / 4 % ENDPOINTS
        } else {
            cookie % SERVICES
        };
        let client = SocketAddr::from(([10, 9, (cookie >> 8) as u8, cookie as u8], 40_000));
        Connection {
            endpoint: key(at),
            cgroup: CgroupId(at + 1),
            opened: KernelTime(10 * HOUR + cookie * 1_000_000),
            remote: client,
            since_sent: Duration::from_millis(cookie % 1_000),
            since_received: Duration::from_millis(cookie % 1_000),
            ..connection(cookie)
        }
    };
    Snapshot {
        taken: KernelTime(20 * HOUR),
        connections: (1..=connections).map(one).collect(),
        endpoints: (0..ENDPOINTS).map(|at| (key(at), endpoint(at))).collect(),
        naming: Naming::Fresh,
        services: services.collect::<BTreeMap<_, _>>(),
        ..Snapshot::default()
    }
}

fn decisions(c: &mut Criterion) {
    let policy = policy();
    let mut group = c.benchmark_group("decide");
    group.sample_size(20);
    for connections in [10_000, 50_000, 100_000, 200_000] {
        let snapshot = node(connections);
        let mut ledger = Ledger::default();
        ledger.observe(&policy, &snapshot);
        let plan = decide(&policy, &snapshot, &ledger, snapshot.taken);
        assert!(plan.moves().count() > 0, "{:?}", plan.skipped());
        assert_eq!(Cookie(1), snapshot.connections[0].cookie);
        group.throughput(Throughput::Elements(connections));
        group.bench_with_input(
            BenchmarkId::from_parameter(connections),
            &snapshot,
            |b, s| b.iter(|| black_box(decide(&policy, s, &ledger, s.taken))),
        );
    }
    group.finish();
    let snapshot = node(100_000);
    c.bench_function("observe/100000", |b| {
        b.iter_batched(
            Ledger::default,
            |mut ledger| {
                ledger.observe(&policy, &snapshot);
                ledger
            },
            criterion::BatchSize::LargeInput,
        );
    });
}

criterion_group!(benches, decisions);
criterion_main!(benches);
