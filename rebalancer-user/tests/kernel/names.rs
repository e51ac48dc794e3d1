//! Names on a real kernel: pods known by their namespaces and cgroups, moved by their Services.

use std::{io::Write as _, path::Path, process::Command};

use serde_json::{Value, json};
use tempfile::TempDir;
use xtask::{
    apiserver::ApiServer,
    lab::{Lab, Pod},
};

use crate::{
    moves::is_reset,
    server::{Kind, Server},
    support::{
        Agent, REBALANCER, alone, cgroup, connect, download, eventually, lab, own_pins, request,
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
        api.set(
            "namespaces",
            json!({"metadata": {"name": "shop", "labels": {"team": "shop"}}}),
        );
        for pod in lab.pods() {
            api.set("pods", object(pod, json!({})));
        }
        for (pod, name) in lab.pods().iter().zip(SERVICES) {
            api.set("services", service(name, json!({})));
            api.set(
                "endpointslices",
                slice(name, &[(&uid(pod), NODE), ("elsewhere", "other")]),
            );
        }
        Self { api, folder }
    }

    fn arguments(&self) -> [String; 4] {
        let kubeconfig = self.folder.path().join("kubeconfig");
        let file = kubeconfig.to_str().unwrap();
        ["--kubeconfig", file, "--node-name", NODE].map(str::to_owned)
    }

    fn agent(&self, lab: &Lab, policy: &str) -> Agent {
        let ours = self.arguments();
        let mut arguments = vec!["--cgroup", cgroup(lab).to_str().unwrap()];
        arguments.extend(ours.iter().map(String::as_str));
        let mut agent = Agent::with(policy, own_pins(), &arguments);
        agent.wait_for("names", |line| line["naming"] == "Fresh");
        agent
    }

    /// `dump` of everything, with names.
    fn dump(&self, agent: &Agent, more: &[&str]) -> Value {
        let out = agent.dump_output(more);
        assert!(out.status.success(), "{out:?}");
        serde_json::from_slice(&out.stdout).unwrap()
    }
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
    format!(
        "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: Enforce
interval: 200ms
budget: {{perService: 100%, perEndpoint: 100%}}
guards: {{minAge: 200ms, stabilizationWindow: 2s}}
rules:
- name: named
  match: {{{matches}}}
  limits: {{maxBytes: 1Mi}}
  jitter: 0%
  onReconnect: Safe
  steps: [{{step: Reset, when: Quiet, idleFor: 100ms, timeout: 10s}}]
"
    )
}

fn skipped(line: &Value, word: &str) -> bool {
    line["message"] == "listed" && line["skipped"].as_str().is_some_and(|s| s.contains(word))
}

#[test]
fn a_service_names_what_is_moved() {
    let _alone = alone();
    let lab = lab(2);
    let cluster = Cluster::of(&lab);
    let mut agent = cluster.agent(&lab, &policy("services: ['*/checkout']"));
    let [mut inside, mut outside] = [0, 1].map(|n| connect(&lab, lab.pod(n).address()));
    download(&mut outside);
    download(&mut inside);
    let line = agent.wait_for_move();
    assert_eq!(line["outcome"], "reset");
    assert_eq!(line["peer"], inside.local_addr().unwrap().to_string());
    assert_eq!(line["pod"], format!("shop/{}", lab.pod(0).name));
    assert!(is_reset(&mut inside));
    request(&mut outside, "/").unwrap();
    agent.wait_for_intervals(2);
    assert_eq!(agent.logged("move").len(), 1);

    // The dump has the names, and a plan made of it is the node's own.
    let dump = cluster.dump(&agent, &[]);
    assert_eq!(dump["names"]["state"], "fresh");
    let items = dump["items"].as_array().unwrap();
    let it = items
        .iter()
        .find(|c| c["peer"] == outside.local_addr().unwrap().to_string())
        .unwrap();
    let pod = lab.pod(1);
    assert_eq!(
        (&it["namespace"], &it["pod"]),
        (&json!("shop"), &json!(pod.name))
    );
    assert_eq!(it["container"], "nginx");
    let checkout = &dump["services"][1];
    assert_eq!(checkout["name"], "checkout");
    assert_eq!(
        (&checkout["ready"], &checkout["readyHere"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(checkout["addresses"], json!(["192.0.2.0", "192.0.2.1"]));
    let endpoints = dump["endpoints"].as_array().unwrap();
    let first = endpoints
        .iter()
        .find(|e| e["netns"] == lab.pod(0).host.netns_inode() && e["port"] == 80)
        .unwrap();
    assert_eq!(first["pod"]["uid"], uid(lab.pod(0)));
    assert_eq!(first["pod"]["services"][0]["name"], "checkout");
    assert_eq!(first["pod"]["namespaceLabels"]["team"], "shop");
    let file = cluster.folder.path().join("policy.yaml");
    std::fs::write(&file, policy("podSelector: {matchLabels: {app: web}}")).unwrap();
    let mut plan = Command::new(REBALANCER);
    plan.args(["plan", "-o", "json", "--snapshot", "-", "--policy"])
        .arg(&file);
    let out = with_input(plan, &dump.to_string());
    let plan: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(plan["items"][0]["verdict"], "Move", "{plan:#}");
    assert_eq!(plan["items"][0]["pod"], format!("shop/{}", pod.name));
    let mut explain = Command::new(REBALANCER);
    let id = it["id"].as_str().unwrap();
    explain.args(["explain", id, "--snapshot", "-", "--policy"]);
    explain.arg(&file);
    let explanation = with_input(explain, &dump.to_string());
    let line = "service   cart: 2 ready endpoints, 1 on this node, changed ";
    assert!(explanation.contains(line), "{explanation}");
}

/// As in a container that is not privileged, where there is cgroup v2 alone.
#[test]
fn a_private_cgroup_namespace_hides_no_pod() {
    let _alone = alone();
    let lab = lab(1);
    let cluster = Cluster::of(&lab);
    let file = cluster.folder.path().join("policy.yaml");
    std::fs::write(&file, policy("services: ['*/checkout']")).unwrap();
    let own = cgroup(&lab).join("kubepods/besteffort/pod0f4c2a1e-7b1d-4c58-9c8e-2d4f7a6b1c33/own");
    std::fs::create_dir_all(&own).unwrap();
    let pins = own_pins();
    let ours = cluster.arguments();
    let mut arguments = vec!["--cgroup", cgroup(&lab).to_str().unwrap()];
    arguments.extend(ours.iter().map(String::as_str));
    let agent = Agent::command(&file, &pins, &arguments);
    // Not every machine's process 1 may be looked at: this test's own process stands for it.
    let node = std::process::id();
    let script = format!(
        "mount --bind /proc/{node} /proc/1 && echo $$ > $0/cgroup.procs && \
         exec unshare --cgroup \"$@\""
    );
    let mut private = Command::new("unshare");
    private
        .args(["--mount", "sh", "-c", &script])
        .arg(&own)
        .arg(agent.get_program())
        .args(agent.get_args());
    let mut agent = Agent::launch(private, pins);
    agent.wait_for("names", |line| line["naming"] == "Fresh");
    let stream = connect(&lab, lab.pod(0).address());
    let dump = cluster.dump(&agent, &[]);
    let peer = stream.local_addr().unwrap().to_string();
    let items = dump["items"].as_array().unwrap();
    let it = items.iter().find(|c| c["peer"] == peer).unwrap();
    assert_eq!(it["pod"], lab.pod(0).name, "{it:#}");
    assert_eq!(it["container"], "nginx");
}

fn with_input(mut command: Command, input: &str) -> String {
    use std::process::Stdio;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout).unwrap()
}

/// The guards use the Service as the API server reports it, and evaluate it again when it changes.
#[test]
fn a_service_is_skipped_until_its_spec_and_endpoints_allow_moves() {
    let _alone = alone();
    let lab = lab(1);
    let cluster = Cluster::of(&lab);
    let only = uid(lab.pod(0));
    cluster
        .api
        .set("endpointslices", slice("checkout", &[(&only, NODE)]));
    let mut agent = cluster.agent(&lab, &policy("services: ['*/checkout']"));
    let mut heavy = connect(&lab, lab.pod(0).address());
    download(&mut heavy);
    agent.wait_for("alone", |line| skipped(line, "\"minReadyEndpoints\": 1"));
    let sticky = json!({"sessionAffinity": "ClientIP"});
    cluster.api.set("services", service("checkout", sticky));
    agent.wait_for("sticky", |line| skipped(line, "\"sessionAffinity\": 1"));
    cluster.api.set(
        "services",
        service("checkout", json!({"clusterIP": "None"})),
    );
    agent.wait_for("headless", |line| skipped(line, "\"headless\": 1"));
    let local = json!({"internalTrafficPolicy": "Local"});
    cluster.api.set("services", service("checkout", local));
    let two = [(&*only, NODE), ("elsewhere", "other")];
    cluster.api.set("endpointslices", slice("checkout", &two));
    agent.wait_for("local", |line| skipped(line, "\"localTraffic\": 1"));
    // Its client's own address is an endpoint's.
    let mut sibling = slice("checkout", &two);
    sibling["endpoints"][1]["addresses"] = json!([heavy.local_addr().unwrap().ip()]);
    cluster.api.set("endpointslices", sibling);
    agent.wait_for("sibling", |line| skipped(line, "\"siblingPeer\": 1"));
    let mut http2 = slice("checkout", &two);
    http2["ports"][0]["appProtocol"] = "kubernetes.io/h2c".into();
    cluster.api.set("services", service("checkout", json!({})));
    cluster.api.set("endpointslices", http2);
    agent.wait_for("HTTP/2", |line| skipped(line, "\"http2\": 1"));
    let three = [two[0], two[1], ("third", "other")];
    cluster.api.set("endpointslices", slice("checkout", &three));
    agent.wait_for("stabilizing", |line| skipped(line, "\"stabilizing\": 1"));
    assert_eq!(agent.logged("move").len(), 0);
    request(&mut heavy, "/").unwrap();
    agent.wait_for_move();
    assert!(is_reset(&mut heavy));
}

#[test]
fn without_the_api_server_nothing_is_moved_by_name_until_it_is_back() {
    let _alone = alone();
    let lab = lab(1);
    let mut cluster = Cluster::of(&lab);
    let mut agent = cluster.agent(&lab, &policy("services: ['*/checkout']"));
    cluster.api.down();
    agent.wait_for("stale names", |line| {
        line["naming"]
            .as_str()
            .is_some_and(|naming| naming.starts_with("Stale"))
    });
    let mut heavy = connect(&lab, lab.pod(0).address());
    download(&mut heavy);
    agent.wait_for("skipped", |line| skipped(line, "staleFacts"));
    agent.wait_for_intervals(3);
    assert_eq!(agent.logged("move").len(), 0);
    request(&mut heavy, "/").unwrap();
    assert_eq!(agent.connections(lab.pod(0)).len(), 1, "tracking goes on");
    cluster.api.up().unwrap();
    let line = agent.wait_for_move();
    assert_eq!(line["pod"], format!("shop/{}", lab.pod(0).name));
    assert!(is_reset(&mut heavy));
}

#[test]
fn pods_that_opt_out_or_are_unknown_are_skipped() {
    let _alone = alone();
    let lab = lab(2);
    let cluster = Cluster::of(&lab);
    let out = json!({"rebalancer.dev/enabled": "false"});
    cluster.api.set("pods", object(lab.pod(0), out));
    // The API server has another pod of that name on this node by now.
    let mut other = object(lab.pod(1), json!({}));
    other["metadata"]["uid"] = "0f4c2a1e-7b1d-4c58-9c8e-2d4f7a6b1c33".into();
    cluster
        .api
        .delete("pods", &format!("shop/{}", lab.pod(1).name));
    cluster.api.set("pods", other);
    let mut agent = cluster.agent(&lab, &policy("ports: [{port: 80}]"));
    let mut heavy = [0, 1].map(|n| connect(&lab, lab.pod(n).address()));
    heavy.iter_mut().for_each(download);
    agent.wait_for("both skipped", |line| {
        skipped(line, "\"optedOut\": 1") && skipped(line, "\"unnamed\": 1")
    });
    // Both are named as they are, and then moved.
    for n in [0, 1] {
        cluster.api.set("pods", object(lab.pod(n), json!({})));
    }
    agent.wait_for_move();
    agent.wait_for_move();
    assert!(heavy.iter_mut().all(is_reset));
}

/// A pod with cgroups of its own can name them as it likes.
#[test]
fn a_pod_that_imitates_anothers_cgroup_is_not_taken_for_it() {
    let _alone = alone();
    let lab = lab(2);
    let cluster = Cluster::of(&lab);
    let mut agent = cluster.agent(&lab, &policy("services: ['*/checkout']"));
    let [victim, liar] = [lab.pod(0), lab.pod(1)];
    let below = format!("kubepods/burstable/pod{}/{}", uid(victim), "0".repeat(64));
    let own = liar.host.cgroup().join(below);
    std::fs::create_dir_all(&own).unwrap();
    let address = std::net::SocketAddr::from((*liar.address().ip(), 8080));
    let server = Server::start(&liar.host, address, Kind::Plain);
    move_into(server.child.id(), &own);
    // The Service leads to that port too: what it lacks is the right pod.
    let slice = json!({"metadata": {"name": "checkout-2", "namespace": "shop",
                                    "labels": {"kubernetes.io/service-name": "checkout"}},
                       "addressType": "IPv4", "ports": [{"port": 8080, "protocol": "TCP"}],
                       "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": NODE,
                                      "targetRef": {"kind": "Pod", "uid": uid(victim)}}]});
    cluster.api.set("endpointslices", slice);
    let _stream = connect(&lab, address);
    let named = eventually("the liar's endpoint has a name", || {
        let dump = cluster.dump(&agent, &["--endpoints"]);
        let endpoints = dump["items"].as_array().unwrap().clone();
        let of_liar = |e: &&Value| e["netns"] == liar.host.netns_inode() && e["port"] == 8080;
        let named = endpoints.iter().find(of_liar).map(|e| e["pod"].clone());
        named.filter(|pod| pod.is_object()).ok_or(json!(endpoints))
    });
    assert_eq!(named["uid"], uid(liar));
    assert_eq!(named["services"], json!([]));
    agent.wait_for_intervals(2);
    assert_eq!(agent.logged("move").len(), 0);
    drop(server);
    // The lab's own script removes no folders that it does not know.
    eventually("the cgroups are empty", || {
        remove_below(liar.host.cgroup(), &own)
    });
}

fn move_into(pid: u32, cgroup: &Path) {
    std::fs::write(cgroup.join("cgroup.procs"), pid.to_string()).unwrap();
}

/// Removes `own` and what is above it, up to `cgroup`.
fn remove_below(cgroup: &Path, own: &Path) -> Result<bool, bool> {
    for folder in own.ancestors().take_while(|folder| *folder != cgroup) {
        if folder.exists() && std::fs::remove_dir(folder).is_err() {
            return Err(false);
        }
    }
    Ok(true)
}

/// The Events written for this reason, with their namespaces.
fn written(cluster: &Cluster, reason: &str) -> Vec<(String, Value)> {
    let all = cluster.api.written().into_iter();
    all.filter(|(_, event)| event["reason"] == reason).collect()
}

fn of_own_pod(command: &mut Command) -> &mut Command {
    command
        .env("POD_NAME", "rebalancer-x")
        .env("POD_NAMESPACE", "rebalancer")
        .env("POD_UID", "0-1")
}

#[test]
fn moves_and_refused_policies_are_reported_as_events_of_their_pods() {
    let _alone = alone();
    let lab = lab(1);
    let cluster = Cluster::of(&lab);
    let policy = crate::moves::enforce(&lab, 80, "maxAge: 400ms", crate::moves::AT_ONCE);
    // Services must stabilize again after each start.
    let policy = policy.replace("minAge: 200ms", "minAge: 200ms, stabilizationWindow: 1s");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &policy).unwrap();
    let ours = cluster.arguments();
    let mut arguments = vec!["--cgroup", cgroup(&lab).to_str().unwrap(), "--move-events"];
    arguments.extend(ours.iter().map(String::as_str));
    let pins = own_pins();
    let mut command = Agent::command(file.path(), &pins, &arguments);
    of_own_pod(&mut command);
    let mut agent = Agent::launch(command, pins);
    agent.wait_for("names", |line| line["naming"] == "Fresh");
    let _streams = [0; 2].map(|_| connect(&lab, lab.pod(0).address()));
    agent.wait_for_move();
    agent.wait_for_move();
    let moved = eventually("an Event reports the moves", || {
        let moved = written(&cluster, "ConnectionsMoved");
        if moved.is_empty() {
            Err(moved)
        } else {
            Ok(moved)
        }
    });
    agent.wait_for_intervals(5);
    let (namespace, event) = &moved[0];
    assert_eq!(namespace, "shop");
    assert_eq!(event["type"], "Normal");
    assert_eq!(event["regarding"]["uid"], uid(lab.pod(0)));
    assert!(
        event["note"]
            .as_str()
            .unwrap()
            .contains("Rule lab has moved"),
        "{event}"
    );
    assert_eq!(
        written(&cluster, "ConnectionsMoved").len(),
        1,
        "one in five minutes"
    );

    // Where Events about other pods are forbidden, the Event is about the agent's own pod.
    cluster.api.allow_writes_to("rebalancer");
    std::fs::write(file.path(), "mode: Enforce").unwrap();
    agent.signal(rustix::process::Signal::HUP);
    let refused = eventually("an Event reports the refusal", || {
        let refused = written(&cluster, "PolicyRefused");
        if refused.is_empty() {
            Err(refused)
        } else {
            Ok(refused)
        }
    });
    let (namespace, event) = &refused[0];
    assert_eq!(
        (namespace.as_str(), &event["type"]),
        ("rebalancer", &"Warning".into())
    );
    assert_eq!(event["regarding"]["name"], "rebalancer-x");
    assert_eq!(event["regarding"]["uid"], "0-1");
    let note = event["note"].as_str().unwrap();
    assert!(
        note.contains("apiVersion") && note.contains("last valid one"),
        "{note}"
    );
    agent.signal(rustix::process::Signal::HUP);
    agent.wait_for("refused again", |line| {
        line["message"] == "policy refused, keeping the last valid one"
    });
    agent.wait_for_intervals(3);
    assert_eq!(
        written(&cluster, "PolicyRefused").len(),
        1,
        "the same again"
    );
    assert_eq!(agent.terminate(), Some(0));

    // One that cannot start says so too.
    let mut command = Agent::command(file.path(), &own_pins(), &arguments);
    let out = of_own_pod(&mut command).output().unwrap();
    assert_eq!(out.status.code(), Some(3), "{out:?}");
    let refused = written(&cluster, "PolicyRefused");
    assert_eq!(refused.len(), 2, "{refused:#?}");
    let note = refused[1].1["note"].as_str().unwrap();
    assert!(note.contains("does not start"), "{note}");
}

/// Without an API server to ask, as where a token was not mounted, no guard of Kubernetes holds.
#[test]
fn pods_that_nobody_names_are_not_moved() {
    let _alone = alone();
    let lab = lab(1);
    let by_port = policy("ports: [{port: 80}]");
    let arguments = ["--cgroup", cgroup(&lab).to_str().unwrap()];
    let with = |ask| [&arguments[..], &[ask][..]].concat();
    let mut agent = Agent::with(&by_port, own_pins(), &with("--kubernetes=auto"));
    let mut stream = connect(&lab, lab.pod(0).address());
    download(&mut stream);
    agent.wait_for("a dry run's report", |line| line["message"] == "would move");
    agent.wait_for_intervals(3);
    assert!(agent.logged("move").is_empty());
    let mode = &crate::status::status(&agent)["mode"];
    assert_eq!(mode["effective"], "DryRun");
    assert_eq!(mode["limitedBy"], json!(["podsWithoutNames"]));
    request(&mut stream, "/").unwrap();
    drop(agent);
    // Who says that they are not to be named has said so.
    let mut agent = Agent::with(&by_port, own_pins(), &with("--kubernetes=off"));
    let mut stream = connect(&lab, lab.pod(0).address());
    download(&mut stream);
    assert_eq!(agent.wait_for_move()["outcome"], "reset");
}
