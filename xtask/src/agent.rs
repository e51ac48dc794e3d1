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

use anyhow::{Context as _, Result, bail, ensure};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
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
    /// The mechanism of its resets.
    pub(crate) reset_by: String,
    pub(crate) ended: Vec<EndedMove>,
    /// Number of moves that it would have made in DryRun.
    pub(crate) would_move: u64,
    /// Warnings, errors, and lines that are not JSON.
    pub(crate) problems: Vec<String>,
}

/// A line of the log.
#[derive(Deserialize)]
struct Line {
    level: String,
    #[serde(flatten)]
    event: Event,
}

#[derive(Deserialize)]
#[serde(tag = "message")]
enum Event {
    #[serde(rename = "started")]
    Started { reset_by: String },
    #[serde(rename = "policy reloaded")]
    Reloaded,
    #[serde(rename = "would move")]
    WouldMove,
    #[serde(rename = "move")]
    Ended(EndedMove),
    #[serde(other)]
    Other,
}

/// As text: how many moves had each outcome.
pub(crate) fn shown(outcomes: &BTreeMap<String, u64>) -> String {
    let each = outcomes.iter().map(|(outcome, n)| format!("{n} {outcome}"));
    each.collect::<Vec<_>>().join(", ")
}

/// A finished move.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct EndedMove {
    /// When it was logged.
    #[serde(skip, default = "Instant::now")]
    pub(crate) at: Instant,
    pub(crate) rule: String,
    /// The server's address.
    pub(crate) local: SocketAddr,
    /// The client's address.
    pub(crate) peer: SocketAddr,
    pub(crate) outcome: String,
    /// Why it was refused, if so.
    pub(crate) cause: Option<String>,
    /// Milliseconds since the connection was chosen.
    pub(crate) waited_ms: u64,
}

impl Agent {
    /// Starts the agent with `policy` and waits until it has started.
    pub(crate) fn start(lab: &Lab, program: &Path, policy: &str, options: &[&str]) -> Result<Self> {
        Self::launch(lab, "policy", lab.pins(), program, policy, options)
    }

    /// Starts an agent that sees only the connections of `pod`, so that several can run side by
    /// side.
    pub(crate) fn start_for(lab: &Lab, pod: &Pod, program: &Path, policy: &str) -> Result<Self> {
        let mut pins = lab.pins().into_os_string();
        pins.push(format!("-{}", pod.name));
        let cgroup = pod.host.cgroup().to_str().context("the cgroup's path")?;
        let options = ["--cgroup", cgroup];
        Self::launch(lab, &pod.name, pins.into(), program, policy, &options)
    }

    /// Its files are named `name`.
    fn launch(
        lab: &Lab,
        name: &str,
        pins: PathBuf,
        program: &Path,
        policy: &str,
        options: &[&str],
    ) -> Result<Self> {
        let file = lab.folder().join(format!("{name}.yaml"));
        fs::write(&file, policy).context("write the policy")?;
        let mut process = lab
            .machine()
            .command(program)
            // The lab's cgroups look like Kubernetes pods', but there is no API server.
            .args(["agent", "--kubernetes=off", "--log-format", "json"])
            .args(["--no-ramp", "--policy"])
            .arg(&file)
            .arg("--pins")
            .arg(&pins)
            // The default is named after the pins, as the lab's folder is.
            .arg("--run-dir")
            .arg(file.with_extension("run"))
            .args(options)
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
                bail!(log.ended_badly(status))
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
        let plan: serde_json::Value = serde_json::from_str(&plan).context("the plan")?;
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
        ensure!(status.success(), log.ended_badly(status));
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
    pub(crate) fn outcomes(&self, rule: &str) -> BTreeMap<String, u64> {
        let mut outcomes = BTreeMap::new();
        for ended in self.ended.iter().filter(|ended| ended.rule == rule) {
            let outcome = match (&*ended.outcome, &ended.cause) {
                ("refused", Some(cause)) => format!("refused: {cause}"),
                (other, _) => other.to_owned(),
            };
            *outcomes.entry(outcome).or_default() += 1;
        }
        outcomes
    }

    fn ended_badly(&self, status: ExitStatus) -> String {
        let problems = self.problems.join("\n");
        format!("the agent exited with {status}:\n{problems}")
    }

    fn read(&mut self, line: &str, ready: &Sender<()>) {
        let Ok(Line { level, event }) = serde_json::from_str(line) else {
            return self.problems.push(line.to_owned());
        };
        match event {
            Event::Started { reset_by } => {
                self.reset_by = reset_by;
                // The receiver is gone if the caller has given up waiting.
                let _ = ready.send(());
            }
            Event::Reloaded => drop(ready.send(())),
            Event::WouldMove => self.would_move += 1,
            Event::Ended(ended) => self.ended.push(ended),
            Event::Other => {}
        }
        if matches!(&*level, "WARN" | "ERROR") {
            self.problems.push(line.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_moves_and_keeps_problems_of_a_log() {
        let (loaded, started) = channel();
        let mut log = Log::default();
        let ended = |level: &str, what: &str| {
            let address = r#""local":"10.0.0.1:80","peer":"10.0.0.2:4000","waited_ms":5"#;
            format!(r#"{{"level":"{level}","message":"move",{address},{what}}}"#)
        };
        for line in [
            r#"{"level":"INFO","message":"started","reset_by":"abort"}"#,
            r#"{"level":"INFO","message":"would move","rule":"old","cookie":"1"}"#,
            &ended("INFO", r#""rule":"old","outcome":"reset""#),
            &ended("INFO", r#""rule":"old","outcome":"reset""#),
            &ended(
                "INFO",
                r#""rule":"c","outcome":"refused","cause":"sigpipe""#,
            ),
            &ended("WARN", r#""rule":"big","outcome":"failed""#),
            r#"{"level":"INFO","message":"a pass","pid":1}"#,
            "thread panicked",
        ] {
            log.read(line, &loaded);
        }
        let outcomes = |rule| log.outcomes(rule).into_iter().collect::<Vec<_>>();
        assert!(started.try_recv().is_ok());
        assert_eq!(outcomes("old"), [("reset".to_owned(), 2)]);
        assert_eq!(outcomes("c"), [("refused: sigpipe".to_owned(), 1)]);
        assert_eq!(outcomes("big"), [("failed".to_owned(), 1)]);
        assert_eq!((log.would_move, log.problems.len()), (1, 2));
        assert_eq!(log.reset_by, "abort");
    }
}
