//! Runs the agent on this machine for the demo, the benchmark and the suites `steps` and `answers`,
//! and reads its moves from its log.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use xtask::{
    command,
    lab::{Lab, Pod},
};

/// How long the agent may take to start or to reload.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Agent {
    process: Child,
    program: PathBuf,
    policy: PathBuf,
    pins: PathBuf,
    log: Arc<Mutex<Log>>,
    reader: JoinHandle<()>,
    /// Receives once per policy that the agent has loaded.
    ready: Receiver<()>,
}

/// What the agent has logged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    /// Number of moves by rule and outcome.
    moves: BTreeMap<(String, String), u64>,
    /// The same moves, one by one.
    pub(crate) ended: Vec<EndedMove>,
    /// Number of moves that it would have made in DryRun.
    pub(crate) would_move: u64,
    /// Warnings, errors, and lines that are not JSON.
    pub(crate) problems: Vec<String>,
}

/// A finished move.
#[derive(Clone, Debug)]
pub(crate) struct EndedMove {
    /// When it was logged.
    pub(crate) at: Instant,
    /// The server's address.
    pub(crate) local: SocketAddr,
    /// The client's address.
    pub(crate) peer: SocketAddr,
    pub(crate) outcome: String,
    /// Time since the connection was chosen.
    pub(crate) waited: Duration,
}

impl Agent {
    /// Starts the agent with `policy` and waits until it has started.
    pub(crate) fn start(lab: &Lab, program: &Path, policy: &str, options: &[&str]) -> Result<Self> {
        let mut command = lab.machine().command(program);
        command.arg("agent").args(options);
        let file = lab.folder().join("policy.yaml");
        Self::launch(command, file, lab.pins(), program, policy)
    }

    /// Starts an agent that sees only the connections of `pod`, so that several can run side by
    /// side.
    pub(crate) fn start_for(lab: &Lab, pod: &Pod, program: &Path, policy: &str) -> Result<Self> {
        let pins = lab.pins();
        make_on_bpffs(&pins)?;
        let mut command = lab.machine().command(program);
        command.arg("agent").arg("--cgroup").arg(pod.host.cgroup());
        let file = lab.folder().join(format!("{}.yaml", pod.name));
        Self::launch(command, file, pins.join(&pod.name), program, policy)
    }

    fn launch(
        mut command: Command,
        file: PathBuf,
        pins: PathBuf,
        program: &Path,
        policy: &str,
    ) -> Result<Self> {
        fs::write(&file, policy).context("write the policy")?;
        let mut process = command
            // The lab's cgroups look like Kubernetes pods', but there is no API server.
            .args([
                "--kubernetes=off",
                "--log-format",
                "json",
                "--no-ramp",
                "--policy",
            ])
            .arg(&file)
            .arg("--pins")
            .arg(&pins)
            // The default is named after the pins, as the lab's folder is.
            .arg("--run-dir")
            .arg(file.with_extension("run"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let output = process.stderr.take().expect("stderr is a pipe");
        let log = Arc::new(Mutex::new(Log::default()));
        let (loaded, ready) = channel();
        let writer = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                writer.lock().read(&line, &loaded);
            }
        });
        let program = program.to_owned();
        let agent = Self {
            process,
            program,
            policy: file,
            pins,
            log,
            reader,
            ready,
        };
        match agent.ready.recv_timeout(PATIENCE) {
            Ok(()) => Ok(agent),
            Err(RecvTimeoutError::Timeout) => bail!("the agent did not start within {PATIENCE:?}"),
            Err(RecvTimeoutError::Disconnected) => {
                let (log, status) = agent.wait()?;
                bail!(
                    "the agent exited with {status}:\n{}",
                    log.problems.join("\n")
                )
            }
        }
    }

    /// Replaces its policy, sends SIGHUP and waits until the new policy is loaded.
    pub(crate) fn reload(&self, policy: &str) -> Result<()> {
        fs::write(&self.policy, policy).context("write the policy")?;
        kill_process(Pid::from_child(&self.process), Signal::HUP).context("SIGHUP")?;
        let ready = self.ready.recv_timeout(PATIENCE);
        ready.with_context(|| {
            format!(
                "the agent did not load the policy:\n{}",
                self.log().problems.join("\n")
            )
        })
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> Log {
        self.log.lock().clone()
    }

    /// The output of `dump --endpoints`, as `table` or `json`.
    pub(crate) fn dump_endpoints(&self, format: &str) -> Result<String> {
        self.query(&["dump", "--endpoints", "-o", format])
    }

    /// Number of skipped connections by cause, from `rebalancer plan`.
    #[cfg(feature = "steps")]
    pub(crate) fn skipped(&self) -> Result<BTreeMap<String, u64>> {
        let policy = self.policy.display().to_string();
        let plan = self.query(&["plan", "-o", "json", "--policy", &policy])?;
        let plan: Value = serde_json::from_str(&plan).context("the plan")?;
        serde_json::from_value(plan["skipped"].clone()).context("the plan's counts")
    }

    fn query(&self, arguments: &[&str]) -> Result<String> {
        let mut rebalancer = Command::new(&self.program);
        rebalancer.args(arguments).arg("--pins").arg(&self.pins);
        let run_dir = self.policy.with_extension("run");
        command::output(rebalancer.arg("--run-dir").arg(run_dir))
    }

    /// Stops it by SIGTERM, as Kubernetes does, and returns its log.
    pub(crate) fn stop(self) -> Result<Log> {
        let pid = Pid::from_child(&self.process);
        kill_process(pid, Signal::TERM).context("stop the agent")?;
        let (log, status) = self.wait()?;
        if !status.success() {
            bail!(
                "the agent exited with {status}:\n{}",
                log.problems.join("\n")
            );
        }
        Ok(log)
    }

    fn wait(mut self) -> Result<(Log, ExitStatus)> {
        let status = self.process.wait().context("wait for the agent")?;
        if self.reader.join().is_err() {
            bail!("reading the agent's log failed");
        }
        Ok((self.log.lock().clone(), status))
    }
}

impl Log {
    /// The number of moves of `rule` by outcome; refused moves by cause as well.
    pub(crate) fn outcomes(&self, rule: &str) -> BTreeMap<&str, u64> {
        let of_rule = self.moves.iter().filter(|((of, _), _)| of == rule);
        let outcomes = of_rule.map(|((_, outcome), count)| (outcome.as_str(), *count));
        outcomes.collect()
    }

    fn read(&mut self, line: &str, ready: &Sender<()>) {
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            return self.problems.push(line.to_owned());
        };
        let text = |name: &str| event[name].as_str().unwrap_or_default();
        match text("message") {
            // The receiver is gone if the caller has given up waiting.
            "started" | "policy reloaded" => drop(ready.send(())),
            "would move" => self.would_move += 1,
            "move" => {
                let outcome = match text("outcome") {
                    "refused" => format!("refused: {}", text("cause")),
                    other => other.to_owned(),
                };
                if let (Ok(local), Ok(peer)) = (text("local").parse(), text("peer").parse()) {
                    let waited = event["waited_ms"].as_u64().unwrap_or_default();
                    self.ended.push(EndedMove {
                        at: Instant::now(),
                        local,
                        peer,
                        outcome: outcome.clone(),
                        waited: Duration::from_millis(waited),
                    });
                }
                let key = (text("rule").to_owned(), outcome);
                *self.moves.entry(key).or_default() += 1;
            }
            _ => {}
        }
        if matches!(text("level"), "WARN" | "ERROR") {
            self.problems.push(line.to_owned());
        }
    }
}

/// Creates a folder on the bpffs, in which several agents can keep their pins.
fn make_on_bpffs(folder: &Path) -> Result<()> {
    let made = || match fs::create_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    };
    if made().is_ok() {
        return Ok(());
    }
    // The bpffs is not mounted yet; the agent would mount it too.
    let mount = ["-t", "bpf", "bpf", "/sys/fs/bpf"];
    command::output(Command::new("mount").args(mount))?;
    made().with_context(|| folder.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_moves_and_keeps_problems_of_a_log() {
        let (loaded, started) = channel();
        let mut log = Log::default();
        for line in [
            r#"{"level":"INFO","message":"started","pid":1}"#,
            r#"{"level":"INFO","message":"would move","rule":"old","cookie":"1"}"#,
            r#"{"level":"INFO","message":"move","rule":"old","outcome":"reset","cookie":"1"}"#,
            r#"{"level":"INFO","message":"move","rule":"old","outcome":"reset","cookie":"2"}"#,
            r#"{"level":"INFO","message":"move","rule":"c","outcome":"refused","cause":"sigpipe"}"#,
            r#"{"level":"WARN","message":"move","rule":"big","outcome":"failed","cookie":"3"}"#,
            "thread panicked",
        ] {
            log.read(line, &loaded);
        }
        assert!(started.try_recv().is_ok());
        assert_eq!(log.outcomes("old"), BTreeMap::from([("reset", 2)]));
        assert_eq!(log.outcomes("c"), BTreeMap::from([("refused: sigpipe", 1)]));
        assert_eq!(log.outcomes("big"), BTreeMap::from([("failed", 1)]));
        assert_eq!((log.would_move, log.problems.len()), (1, 2));
    }
}
