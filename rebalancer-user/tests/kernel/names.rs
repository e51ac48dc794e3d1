//! Names on a real kernel: pods known by their namespaces and cgroups, moved by their Services.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use xtask::{
    apiserver::ApiServer,
    lab::{Lab, Pod},
};

use crate::{
    reload::REFUSED,
    server::{Kind, Server},
    support::{
        AT_ONCE, Agent, PATIENT, QUIET, REBALANCER, answered, cgroup, connect, connect_many,
        download, enforce, enforce_where, eventually, failed, file_of, heavy, is_reset, lab,
        of_client, own_pins, request, shows,
    },
};

const NODE: &str = "lab-node";

/// One for each pod.
const SERVICES: [&str; 2] = ["checkout", "cart"];

/// An API server that knows the lab's pods, each behind a Service of its own that has another
/// endpoint on another node.
struct Cluster {
    api: ApiServer,
    folder: TempDir,
}

impl Cluster {
    fn of(lab: &Lab) -> Self {
        let api = ApiServer::start().unwrap();
        let folder = tempfile::tempdir().unwrap();
        api.write_kubeconfig(&folder.path().join("kubeconfig"))
            .unwrap();
        let namespace = json!({"metadata": {"name": "shop", "labels": {"team": "shop"}}});
        api.set("namespaces", namespace);
        for pod in lab.pods() {
            api.set("pods", object(pod, json!({})));
        }
        for (pod, name) in lab.pods().iter().zip(SERVICES) {
            api.set("services", service(name, json!({})));
            let two = [(&*uid(pod), NODE), ("elsewhere", "other")];
            api.set("endpointslices", slice(name, &two));
        }
        Self { api, folder }
    }

    fn arguments(&self, lab: &Lab) -> Vec<String> {
        let kubeconfig = self.folder.path().join("kubeconfig");
        let file = kubeconfig.to_str().unwrap();
        let cgroup = cgroup(lab).to_str().unwrap();
        let all = format!("--cgroup {cgroup} --kubeconfig {file} --node-name {NODE}");
        all.split(' ').map(str::to_owned).collect()
    }

    fn agent(&self, lab: &Lab, policy: &str) -> Agent {
        self.agent_by(lab, policy, &[], |command| command)
    }

    /// One that knows the names, by what is made of its command.
    fn agent_by(
        &self,
        lab: &Lab,
        policy: &str,
        more: &[&str],
        make: impl FnOnce(Command) -> Command,
    ) -> Agent {
        let ours = self.arguments(lab);
        let ours: Vec<&str> = ours.iter().map(String::as_str).collect();
        let mut agent = Agent::by(policy, &[&ours, more].concat(), make);
        agent.wait_for("names", |line| line["naming"] == "Fresh");
        agent
    }

    fn set_pod(&self, pod: Value) {
        self.api.set("pods", pod);
    }

    /// What the API server has of the Service checkout from now on.
    fn set_service(&self, spec: Value) {
        self.api.set("services", service("checkout", spec));
    }

    fn set_slice(&self, slice: Value) {
        self.api.set("endpointslices", slice);
    }
}

/// Its namespace and name.
fn full_name(pod: &Pod) -> String {
    format!("shop/{}", pod.name)
}

/// The uid by which kubelet would have named a lab's pod's cgroup.
fn uid(pod: &Pod) -> String {
    let parts = pod.host.cgroup().iter().map(|part| part.to_str().unwrap());
    let mut uids = parts.filter_map(|part| part.strip_prefix("pod"));
    uids.next().expect("named as by kubelet").to_owned()
}

fn object(pod: &Pod, annotations: Value) -> Value {
    let container = pod.host.cgroup().file_name().unwrap().to_str().unwrap();
    json!({"metadata": {"name": pod.name, "namespace": "shop", "uid": uid(pod), "labels": {"app": "web"},
                        "annotations": annotations},
           "spec": {"nodeName": NODE, "containers": []},
           "status": {"containerStatuses": [{"name": "nginx", "containerID": format!("containerd://{container}"),
                                             "image": "", "imageID": "", "ready": true, "restartCount": 0}]}})
}

fn service(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

/// Port 80 of pods, by uid, on these nodes.
fn slice(service: &str, pods: &[(&str, &str)]) -> Value {
    let endpoint = |(number, (uid, node)): (usize, &(&str, &str))| {
        json!({"addresses": [format!("192.0.2.{number}")], "nodeName": node, "conditions": {"ready": true},
               "targetRef": {"kind": "Pod", "uid": uid}})
    };
    let endpoints: Vec<Value> = pods.iter().enumerate().map(endpoint).collect();
    json!({"metadata": {"name": format!("{service}-1"), "namespace": "shop",
                        "labels": {"kubernetes.io/service-name": service}},
           "addressType": "IPv4", "ports": [{"port": 80, "protocol": "TCP"}], "endpoints": endpoints})
}

fn policy(matches: &str) -> String {
    let by_bytes = enforce_where(matches, "maxBytes: 1Mi", QUIET);
    settled_in("2s", &by_bytes.replace("1000000", "100%"))
}

/// The same policy, by which Services are stable after this time.
fn settled_in(window: &str, policy: &str) -> String {
    let guards = format!("minAge: 200ms, stabilizationWindow: {window}");
    policy.replace("minAge: 200ms", &guards)
}

#[test]
fn a_service_names_what_is_moved() {
    let lab = lab(2);
    let cluster = Cluster::of(&lab);
    let mut agent = cluster.agent(&lab, &policy("services: ['*/checkout']"));
    let [mut inside, mut outside] = [0, 1].map(|n| connect(&lab, lab.pod(n).address()));
    download(&mut outside);
    download(&mut inside);
    let peer = inside.local_addr().unwrap().to_string();
    let of_it = json!({"peer": peer, "pod": full_name(lab.pod(0))});
    shows(&agent.moved("reset"), of_it);
    assert!(is_reset(&mut inside));
    request(&mut outside, "/").unwrap();
    agent.moves_no_more(1, 2);

    // The dump has the names, and a plan made of it is the node's own.
    let dump = agent.ask_json(&["dump"]);
    let it = of_client(dump["items"].as_array().unwrap(), &outside);
    let pod = lab.pod(1);
    shows(
        &it,
        json!({"namespace": "shop", "pod": pod.name, "container": "nginx"}),
    );
    shows(
        &dump,
        json!({
            "/names/state": "fresh", "/services/1/name": "checkout", "/services/1/ready": 2,
            "/services/1/readyHere": 1, "/services/1/addresses": ["192.0.2.0", "192.0.2.1"],
        }),
    );
    let mut endpoints = dump["endpoints"].as_array().unwrap().iter();
    let netns = lab.pod(0).host.netns_inode();
    let first = endpoints.find(|e| e["netns"] == netns && e["port"] == 80);
    let of_first = json!({
        "/pod/uid": uid(lab.pod(0)), "/pod/services/0/name": "checkout",
        "/pod/namespaceLabels/team": "shop",
    });
    shows(first.unwrap(), of_first);
    let policy = file_of(&policy("podSelector: {matchLabels: {app: web}}"));
    let of_dump = |arguments: &[&str]| {
        let saved = file_of(&dump.to_string());
        let mut command = Command::new(REBALANCER);
        command
            .args(arguments)
            .args(["--snapshot", "-", "--policy"]);
        let input = Stdio::from(saved.reopen().unwrap());
        let out = command.arg(policy.path()).stdin(input).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).unwrap()
    };
    let plan: Value = serde_json::from_str(&of_dump(&["plan", "-o", "json"])).unwrap();
    let moved = json!({"verdict": "Move", "pod": full_name(pod)});
    shows(&plan["items"][0], moved);
    let explanation = of_dump(&["explain", it["id"].as_str().unwrap()]);
    let line = "service   cart: 2 ready endpoints, 1 on this node, changed ";
    assert!(explanation.contains(line), "{explanation}");
}

/// The deletion begins a walk, not the next interval; young connections leave too, spread over the time, and no
/// budget holds them up. Those of the other pod stay.
#[test]
fn a_pod_that_is_deleted_is_empty_before_it_stops() {
    const CONNECTIONS: usize = 40;
    const STOPS_AFTER: u64 = 9;
    let lab = lab(2);
    let cluster = Cluster::of(&lab);
    let policy = policy("services: ['*/checkout', '*/cart']")
        .replace("limits: {maxBytes: 1Mi}", "drain: {on: [Terminating]}")
        .replace("interval: 200ms", "interval: 5s")
        .replace("perService: 100%", "perService: 1, perNode: 1")
        .replace("minAge: 200ms", "minAge: 1h");
    let mut agent = cluster.agent(&lab, &policy);
    let mut leaving: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| answered(&lab, lab.pod(0).address()))
        .collect();
    let mut staying = answered(&lab, lab.pod(1).address());
    let mut deleted = object(lab.pod(0), json!({}));
    let over = jiff::Timestamp::now() + Duration::from_secs(30);
    deleted["metadata"]["deletionTimestamp"] = json!(over.to_string());
    deleted["metadata"]["deletionGracePeriodSeconds"] = json!(30);
    deleted["spec"]["containers"] = json!([
        {"name": "nginx", "lifecycle": {"preStop": {"sleep": {"seconds": STOPS_AFTER}}}}
    ]);
    let began = Instant::now();
    cluster.set_pod(deleted);
    let line = agent.moved("reset");
    let reason = line["reason"].as_str().unwrap();
    assert!(reason.starts_with("its pod is being deleted"), "{line}");
    let first = began.elapsed();
    while agent.logged("move").len() < CONNECTIONS && began.elapsed().as_secs() < STOPS_AFTER {
        sleep(Duration::from_millis(50));
    }
    let last = began.elapsed();
    eprintln!("first after {first:?}, last after {last:?}");
    agent.has_moved(CONNECTIONS);
    let line = agent.wait_for("the end", |line| {
        line["message"] == "drained: all connections have left"
    });
    let pod = full_name(lab.pod(0));
    shows(&line, json!({"pod": pod, "port": 80, "rule": "lab"}));
    assert!(leaving.iter_mut().all(is_reset));
    assert!(last - first > Duration::from_secs(2), "all at once");
    request(&mut staying, "/").unwrap();
}

/// Its selector is changed, as from blue to green: who was connected before leaves, whoever dials the pod itself
/// afterwards stays.
#[test]
fn a_pod_that_its_service_does_not_select_any_more_is_emptied() {
    const CONNECTIONS: usize = 30;
    let lab = lab(2);
    let cluster = Cluster::of(&lab);
    let policy = policy("services: ['*/checkout', '*/cart']")
        .replace(
            "limits: {maxBytes: 1Mi}",
            "drain: {on: [Removed], within: 8s}",
        )
        .replace("interval: 200ms", "interval: 5s")
        .replace("minAge: 200ms", "minAge: 1h");
    let mut agent = cluster.agent(&lab, &policy);
    let mut leaving: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| answered(&lab, lab.pod(0).address()))
        .collect();
    let mut staying = answered(&lab, lab.pod(1).address());
    let began = Instant::now();
    cluster.set_slice(slice(
        "checkout",
        &[("elsewhere", "other"), ("third", "other")],
    ));
    let line = agent.moved("reset");
    let reason = line["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("its pod is no endpoint of its Service"),
        "{line}"
    );
    let mut later = answered(&lab, lab.pod(0).address());
    let line = agent.wait_for("the end", |line| {
        line["message"] == "drained: all connections have left"
    });
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    let pod = full_name(lab.pod(0));
    shows(&line, json!({"pod": pod, "port": 80, "cause": "removed"}));
    agent.moves_no_more(CONNECTIONS, 2);
    assert!(leaving.iter_mut().all(is_reset));
    request(&mut later, "/").unwrap();
    request(&mut staying, "/").unwrap();
}

/// The policy only reports, and nothing has reached its limit; the operator's word counts.
#[test]
fn an_operator_empties_a_pod() {
    const CONNECTIONS: usize = 30;
    let lab = lab(2);
    let cluster = Cluster::of(&lab);
    let policy =
        policy("services: ['*/checkout', '*/cart']").replace("mode: Enforce", "mode: DryRun");
    let mut agent = cluster.agent(&lab, &policy);
    let mut leaving: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| answered(&lab, lab.pod(0).address()))
        .collect();
    let mut staying = answered(&lab, lab.pod(1).address());
    let target = format!("pod/{}", full_name(lab.pod(0)));
    let text = agent.ask(&["drain", &target, "--within", "8s"]);
    let has = |what: &str| assert!(text.contains(what), "{what}: {text}");
    has("LEAVE");
    has("all have left");
    agent.has_moved(CONNECTIONS);
    assert!(leaving.iter_mut().all(is_reset));
    request(&mut staying, "/").unwrap();
    // There is no other endpoint to go to.
    let only = uid(lab.pod(1));
    cluster.set_slice(slice("cart", &[(&only, NODE)]));
    let target = "service/shop/cart";
    let look = || agent.ask(&["drain", target, "--dry-run"]);
    eventually("it stays", look, |text| {
        text.contains("1 minReadyEndpoints")
    });
    let why = agent.fails(1, &["drain", target, "--within", "8s"]);
    assert!(why.contains("cannot be moved: 1"), "{why}");
    request(&mut staying, "/").unwrap();
}

/// Its containers are asked to stop at once: an Event of the pod says what would give it time.
#[test]
fn a_pod_without_a_hook_has_an_event_with_the_sleep_that_it_needs() {
    let lab = lab(1);
    let cluster = Cluster::of(&lab);
    let policy = policy("services: ['*/checkout']")
        .replace("limits: {maxBytes: 1Mi}", "drain: {on: [Terminating]}");
    let mut agent = cluster.agent_by(&lab, &policy, &[], of_own_pod);
    let _stream = answered(&lab, lab.pod(0).address());
    let mut deleted = object(lab.pod(0), json!({}));
    let over = jiff::Timestamp::now() + Duration::from_secs(30);
    deleted["metadata"]["deletionTimestamp"] = json!(over.to_string());
    deleted["metadata"]["deletionGracePeriodSeconds"] = json!(30);
    cluster.set_pod(deleted);
    let (namespace, event) = wait_for_written(&cluster, "DrainIncomplete").remove(0);
    assert_eq!(namespace, "shop");
    shows(
        &event,
        json!({"/regarding/name": lab.pod(0).name, "type": "Warning"}),
    );
    let note = event["note"].as_str().unwrap();
    assert!(note.contains("preStop: {sleep: {seconds: 10}}"), "{note}");
    agent.wait_for_skipped("noTimeToDrain");
    agent.has_moved(0);
}

/// As in a container that is not privileged, where there is cgroup v2 alone.
#[test]
fn a_private_cgroup_namespace_hides_no_pod() {
    let lab = lab(1);
    let cluster = Cluster::of(&lab);
    let own = cgroup(&lab).join("kubepods/besteffort/pod0f4c2a1e-7b1d-4c58-9c8e-2d4f7a6b1c33/own");
    fs::create_dir_all(&own).unwrap();
    // Not every machine's process 1 may be looked at: this test's own process stands for it.
    let node = std::process::id();
    let script = format!(
        "mount --bind /proc/{node} /proc/1 && echo $$ > $0/cgroup.procs && \
         exec unshare --cgroup \"$@\""
    );
    let policy = policy("services: ['*/checkout']");
    let agent = cluster.agent_by(&lab, &policy, &[], |agent| {
        let mut private = Command::new("unshare");
        private.args(["--mount", "sh", "-c", &script]).arg(&own);
        private.arg(agent.get_program()).args(agent.get_args());
        private
    });
    let stream = connect(&lab, lab.pod(0).address());
    let it = agent.connection_of(&stream);
    shows(&it, json!({"pod": lab.pod(0).name, "container": "nginx"}));
}

/// The guards use the Service as the API server reports it, and evaluate it again when it changes.
#[test]
fn a_service_is_skipped_until_its_spec_and_endpoints_allow_moves() {
    let lab = lab(1);
    let cluster = Cluster::of(&lab);
    let only = uid(lab.pod(0));
    cluster.set_slice(slice("checkout", &[(&only, NODE)]));
    let mut agent = cluster.agent(&lab, &policy("services: ['*/checkout']"));
    let mut heavy = heavy(&lab, lab.pod(0));
    agent.wait_for_skipped("\"minReadyEndpoints\": 1");
    cluster.set_service(json!({"sessionAffinity": "ClientIP"}));
    agent.wait_for_skipped("\"sessionAffinity\": 1");
    cluster.set_service(json!({"clusterIP": "None"}));
    agent.wait_for_skipped("\"headless\": 1");
    cluster.set_service(json!({"internalTrafficPolicy": "Local"}));
    let two = [(&*only, NODE), ("elsewhere", "other")];
    cluster.set_slice(slice("checkout", &two));
    agent.wait_for_skipped("\"localTraffic\": 1");
    // Its client's own address is an endpoint's.
    let mut sibling = slice("checkout", &two);
    sibling["endpoints"][1]["addresses"] = json!([heavy.local_addr().unwrap().ip()]);
    cluster.set_slice(sibling);
    agent.wait_for_skipped("\"siblingPeer\": 1");
    let mut http2 = slice("checkout", &two);
    http2["ports"][0]["appProtocol"] = "kubernetes.io/h2c".into();
    cluster.set_service(json!({}));
    cluster.set_slice(http2);
    agent.wait_for_skipped("\"http2\": 1");
    let three = [two[0], two[1], ("third", "other")];
    cluster.set_slice(slice("checkout", &three));
    agent.wait_for_skipped("\"stabilizing\": 1");
    agent.has_moved(0);
    request(&mut heavy, "/").unwrap();
    agent.wait_for_move();
    assert!(is_reset(&mut heavy));
}

#[test]
fn without_the_api_server_nothing_is_moved_by_name_until_it_is_back() {
    let lab = lab(1);
    let mut cluster = Cluster::of(&lab);
    let mut agent = cluster.agent(&lab, &policy("services: ['*/checkout']"));
    cluster.api.down();
    agent.wait_for("stale names", |line| {
        let naming = line["naming"].as_str();
        naming.is_some_and(|naming| naming.starts_with("Stale"))
    });
    let mut heavy = heavy(&lab, lab.pod(0));
    agent.wait_for_skipped("staleFacts");
    agent.moves_no_more(0, 3);
    request(&mut heavy, "/").unwrap();
    agent.connection(lab.pod(0)); // tracking goes on
    cluster.api.up().unwrap();
    let line = agent.wait_for_move();
    assert_eq!(line["pod"], format!("shop/{}", lab.pod(0).name));
    assert!(is_reset(&mut heavy));
}

#[test]
fn pods_that_opt_out_or_are_unknown_are_skipped() {
    let lab = lab(2);
    let cluster = Cluster::of(&lab);
    let out = json!({"rebalancer.dev/enabled": "false"});
    cluster.set_pod(object(lab.pod(0), out));
    // The API server has another pod of that name on this node by now.
    let mut other = object(lab.pod(1), json!({}));
    other["metadata"]["uid"] = "0f4c2a1e-7b1d-4c58-9c8e-2d4f7a6b1c33".into();
    cluster.api.delete("pods", &full_name(lab.pod(1)));
    cluster.set_pod(other);
    let mut agent = cluster.agent(&lab, &policy("ports: [{port: 80}]"));
    let mut heavy = [0, 1].map(|n| connect(&lab, lab.pod(n).address()));
    heavy.iter_mut().for_each(download);
    agent.wait_for("both skipped", |line| {
        let skipped = line["skipped"].as_str().unwrap_or_default();
        skipped.contains("\"optedOut\": 1") && skipped.contains("\"unnamed\": 1")
    });
    // Both are named as they are, and then moved.
    for n in [0, 1] {
        cluster.set_pod(object(lab.pod(n), json!({})));
    }
    agent.wait_for_move();
    agent.wait_for_move();
    assert!(heavy.iter_mut().all(is_reset));
}

/// A pod with cgroups of its own can name them as it likes.
#[test]
fn a_pod_that_imitates_anothers_cgroup_is_not_taken_for_it() {
    let lab = lab(2);
    let cluster = Cluster::of(&lab);
    let mut agent = cluster.agent(&lab, &policy("services: ['*/checkout']"));
    let [victim, liar] = [lab.pod(0), lab.pod(1)];
    let below = format!("kubepods/burstable/pod{}/{}", uid(victim), "0".repeat(64));
    let own = liar.host.cgroup().join(below);
    fs::create_dir_all(&own).unwrap();
    let (address, server) = Server::in_pod(liar, 8080, Kind::Plain);
    fs::write(own.join("cgroup.procs"), server.id().to_string()).unwrap();
    // The Service leads to that port too: what it lacks is the right pod.
    let mut other = slice("checkout", &[(&uid(victim), NODE)]);
    other["metadata"]["name"] = "checkout-2".into();
    other["ports"][0]["port"] = 8080.into();
    cluster.set_slice(other);
    let _stream = connect(&lab, address);
    let named = agent.endpoint_when(liar, 8080, |e| e["pod"].is_object());
    shows(&named["pod"], json!({"uid": uid(liar), "services": []}));
    agent.moves_no_more(0, 2);
    drop(server);
    // The lab's own script removes no folders that it does not know.
    let removed = || is_removed_below(liar.host.cgroup(), &own);
    eventually("the cgroups are empty", removed, |removed| *removed);
}

/// Removes `own` and what is above it, up to `cgroup`.
fn is_removed_below(cgroup: &Path, own: &Path) -> bool {
    let mut all = own.ancestors().take_while(|folder| *folder != cgroup);
    all.all(|folder| !folder.exists() || fs::remove_dir(folder).is_ok())
}

/// The Events written for this reason, with their namespaces.
fn written(cluster: &Cluster, reason: &str) -> Vec<(String, Value)> {
    let all = cluster.api.written().into_iter();
    all.filter(|(_, event)| event["reason"] == reason).collect()
}

/// The same once there are any.
fn wait_for_written(cluster: &Cluster, reason: &str) -> Vec<(String, Value)> {
    eventually(reason, || written(cluster, reason), |all| !all.is_empty())
}

fn of_own_pod(mut command: Command) -> Command {
    let names = [
        ("POD_NAME", "rebalancer-x"),
        ("POD_NAMESPACE", "rebalancer"),
        ("POD_UID", "0-1"),
    ];
    command.envs(names);
    command
}

#[test]
fn moves_and_refused_policies_are_reported_as_events_of_their_pods() {
    let lab = lab(1);
    let cluster = Cluster::of(&lab);
    // Services must stabilize again after each start.
    let policy = settled_in("1s", &enforce(&lab, 80, "maxAge: 400ms", AT_ONCE));
    let mut agent = cluster.agent_by(&lab, &policy, &["--move-events"], of_own_pod);
    let _streams = connect_many(&lab, lab.pod(0).address(), 2);
    agent.wait_for_move();
    agent.wait_for_move();
    let moved = wait_for_written(&cluster, "ConnectionsMoved");
    agent.wait_for_intervals(5);
    let (namespace, event) = &moved[0];
    assert_eq!(namespace, "shop");
    shows(
        event,
        json!({"type": "Normal", "/regarding/uid": uid(lab.pod(0))}),
    );
    let note = event["note"].as_str().unwrap();
    assert!(note.contains("Rule lab has moved"), "{event}");
    let moved = written(&cluster, "ConnectionsMoved");
    assert_eq!(moved.len(), 1, "one in five minutes");

    // Where Events about other pods are forbidden, the Event is about the agent's own pod.
    cluster.api.allow_writes_to("rebalancer");
    agent.reload("mode: Enforce");
    let refused = wait_for_written(&cluster, "PolicyRefused");
    let (namespace, event) = &refused[0];
    assert_eq!(namespace, "rebalancer");
    let own =
        json!({"type": "Warning", "/regarding/name": "rebalancer-x", "/regarding/uid": "0-1"});
    shows(event, own);
    let note = event["note"].as_str().unwrap();
    assert!(
        note.contains("apiVersion") && note.contains("last valid one"),
        "{note}"
    );
    agent.signal(Signal::HUP);
    agent.wait_for_message(REFUSED);
    agent.wait_for_intervals(3);
    let again = written(&cluster, "PolicyRefused");
    assert_eq!(again.len(), 1, "the same again");
    assert_eq!(agent.terminate(), Some(0));

    // One that cannot start says so too.
    let refused = Path::new(agent.policy());
    let arguments = cluster.arguments(&lab);
    let mut command = of_own_pod(Agent::command(refused, &own_pins(), &arguments));
    failed(3, &command.output().unwrap());
    let refused = written(&cluster, "PolicyRefused");
    assert_eq!(refused.len(), 2, "{refused:#?}");
    let note = refused[1].1["note"].as_str().unwrap();
    assert!(note.contains("does not start"), "{note}");
}

#[test]
fn an_annotation_of_the_agents_namespace_pauses_all_of_them() {
    let lab = lab(1);
    let cluster = Cluster::of(&lab);
    let namespace = |annotations: Value| {
        let meta = json!({"name": "rebalancer", "annotations": annotations});
        cluster.api.set("namespaces", json!({"metadata": meta}));
    };
    let policy = settled_in("1s", &enforce(&lab, 80, "maxAge: 400ms", PATIENT));
    let mut agent = cluster.agent_by(&lab, &policy, &[], of_own_pod);
    let mut stream = answered(&lab, lab.pod(0).address());
    agent.wait_for_skipped("inFlight");

    namespace(json!({"rebalancer.dev/paused": "an incident"}));
    agent.moved("recalled");
    agent.moves_no_more(1, 5); // nothing new is moved
    request(&mut stream, "/").expect("it lives");
    let paused = json!({"by": "namespace", "reason": "an incident", "until": null});
    shows(&agent.status()["paused"], paused);
    // A pause of the node alone ends without an effect.
    agent.ask(&["pause", "--for", "1h"]);
    shows(&agent.status()["paused"], json!({"by": "namespace"}));
    let resumed = agent.ask(&["resume"]);
    assert!(resumed.contains("stay paused"), "{resumed}");
    shows(&agent.status()["paused"], json!({"by": "namespace"}));
    // As it is for one that starts now.
    drop(agent);
    let mut next = cluster.agent_by(&lab, &policy, &[], of_own_pod);
    let status = eventually(
        "a move is due",
        || next.status(),
        |status| status["lastPass"]["moves"] == 1,
    );
    shows(&status, json!({"/paused/by": "namespace", "inFlight": []}));

    namespace(json!({}));
    let on = next.wait_for_message("moves resumed");
    assert_eq!(on["cause"], "annotation");
    next.wait_for_skipped("inFlight");
}

/// Without an API server to ask, as where a token was not mounted, no guard of Kubernetes holds.
#[test]
fn pods_that_nobody_names_are_not_moved() {
    let lab = lab(1);
    let by_port = policy("ports: [{port: 80}]");
    let mut agent = Agent::in_lab_with(&lab, &by_port, &["--kubernetes=auto"]);
    let mut stream = heavy(&lab, lab.pod(0));
    agent.wait_for_message("would move");
    agent.moves_no_more(0, 3);
    let limited = json!({"effective": "DryRun", "limitedBy": ["podsWithoutNames"]});
    shows(&agent.status()["mode"], limited);
    request(&mut stream, "/").unwrap();
    drop(agent);
    // Who says that they are not to be named has said so.
    let mut agent = Agent::in_lab(&lab, &by_port);
    let _stream = heavy(&lab, lab.pod(0));
    agent.moved("reset");
}
