//! The manifests under deploy/: what kubectl makes of them is what we mean, and the policy they
//! bring is valid and safe. No cluster is asked.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use rebalancer_user::policy::{self, Mode, Policy};
use serde_json::{Value, json};

const NAMESPACE: &str = "rebalancer";

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn base() -> PathBuf {
    deploy().join("base")
}

/// What `kubectl apply -k deploy/base` would send.
fn rendered() -> Vec<Value> {
    let output = Command::new("kubectl")
        .arg("kustomize")
        .arg(base())
        .output()
        .unwrap_or_else(|e| panic!("kubectl: {e}; `cargo xtask setup` installs it"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl kustomize: {said}");
    assert!(
        !said.contains("deprecated") && !said.contains("Warning"),
        "{said}"
    );
    let text = String::from_utf8(output.stdout).expect("kubectl writes UTF-8");
    serde_saphyr::from_multiple(&text).expect("kubectl writes YAML")
}

/// The one object of that kind.
fn object(kind: &str) -> Value {
    let mut of_kind = rendered();
    of_kind.retain(|object| object["kind"] == kind);
    assert_eq!(of_kind.len(), 1, "{kind}s: {of_kind:#?}");
    of_kind.remove(0)
}

/// What these JSON pointers lead to is so.
#[track_caller]
fn shows(value: &Value, expected: Value) {
    for (pointer, expected) in expected.as_object().unwrap() {
        let found = value.pointer(pointer).unwrap_or(&Value::Null);
        assert_eq!(found, expected, "{pointer} of {value:#}");
    }
}

fn binary(arguments: &[&str]) -> Output {
    let mut binary = Command::new(env!("CARGO_BIN_EXE_rebalancer"));
    binary.args(arguments).output().unwrap()
}

fn daemon_set_pod() -> Value {
    object("DaemonSet")["spec"]["template"]["spec"].clone()
}

/// The only container.
fn container(pod: &Value) -> &Value {
    let containers = pod["containers"].as_array().expect("containers");
    assert_eq!(containers.len(), 1);
    assert!(pod["initContainers"].is_null());
    &containers[0]
}

/// The item of a list with this value in this field.
#[track_caller]
fn item<'a>(list: &'a Value, field: &str, value: &Value) -> &'a Value {
    let mut items = list.as_array().expect("a list").iter();
    items
        .find(|item| item[field] == *value)
        .unwrap_or_else(|| panic!("no {field} {value} in {list:#}"))
}

/// A volume of the pod and where the container has it.
fn volume(pod: &Value, path: &str) -> Value {
    let mount = item(&container(pod)["volumeMounts"], "mountPath", &path.into());
    let volume = item(&pod["volumes"], "name", &mount["name"]);
    json!({"volume": volume, "mount": mount})
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path:?}: {e}"))
}

/// The objects of a file below deploy/.
fn objects_of(file: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(deploy().join(file))).expect(file)
}

fn policy_file() -> String {
    read(base().join("policy.yaml"))
}

/// Its template has the labels by which it selects.
fn selects_its_own_pods(object: &Value) {
    let spec = &object["spec"];
    let selector = spec["selector"]["matchLabels"].as_object().unwrap();
    assert!(!selector.is_empty());
    for (label, value) in selector {
        assert_eq!(&spec["template"]["metadata"]["labels"][label], value);
    }
}

fn valid(text: &str) -> Policy {
    policy::parse("policy.yaml", text).unwrap_or_else(|errors| panic!("{errors}\n---\n{text}"))
}

#[test]
fn the_objects_are_these_and_in_one_namespace() {
    let objects = rendered();
    let name = |object: &Value| {
        let [kind, name] = [&object["kind"], &object["metadata"]["name"]];
        format!("{kind} {name}").replace('"', "")
    };
    let mut names: Vec<String> = objects.iter().map(name).collect();
    names.sort();
    let expected = [
        "ClusterRole rebalancer",
        "ClusterRoleBinding rebalancer",
        "ConfigMap rebalancer-policy",
        "DaemonSet rebalancer",
        "Namespace rebalancer",
        "Role rebalancer",
        "RoleBinding rebalancer",
        "ServiceAccount rebalancer",
    ];
    assert_eq!(names, expected);
    for object in objects {
        shows(
            &object,
            json!({"/metadata/labels/app.kubernetes.io~1name": "rebalancer"}),
        );
        let of_the_cluster = ["Namespace", "ClusterRole", "ClusterRoleBinding"];
        if !of_the_cluster.map(Value::from).contains(&object["kind"]) {
            shows(&object, json!({"/metadata/namespace": NAMESPACE}));
        }
    }
}

#[test]
fn the_namespace_admits_privileged_pods() {
    let labels = &object("Namespace")["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "privileged");
}

#[test]
fn the_daemon_set_selects_its_own_pods() {
    selects_its_own_pods(&object("DaemonSet"));
}

#[test]
fn the_agent_sees_the_whole_node_and_no_more_than_it_needs() {
    let pod = daemon_set_pod();
    shows(
        &pod,
        json!({
            "/hostPID": true,
            "/automountServiceAccountToken": true,
            "/serviceAccountName": "rebalancer",
        }),
    );
    // It enters namespaces; its own is the pod's.
    assert_ne!(pod["hostNetwork"], true);
    assert_ne!(pod["hostIPC"], true);
    let container = container(&pod);
    // Whose pods to ask for, and what its own Events are about.
    for (name, field) in [
        ("NODE_NAME", "spec.nodeName"),
        ("POD_NAME", "metadata.name"),
        ("POD_NAMESPACE", "metadata.namespace"),
        ("POD_UID", "metadata.uid"),
    ] {
        let of = item(&container["env"], "name", &name.into());
        shows(of, json!({"/valueFrom/fieldRef/fieldPath": field}));
    }
    let account = object("ServiceAccount");
    assert_eq!(account["automountServiceAccountToken"], false);
    let security = json!({"/privileged": true, "/readOnlyRootFilesystem": true});
    shows(&container["securityContext"], security);
}

/// What a role of this kind allows, each as verb, group and resource.
fn allowed(kind: &str) -> Vec<String> {
    let role = object(kind);
    let words = |value: &Value| -> Vec<String> {
        let list = value.as_array().expect("a list").iter();
        list.map(|word| word.as_str().expect("a word").to_owned())
            .collect()
    };
    let mut may = Vec::new();
    for rule in role["rules"].as_array().expect("rules") {
        for group in words(&rule["apiGroups"]) {
            for resource in words(&rule["resources"]) {
                let verbs = words(&rule["verbs"]).into_iter();
                may.extend(verbs.map(|verb| format!("{verb} {group}/{resource}")));
            }
        }
    }
    may.sort();
    let binding = object(&format!("{kind}Binding"));
    assert_eq!(binding["roleRef"]["kind"], kind);
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    let account = json!([
        {"kind": "ServiceAccount", "name": "rebalancer", "namespace": NAMESPACE}
    ]);
    assert_eq!(binding["subjects"], account);
    may
}

#[test]
fn the_account_may_read_what_names_need_write_its_own_events_and_nothing_else() {
    let everywhere = [
        "list /namespaces",
        "list /pods",
        "list /services",
        "list discovery.k8s.io/endpointslices",
        "watch /namespaces",
        "watch /pods",
        "watch /services",
        "watch discovery.k8s.io/endpointslices",
    ];
    assert_eq!(allowed("ClusterRole"), everywhere);
    // Its own namespace's: about its own pod. Those about others come with move-events.
    assert_eq!(allowed("Role"), ["create events.k8s.io/events"]);
}

#[test]
fn one_agent_on_every_linux_node_come_what_may() {
    let pod = daemon_set_pod();
    shows(
        &pod,
        json!({
            "/nodeSelector/kubernetes.io~1os": "linux",
            "/tolerations": [{"operator": "Exists"}],
            "/priorityClassName": "system-node-critical",
        }),
    );
    let [limits, requests] = ["limits", "requests"].map(|of| &container(&pod)["resources"][of]);
    assert!(limits["memory"].is_string());
    assert!(limits["cpu"].is_null(), "a throttled agent is late");
    assert!(requests["cpu"].is_string() && requests["memory"].is_string());
}

#[test]
fn the_agent_finds_what_it_needs_where_it_looks() {
    let pod = daemon_set_pod();
    // A folder, not a subPath: the kubelet's updates arrive only there.
    let policy = &object("ConfigMap")["metadata"]["name"];
    let at =
        json!({"/volume/configMap/name": policy, "/mount/subPath": null, "/mount/readOnly": true});
    shows(&volume(&pod, "/etc/rebalancer"), at);

    // What the agent mounts there must be the node's: pins are found by the next agent.
    let path = "/sys/fs/bpf";
    let at = json!({"/volume/hostPath/path": path, "/mount/mountPropagation": "Bidirectional"});
    shows(&volume(&pod, path), at);

    let path = "/sys/fs/cgroup";
    let at = json!({"/volume/hostPath/path": path, "/mount/readOnly": true});
    shows(&volume(&pod, path), at);

    // The node's own: what is written there at a pause outlives the pod.
    let path = "/run/rebalancer";
    let run = volume(&pod, path);
    let node = json!({"path": path, "type": "DirectoryOrCreate"});
    assert_eq!(run["volume"]["hostPath"], node);
    assert_ne!(
        run["mount"]["readOnly"], true,
        "the agent makes its socket there"
    );
    let mounts = container(&pod)["volumeMounts"].as_array().unwrap().len();
    assert_eq!((mounts, pod["volumes"].as_array().unwrap().len()), (4, 4));
}

#[test]
fn the_container_runs_the_agent_of_this_version() {
    let pod = daemon_set_pod();
    let agent = container(&pod);
    let image = concat!("rebalancer:", env!("CARGO_PKG_VERSION"));
    assert_eq!(agent["image"], image);
    assert_eq!(agent["imagePullPolicy"], "IfNotPresent");
    let words = command_of(agent);
    assert_eq!(words[..2], ["rebalancer", "agent"]);
    // deploy/README.md replaces it by its place, to uninstall.
    assert_eq!(agent["args"][1], "--on-exit=keep");
    // Without a token it must not become the agent of a plain host, which no guard of Kubernetes
    // holds back. An option that is added later takes its place.
    assert!(words.contains(&"--kubernetes=on"), "{words:?}");
    let chart = read(deploy().join("chart/templates/daemonset.yaml"));
    assert!(chart.contains("\n        - --kubernetes=on\n"), "{chart}");
    assert!(is_known(&[&words[..], &["--kubernetes=off"]].concat()));
    assert!(is_known(&words), "{words:?}");
    for probe in ["livenessProbe", "readinessProbe"] {
        let words = words_of(&agent[probe]["exec"]["command"]);
        assert!(is_known(&words), "{probe}: {words:?}");
    }
}

/// Whether the binary takes these words: with another option added it complains of that one, and
/// runs nothing.
fn is_known(words: &[&str]) -> bool {
    assert_eq!(words[0], "rebalancer");
    let output = binary(&[&words[1..], &["--no-such-option"]].concat());
    String::from_utf8_lossy(&output.stderr).contains("'--no-such-option'")
}

/// What a container runs.
fn command_of(container: &Value) -> Vec<&str> {
    let parts = ["command", "args"].map(|part| words_of(&container[part]));
    parts.concat()
}

fn words_of(list: &Value) -> Vec<&str> {
    let words = list.as_array().into_iter().flatten();
    words.map(|word| word.as_str().expect("a word")).collect()
}

/// Every file of that kind below a folder.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|of| of == extension) {
            found.push(path);
        }
    }
    found
}

#[test]
fn what_overlays_and_components_add_is_known_to_the_agent() {
    let help = binary(&["agent", "--help"]);
    let help = String::from_utf8(help.stdout).unwrap();
    let mut added = 0;
    for folder in ["components", "overlays", "chart"] {
        for file in files(&deploy().join(folder), "yaml") {
            let text = read(&file);
            let values = text.lines();
            for option in values.filter_map(|line| line.trim().strip_prefix("value: --")) {
                let option = format!("--{option}");
                assert!(is_known(&["rebalancer", "agent", &option]), "{option}");
                added += 1;
            }
            let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
            for variable in words.filter(|word| word.starts_with("REBALANCER_")) {
                assert!(help.contains(&format!("[env: {variable}=")), "{variable}");
                added += 1;
            }
        }
    }
    assert!(added > 5, "{added}");
}

fn coordinator(file: &str) -> Vec<Value> {
    objects_of(&format!("components/coordinator/{file}"))
}

#[test]
fn the_definition_of_node_balances_is_that_of_this_version() {
    let output = binary(&["crd"]);
    assert!(output.status.success());
    let file = read(deploy().join("components/coordinator/crd.yaml"));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        file == text,
        "write it again: rebalancer crd > deploy/components/coordinator/crd.yaml"
    );
}

#[test]
fn coordinators_are_two_unprivileged_pods_of_this_version() {
    let deployment = coordinator("deployment.yaml").remove(0);
    assert_eq!(deployment["spec"]["replicas"], 2);
    selects_its_own_pods(&deployment);
    let template = &deployment["spec"]["template"];
    // The agents are selected by it.
    let agents = &object("DaemonSet")["spec"]["selector"]["matchLabels"];
    assert_ne!(
        template["metadata"]["labels"]["app.kubernetes.io/name"],
        agents["app.kubernetes.io/name"]
    );
    let pod = &template["spec"];
    assert_eq!(pod["serviceAccountName"], "rebalancer-coordinator");
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    for shared in ["hostPID", "hostNetwork", "hostIPC", "volumes"] {
        assert!(pod[shared].is_null(), "{shared}");
    }
    let container = container(pod);
    let expected = json!({
        "/image": concat!("rebalancer:", env!("CARGO_PKG_VERSION")),
        "/securityContext/readOnlyRootFilesystem": true,
        "/securityContext/allowPrivilegeEscalation": false,
        "/securityContext/capabilities": {"drop": ["ALL"]},
    });
    shows(container, expected);
    let words = command_of(container);
    assert_eq!(words[..2], ["rebalancer", "coordinator"]);
    assert!(is_known(&words), "{words:?}");
}

#[test]
fn agents_write_reports_and_coordinators_views_and_nobody_more() {
    let rules = |name: &str, kind: &str| -> Vec<String> {
        let roles = coordinator("rbac.yaml");
        let role = roles
            .iter()
            .find(|role| role["kind"] == kind && role["metadata"]["name"] == name);
        let rules = role.unwrap_or_else(|| panic!("{kind} {name}"))["rules"].clone();
        let rules = rules.as_array().expect("rules").iter();
        rules
            .map(|rule| {
                let resources = words_of(&rule["resources"]).join(" ");
                format!("{resources}: {}", words_of(&rule["verbs"]).join(" "))
            })
            .collect()
    };
    let given = [
        "nodebalances: list watch delete",
        "nodebalances/status: patch",
    ];
    let led = ["leases: create", "leases: get update"];
    for (name, kind, expected) in [
        (
            "rebalancer-balance",
            "ClusterRole",
            &["nodebalances: list watch create patch"][..],
        ),
        ("rebalancer-coordinator", "ClusterRole", &given),
        ("rebalancer-coordinator", "Role", &led),
    ] {
        assert_eq!(rules(name, kind), expected, "{kind} {name}");
    }
    let policies = coordinator("admission.yaml");
    let text = serde_json::to_string(&policies).unwrap();
    for account in ["rebalancer", "rebalancer-coordinator"] {
        let user = format!("'system:serviceaccount:{NAMESPACE}:{account}'");
        assert!(text.contains(&user), "{user}");
    }
    assert!(text.contains("authentication.kubernetes.io/node-name"));
    let bound = policies
        .iter()
        .filter(|object| object["spec"]["validationActions"] == serde_json::json!(["Deny"]));
    assert_eq!(bound.count(), 2);
}

#[test]
fn what_removes_every_trace_is_of_this_version_too() {
    let objects = objects_of("uninstall.yaml");
    let daemon_set = objects.iter().find(|object| object["kind"] == "DaemonSet");
    let daemon_set = daemon_set.expect("one pod on every node");
    // The agent's own selector, NetworkPolicy and PodMonitor must not take these pods for its.
    let labels = &daemon_set["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels["app.kubernetes.io/name"], "rebalancer-uninstall");
    let pod = &daemon_set["spec"]["template"]["spec"];
    assert_eq!(pod["tolerations"], daemon_set_pod()["tolerations"]);
    // It finds the sockets of any pod.
    assert_eq!(pod["hostPID"], true);
    let uninstall = &pod["initContainers"][0];
    let expected = json!({
        "/image": container(&daemon_set_pod())["image"],
        "/command": ["rebalancer", "uninstall"],
        "/volumeMounts/0/mountPath": "/sys/fs/bpf",
    });
    shows(uninstall, expected);
}

#[test]
fn the_chart_is_of_this_version_and_has_the_bases_own_files() {
    let chart = deploy().join("chart");
    let about = objects_of("chart/Chart.yaml").remove(0);
    for field in ["version", "appVersion"] {
        assert_eq!(about[field], env!("CARGO_PKG_VERSION"), "{field}");
    }
    for (folder, file) in [
        ("base", "policy.yaml"),
        ("components/monitoring", "dashboard.json"),
        ("components/monitoring", "prometheusrule.yaml"),
    ] {
        let own = read(chart.join("files").join(file));
        assert_eq!(own, read(deploy().join(folder).join(file)), "{file}");
    }
}

/// Names in a query that begin as the agent's metrics do, without what a histogram adds.
fn metrics_in(query: &str) -> BTreeSet<String> {
    query
        .split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .filter(|word| word.starts_with("rebalancer_"))
        .map(|word| word.strip_suffix("_bucket").unwrap_or(word).to_owned())
        .collect()
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
    let lists = ["metrics.txt", "metrics-coordinator.txt"];
    let list = lists.map(|file| read(deploy().join(file))).concat();
    let lines = list.lines().filter(|line| line.starts_with("rebalancer_"));
    let known: BTreeSet<&str> = lines.filter_map(|line| line.split(' ').next()).collect();
    assert!(known.contains("rebalancer_moves_total"), "{known:?}");
    let monitoring = deploy().join("components/monitoring");
    for file in ["dashboard.json", "prometheusrule.yaml"] {
        let text = read(monitoring.join(file));
        let asked: BTreeSet<String> = text.lines().flat_map(metrics_in).collect();
        assert!(asked.len() > 5, "{file}: {asked:?}");
        let unknown = asked.iter().find(|name| !known.contains(name.as_str()));
        assert_eq!(unknown, None, "{file}");
    }
}

#[test]
fn the_policy_in_the_config_map_is_the_file_and_it_is_valid() {
    let config_map = object("ConfigMap");
    let data = config_map["data"].as_object().expect("data");
    assert_eq!(data.keys().collect::<Vec<_>>(), ["policy.yaml"]);
    let text = data["policy.yaml"].as_str().expect("a text");
    assert_eq!(text, policy_file());

    // As an operator would see it.
    let file = base().join("policy.yaml");
    let output = binary(&["policy", "check", file.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let output = String::from_utf8_lossy(&output.stdout);
    assert!(output.contains("mode DryRun"), "{output}");
}

/// The whole documents in the guides: who copies one gets a dry run.
#[test]
fn the_policies_of_the_guides_are_valid_and_move_nothing() {
    for (page, least) in [("RECIPES.md", 8), ("../README.md", 1)] {
        let text = std::fs::read_to_string(deploy().join(page)).unwrap();
        let blocks = text.split("```yaml\n").skip(1);
        let blocks = blocks.filter_map(|rest| rest.split("```").next());
        let policies: Vec<&str> = blocks
            .filter(|block| block.starts_with("apiVersion: rebalancer.dev/"))
            .collect();
        assert!(policies.len() >= least, "{page}: {policies:#?}");
        for policy in policies {
            assert_eq!(valid(policy).mode(), Mode::DryRun, "{page}: {policy}");
        }
    }
}

#[test]
fn the_policy_moves_nothing() {
    let policy = valid(&policy_file());
    assert_eq!(policy.mode(), Mode::DryRun);
    assert!(!policy.rules().is_empty(), "a dry run shows something");
    for rule in policy.rules() {
        assert!(policy.mode_of(rule) <= Mode::DryRun, "{:?}", rule.name());
    }
}

#[test]
fn its_commented_examples_are_valid_too() {
    // `#- ` and `#  ` begin lines of YAML, `# ` lines of prose.
    let uncommented: Vec<String> = policy_file()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(yaml) if yaml.starts_with("- ") || yaml.starts_with("  ") => yaml.to_owned(),
            _ => line.to_owned(),
        })
        .skip_while(|line| line != "rules:")
        .collect();
    let head = policy_file();
    let head = head.split("\nrules:\n").next().unwrap();
    let all = format!("{head}\n{}\n", uncommented.join("\n"));
    let with_examples = valid(&all);
    let examples = with_examples.rules().len() - valid(&policy_file()).rules().len();
    assert_eq!(examples, 5);
}
