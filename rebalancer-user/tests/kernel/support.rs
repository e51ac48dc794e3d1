//! An agent under test, and what `ss` and `bpftool` say beside it.

use std::{
    cell::RefCell,
    fmt::Debug,
    fs,
    io::{BufRead as _, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
        mpsc::{Receiver, channel},
    },
    time::{Duration, Instant},
};

use rebalancer_common::kind;
use rebalancer_user::{
    bpf::{
        Adopt, EmptyEndpoints, Kernel, Lifetime, Pass, Tracker, Tracking, Walked, Walker,
        read_endpoints,
    },
    host::{CgroupPaths, Holder},
    observe::{Observation, observe},
};
use rustix::{
    net::sockopt::socket_cookie,
    process::{Pid, Signal, kill_process},
};
use serde_json::Value;
use tempfile::NamedTempFile;
use xtask::{
    bpf_objects::{self, BpfObject},
    lab::{Host, Lab, Pod, Spec},
};

/// The binary under test.
pub const REBALANCER: &str = env!("CARGO_BIN_EXE_rebalancer");

/// How long anything that should happen may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Tests of the whole machine's kernel do not run in parallel, whatever the number of test threads:
/// until its thread ends, this one is alone.
pub fn alone() {
    static ALONE: Mutex<()> = Mutex::new(());
    thread_local! {
        static HELD: RefCell<Option<MutexGuard<'static, ()>>> = const { RefCell::new(None) };
    }
    assert!(
        rustix::process::geteuid().is_root(),
        "kernel tests need root: run them with sudo"
    );
    let hold = || ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    HELD.with_borrow_mut(|held| {
        held.get_or_insert_with(hold);
    });
}

/// A lab with so many pods, all serving, for a test that is [`alone`].
pub fn lab(pods: usize) -> Lab {
    lab_serving(pods, pods)
}

/// One of whose pods so many serve.
pub fn lab_serving(pods: usize, serving: usize) -> Lab {
    alone();
    let lab = Lab::start(Spec { pods, serving }).expect("the lab starts");
    // The lab has asked its servers whether they answer: those connections are gone first.
    for pod in lab.pods() {
        let look = || connected(&pod.host);
        eventually("the servers are at rest", look, Vec::is_empty);
    }
    lab
}

/// Every TCP connection in a namespace that is not over.
pub fn connected(host: &Host) -> Vec<u8> {
    let states = ["-tnH", "state", "connected", "exclude", "time-wait"];
    host.command("ss").args(states).output().unwrap().stdout
}

/// The cgroup of the whole lab: a program attached there sees the lab and nothing else.
pub fn cgroup(lab: &Lab) -> &Path {
    lab.client()
        .cgroup()
        .parent()
        .expect("the lab has a cgroup")
}

/// Gives the lab's client one more address.
pub fn add_address(lab: &Lab, address: impl std::fmt::Display) {
    let add = ["addr", "replace", &format!("{address}/25"), "dev", "eth0"];
    let added = lab.client().command("ip").args(add).status();
    assert!(added.unwrap().success());
}

/// Moves a process to the cgroup of this pod.
pub fn move_to(pod: &Pod, process: u32) {
    let processes = pod.host.cgroup().join("cgroup.procs");
    fs::write(processes, process.to_string()).unwrap();
}

/// A folder for pins that no other test uses.
pub fn own_pins() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    PathBuf::from(format!(
        "/sys/fs/bpf/rebalancer-test-{}-{n}",
        std::process::id()
    ))
}

/// A policy that only tracks.
pub const TRACK_ONLY: &str = "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: Disabled
rules:
- {name: nothing, match: {ports: [{port: 1}]}, limits: {maxAge: 1h}}
";

/// The same with more at the top level.
pub fn track_only_with(more: &str) -> String {
    TRACK_ONLY.replace("rules:", &format!("{more}\nrules:"))
}

/// A policy for the lab's clients and one port. It vouches for them: what they speak is not asked.
pub fn enforce(lab: &Lab, port: u16, limits: &str, steps: &str) -> String {
    let peers = format!("[{{ipBlock: {{cidr: {}}}}}]", lab.client_subnet());
    let matches = format!("ports: [{{port: {port}}}], peers: {peers}");
    enforce_where(&matches, limits, steps)
}

/// The same for what matches this.
pub fn enforce_where(matches: &str, limits: &str, steps: &str) -> String {
    format!(
        "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: Enforce
interval: 200ms
budget: {{perService: 1000000, perEndpoint: 1000000}}
guards: {{minAge: 200ms}}
rules:
- name: lab
  match: {{{matches}}}
  limits: {{{limits}}}
  jitter: 0%
  onReconnect: Safe
  steps: [{steps}]
"
    )
}

pub const AT_ONCE: &str = "{step: Reset, when: AtOnce, timeout: 5s}";
pub const QUIET: &str = "{step: Reset, when: Quiet, idleFor: 100ms, timeout: 10s}";
/// Waits longer than any test.
pub const PATIENT: &str = "{step: Reset, when: Quiet, idleFor: 30s, timeout: 5m}";
pub const CLOSE_QUIET: &str = "{step: Close, when: Quiet, idleFor: 100ms, timeout: 10s}";
pub const CLOSE_AT_ONCE: &str = "{step: Close, when: AtOnce, timeout: 5s}";

/// A running agent. Dropping it kills it and removes its pins.
pub struct Agent {
    pub child: Child,
    pub pins: PathBuf,
    /// Its policy: it is looked at for as long as the agent runs.
    policy: Arc<NamedTempFile>,
    arguments: Vec<String>,
    lines: Receiver<Value>,
    seen: Vec<Value>,
}

impl Agent {
    /// Starts one that sees the lab alone, and waits until it tracks.
    pub fn in_lab(lab: &Lab, policy: &str) -> Self {
        Self::in_lab_with(lab, policy, &[])
    }

    pub fn in_lab_with(lab: &Lab, policy: &str, more: &[&str]) -> Self {
        let cgroup = cgroup(lab).to_str().unwrap();
        Self::on_machine_with(policy, &[&["--cgroup", cgroup], more].concat())
    }

    /// Starts one that moves the connections of the lab's clients to this port, see [`enforce`].
    pub fn moving(lab: &Lab, port: u16, limits: &str, steps: &str) -> Self {
        Self::in_lab(lab, &enforce(lab, port, limits, steps))
    }

    /// Starts one at the real root, and waits until it tracks.
    pub fn on_machine(policy: &str) -> Self {
        Self::on_machine_with(policy, &[])
    }

    pub fn on_machine_with(policy: &str, arguments: &[&str]) -> Self {
        Self::by(policy, arguments, |command| command)
    }

    /// Starts one by what is made of the usual command.
    pub fn by(policy: &str, arguments: &[&str], make: impl FnOnce(Command) -> Command) -> Self {
        let (policy, pins) = (Arc::new(file_of(policy)), own_pins());
        let arguments: Vec<_> = arguments.iter().copied().map(str::to_owned).collect();
        let command = Self::command(policy.path(), &pins, &arguments);
        Self::launch(make(command), policy, pins, arguments)
    }

    /// Starts another with the same policy, pins and arguments.
    pub fn successor(&self) -> Self {
        let (policy, arguments) = (Arc::clone(&self.policy), self.arguments.clone());
        let command = Self::command(policy.path(), &self.pins, &arguments);
        Self::launch(command, policy, self.pins.clone(), arguments)
    }

    /// What starts one.
    pub fn command(policy: &Path, pins: &Path, arguments: &[impl AsRef<str>]) -> Command {
        let mut command = Command::new(REBALANCER);
        let arguments = || arguments.iter().map(AsRef::as_ref);
        // The lab's pods have cgroups as kubelet names them, and no API server.
        let named = arguments().any(|it| it.starts_with("--kube"));
        let log = ["--log", "debug,aya=warn", "--log-format", "json"];
        command.arg("agent").args(log).arg("--no-ramp");
        if !arguments().any(|it| it == "--policy") {
            command.arg("--policy").arg(policy);
        }
        command.arg("--pins").arg(pins);
        command.args((!named).then_some("--kubernetes=off"));
        command.args(arguments());
        command
    }

    /// Runs what is made ready, for a test that is [`alone`], and waits until it tracks.
    fn launch(
        mut command: Command,
        policy: Arc<NamedTempFile>,
        pins: PathBuf,
        arguments: Vec<String>,
    ) -> Self {
        alone();
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                match serde_json::from_str(&line) {
                    Ok(value) => drop(sender.send(value)),
                    Err(_) => eprintln!("agent: {line}"),
                }
            }
        });
        let mut agent = Self {
            child,
            pins,
            policy,
            arguments,
            lines,
            seen: Vec::new(),
        };
        agent.wait_for_message("started");
        agent
    }

    /// The path of its policy.
    pub fn policy(&self) -> &str {
        self.policy.path().to_str().unwrap()
    }

    /// Writes its policy, and tells it by SIGHUP.
    pub fn reload(&self, policy: &str) {
        fs::write(self.policy(), policy).unwrap();
        self.signal(Signal::HUP);
    }

    /// Waits for a log line.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if is_it(&line) {
                        return line;
                    }
                }
                Err(_) => panic!("the agent did not log {what}, but {:#?}", self.seen),
            }
        }
    }

    /// Waits for the next line with this message.
    #[track_caller]
    pub fn wait_for_message(&mut self, message: &str) -> Value {
        self.wait_for(message, |line| line["message"] == message)
    }

    /// Waits for the next move's line.
    #[track_caller]
    pub fn wait_for_move(&mut self) -> Value {
        self.wait_for_message("move")
    }

    /// The next move has this outcome.
    #[track_caller]
    pub fn moved(&mut self, outcome: &str) -> Value {
        let line = self.wait_for_move();
        assert_eq!(line["outcome"], outcome, "{line}");
        line
    }

    /// The next move is refused because of this guard.
    #[track_caller]
    pub fn refused(&mut self, guard: &str) -> Value {
        let line = self.moved("refused");
        assert_eq!(line["cause"], guard, "{line}");
        line
    }

    /// So many moves have ended so far.
    #[track_caller]
    pub fn has_moved(&mut self, count: usize) {
        let moves = self.logged("move");
        assert_eq!(moves.len(), count, "{moves:#?}");
    }

    /// So many moves have ended, and after this many whole intervals there is no more.
    #[track_caller]
    pub fn moves_no_more(&mut self, count: usize, intervals: usize) {
        self.wait_for_intervals(intervals);
        self.has_moved(count);
    }

    /// Waits for a pass that skips connections for reasons that contain this.
    #[track_caller]
    pub fn wait_for_skipped(&mut self, words: &str) -> Value {
        self.wait_for(words, |line| {
            let skipped = line["skipped"].as_str().unwrap_or_default();
            line["message"] == "listed" && skipped.contains(words)
        })
    }

    /// The last pass skipped connections for reasons that contain this.
    #[track_caller]
    pub fn has_skipped(&mut self, words: &str) {
        let skipped = self.logged("listed").pop().unwrap()["skipped"].clone();
        assert!(skipped.as_str().unwrap().contains(words), "{skipped}");
    }

    /// Waits for this many whole intervals.
    #[track_caller]
    pub fn wait_for_intervals(&mut self, count: usize) {
        for _ in 0..count {
            self.wait_for_message("listed");
        }
    }

    /// Every line so far.
    fn log(&mut self) -> &[Value] {
        self.seen.extend(self.lines.try_iter());
        &self.seen
    }

    /// Every line so far with this message.
    pub fn logged(&mut self, message: &str) -> Vec<Value> {
        let lines = self.log().iter();
        let lines = lines.filter(|line| line["message"] == message);
        lines.cloned().collect()
    }

    /// The next line; it is not kept. `None`: the agent has ended, or was silent for long.
    pub fn next_line(&mut self) -> Option<Value> {
        self.lines.recv_timeout(PATIENCE).ok()
    }

    /// What `rebalancer ARGUMENTS` prints, which succeeds.
    #[track_caller]
    pub fn ask(&self, arguments: &[&str]) -> String {
        let out = rebalancer(self, arguments);
        assert!(out.status.success(), "{out:?}");
        stdout(&out)
    }

    /// The same with `-o json`.
    #[track_caller]
    pub fn ask_json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ask(&[arguments, &["-o", "json"]].concat())).unwrap()
    }

    /// What `rebalancer ARGUMENTS` says, which ends with this exit code.
    #[track_caller]
    pub fn fails(&self, code: i32, arguments: &[&str]) -> String {
        failed(code, &rebalancer(self, arguments))
    }

    /// The plan that it would make by another policy.
    #[track_caller]
    pub fn plan_by(&self, policy: &str, more: &[&str]) -> Value {
        let file = file_of(policy);
        let by = ["plan", "--policy", file.path().to_str().unwrap()];
        self.ask_json(&[&by, more].concat())
    }

    pub fn status(&self) -> Value {
        self.ask_json(&["status"])
    }

    /// `rebalancer dump -o json`, its items.
    pub fn dump(&self, more: &[&str]) -> Vec<Value> {
        let value = self.ask_json(&[&["dump"], more].concat());
        assert_eq!(value["source"], "agent");
        value["items"].as_array().unwrap().clone()
    }

    /// Connections of this pod.
    pub fn connections(&self, pod: &Pod) -> Vec<Value> {
        of_pod(self.dump(&[]), pod)
    }

    /// The only connection of this pod.
    #[track_caller]
    pub fn connection(&self, pod: &Pod) -> Value {
        let mut all = self.connections(pod);
        assert_eq!(all.len(), 1, "{all:#?}");
        all.remove(0)
    }

    /// The connection of this client.
    #[track_caller]
    pub fn connection_of(&self, client: &TcpStream) -> Value {
        of_client(&self.dump(&[]), client)
    }

    /// The endpoint of this pod and port.
    pub fn endpoint(&self, pod: &Pod, port: u16) -> Value {
        let of_pod =
            |e: &Value| e["netns"] == pod.host.netns_inode() && e["port"] == u64::from(port);
        self.dump(&["--endpoints"])
            .into_iter()
            .find(of_pod)
            .unwrap_or(Value::Null)
    }

    /// The endpoint of this pod and port, once this holds of it.
    #[track_caller]
    pub fn endpoint_when(&self, pod: &Pod, port: u16, is_it: impl Fn(&Value) -> bool) -> Value {
        eventually(
            "an endpoint as it should be",
            || self.endpoint(pod, port),
            is_it,
        )
    }

    /// The endpoint of this pod and port, once so many connections have closed, and none is open.
    #[track_caller]
    pub fn endpoint_closed(&self, pod: &Pod, port: u16, count: u64) -> Value {
        let closed = |e: &Value| e["closed"].as_u64() >= Some(count) && e["open"] == 0;
        self.endpoint_when(pod, port, closed)
    }

    /// Warnings and errors, beside the outcomes of moves.
    pub fn complaints(&mut self) -> Vec<Value> {
        let bad = |line: &Value| line["level"] == "WARN" || line["level"] == "ERROR";
        // The lab's pods have cgroups as kubelet names them, and no API server.
        let of_the_lab = |line: &Value| {
            let message = line["message"].as_str().unwrap_or_default();
            message.starts_with("there are pods on this node, and --kubernetes=off")
        };
        let is_one = |line: &&Value| bad(line) && line["message"] != "move" && !of_the_lab(line);
        self.log().iter().filter(is_one).cloned().collect()
    }

    /// Ends it, and looks whether anything of it is left in the kernel or on the bpffs.
    #[track_caller]
    pub fn leaves_nothing(mut self) {
        let held = held_by(self.child.id());
        assert_eq!(still_there(&held), held, "what it holds is in the kernel");
        for what in ["prog", "map", "link"] {
            let some = held.iter().any(|(kind, _)| *kind == what);
            assert!(some, "a {what} among {held:?}");
        }
        assert_eq!(self.terminate(), Some(0));
        nothing_left(&held);
        assert_eq!(pins_left(&self.pins), [] as [PathBuf; 0]);
    }

    /// How many descriptors it holds.
    pub fn descriptors(&self) -> usize {
        let all = fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        all.unwrap().count()
    }

    /// SIGTERM, and its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.child.wait().unwrap().code()
    }

    /// Ends it by SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        send_signal(&self.child, signal);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.pins);
        if let Some(name) = self.pins.file_name() {
            let _ = fs::remove_dir_all(Path::new("/run").join(name));
        }
    }
}

/// A thread of an agent, held; the others run on.
pub struct Held(libc::pid_t);

impl Held {
    /// The first thread of this name. The loop's has the name of the program.
    pub fn thread(agent: &Agent, name: &str) -> Self {
        let threads = fs::read_dir(format!("/proc/{}/task", agent.child.id())).unwrap();
        let mut found: Vec<libc::pid_t> = threads
            .map(|thread| thread.unwrap())
            .filter(|thread| {
                let comm = fs::read_to_string(thread.path().join("comm"));
                comm.is_ok_and(|comm| comm.trim_end() == name)
            })
            .map(|thread| thread.file_name().to_str().unwrap().parse().unwrap())
            .collect();
        found.sort_unstable();
        let thread = *found.first().expect("a thread of this name");
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: these requests read and write no memory of ours.
        let held = unsafe {
            libc::ptrace(libc::PTRACE_SEIZE, thread, none, none) == 0
                && libc::ptrace(libc::PTRACE_INTERRUPT, thread, none, none) == 0
                && libc::waitpid(thread, std::ptr::null_mut(), libc::__WALL) == thread
        };
        assert!(held, "ptrace: {}", std::io::Error::last_os_error());
        Self(thread)
    }

    /// Waits until it has ended with its process.
    pub fn ended(self) {
        // SAFETY: it writes no memory of ours.
        let ended = unsafe { libc::waitpid(self.0, std::ptr::null_mut(), libc::__WALL) };
        assert_eq!(ended, self.0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: as above.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, none, none) };
    }
}

pub fn send_signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// A file with this text, for as long as it lives.
pub fn file_of(text: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    fs::write(&file, text).unwrap();
    file
}

/// Those connections of a dump that are this pod's.
pub fn of_pod(mut items: Vec<Value>, pod: &Pod) -> Vec<Value> {
    items.retain(|c| c["endpoint"]["netns"] == pod.host.netns_inode());
    items
}

/// This client's connection in a dump.
#[track_caller]
pub fn of_client(items: &[Value], client: &TcpStream) -> Value {
    let peer = client.local_addr().unwrap().to_string();
    let found = items.iter().find(|c| c["peer"] == peer);
    found
        .unwrap_or_else(|| panic!("{peer} is not listed: {items:#?}"))
        .clone()
}

/// These fields, by name or by JSON pointer, are so.
#[track_caller]
pub fn shows(value: &Value, expected: Value) {
    for (field, expected) in expected.as_object().unwrap() {
        let found = if field.starts_with('/') {
            value.pointer(field).unwrap_or(&Value::Null)
        } else {
            &value[field]
        };
        assert_eq!(found, expected, "{field} of {value:#}");
    }
}

/// A number of bytes that was sent, and up to as many more: the kernel counts a FIN as a byte.
#[track_caller]
pub fn is_sent(shown: &Value, sent: u64, fins: u64) {
    let shown = shown.as_u64().unwrap();
    let is_it = (sent..=sent + fins).contains(&shown);
    assert!(is_it, "{shown} of {sent} and {fins} ends");
}

/// Tracking by this process itself, where an agent's own passes would come in between. Dropping it
/// ends it.
pub struct Tracked {
    // Dropped in this order: what reads the pins goes before them.
    pub walker: Walker,
    pub tracker: Tracker,
}

impl Tracked {
    /// At the real root: this process's own sockets too.
    pub fn on_machine() -> Self {
        Self::start(None, Tracking::default())
    }

    /// Of the lab's programs alone.
    pub fn in_lab(lab: &Lab) -> Self {
        Self::start(Some(cgroup(lab)), Tracking::default())
    }

    pub fn start(cgroup: Option<&Path>, tracking: Tracking) -> Self {
        let (kernel, pins) = (kernel(), own_pins());
        let tracker = Tracker::start(&kernel, &pins, cgroup, tracking, Lifetime::Process).unwrap();
        let walker = Walker::open(kernel, &pins).unwrap();
        Self { walker, tracker }
    }

    /// Another reader, with portions of so many rows.
    pub fn reader(&self, rows: u32) -> Walker {
        Walker::with_portions(kernel(), self.tracker.pins(), rows).unwrap()
    }

    /// A whole observation, over all processes.
    pub fn observe(&mut self, adopt: Adopt) -> Observation {
        observe(&mut self.walker, adopt, &CgroupPaths::new()).unwrap()
    }

    /// Whether this endpoint has sums.
    pub fn knows(&self, pod: &Pod, port: u16) -> bool {
        let netns = pod.host.netns_inode() as u32;
        let all = read_endpoints(self.tracker.pins()).unwrap();
        all.keys().any(|key| (key.netns, key.port) == (netns, port))
    }

    /// Forgets what was empty at the time of this observation, and of an earlier one; how many.
    pub fn forget(&self, empty: &mut EmptyEndpoints, seen: &Observation) -> usize {
        let pins = self.tracker.pins();
        empty.forget(pins, &seen.empty_endpoints).unwrap()
    }

    /// What a walk over all processes reads of a socket.
    pub fn walked(&mut self, cookie: u64) -> Option<Walked> {
        let sockets = self.walker.walk(Adopt::No).unwrap().sockets;
        sockets.into_iter().find(|s| s.connection.cookie == cookie)
    }

    /// Who holds a socket, in order.
    pub fn holders(&mut self, cookie: u64) -> Vec<Holder> {
        let mut holders = self.walked(cookie).map_or(Vec::new(), |s| s.holders);
        holders.sort_unstable();
        holders
    }
}

/// The connections of a pass that were accepted in this pod.
pub fn walked_in<'a>(pass: &'a Pass, pod: &Pod) -> impl Iterator<Item = &'a Walked> {
    let netns = pod.host.netns_inode();
    pass.sockets.iter().filter(move |socket| {
        u64::from(socket.connection.netns) == netns && socket.connection.kind == kind::CONNECTION
    })
}

/// The running kernel, read once.
pub fn kernel() -> Arc<Kernel> {
    static KERNEL: OnceLock<Arc<Kernel>> = OnceLock::new();
    Arc::clone(KERNEL.get_or_init(|| Arc::new(Kernel::read().unwrap())))
}

impl AsRef<Path> for Agent {
    fn as_ref(&self) -> &Path {
        &self.pins
    }
}

/// Runs `rebalancer ARGUMENTS` with the pins of an agent, or others.
pub fn rebalancer(pins: impl AsRef<Path>, arguments: &[&str]) -> Output {
    command(pins, arguments).output().unwrap()
}

/// What runs it.
pub fn command(pins: impl AsRef<Path>, arguments: &[&str]) -> Command {
    let mut command = Command::new(REBALANCER);
    command.args(arguments).arg("--pins").arg(pins.as_ref());
    command
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// What a command says that ends with this exit code.
#[track_caller]
pub fn failed(code: i32, output: &Output) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    stderr(output)
}

/// A socket's cookie.
pub fn cookie(socket: impl AsFd) -> u64 {
    socket_cookie(socket).unwrap()
}

/// A listener of this process at an address of this pod.
pub fn listen(pod: &Pod, port: u16) -> TcpListener {
    let address = SocketAddr::from((pod.addr, port));
    let listen = || TcpListener::bind(address);
    pod.host.enter(listen).unwrap().unwrap()
}

/// A connection of the lab's client to a listener of this process: its two ends.
pub fn accepted(lab: &Lab, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = connect(lab, listener.local_addr().unwrap());
    let (server, _) = listener.accept().unwrap();
    (client, server)
}

/// Waits until what is looked at is as it should be, and returns it.
#[track_caller]
pub fn eventually<T: Debug>(
    what: &str,
    mut look: impl FnMut() -> T,
    is_it: impl Fn(&T) -> bool,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = look();
        if is_it(&seen) {
            return seen;
        }
        assert!(
            Instant::now() <= deadline,
            "never {what}; last seen: {seen:?}"
        );
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// One established socket, as `ss -tine` shows it.
#[derive(Debug, PartialEq, Eq)]
pub struct Ss {
    pub cookie: String,
    pub peer: String,
    pub received: u64,
    pub acked: u64,
    pub sent: u64,
}

/// Every established socket of a server's port in a namespace.
pub fn ss(host: &Host, port: u16) -> Vec<Ss> {
    let filter = format!("( sport = :{port} )");
    let out = host
        .command("ss")
        .args(["-tineHO", "state", "established", &filter])
        .output()
        .expect("ss runs");
    assert!(out.status.success(), "{out:?}");
    stdout(&out).lines().map(ss_line).collect()
}

/// Waits until one of them is so.
#[track_caller]
pub fn ss_shows(host: &Host, port: u16, what: &str, is_it: impl Fn(&Ss) -> bool) {
    let look = || ss(host, port);
    eventually(what, look, |all| all.iter().any(&is_it));
}

fn ss_line(line: &str) -> Ss {
    let word = |key: &str| {
        line.split_whitespace()
            .find_map(|w| w.strip_prefix(key))
            .unwrap_or("0")
            .to_owned()
    };
    let number = |key: &str| word(key).parse().unwrap();
    Ss {
        cookie: word("sk:"),
        peer: line.split_whitespace().nth(3).unwrap().to_owned(),
        received: number("bytes_received:"),
        acked: number("bytes_acked:"),
        sent: number("bytes_sent:"),
    }
}

/// A client's connection, made in the lab's client namespace.
pub fn connect(lab: &Lab, to: impl Into<SocketAddr>) -> TcpStream {
    let to = to.into();
    let stream = lab
        .client()
        .enter(|| TcpStream::connect(to))
        .unwrap()
        .unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// So many connections.
pub fn connect_many(lab: &Lab, to: impl Into<SocketAddr>, count: usize) -> Vec<TcpStream> {
    let to = to.into();
    (0..count).map(|_| connect(lab, to)).collect()
}

/// A connection to nginx that has had an answer.
pub fn answered(lab: &Lab, to: impl Into<SocketAddr>) -> TcpStream {
    let mut stream = connect(lab, to);
    request(&mut stream, "/").unwrap();
    stream
}

/// A connection to this pod's nginx that is heavy.
pub fn heavy(lab: &Lab, pod: &Pod) -> TcpStream {
    let mut stream = connect(lab, pod.address());
    download(&mut stream);
    stream
}

/// A connection to a server of ours that has had an answer.
pub fn echoed(lab: &Lab, to: impl Into<SocketAddr>) -> TcpStream {
    let mut stream = connect(lab, to);
    echoes(&mut stream);
    stream
}

/// A server of ours answers on this connection.
#[track_caller]
pub fn echoes(stream: &mut TcpStream) {
    stream.write_all(b"f").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

pub fn is_reset(stream: &mut TcpStream) -> bool {
    stream
        .read_exact(&mut [0])
        .is_err_and(|e| e.kind() == ErrorKind::ConnectionReset)
}

/// The client sees what a move with this outcome makes of its connection.
#[track_caller]
pub fn has_ended(stream: &mut TcpStream, outcome: &str) {
    match outcome {
        "reset" => assert!(is_reset(stream), "no reset"),
        "closed" => assert_eq!(stream.read(&mut [0]).unwrap(), 0, "no end of file"),
        other => panic!("{other} ends no connection"),
    }
}

/// One keep-alive request to nginx; returns the whole answer's length.
pub fn request(stream: &mut TcpStream, path: &str) -> std::io::Result<usize> {
    // In one write: a second one would wait for the acknowledgement of the first.
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&buffer[..n]);
        if let Some(length) = whole(&answer)
            && answer.len() >= length
        {
            return Ok(answer.len());
        }
    }
}

/// Makes a connection heavy: more than a mebibyte.
pub fn download(stream: &mut TcpStream) {
    for _ in 0..5 {
        request(stream, "/blob").unwrap();
    }
}

/// Length of the answer whose head is complete.
fn whole(answer: &[u8]) -> Option<usize> {
    let head = answer.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&answer[..head]).ok()?;
    let body = text
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))?;
    Some(head + body.parse::<usize>().ok()?)
}

/// The programs, maps and links that a process holds.
pub fn held_by(pid: u32) -> Vec<BpfObject> {
    bpf_objects::held_by(pid).unwrap()
}

/// Those of them that are still in the kernel.
pub fn still_there(held: &[BpfObject]) -> Vec<BpfObject> {
    bpf_objects::remaining(held).unwrap()
}

/// Waits until none of them is.
#[track_caller]
pub fn nothing_left(held: &[BpfObject]) {
    eventually("nothing left", || still_there(held), Vec::is_empty);
}

/// Pins of ours, of whatever process, in the usual bpffs.
pub fn pins_left(prefix: &Path) -> Vec<PathBuf> {
    let prefix = prefix.to_str().unwrap().to_owned();
    let all = fs::read_dir("/sys/fs/bpf")
        .unwrap()
        .flatten()
        .map(|e| e.path());
    all.filter(|p| p.to_str().is_some_and(|p| p.starts_with(&prefix)))
        .collect()
}

/// `bpftool -j`.
pub fn bpftool(arguments: &[&str]) -> Value {
    let out = Command::new("bpftool")
        .arg("-j")
        .args(arguments)
        .output()
        .expect("bpftool runs");
    serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("bpftool: {out:?}"))
}
