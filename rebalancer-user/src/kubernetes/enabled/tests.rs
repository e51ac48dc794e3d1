//! The watches against an API server that fails.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use xtask::apiserver::ApiServer;

use super::{
    sample::{self, endpoint},
    store::Pace,
    watch::{self, Shared},
};
use crate::snapshot::{self, Identity, Naming, Service};

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
        self.identify_at(uid, 80)
    }

    fn identify_at(&self, uid: &str, port: u16) -> Option<Identity> {
        self.shared.lock().identify(uid, port, Instant::now())
    }

    /// The pod is known; it is on this node.
    fn pod(&self, uid: &str) -> Identity {
        self.identify(uid).unwrap()
    }

    fn naming(&self) -> Naming {
        self.shared.lock().naming(Instant::now())
    }

    fn facts(&self, service: &str) -> Option<Service> {
        let mut facts = self.shared.lock().facts(Instant::now());
        facts.remove(&snapshot::sample::service(service))
    }

    /// The same of one that leads here.
    fn known(&self, service: &str) -> Service {
        self.facts(service).unwrap()
    }

    fn set_service(&self, name: &str, annotations: Value) {
        self.api.set("services", service(name, annotations));
    }

    fn set_slice(&self, name: &str, service: &str, pods: &[(&str, &str)]) {
        self.api.set("endpointslices", slice(name, service, pods));
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

    /// The API server has been silent.
    async fn until_silent(&self) {
        let silent = |f: &Self| matches!(f.naming(), Naming::Stale { silent: Some(_) });
        self.until("stale", silent).await;
    }

    async fn until_known(&self, uid: &str) {
        let known = |f: &Self| f.identify(uid).is_some();
        self.until("the new pod is known", known).await;
    }

    /// One pod has gone and another has come.
    async fn until_replaced(&self, uid: &str, by: &str) {
        let replaced = |f: &Self| f.identify(by).is_some() && f.identify(uid).is_none();
        self.until("missed changes are known", replaced).await;
    }
}

fn pod(name: &str, uid: &str, node: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "uid": uid, "labels": {"app": "web"}},
           "spec": {"nodeName": node, "containers": []},
           "status": {"conditions": [{"type": "Ready", "status": "True"}]}})
}

/// A slice of these pods, by uid, on these nodes.
fn slice(name: &str, service: &str, pods: &[(&str, &str)]) -> Value {
    let of_pod = |(uid, node): &(&str, &str)| {
        let number = uid.as_bytes().last().unwrap();
        endpoint(uid, &format!("10.0.0.{number}"), node)
    };
    let endpoints: Vec<Value> = pods.iter().map(of_pod).collect();
    sample::slice(name, service, &endpoints)
}

fn service(name: &str, annotations: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "annotations": annotations}, "spec": {}})
}

fn namespace(labels: Value) -> Value {
    json!({"metadata": {"name": "shop", "labels": labels}})
}

fn shop() -> ApiServer {
    let api = ApiServer::start().unwrap();
    api.set("namespaces", namespace(json!({"team": "shop"})));
    api.set("services", service("web", json!({})));
    let both = slice("web-1", "web", &[("u0", "n1"), ("u1", "n1")]);
    api.set("endpointslices", both);
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
    let web = f.pod("u0");
    let named = (web.namespace.as_str(), web.pod.as_str());
    assert_eq!(named, ("shop", "web-0"));
    assert_eq!(web.namespace_labels.as_ref().unwrap()["team"], "shop");
    assert_eq!((web.labels["app"].as_str(), web.ready), ("web", true));
    assert_eq!(services(&web), [("web", false)]);
    let elsewhere = f.identify_at("u0", 81).unwrap();
    assert_eq!(elsewhere.services, Some(vec![]));
    assert_eq!(f.identify("u1"), None, "of another node");

    f.set_service("web", json!({"rebalancer.dev/enabled": "false"}));
    f.set_slice("all-1", "all", &[("u0", "n1")]);
    f.until("the Services are known", |f| {
        services(&f.pod("u0")) == [("all", false), ("web", true)]
    })
    .await;
    f.api.delete("endpointslices", "shop/all-1");
    f.set_service("web", json!({}));
    let out = json!({"team": "pay", "rebalancer.dev/enabled": "no"});
    f.api.set("namespaces", namespace(out));
    assert!(!web.namespace_opted_out);
    f.until("their deletions are known", |f| {
        let web = f.pod("u0");
        services(&web) == [("web", false)]
            && web.namespace_opted_out
            && web.namespace_labels.unwrap()["team"] == "pay"
    })
    .await;

    // The same name, another pod.
    f.api.delete("pods", "shop/web-0");
    f.api.set("pods", pod("web-0", "u2", "n1"));
    f.until_known("u2").await;
    assert_eq!(f.identify("u0"), None);
    assert_eq!(f.naming(), Naming::Fresh);
}

#[tokio::test]
async fn facts_of_a_service_follow_its_slices_and_its_spec() {
    let f = Followed::start(shop());
    f.until_fresh().await;
    let web = f.known("web");
    assert_eq!((web.ready, web.ready_here, web.changed), (2, 2, None));
    assert!(!web.client_ip_affinity && !web.headless);
    assert!(f.shared.lock().age(Instant::now()).unwrap() < PATIENCE);

    // More elsewhere, in a slice of its own: they count, and the Service has changed.
    f.set_slice("web-2", "web", &[("u2", "n2"), ("u3", "n3")]);
    f.until("more endpoints are known", |f| f.known("web").ready == 4)
        .await;
    let web = f.known("web");
    assert_eq!((web.ready_here, web.addresses.len()), (2, 4));
    assert!(web.changed.unwrap() < PATIENCE);

    // The spec alone: the endpoints are as they were.
    let mut object = service("web", json!({}));
    object["spec"] = json!({"sessionAffinity": "ClientIP", "internalTrafficPolicy": "Local"});
    f.api.set("services", object);
    f.until("the new spec is known", |f| {
        let web = f.known("web");
        web.client_ip_affinity && web.internal_local
    })
    .await;

    // A Service whose pods are all elsewhere, until one is here.
    f.set_service("far", json!({}));
    f.set_slice("far-1", "far", &[("u9", "n2")]);
    f.set_slice("far-2", "far", &[]);
    f.until("slices of far are known", |f| {
        f.shared.lock().slices_of("shop", "far") == 2
    })
    .await;
    assert_eq!(f.facts("far"), None);
    f.set_slice("far-2", "far", &[("u8", "n1")]);
    f.until("its endpoint here is known", |f| f.facts("far").is_some())
        .await;
    let far = f.known("far");
    assert_eq!((far.ready, far.ready_here), (2, 1));

    f.api.delete("endpointslices", "shop/web-2");
    f.until("fewer endpoints are known", |f| f.known("web").ready == 2)
        .await;
    f.api.delete("services", "shop/web");
    f.until("its deletion is known", |f| f.facts("web").is_none())
        .await;
    // Its slices are still there: that it leads here is known, and no more.
    assert_eq!(services(&f.pod("u0")), [("web", false)]);
}

#[tokio::test]
async fn facts_that_were_missed_are_relisted_with_the_time_of_the_list() {
    let mut f = Followed::start(shop());
    f.set_service("same", json!({}));
    f.set_slice("same-1", "same", &[("u0", "n1")]);
    f.until("both Services are known", |f| {
        f.facts("same").is_some() && f.naming() == Naming::Fresh
    })
    .await;
    let before = f.known("same").changed;
    f.api.down();
    f.set_slice("web-1", "web", &[("u0", "n1")]);
    f.api.expire();
    f.until_silent().await;
    assert_eq!(f.known("web").ready, 2, "the last known stays");
    f.api.up().unwrap();
    f.until("missed changes are known", |f| f.known("web").ready == 1)
        .await;
    assert!(f.known("web").changed.is_some());
    // What was listed again as it was has not changed.
    let after = f.known("same").changed;
    assert_eq!(after.is_some(), before.is_some());
    assert!(after >= before);
    f.until_fresh().await;
}

#[tokio::test]
async fn while_the_api_server_is_gone_the_last_names_stay() {
    let mut f = Followed::start(shop());
    f.until_fresh().await;
    f.api.down();
    f.until_silent().await;
    assert_eq!(f.pod("u0").pod, "web-0");
    // What happens meanwhile is learnt afterwards.
    f.api.set("pods", pod("web-9", "u9", "n1"));
    f.api.delete("pods", "shop/web-0");
    f.api.up().unwrap();
    f.until_replaced("u0", "u9").await;
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
    f.until_silent().await;
    assert_eq!(f.pod("u0").pod, "web-0", "the last known");
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
    f.until_replaced("u0", "u9").await;
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
        f.until_known(&uid).await;
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
    f.until_known("u0").await;
    assert_eq!(f.pod("u0").services, None);
    assert_eq!(f.naming(), Naming::Stale { silent: None });
    f.api.forbid(None);
    f.until_fresh().await;
    assert_eq!(services(&f.pod("u0")), [("web", false)]);
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
