//! Rules, exclusions and tracking by cgroup.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Child,
};

use rustix::process::Signal;
use serde_json::{Value, json};
use xtask::lab::{Lab, Pod};

use crate::support::{
    Agent, TRACK_ONLY, answered, cgroup, connect, eventually, file_of, lab, move_to, request, shows,
};

/// As `/proc/PID/cgroup` shows it.
fn path(folder: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts
        .lines()
        .filter(|line| line.contains(" - cgroup2 "))
        .map(|line| line.split(' ').nth(4).unwrap())
        .find(|mount| folder.starts_with(mount))
        .unwrap();
    format!("/{}", folder.strip_prefix(mount).unwrap().display())
}

/// A policy with these parts of its own.
fn policy(track: &str, rules: &str) -> String {
    format!(
        "apiVersion: rebalancer.dev/v1alpha1\nkind: RebalancePolicy\nmode: Enforce\n\
         interval: 1h\ntrack: {{{track}}}\nguards: {{minAge: 0s}}\nrules: [{rules}]\n"
    )
}

fn rule(matches: &str) -> String {
    format!("{{name: by-cgroup, match: {{{matches}}}, limits: {{maxAge: 1ms}}, onReconnect: Safe}}")
}

/// A server in a cgroup of its own, which is made for it.
struct Server {
    child: Child,
    cgroup: PathBuf,
    address: SocketAddr,
}

impl Server {
    fn start(pod: &Pod, cgroup: PathBuf, port: u16) -> Self {
        fs::create_dir(&cgroup).unwrap();
        let join = "echo 0 > \"$1/cgroup.procs\" && exec iperf3 -s -p \"$2\" > /dev/null";
        let mut shell = pod.host.command("sh");
        shell.args(["-c", join, "sh"]).arg(&cgroup);
        let child = shell.arg(port.to_string()).spawn().unwrap();
        let listeners = || {
            let filter = format!("( sport = :{port} )");
            let mut ss = pod.host.command("ss");
            ss.args(["-tlnH", &filter]).output().unwrap().stdout
        };
        eventually("listening", listeners, |seen| !seen.is_empty());
        Self {
            child,
            cgroup,
            address: SocketAddr::from((pod.addr, port)),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        fs::remove_dir(&self.cgroup).unwrap();
    }
}

/// For what this agent has recorded in the lab.
fn within(lab: &Lab) -> [&str; 2] {
    ["--cgroup", cgroup(lab).to_str().unwrap()]
}

/// What `rebalancer COMMAND` prints of that.
fn ask(agent: &Agent, lab: &Lab, arguments: &[&str]) -> String {
    agent.ask(&[arguments, &within(lab)].concat())
}

/// An agent that is over its first interval.
fn excluding(lab: &Lab, globs: &str) -> Agent {
    let mut agent = Agent::in_lab(lab, &exclusion(globs));
    agent.wait_for_intervals(1);
    agent
}

fn exclusion(globs: &str) -> String {
    policy(&format!("excludeCgroups: [{globs}]"), "")
}

fn ports(agent: &Agent, pod: &Pod) -> Vec<u64> {
    let all = agent.connections(pod).into_iter();
    let mut ports: Vec<u64> = all
        .map(|c| c["endpoint"]["port"].as_u64().unwrap())
        .collect();
    ports.sort_unstable();
    ports
}

fn eventually_ports(what: &str, agent: &Agent, pod: &Pod, expected: &[u64]) {
    eventually(what, || ports(agent, pod), |seen| seen == expected);
}

#[test]
fn a_rule_moves_only_connections_in_its_cgroups() {
    let lab = lab(2);
    let named = lab.pod(0);
    let mut streams = [0, 1].map(|n| answered(&lab, lab.pod(n).address()));
    let here = path(named.host.cgroup());
    let parent = here.rsplit_once('/').unwrap().0;
    let by_cgroup = policy("", &rule(&format!("cgroups: ['*{parent}']")));

    // Beside an agent that only watches: what it would do, live and from the saved snapshot.
    let watcher = Agent::in_lab(&lab, TRACK_ONLY);
    assert_eq!(watcher.connection(named)["cgroupPath"], here);
    assert!(ask(&watcher, &lab, &["dump", "-o", "wide"]).contains(&here));
    let dump = file_of(&ask(&watcher, &lab, &["dump", "-o", "json"]));
    let saved = ["--snapshot", dump.path().to_str().unwrap()];
    for of in [within(&lab), saved] {
        let plan = watcher.plan_by(&by_cgroup, &of);
        let items = plan["items"].as_array().unwrap().iter();
        let by_cgroup = items.filter(|item| item["rule"] == "by-cgroup").count();
        assert_eq!(by_cgroup, 1, "{plan:#}");
    }
    drop(watcher);

    let mut agent = Agent::in_lab(&lab, &by_cgroup);
    let moved = agent.wait_for_move();
    assert_eq!(moved["rule"], "by-cgroup");
    assert!(request(&mut streams[0], "/").is_err(), "{moved:#}");
    assert!(request(&mut streams[1], "/").is_ok());
}

#[test]
fn a_connection_in_a_removed_cgroup_is_skipped_with_the_reason() {
    let lab = lab(2);
    let pod = lab.pod(0);
    let mut stream = answered(&lab, pod.address());
    // Its processes go elsewhere, its folder is removed: the sockets stay with what is gone.
    let here = path(pod.host.cgroup());
    let processes = fs::read_to_string(pod.host.cgroup().join("cgroup.procs")).unwrap();
    for process in processes.lines() {
        move_to(lab.pod(1), process.parse().unwrap());
    }
    fs::remove_dir(pod.host.cgroup()).unwrap();

    // The rule behind would cover it; which is the first that does is not known.
    let named = rule(&format!("cgroups: ['{here}']"));
    let any = "{name: any, match: {ports: [{port: 80}]}, limits: {maxAge: 1ms}, onReconnect: Safe}";
    let mut agent = Agent::in_lab(&lab, &policy("", &format!("{named}, {any}")));
    let listed = agent.wait_for_message("listed");
    let skipped = listed["skipped"].as_str().unwrap();
    assert!(skipped.contains("cgroupUnknown"), "{listed:#}");
    let c = agent.connection(pod);
    assert_eq!(c["cgroupPath"], Value::Null);
    let id = c["id"].as_str().unwrap();
    let why = ask(&agent, &lab, &["explain", id, "--policy", agent.policy()]);
    assert!(why.contains("gone or not known"), "{why}");
    request(&mut stream, "/").unwrap();
    fs::create_dir(pod.host.cgroup()).unwrap(); // for the lab to remove
}

#[test]
fn sockets_in_excluded_cgroups_and_in_new_ones_below_are_not_recorded() {
    let lab = lab(2);
    let [excluded, other] = [lab.pod(0), lab.pod(1)];
    let older = [excluded, other].map(|pod| connect(&lab, pod.address()));
    let here = path(excluded.host.cgroup());
    let agent = excluding(&lab, &format!("'{here}', '*/excluded-*'"));
    let younger = [excluded, other].map(|pod| connect(&lab, pod.address()));
    assert_eq!(ports(&agent, excluded), [0_u64; 0]);
    assert_eq!(ports(&agent, other), [80, 80]);
    let listener = agent.endpoint(excluded, 80);
    assert_eq!(listener, Value::Null, "nor the listener");

    // No interval passes before: that it is below an excluded one is enough.
    let below = Server::start(excluded, excluded.host.cgroup().join("new"), 7101);
    let to_below = connect(&lab, below.address);
    assert_eq!(ports(&agent, excluded), [0_u64; 0]);
    assert_eq!(agent.endpoint(excluded, 7101), Value::Null);

    // One that a glob names itself is known at the next interval: a reload begins one.
    let named = Server::start(other, cgroup(&lab).join("excluded-new"), 7102);
    let to_named = connect(&lab, named.address);
    agent.signal(Signal::HUP);
    eventually_ports("removed", &agent, other, &[80, 80]);
    let nothing = json!({"listeners": 0, "open": 0, "accepted": 0});
    shows(&agent.endpoint(other, 7102), nothing);
    let another = connect(&lab, named.address);
    assert_eq!(ports(&agent, other), [80, 80]);
    drop((older, younger, to_below, to_named, another));
}

#[test]
fn a_reload_removes_records_of_excluded_cgroups_and_adds_those_of_included_ones() {
    let lab = lab(2);
    let [pod, other] = [lab.pod(0), lab.pod(1)];
    let _streams = [pod, other].map(|pod| connect(&lab, pod.address()));
    let agent = excluding(&lab, "");
    assert_eq!(ports(&agent, pod), [80]);
    agent.reload(&exclusion(&format!("'{}'", path(pod.host.cgroup()))));
    eventually_ports("removed", &agent, pod, &[]);
    assert_eq!(agent.endpoint(pod, 80)["listeners"], 0);
    assert_eq!(ports(&agent, other), [80]);
    agent.reload(&exclusion(""));
    eventually_ports("made", &agent, pod, &[80]);
    // nginx has a listener for each family.
    shows(&agent.endpoint(pod, 80), json!({"listeners": 2, "open": 1}));
}
