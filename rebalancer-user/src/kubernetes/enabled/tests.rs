//! The watches against an API server that fails.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use xtask::apiserver::ApiServer;

use super::{
    store::Pace,
    watch::{self, Shared},
};
use crate::snapshot::{Identity, Naming, Service, ServiceName};

/// For anything that should happen, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

struct Followed {
    api: ApiServer,
    shared: Shared,
    _tasks: JoinSet<()>,
}

impl Followed {
    fn start(api: ApiServer) -> Self {
        Self::at_pace(api, Pace::default())
    }

    fn at_pace(api: ApiServer, pace: Pace) -> Self {
        let config = kube::Config::new(api.url().parse().unwrap());
        let shared = Shared::default();
        let _tasks = watch::start(&config, "n1", &shared, pace).unwrap();
        Self {
            api,
            shared,
            _tasks,
        }
    }

    fn identify(&self, uid: &str) -> Option<Identity> {
        self.shared.lock().identify(uid, 8080, Instant::now())
    }

    fn naming(&self) -> Naming {
        self.shared.lock().naming(Instant::now())
    }

    fn facts(&self, service: &str) -> Option<Service> {
        let name = ServiceName {
            namespace: "shop".to_owned(),
            name: service.to_owned(),
        };
        let mut facts = self.shared.lock().facts(Instant::now());
        facts.remove(&name)
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            let seen = || (self.naming(), self.shared.lock().counts());
            assert!(Instant::now() < deadline, "never {what}: {:?}", seen());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_fresh(&self) {
        self.until("fresh", |f| f.naming() == Naming::Fresh).await;
    }
}

fn pod(name: &str, uid: &str, node: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "uid": uid, "labels": {"app": "web"}},
           "spec": {"nodeName": node, "containers": []},
           "status": {"conditions": [{"type": "Ready", "status": "True"}]}})
}

fn slice(name: &str, service: &str, uids: &[&str]) -> Value {
    let endpoint = |uid: &&str| {
        json!({"addresses": ["10.0.0.1"], "nodeName": "n1", "conditions": {"ready": true},
               "targetRef": {"kind": "Pod", "uid": uid}})
    };
    json!({"metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
           "addressType": "IPv4", "endpoints": uids.iter().map(endpoint).collect::<Vec<_>>(),
           "ports": [{"port": 8080, "protocol": "TCP"}]})
}

fn service(name: &str, annotations: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "annotations": annotations}, "spec": {}})
}

fn shop() -> ApiServer {
    let api = ApiServer::start().unwrap();
    let labels = json!({"team": "shop"});
    api.set(
        "namespaces",
        json!({"metadata": {"name": "shop", "labels": labels}}),
    );
    api.set("services", service("web", json!({})));
    api.set("endpointslices", slice("web-1", "web", &["u0", "u1"]));
    api.set("pods", pod("web-0", "u0", "n1"));
    api.set("pods", pod("web-1", "u1", "n2"));
    api
}

fn services(identity: &Identity) -> Vec<(&str, bool)> {
    let services = identity.services.as_ref().unwrap();
    services
        .iter()
        .map(|s| (s.name.as_str(), s.opted_out))
        .collect()
}

#[tokio::test]
async fn objects_become_names_and_changes_reach_them() {
    let f = Followed::start(shop());
    assert_eq!(f.naming(), Naming::Stale { silent: None });
    f.until_fresh().await;
    let web = f.identify("u0").unwrap();
    assert_eq!(
        (web.namespace.as_str(), web.pod.as_str()),
        ("shop", "web-0")
    );
    assert_eq!(web.namespace_labels.as_ref().unwrap()["team"], "shop");
    assert_eq!((web.labels["app"].as_str(), web.ready), ("web", true));
    assert_eq!(services(&web), [("web", false)]);
    assert_eq!(
        f.shared
            .lock()
            .identify("u0", 81, Instant::now())
            .unwrap()
            .services,
        Some(vec![])
    );
    assert_eq!(f.identify("u1"), None, "of another node");

    f.api.set(
        "services",
        service("web", json!({"rebalancer.dev/enabled": "false"})),
    );
    f.api.set("endpointslices", slice("all-1", "all", &["u0"]));
    f.until("the Services are known", |f| {
        f.identify("u0")
            .is_some_and(|w| services(&w) == [("all", false), ("web", true)])
    })
    .await;
    f.api.delete("endpointslices", "shop/all-1");
    f.api.set("services", service("web", json!({})));
    f.api.set(
        "namespaces",
        json!({"metadata": {"name": "shop", "labels": {"team": "pay", "rebalancer.dev/enabled": "no"}}}),
    );
    assert!(!web.namespace_opted_out);
    f.until("their deletions are known", |f| {
        let web = f.identify("u0").unwrap();
        services(&web) == [("web", false)]
            && web.namespace_opted_out
            && web.namespace_labels.unwrap()["team"] == "pay"
    })
    .await;

    // The same name, another pod.
    f.api.delete("pods", "shop/web-0");
    f.api.set("pods", pod("web-0", "u2", "n1"));
    f.until("the new pod is known", |f| f.identify("u2").is_some())
        .await;
    assert_eq!(f.identify("u0"), None);
    assert_eq!(f.naming(), Naming::Fresh);
}

/// A slice whose endpoints, by uid, are on these nodes.
fn spread(name: &str, service: &str, pods: &[(&str, &str)]) -> Value {
    let endpoint = |(uid, node): &(&str, &str)| {
        json!({"addresses": [format!("10.0.0.{}", uid.as_bytes()[1])], "nodeName": node,
               "targetRef": {"kind": "Pod", "uid": uid}})
    };
    let endpoints: Vec<Value> = pods.iter().map(endpoint).collect();
    let mut slice = slice(name, service, &[]);
    slice["endpoints"] = endpoints.into();
    slice
}

#[tokio::test]
async fn facts_of_a_service_follow_its_slices_and_its_spec() {
    let f = Followed::start(shop());
    f.until_fresh().await;
    let web = f.facts("web").unwrap();
    assert_eq!((web.ready, web.ready_here, web.changed), (2, 2, None));
    assert!(!web.client_ip_affinity && !web.headless);
    assert!(f.shared.lock().age(Instant::now()).unwrap() < PATIENCE);

    // More elsewhere, in a slice of its own: they count, and the Service has changed.
    f.api.set(
        "endpointslices",
        spread("web-2", "web", &[("u2", "n2"), ("u3", "n3")]),
    );
    f.until("more endpoints are known", |f| {
        f.facts("web").unwrap().ready == 4
    })
    .await;
    let web = f.facts("web").unwrap();
    assert_eq!((web.ready_here, web.addresses.len()), (2, 3));
    assert!(web.changed.unwrap() < PATIENCE);

    // The spec alone: the endpoints are as they were.
    let mut object = service("web", json!({}));
    object["spec"] = json!({"sessionAffinity": "ClientIP", "internalTrafficPolicy": "Local"});
    f.api.set("services", object);
    f.until("the new spec is known", |f| {
        let web = f.facts("web").unwrap();
        web.client_ip_affinity && web.internal_local
    })
    .await;

    // A Service whose pods are all elsewhere, until one is here.
    f.api.set("services", service("far", json!({})));
    f.api
        .set("endpointslices", spread("far-1", "far", &[("u9", "n2")]));
    f.api.set("endpointslices", spread("far-2", "far", &[]));
    f.until("slices of far are known", |f| {
        f.shared.lock().slices_of("shop", "far") == 2
    })
    .await;
    assert_eq!(f.facts("far"), None);
    f.api
        .set("endpointslices", spread("far-2", "far", &[("u8", "n1")]));
    f.until("its endpoint on this node is known", |f| {
        f.facts("far").is_some()
    })
    .await;
    let far = f.facts("far").unwrap();
    assert_eq!((far.ready, far.ready_here), (2, 1));

    f.api.delete("endpointslices", "shop/web-2");
    f.until("fewer endpoints are known", |f| {
        f.facts("web").unwrap().ready == 2
    })
    .await;
    f.api.delete("services", "shop/web");
    f.until("its deletion is known", |f| f.facts("web").is_none())
        .await;
    // Its slices are still there: that it leads here is known, and no more.
    assert_eq!(services(&f.identify("u0").unwrap()), [("web", false)]);
}

#[tokio::test]
async fn facts_that_were_missed_are_relisted_with_the_time_of_the_list() {
    let mut f = Followed::start(shop());
    f.api.set("services", service("same", json!({})));
    f.api
        .set("endpointslices", slice("same-1", "same", &["u0"]));
    f.until("both Services are known", |f| {
        f.facts("same").is_some() && f.naming() == Naming::Fresh
    })
    .await;
    let before = f.facts("same").unwrap().changed;
    f.api.down();
    f.api.set("endpointslices", slice("web-1", "web", &["u0"]));
    f.api.expire();
    f.until("stale", |f| matches!(f.naming(), Naming::Stale { .. }))
        .await;
    assert_eq!(f.facts("web").unwrap().ready, 2, "the last known stays");
    f.api.up().unwrap();
    f.until("missed changes are known", |f| {
        f.facts("web").unwrap().ready == 1
    })
    .await;
    assert!(f.facts("web").unwrap().changed.is_some());
    // What was listed again as it was has not changed.
    let after = f.facts("same").unwrap().changed;
    assert_eq!(after.is_some(), before.is_some());
    assert!(after >= before);
    f.until_fresh().await;
}

#[tokio::test]
async fn while_the_api_server_is_gone_the_last_names_stay() {
    let mut f = Followed::start(shop());
    f.until_fresh().await;
    f.api.down();
    f.until("stale", |f| {
        matches!(f.naming(), Naming::Stale { silent: Some(_) })
    })
    .await;
    assert_eq!(f.identify("u0").unwrap().pod, "web-0");
    // What happens meanwhile is learnt afterwards.
    f.api.set("pods", pod("web-9", "u9", "n1"));
    f.api.delete("pods", "shop/web-0");
    f.api.up().unwrap();
    f.until("missed changes are known", |f| {
        f.identify("u9").is_some() && f.identify("u0").is_none()
    })
    .await;
    f.until_fresh().await;
}

#[tokio::test]
async fn an_idle_server_stays_fresh_and_a_silent_one_does_not() {
    let pace = Pace {
        watch: Duration::from_secs(1),
        patience: Duration::from_secs(4),
    };
    let f = Followed::at_pace(shop(), pace);
    f.until_fresh().await;
    let lists = f.api.asked("list", "services");
    // Wait for longer than one answer is trusted: the watches have been renewed by then.
    let begun = f.api.asked("watch", "services");
    f.until("watches were renewed", |f| {
        f.api.asked("watch", "services") >= begun + 6
    })
    .await;
    assert_eq!(f.naming(), Naming::Fresh);
    assert_eq!(f.api.asked("list", "services"), lists);

    // Each connection stays, and leads nowhere.
    f.api.fall_silent();
    f.until("stale", |f| {
        matches!(f.naming(), Naming::Stale { silent: Some(_) })
    })
    .await;
    assert_eq!(f.identify("u0").unwrap().pod, "web-0", "the last known");
}

#[tokio::test]
async fn an_expired_watch_is_relisted() {
    let mut f = Followed::start(shop());
    f.until_fresh().await;
    let lists = f.api.asked("list", "pods");
    f.api.down();
    // Both events are lost: only a list can tell.
    f.api.set("pods", pod("web-9", "u9", "n1"));
    f.api.delete("pods", "shop/web-0");
    f.api.expire();
    f.api.up().unwrap();
    f.until("missed changes are known", |f| {
        f.identify("u9").is_some() && f.identify("u0").is_none()
    })
    .await;
    f.until_fresh().await;
    assert!(f.api.asked("list", "pods") > lists);
}

#[tokio::test]
async fn cut_connections_are_restored_without_a_list() {
    let f = Followed::start(shop());
    f.until_fresh().await;
    let [lists, watches] = ["list", "watch"].map(|verb| f.api.asked(verb, "pods"));
    for round in 0..5 {
        f.api.cut();
        let uid = format!("v{round}");
        f.api.set("pods", pod(&format!("new-{round}"), &uid, "n1"));
        f.until("the new pod is known", |f| f.identify(&uid).is_some())
            .await;
    }
    f.until_fresh().await;
    assert_eq!(f.api.asked("list", "pods"), lists);
    assert!(f.api.asked("watch", "pods") >= watches + 5);
}

#[tokio::test]
async fn one_kind_that_is_refused_makes_names_stale() {
    let api = shop();
    api.forbid(Some("endpointslices"));
    let f = Followed::start(api);
    f.until("named", |f| f.identify("u0").is_some()).await;
    assert_eq!(f.identify("u0").unwrap().services, None);
    assert_eq!(f.naming(), Naming::Stale { silent: None });
    f.api.forbid(None);
    f.until_fresh().await;
    assert_eq!(services(&f.identify("u0").unwrap()), [("web", false)]);
}

#[tokio::test]
async fn lists_are_read_from_the_api_servers_cache_and_slices_in_pages() {
    let api = shop();
    for n in 0..1000 {
        let (name, uid) = (format!("many-{n}"), format!("m{n}"));
        api.set("pods", pod(&name, &uid, "n1"));
        api.set("endpointslices", slice(&name, "web", &[]));
    }
    let f = Followed::start(api);
    f.until_fresh().await;
    assert_eq!(f.shared.lock().counts()[0], 1001);
    for kind in ["pods", "namespaces", "services"] {
        let asked = ["list", "list from cache"].map(|how| f.api.asked(how, kind));
        assert_eq!(asked, [1, 1], "{kind}");
    }
    assert_eq!(f.api.asked("list", "endpointslices"), 51);
}
