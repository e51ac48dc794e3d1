//! An agent under test, and what `ss` and `bpftool` say beside it.

use std::{
    io::{BufRead as _, BufReader, Read, Write},
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

use rebalancer_user::{
    bpf::{Adopt, Kernel, Lifetime, Tracker, Tracking, Walked, Walker},
    host::{CgroupPaths, Holder},
    observe::{Observation, observe},
};
use rustix::net::sockopt::socket_cookie;
use serde_json::Value;
use xtask::{
    bpf_objects::{self, BpfObject},
    lab::{Host, Lab, Pod, Spec},
};

/// The binary under test.
pub const REBALANCER: &str = env!("CARGO_BIN_EXE_rebalancer");

/// How long anything that should happen may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Tests of the whole machine's kernel do not run in parallel, whatever the number of test threads.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    assert!(
        rustix::process::geteuid().is_root(),
        "kernel tests need root: run them with sudo"
    );
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A lab with so many pods, all serving.
pub fn lab(pods: usize) -> Lab {
    let lab = Lab::start(Spec {
        pods,
        serving: pods,
    })
    .expect("the lab starts");
    // The lab has asked its servers whether they answer: those connections are gone first.
    for pod in lab.pods() {
        eventually("the servers are at rest", || {
            let none = connected(&pod.host).is_empty();
            if none { Ok(none) } else { Err(none) }
        });
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

/// A running agent. Dropping it kills it and removes its pins.
pub struct Agent {
    pub child: Child,
    pub pins: PathBuf,
    /// Its policy, where it is a file of its own: it is looked at for as long as the agent runs.
    _policy: Option<tempfile::NamedTempFile>,
    lines: Receiver<Value>,
    seen: Vec<Value>,
}

impl Agent {
    /// Starts one that sees the lab alone, and waits until it tracks.
    pub fn in_lab(lab: &Lab, policy: &str) -> Self {
        Self::with(
            policy,
            own_pins(),
            &["--cgroup", cgroup(lab).to_str().unwrap()],
        )
    }

    /// Starts one at the real root, and waits until it tracks.
    pub fn on_machine(policy: &str) -> Self {
        Self::with(policy, own_pins(), &[])
    }

    pub fn with(policy: &str, pins: PathBuf, arguments: &[&str]) -> Self {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(policy.as_bytes()).unwrap();
        let mut agent = Self::with_file(file.path(), pins, arguments);
        agent._policy = Some(file);
        agent
    }

    /// The file is read before this returns, and on SIGHUP.
    pub fn with_file(policy: &Path, pins: PathBuf, arguments: &[&str]) -> Self {
        let command = Self::command(policy, &pins, arguments);
        Self::launch(command, pins)
    }

    /// What starts one.
    pub fn command(policy: &Path, pins: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(REBALANCER);
        // The lab's pods have cgroups as kubelet names them, and no API server.
        let named = arguments
            .iter()
            .any(|it| it.starts_with("--kubeconfig") || it.starts_with("--kubernetes"));
        command
            .args([
                "agent",
                "--log",
                "debug,aya=warn",
                "--log-format",
                "json",
                "--no-ramp",
                "--policy",
            ])
            .arg(policy)
            .arg("--pins")
            .arg(pins)
            .args((!named).then_some("--kubernetes=off"))
            .args(arguments);
        command
    }

    /// Runs what is made ready, and waits until it tracks.
    pub fn launch(mut command: Command, pins: PathBuf) -> Self {
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
            _policy: None,
            lines,
            seen: Vec::new(),
        };
        agent.wait_for("started", |line| line["message"] == "started");
        agent
    }

    /// Waits for a log line.
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

    /// Waits for the next move's line.
    pub fn wait_for_move(&mut self) -> Value {
        self.wait_for("move", |line| line["message"] == "move")
    }

    /// Waits for this many whole intervals.
    pub fn wait_for_intervals(&mut self, count: usize) {
        for _ in 0..count {
            self.wait_for("listed", |line| line["message"] == "listed");
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

    /// `rebalancer dump -o json`, its items.
    pub fn dump(&self, more: &[&str]) -> Vec<Value> {
        let out = self.dump_output(more);
        assert!(out.status.success(), "{out:?}");
        let value: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(value["source"], "agent");
        value["items"].as_array().unwrap().clone()
    }

    pub fn dump_output(&self, more: &[&str]) -> Output {
        rebalancer(self, &[&["dump", "-o", "json"], more].concat())
    }

    /// Connections of this pod.
    pub fn connections(&self, pod: &Pod) -> Vec<Value> {
        let all = self.dump(&[]);
        all.into_iter()
            .filter(|c| c["endpoint"]["netns"] == pod.host.netns_inode())
            .collect()
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
    pub fn leaves_nothing(mut self) {
        let held = held_by(self.child.id());
        assert_eq!(still_there(&held), held, "what it holds is in the kernel");
        for what in ["prog", "map", "link"] {
            let some = held.iter().any(|(kind, _)| *kind == what);
            assert!(some, "a {what} among {held:?}");
        }
        assert_eq!(self.terminate(), Some(0));
        eventually("nothing left", || {
            let left = still_there(&held);
            if left.is_empty() { Ok(left) } else { Err(left) }
        });
        assert_eq!(pins_left(&self.pins), [] as [PathBuf; 0]);
    }

    /// How many descriptors it holds.
    pub fn descriptors(&self) -> usize {
        let all = std::fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        all.unwrap().count()
    }

    /// SIGTERM, and its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        self.child.wait().unwrap().code()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.pins);
        if let Some(name) = self.pins.file_name() {
            let _ = std::fs::remove_dir_all(Path::new("/run").join(name));
        }
    }
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
    let mut command = Command::new(REBALANCER);
    command.args(arguments).arg("--pins").arg(pins.as_ref());
    command.output().unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
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

/// Waits until something holds.
pub fn eventually<T: std::fmt::Debug>(what: &str, look: impl Fn() -> Result<T, T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(seen) => return seen,
            Err(seen) if Instant::now() > deadline => panic!("never {what}; last seen: {seen:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(30)),
        }
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
    String::from_utf8(out.stdout)
        .unwrap()
        .lines()
        .map(ss_line)
        .collect()
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

/// Pins of ours, of whatever process, in the usual bpffs.
pub fn pins_left(prefix: &Path) -> Vec<PathBuf> {
    let prefix = prefix.to_str().unwrap().to_owned();
    let all = std::fs::read_dir("/sys/fs/bpf")
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
