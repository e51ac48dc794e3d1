//! The manifests under deploy/: what kubectl makes of them is what we mean, and the policy they
//! bring is valid and safe. No cluster is asked.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use rebalancer_user::policy::{self, Mode, Policy};
use serde_json::Value;

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
    let mut of_kind: Vec<Value> = rendered()
        .into_iter()
        .filter(|object| object["kind"] == kind)
        .collect();
    assert_eq!(of_kind.len(), 1, "{kind}s: {of_kind:#?}");
    of_kind.remove(0)
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

/// A volume of the pod and where the container has it.
fn volume<'a>(pod: &'a Value, path: &str) -> (&'a Value, &'a Value) {
    let find = |list: &'a Value, field: &str, value: &str| {
        list.as_array()
            .into_iter()
            .flatten()
            .find(|item| item[field] == value)
    };
    let mount = find(&container(pod)["volumeMounts"], "mountPath", path)
        .unwrap_or_else(|| panic!("nothing is mounted at {path}"));
    let name = mount["name"].as_str().expect("a mount's name");
    let volume = find(&pod["volumes"], "name", name)
        .unwrap_or_else(|| panic!("{path}: there is no volume {name}"));
    (volume, mount)
}

fn policy_file() -> String {
    std::fs::read_to_string(base().join("policy.yaml")).unwrap()
}

fn valid(text: &str) -> Policy {
    policy::parse("policy.yaml", text).unwrap_or_else(|errors| panic!("{errors}\n---\n{text}"))
}

#[test]
fn the_objects_are_these_and_in_one_namespace() {
    let mut objects: Vec<(String, String)> = rendered()
        .iter()
        .map(|object| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (text(&object["kind"]), text(&object["metadata"]["name"]))
        })
        .collect();
    objects.sort();
    let expected = [
        ("ClusterRole", "rebalancer"),
        ("ClusterRoleBinding", "rebalancer"),
        ("ConfigMap", "rebalancer-policy"),
        ("DaemonSet", "rebalancer"),
        ("Namespace", NAMESPACE),
        ("Role", "rebalancer"),
        ("RoleBinding", "rebalancer"),
        ("ServiceAccount", "rebalancer"),
    ]
    .map(|(kind, name)| (kind.to_owned(), name.to_owned()));
    assert_eq!(objects, expected);
    for object in rendered() {
        let metadata = &object["metadata"];
        assert_eq!(
            metadata["labels"]["app.kubernetes.io/name"], "rebalancer",
            "{object:#}"
        );
        let of_the_cluster = ["Namespace", "ClusterRole", "ClusterRoleBinding"];
        if !of_the_cluster.map(Value::from).contains(&object["kind"]) {
            assert_eq!(metadata["namespace"], NAMESPACE, "{object:#}");
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
    let spec = &object("DaemonSet")["spec"];
    let selector = spec["selector"]["matchLabels"]
        .as_object()
        .expect("a selector");
    assert!(!selector.is_empty());
    for (label, value) in selector {
        assert_eq!(&spec["template"]["metadata"]["labels"][label], value);
    }
}

#[test]
fn the_agent_sees_the_whole_node_and_no_more_than_it_needs() {
    let pod = daemon_set_pod();
    assert_eq!(pod["hostPID"], true);
    // It enters namespaces; its own is the pod's.
    assert_ne!(pod["hostNetwork"], true);
    assert_ne!(pod["hostIPC"], true);
    assert_eq!(pod["automountServiceAccountToken"], true);
    assert_eq!(pod["serviceAccountName"], "rebalancer");
    let env = container(&pod)["env"].as_array().expect("a list").clone();
    // Whose pods to ask for, and what its own Events are about.
    for (name, field) in [
        ("NODE_NAME", "spec.nodeName"),
        ("POD_NAME", "metadata.name"),
        ("POD_NAMESPACE", "metadata.namespace"),
        ("POD_UID", "metadata.uid"),
    ] {
        let of = env.iter().find(|variable| variable["name"] == name);
        let of = of.unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(of["valueFrom"]["fieldRef"]["fieldPath"], field);
    }
    let account = object("ServiceAccount");
    assert_eq!(account["automountServiceAccountToken"], false);
    let security = &container(&pod)["securityContext"];
    assert_eq!(security["privileged"], true);
    assert_eq!(security["readOnlyRootFilesystem"], true);
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
    let account = serde_json::json!([{
        "kind": "ServiceAccount", "name": "rebalancer", "namespace": NAMESPACE
    }]);
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
    assert_eq!(pod["nodeSelector"]["kubernetes.io/os"], "linux");
    assert_eq!(
        pod["tolerations"],
        serde_json::json!([{"operator": "Exists"}])
    );
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    let resources = &container(&pod)["resources"];
    assert!(resources["limits"]["memory"].is_string());
    assert!(
        resources["limits"]["cpu"].is_null(),
        "a throttled agent is late"
    );
    assert!(
        resources["requests"]["cpu"].is_string() && resources["requests"]["memory"].is_string()
    );
}

#[test]
fn the_agent_finds_what_it_needs_where_it_looks() {
    let pod = daemon_set_pod();
    // A folder, not a subPath: the kubelet's updates arrive only there.
    let (volume_, mount) = volume(&pod, "/etc/rebalancer");
    let config_map = object("ConfigMap");
    assert_eq!(volume_["configMap"]["name"], config_map["metadata"]["name"],);
    assert!(mount["subPath"].is_null());
    assert_eq!(mount["readOnly"], true);

    // What the agent mounts there must be the node's: pins are found by the next agent.
    let (volume_, mount) = volume(&pod, "/sys/fs/bpf");
    assert_eq!(volume_["hostPath"]["path"], "/sys/fs/bpf");
    assert_eq!(mount["mountPropagation"], "Bidirectional");

    let (volume_, mount) = volume(&pod, "/sys/fs/cgroup");
    assert_eq!(volume_["hostPath"]["path"], "/sys/fs/cgroup");
    assert_eq!(mount["readOnly"], true);

    let (volume_, mount) = volume(&pod, "/run/rebalancer");
    // The node's own: what is written there at a pause outlives the pod.
    assert_eq!(volume_["hostPath"]["path"], "/run/rebalancer");
    assert_eq!(volume_["hostPath"]["type"], "DirectoryOrCreate");
    assert_ne!(mount["readOnly"], true, "the agent makes its socket there");
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
    let words = [words_of(&agent["command"]), words_of(&agent["args"])].concat();
    assert_eq!(words[..2], ["rebalancer", "agent"]);
    // deploy/README.md replaces it by its place, to uninstall.
    assert_eq!(agent["args"][1], "--on-exit=keep");
    // Without a token it must not become the agent of a plain host, which no guard of Kubernetes
    // holds back. An option that is added later takes its place.
    assert!(words.contains(&"--kubernetes=on"), "{words:?}");
    let chart = deploy().join("chart/templates/daemonset.yaml");
    let chart = std::fs::read_to_string(chart).unwrap();
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
    let output = Command::new(env!("CARGO_BIN_EXE_rebalancer"))
        .args(&words[1..])
        .arg("--no-such-option")
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stderr).contains("'--no-such-option'")
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
    let help = Command::new(env!("CARGO_BIN_EXE_rebalancer"))
        .args(["agent", "--help"])
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let mut added = 0;
    for folder in ["components", "overlays", "chart"] {
        for file in files(&deploy().join(folder), "yaml") {
            let text = std::fs::read_to_string(&file).unwrap();
            for option in text
                .lines()
                .filter_map(|line| line.trim().strip_prefix("value: --"))
            {
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

#[test]
fn what_removes_every_trace_is_of_this_version_too() {
    let text = std::fs::read_to_string(deploy().join("uninstall.yaml")).unwrap();
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
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
    assert_eq!(uninstall["image"], container(&daemon_set_pod())["image"]);
    assert_eq!(
        uninstall["command"],
        serde_json::json!(["rebalancer", "uninstall"])
    );
    assert_eq!(uninstall["volumeMounts"][0]["mountPath"], "/sys/fs/bpf");
}

#[test]
fn the_chart_is_of_this_version_and_has_the_bases_own_files() {
    let chart = deploy().join("chart");
    let text = std::fs::read_to_string(chart.join("Chart.yaml")).unwrap();
    let about: Value = serde_saphyr::from_str(&text).unwrap();
    for field in ["version", "appVersion"] {
        assert_eq!(about[field], env!("CARGO_PKG_VERSION"), "{field}");
    }
    let same = |file: &str, other: &str| {
        let read = |path: PathBuf| std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            read(chart.join("files").join(file)),
            read(deploy().join(other))
        );
    };
    same("policy.yaml", "base/policy.yaml");
    same("dashboard.json", "components/monitoring/dashboard.json");
    same(
        "prometheusrule.yaml",
        "components/monitoring/prometheusrule.yaml",
    );
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
    let list = std::fs::read_to_string(deploy().join("metrics.txt")).unwrap();
    let known: BTreeSet<&str> = list
        .lines()
        .filter(|line| line.starts_with("rebalancer_"))
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert!(known.contains("rebalancer_moves_total"), "{known:?}");
    let monitoring = deploy().join("components/monitoring");
    for file in ["dashboard.json", "prometheusrule.yaml"] {
        let text = std::fs::read_to_string(monitoring.join(file)).unwrap();
        let asked: BTreeSet<String> = text.lines().flat_map(metrics_in).collect();
        assert!(asked.len() > 5, "{file}: {asked:?}");
        let unknown: Vec<&String> = asked
            .iter()
            .filter(|name| !known.contains(name.as_str()))
            .collect();
        assert_eq!(unknown, [""; 0], "{file}");
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
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_rebalancer"))
        .args(["policy", "check"])
        .arg(file.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let output = String::from_utf8_lossy(&output.stdout);
    assert!(output.contains("mode DryRun"), "{output}");
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
