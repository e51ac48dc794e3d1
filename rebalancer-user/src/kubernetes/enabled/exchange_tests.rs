//! Reports and views by an API server that fails, and the lease of several coordinators.

use std::time::{Duration, Instant};

use kube::{Client, Config};
use serde_json::Value;
use tokio::{sync::mpsc, task::JoinSet};
use xtask::apiserver::ApiServer;

use super::{exchange::Exchange, lease::Lease, node_balances::NodeBalances};
use crate::{
    kubernetes::ReportEvent,
    views::{Generation, Key, ServiceReport, Share, Sums, View, Views},
    waiting::until,
};

fn client(api: &ApiServer) -> Client {
    Client::try_from(Config::new(api.url().parse().unwrap())).unwrap()
}

fn key() -> Key {
    Key {
        service: "shop/web".to_owned(),
        port: 8080,
        zone: None,
        rule: "even".to_owned(),
        by: "Connections".to_owned(),
    }
}

fn service(load: u64) -> ServiceReport {
    ServiceReport {
        key: key(),
        generation: Generation(7),
        ready: 3,
        loads: vec![load],
        sums: Sums {
            total: load,
            squares: load.into(),
            largest: 1,
        },
        connections: load,
        moving: 0,
    }
}

/// What is given is one view.
async fn give(coordinator: &NodeBalances, sequence: u64, endpoints: u32) {
    let view = View {
        key: key(),
        endpoints,
        share: Share::ALL,
        ..View::default()
    };
    coordinator
        .give("n1", sequence, vec![view], "c")
        .await
        .unwrap();
}

fn endpoints(views: Views) -> Option<u32> {
    match views {
        Views::Valid { services, left } => {
            assert!(left > Duration::from_secs(20));
            services.get(&key()).map(|view| view.endpoints)
        }
        Views::Off | Views::Awaited | Views::Expired => None,
    }
}

#[tokio::test]
async fn a_report_reaches_the_coordinator_and_a_view_the_agent() {
    let api = ApiServer::start().unwrap();
    let agent = Exchange::start(client(&api), "n1");
    let coordinator = NodeBalances::new(client(&api));
    let (to, mut events) = mpsc::channel(16);
    let mut tasks = JoinSet::new();
    tasks.spawn(coordinator.clone().follow(to));
    assert_eq!(events.recv().await, Some(ReportEvent::ListBegins));
    assert_eq!(events.recv().await, Some(ReportEvent::ListEnds));

    assert_eq!(agent.views(), Views::Awaited);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(api.asked("write", "nodebalances"), 0, "nothing to report");
    agent.offer(vec![service(300)]);
    let (node, report) = match events.recv().await {
        Some(ReportEvent::Reported(node, report)) => (node, report),
        other => panic!("{other:?}"),
    };
    assert_eq!((node.as_str(), report.left_out), ("n1", 0));
    assert_eq!(report.services, [service(300)]);
    let object = api.get("nodebalances", "n1").unwrap();
    assert_eq!(object["spec"]["connections"], 300);

    // The first that is seen may be old: it is the second that counts.
    give(&coordinator, 1, 3).await;
    until("the first is seen", || {
        (api.asked("watch", "nodebalances") >= 2).then_some(())
    })
    .await;
    give(&coordinator, 2, 4).await;
    give(&coordinator, 3, 5).await;
    until("a view is valid", || {
        (endpoints(agent.views()) == Some(5)).then_some(())
    })
    .await;
    assert_eq!(agent.trouble(), None);
    let object = api.get("nodebalances", "n1").unwrap();
    assert_eq!(object["status"]["views"], 1);
    assert_eq!(object["spec"]["connections"], 300, "it stays");

    // Somebody deletes it: what was known is not used any more.
    api.delete("nodebalances", "n1");
    until("its deletion is seen", || {
        (agent.views() == Views::Awaited).then_some(())
    })
    .await;
    let removed = until("its deletion is followed", || events.try_recv().ok());
    assert!(matches!(
        removed.await,
        ReportEvent::Removed(_) | ReportEvent::Reported(..)
    ));
}

#[tokio::test]
async fn without_the_resource_or_the_right_there_is_a_reason_and_no_storm() {
    let api = ApiServer::start().unwrap();
    api.forget(Some("nodebalances"));
    let agent = Exchange::start(client(&api), "n1");
    agent.offer(vec![service(1)]);
    let why = until("there is a reason", || agent.trouble()).await;
    assert!(why.contains("components/coordinator"), "{why}");
    assert_eq!(agent.views(), Views::Awaited);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let asked: u64 = ["list", "watch", "write"]
        .map(|verb| api.asked(verb, "nodebalances"))
        .iter()
        .sum();
    assert!(asked <= 8, "{asked} requests in three seconds");
    api.forget(None);
    api.forbid(Some("nodebalances"));
    until("it is forbidden", || {
        agent.trouble().filter(|why| why.contains("403"))
    })
    .await;
    api.forbid(None);
    until("all is well", || agent.trouble().is_none().then_some(())).await;
    until("it is written", || api.get("nodebalances", "n1")).await;
}

fn lease(api: &ApiServer, identity: &str) -> Lease {
    Lease::new(client(api), "rebalancer", "coordinator", identity)
}

fn holder(api: &ApiServer) -> Value {
    let lease = api.get("leases", "rebalancer/coordinator").unwrap();
    lease["spec"]["holderIdentity"].clone()
}

#[tokio::test]
async fn one_of_two_leads_and_the_other_once_it_is_given_back() {
    let api = ApiServer::start().unwrap();
    let (mut a, mut b) = (lease(&api, "a"), lease(&api, "b"));
    let (first, second) = tokio::join!(a.hold(), b.hold());
    first.unwrap();
    second.unwrap();
    let held = [&a, &b].map(|lease| lease.held_until().is_some());
    assert!(held[0] != held[1], "{held:?}");
    let (mut leader, mut other) = if held[0] { (a, b) } else { (b, a) };
    let name = holder(&api);
    for _ in 0..3 {
        leader.hold().await.unwrap();
        other.hold().await.unwrap();
        assert!(leader.held_until().is_some() && other.held_until().is_none());
        assert_eq!(holder(&api), name);
    }
    leader.release().await;
    assert!(leader.held_until().is_none());
    other.hold().await.unwrap();
    assert!(other.held_until().is_some());
    leader.hold().await.unwrap();
    assert!(leader.held_until().is_none());
    let lease = api.get("leases", "rebalancer/coordinator").unwrap();
    assert_eq!(lease["spec"]["leaseTransitions"], 2);
}

#[tokio::test]
async fn a_leader_that_is_cut_off_holds_it_no_longer_than_it_may() {
    let mut api = ApiServer::start().unwrap();
    let mut leader = lease(&api, "a");
    leader.hold().await.unwrap();
    let until = leader.held_until().unwrap();
    api.down();
    assert!(leader.hold().await.is_err());
    assert_eq!(leader.held_until(), Some(until), "not longer than before");
    assert!(until <= Instant::now() + Duration::from_secs(10));
}
