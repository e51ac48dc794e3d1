//! Rollouts of servers without shutdown code, under clients of several libraries, without a drain and with one: what
//! each loses. The programs are this machine's own, mounted into pods.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use fs_err as fs;
use serde_json::{Value, json};

use super::{Outcome, State, policy};
use crate::{
    cluster::{images, kubectl, layout, process},
    progress, root, setup,
};

const REPLICAS: usize = 3;
/// Of each client to each server.
const CONNECTIONS: usize = 10;

struct Server {
    name: &'static str,
    /// What the table calls it.
    title: &'static str,
    command: &'static str,
    is_grpc: bool,
}

const SERVERS: [Server; 5] = [
    Server {
        name: "roll-go",
        title: "Go net/http",
        command: "/work/rollouts serve-http",
        is_grpc: false,
    },
    Server {
        name: "roll-node",
        title: "Node http",
        command: "node /work/node.js serve",
        is_grpc: false,
    },
    Server {
        name: "roll-aiohttp",
        title: "Python aiohttp",
        command: "/usr/bin/python3 /work/rollouts.py serve",
        is_grpc: false,
    },
    Server {
        name: "roll-nginx",
        title: "nginx",
        command: "nginx",
        is_grpc: false,
    },
    Server {
        name: "roll-grpc",
        title: "grpc-go",
        command: "/work/rollouts serve-grpc",
        is_grpc: true,
    },
];

struct Client {
    name: &'static str,
    title: &'static str,
    command: &'static str,
    is_grpc: bool,
}

const CLIENTS: [Client; 6] = [
    Client {
        name: "ask-go",
        title: "Go net/http",
        command: "/work/rollouts ask-http",
        is_grpc: false,
    },
    Client {
        name: "ask-java",
        title: "Java java.net.http",
        command: "java -Xmx256m -cp /work Ask",
        is_grpc: false,
    },
    Client {
        name: "ask-node",
        title: "Node http",
        command: "node /work/node.js ask",
        is_grpc: false,
    },
    Client {
        name: "ask-aiohttp",
        title: "Python aiohttp",
        command: "/usr/bin/python3 /work/rollouts.py ask",
        is_grpc: false,
    },
    Client {
        name: "ask-grpc-go",
        title: "grpc-go",
        command: "/work/rollouts ask-grpc",
        is_grpc: true,
    },
    Client {
        name: "ask-grpcio",
        title: "Python grpcio",
        command: "/usr/bin/python3 /work/rollouts.py ask-grpc",
        is_grpc: true,
    },
];

/// Requests and errors, by the names of server and client.
type Counts = BTreeMap<(String, String), [u64; 2]>;

/// Rolls all servers so many times under each policy.
pub(super) fn table(state: &mut State) -> Outcome {
    let folder = layout::state().join("rollouts");
    build(&folder)?;
    let mut objects: Vec<Value> = Vec::new();
    for (number, server) in SERVERS.iter().enumerate() {
        objects.extend(server.objects(&address(number), &folder)?);
    }
    apply(&objects)?;
    for server in &SERVERS {
        server.ready()?;
    }
    let mut clients = Vec::new();
    for client in &CLIENTS {
        clients.push(client.object(&folder)?);
    }
    apply(&clients)?;
    process::wait("an answer to each client", 120, || {
        let counts = counts().ok()?;
        let answered = counts.values().all(|[requests, errors]| requests > errors);
        (counts.len() == pairs().count() && answered).then_some(())
    })
    .with_context(|| format!("{:?}", counts()))?;
    enforce("limits: {maxAge: 8000h}")?;
    let without = rolled(state.rollouts, "without a drain")?;
    enforce("drain: {on: [Terminating]}")?;
    let with = rolled(state.rollouts, "with a drain")?;
    println!("{}", markdown(state.rollouts, &without, &with));
    let objects = objects.iter().chain(&clients);
    delete(objects)?;
    let failed = |counts: &Counts| counts.values().map(|[_, errors]| errors).sum::<u64>();
    let (without, with) = (failed(&without), failed(&with));
    ensure!(with == 0, "{with} requests failed with a drain");
    Ok(format!(
        "{without} requests failed without a drain, none with one"
    ))
}

/// Each server with each of its clients.
fn pairs() -> impl Iterator<Item = (&'static Server, &'static Client)> {
    SERVERS.iter().flat_map(|server| {
        let its = CLIENTS
            .iter()
            .filter(|client| client.is_grpc == server.is_grpc);
        its.map(move |client| (server, client))
    })
}

fn address(number: usize) -> String {
    format!("10.96.1.{}", 40 + number)
}

/// Puts servers and clients into a folder: `rollouts` of Go, and the sources of the others.
pub(crate) fn build(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let sources = root().join("xtask/cluster/rollouts");
    for name in ["node.js", "rollouts.py"] {
        fs::copy(sources.join(name), folder.join(name))?;
    }
    let mut go = setup::go_build(&sources)?;
    go.env("CGO_ENABLED", "0")
        .arg("-o")
        .arg(folder.join("rollouts"));
    progress::run("building the servers and clients of Go", go.arg("."))?;
    let mut javac = Command::new("javac");
    javac.arg("-d").arg(folder).arg(sources.join("Ask.java"));
    process::output(&mut javac).map(drop)
}

/// A policy with these fields for all servers.
fn enforce(fields: &str) -> Result<()> {
    let services = |is_grpc: bool| -> String {
        let these = SERVERS.iter().filter(|server| server.is_grpc == is_grpc);
        let names: Vec<String> = these.map(|s| format!("default/{}", s.name)).collect();
        names.join(", ")
    };
    let http = format!("match: {{services: [{}]}}\n  {fields}", services(false));
    let mut text = policy::with_rule("http", &http, 300);
    text.push_str(&format!(
        "- name: grpc\n  match: {{services: [{}]}}\n  {fields}\n  \
         steps: [{{step: Notice, idleFor: 50ms, timeout: 10s}}]\n",
        services(true)
    ));
    policy::enforce(&text).map(drop)
}

/// Rolls all servers at once, again and again; what was asked and has failed meanwhile.
fn rolled(times: u32, how: &str) -> Result<Counts> {
    let before = counts()?;
    for time in 1..=times {
        for server in &SERVERS {
            kubectl::run(&format!("rollout restart deploy/{}", server.name))?;
        }
        for server in &SERVERS {
            server.ready()?;
        }
        let failed: u64 = counts()?.values().map(|[_, errors]| errors).sum();
        let at_first: u64 = before.values().map(|[_, errors]| errors).sum();
        println!(
            "    rollout {time} of {times} {how}: {} requests have failed so far",
            failed - at_first
        );
    }
    // A report is of the second before.
    std::thread::sleep(std::time::Duration::from_secs(2));
    let mut counts = counts()?;
    for (pair, [requests, errors]) in &mut counts {
        let [requests_before, errors_before] = before.get(pair).copied().unwrap_or_default();
        *requests -= requests_before;
        *errors -= errors_before;
    }
    Ok(counts)
}

/// What each client reports.
fn counts() -> Result<Counts> {
    let mut counts = Counts::new();
    for client in &CLIENTS {
        let line = kubectl::run(&format!("logs {} --tail=1", client.name))?;
        let report: BTreeMap<String, Value> =
            serde_json::from_str(&line).with_context(|| format!("{}: {line}", client.name))?;
        for (server, count) in report {
            let number = |name: &str| count[name].as_u64().context("a count");
            let both = [number("requests")?, number("errors")?];
            counts.insert((server, client.name.to_owned()), both);
        }
    }
    Ok(counts)
}

fn markdown(times: u32, without: &Counts, with: &Counts) -> String {
    let mut text = format!(
        "\n| Server | Client | failed of requests in {times} rollouts without a drain | with a drain |\n|---|---|---|---|\n"
    );
    for (server, client) in pairs() {
        let cell = |counts: &Counts| {
            let pair = (server.name.to_owned(), client.name.to_owned());
            let [requests, errors] = counts.get(&pair).copied().unwrap_or_default();
            format!("{errors} of {requests}")
        };
        text.push_str(&format!(
            "| {} | {} | {} | {} |\n",
            server.title,
            client.title,
            cell(without),
            cell(with)
        ));
    }
    text
}

/// The pod that runs this command, of an image with a shell, and this machine's programs and libraries.
fn pod(image: &str, command: &str, folder: &Path) -> Result<Value> {
    // Debian's are links to /etc.
    let java = fs::canonicalize("/usr/bin/java").context("java")?;
    let java = java.ancestors().nth(2).context("the folder of java")?;
    let conf = fs::canonicalize(java.join("conf/security/java.security"))?;
    let conf = conf.ancestors().nth(2).context("the settings of java")?;
    let mounts = [
        ("usr", Path::new("/usr"), "/usr"),
        ("lib", Path::new("/lib"), "/lib"),
        ("lib64", Path::new("/lib64"), "/lib64"),
        ("work", folder, "/work"),
        ("java", conf, conf.to_str().context("a path")?),
        ("certificates", Path::new("/etc/ssl"), "/etc/ssl"),
    ];
    let mounts = if image == images::WEB {
        &[][..]
    } else {
        &mounts[..]
    };
    let volumes: Vec<Value> = mounts
        .iter()
        .map(|(name, path, _)| json!({"name": name, "hostPath": {"path": path}}))
        .collect();
    let mounts: Vec<Value> = mounts
        .iter()
        .map(|(name, _, at)| json!({"name": name, "mountPath": at, "readOnly": true}))
        .collect();
    Ok(json!({
        "automountServiceAccountToken": false,
        "volumes": volumes,
        "containers": [{
            "name": "program", "image": image, "imagePullPolicy": "Never", "volumeMounts": mounts,
            // The end of process 1 is that of all processes of the container.
            "command": ["sh", "-c", format!("trap 'exit 0' QUIT TERM; {command} & wait")],
            "env": [{"name": "PATH", "value": format!("/usr/sbin:/usr/bin:/bin:{}/bin", java.display())}],
        }],
    }))
}

fn apply(objects: &[Value]) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    kubectl::apply(&list.to_string())
}

fn delete<'a>(objects: impl Iterator<Item = &'a Value>) -> Result<()> {
    for object in objects {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, name) = (text(&object["kind"]), text(&object["metadata"]["name"]));
        kubectl::run(&format!("delete {kind}/{name} --wait=false"))?;
    }
    Ok(())
}

impl Server {
    /// A Service and its Deployment.
    fn objects(&self, address: &str, folder: &Path) -> Result<[Value; 2]> {
        let name = self.name;
        let labels = json!({"app": name});
        let image = match self.command {
            "nginx" => images::WEB,
            _ => images::CLIENT,
        };
        let mut pod = pod(image, self.command, folder)?;
        pod["terminationGracePeriodSeconds"] = 30.into();
        // On different nodes, if it can be.
        pod["topologySpreadConstraints"] = json!([{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": labels}, "matchLabelKeys": ["pod-template-hash"],
        }]);
        let container = &mut pod["containers"][0];
        container["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 15}}});
        container["readinessProbe"] = json!({"tcpSocket": {"port": 80}, "periodSeconds": 1});
        let port = match self.is_grpc {
            true => json!({"port": 80, "appProtocol": "kubernetes.io/h2c"}),
            false => json!({"port": 80}),
        };
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"clusterIP": address, "selector": labels, "ports": [port]},
        });
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
            "spec": {
                "replicas": REPLICAS, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        });
        Ok([service, deployment])
    }

    /// Waits until its replicas serve and no other is left.
    fn ready(&self) -> Result<()> {
        let name = self.name;
        kubectl::run(&format!("rollout status deploy/{name} --timeout=180s"))?;
        process::wait("the old replicas to be gone", 120, || {
            let names = kubectl::run(&format!("get pods -l app={name} -o name")).ok()?;
            (names.lines().count() == REPLICAS).then_some(())
        })
    }
}

impl Client {
    fn object(&self, folder: &Path) -> Result<Value> {
        let its = SERVERS.iter().zip(0..);
        let its = its.filter(|(server, _)| server.is_grpc == self.is_grpc);
        let targets = its.map(|(server, number)| {
            let (name, address) = (server.name, address(number));
            match self.is_grpc {
                true => format!("{name}={address}:80"),
                false => format!("{name}=http://{address}/"),
            }
        });
        let targets: Vec<String> = targets.collect();
        let command = format!("{} {CONNECTIONS} {}", self.command, targets.join(" "));
        let mut pod = pod(images::CLIENT, &command, folder)?;
        pod["terminationGracePeriodSeconds"] = 0.into();
        Ok(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": self.name}, "spec": pod,
        }))
    }
}
