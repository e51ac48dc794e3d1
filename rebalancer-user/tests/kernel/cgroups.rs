//! Rules, exclusions and tracking by cgroup.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::NamedTempFile;
use xtask::lab::{Lab, Pod};

use crate::support::{
    Agent, REBALANCER, TRACK_ONLY, alone, cgroup, connect, eventually, lab, own_pins, rebalancer,
    request,
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
        let child = pod
            .host
            .command("sh")
            .args(["-c", join, "sh"])
            .arg(&cgroup)
            .arg(port.to_string())
            .spawn()
            .unwrap();
        let address = SocketAddr::from((pod.addr, port));
        eventually("listening", || {
            let filter = format!("( sport = :{port} )");
            let mut ss = pod.host.command("ss");
            let out = ss.args(["-tlnH", &filter]).output().unwrap().stdout;
            if out.is_empty() { Err(out) } else { Ok(out) }
        });
        Self {
            child,
            cgroup,
            address,
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

/// `rebalancer COMMAND` on what this agent has recorded.
fn ask(agent: &Agent, lab: &Lab, arguments: &[&str]) -> Output {
    let within = ["--cgroup", cgroup(lab).to_str().unwrap()];
    let out = rebalancer(agent, &[arguments, &within].concat());
    assert!(out.status.success(), "{out:?}");
    out
}

/// An agent that is over its first interval, and the file that it reads its policy from again.
fn agent_with_file(lab: &Lab, policy: &str) -> (Agent, NamedTempFile) {
    let file = NamedTempFile::new().unwrap();
    fs::write(&file, policy).unwrap();
    let lab_only = ["--cgroup", cgroup(lab).to_str().unwrap()];
    let mut agent = Agent::with_file(file.path(), own_pins(), &lab_only);
    agent.wait_for_intervals(1);
    (agent, file)
}

fn hang_up(agent: &Agent) {
    kill_process(Pid::from_child(&agent.child), Signal::HUP).unwrap();
}

fn ports(agent: &Agent, pod: &Pod) -> Vec<u64> {
    let all = agent.connections(pod);
    let mut ports: Vec<u64> = all
        .iter()
        .map(|c| c["endpoint"]["port"].as_u64().unwrap())
        .collect();
    ports.sort_unstable();
    ports
}

fn eventually_ports(what: &str, agent: &Agent, pod: &Pod, expected: &[u64]) {
    eventually(what, || {
        let seen = ports(agent, pod);
        if seen == expected {
            Ok(seen)
        } else {
            Err(seen)
        }
    });
}

#[test]
fn a_rule_moves_only_connections_in_its_cgroups() {
    let _alone = alone();
    let lab = lab(2);
    let [named, other] = [lab.pod(0), lab.pod(1)];
    let mut streams = [named, other].map(|pod| connect(&lab, pod.address()));
    for stream in &mut streams {
        request(stream, "/").unwrap();
    }
    let here = path(named.host.cgroup());
    let parent = here.rsplit_once('/').unwrap().0;
    let by_cgroup = policy("", &rule(&format!("cgroups: ['*{parent}']")));

    // Beside an agent that only watches: what it would do, live and from the saved snapshot.
    let watcher = Agent::in_lab(&lab, TRACK_ONLY);
    let c = &watcher.connections(named)[0];
    assert_eq!(c["cgroupPath"], here);
    let wide = ask(&watcher, &lab, &["dump", "-o", "wide"]).stdout;
    assert!(String::from_utf8(wide).unwrap().contains(&here));
    let folder = tempfile::tempdir().unwrap();
    let files = ["policy.yaml", "dump.json"].map(|name| {
        let file = folder.path().join(name);
        file.to_str().unwrap().to_owned()
    });
    fs::write(&files[0], &by_cgroup).unwrap();
    let plan = ["plan", "-o", "json", "--policy", &files[0]];
    let live = ask(&watcher, &lab, &plan);
    fs::write(
        &files[1],
        ask(&watcher, &lab, &["dump", "-o", "json"]).stdout,
    )
    .unwrap();
    let replay = Command::new(REBALANCER)
        .args(plan)
        .args(["--snapshot", &files[1]])
        .output()
        .unwrap();
    for out in [live, replay] {
        let plan: Value = serde_json::from_slice(&out.stdout).unwrap();
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
    let _alone = alone();
    let lab = lab(2);
    let pod = lab.pod(0);
    let mut stream = connect(&lab, pod.address());
    request(&mut stream, "/").unwrap();
    // Its processes go elsewhere, its folder is removed: the sockets stay with what is gone.
    let here = path(pod.host.cgroup());
    let processes = fs::read_to_string(pod.host.cgroup().join("cgroup.procs")).unwrap();
    let elsewhere = lab.pod(1).host.cgroup().join("cgroup.procs");
    for process in processes.lines() {
        fs::write(&elsewhere, process).unwrap();
    }
    fs::remove_dir(pod.host.cgroup()).unwrap();

    // The rule behind would cover it; which is the first that does is not known.
    let named = rule(&format!("cgroups: ['{here}']"));
    let any = "{name: any, match: {ports: [{port: 80}]}, limits: {maxAge: 1ms}, onReconnect: Safe}";
    let mut agent = Agent::in_lab(&lab, &policy("", &format!("{named}, {any}")));
    let listed = agent.wait_for("listed", |line| line["message"] == "listed");
    let skipped = listed["skipped"].as_str().unwrap();
    assert!(skipped.contains("cgroupUnknown"), "{listed:#}");
    let c = &agent.connections(pod)[0];
    assert_eq!(c["cgroupPath"], Value::Null);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.yaml");
    fs::write(&file, policy("", &format!("{named}, {any}"))).unwrap();
    let id = c["id"].as_str().unwrap();
    let why = ask(
        &agent,
        &lab,
        &["explain", id, "--policy", file.to_str().unwrap()],
    )
    .stdout;
    let why = String::from_utf8(why).unwrap();
    assert!(why.contains("gone or not known"), "{why}");
    request(&mut stream, "/").unwrap();
    fs::create_dir(pod.host.cgroup()).unwrap(); // for the lab to remove
}

#[test]
fn sockets_in_excluded_cgroups_and_in_new_ones_below_are_not_recorded() {
    let _alone = alone();
    let lab = lab(2);
    let [excluded, other] = [lab.pod(0), lab.pod(1)];
    let older = [excluded, other].map(|pod| connect(&lab, pod.address()));
    let here = path(excluded.host.cgroup());
    let track = format!("excludeCgroups: ['{here}', '*/excluded-*']");
    let (agent, _file) = agent_with_file(&lab, &policy(&track, ""));
    let younger = [excluded, other].map(|pod| connect(&lab, pod.address()));
    assert_eq!(ports(&agent, excluded), [0_u64; 0]);
    assert_eq!(ports(&agent, other), [80, 80]);
    assert_eq!(
        agent.endpoint(excluded, 80),
        Value::Null,
        "nor the listener"
    );

    // No interval passes before: that it is below an excluded one is enough.
    let below = Server::start(excluded, excluded.host.cgroup().join("new"), 7101);
    let to_below = connect(&lab, below.address);
    assert_eq!(ports(&agent, excluded), [0_u64; 0]);
    assert_eq!(agent.endpoint(excluded, 7101), Value::Null);

    // One that a glob names itself is known at the next interval: a reload begins one.
    let named = Server::start(other, cgroup(&lab).join("excluded-new"), 7102);
    let to_named = connect(&lab, named.address);
    hang_up(&agent);
    eventually_ports("removed", &agent, other, &[80, 80]);
    let e = agent.endpoint(other, 7102);
    assert_eq!(
        (&e["listeners"], &e["open"], &e["accepted"]),
        (&0.into(), &0.into(), &0.into())
    );
    let another = connect(&lab, named.address);
    assert_eq!(ports(&agent, other), [80, 80]);
    drop((older, younger, to_below, to_named, another));
}

#[test]
fn a_reload_removes_records_of_excluded_cgroups_and_adds_those_of_included_ones() {
    let _alone = alone();
    let lab = lab(2);
    let _streams = [0, 1].map(|index| connect(&lab, lab.pod(index).address()));
    let here = path(lab.pod(0).host.cgroup());
    let excluding = |excluded: &str| policy(&format!("excludeCgroups: [{excluded}]"), "");
    let (agent, file) = agent_with_file(&lab, &excluding(""));
    let write = |excluded: &str| fs::write(&file, excluding(excluded)).unwrap();
    assert_eq!(ports(&agent, lab.pod(0)), [80]);
    write(&format!("'{here}'"));
    hang_up(&agent);
    eventually_ports("removed", &agent, lab.pod(0), &[]);
    assert_eq!(agent.endpoint(lab.pod(0), 80)["listeners"], 0);
    assert_eq!(ports(&agent, lab.pod(1)), [80]);
    write("");
    hang_up(&agent);
    eventually_ports("made", &agent, lab.pod(0), &[80]);
    let e = agent.endpoint(lab.pod(0), 80);
    assert_eq!(
        (&e["listeners"], &e["open"]),
        (&2.into(), &1.into()),
        "nginx has a listener for each family"
    );
}
