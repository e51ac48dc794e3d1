//! The rebalancer as the demo and the table of steps run it: the agent on this machine, its
//! moves read from its log.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use xtask::lab::{Lab, Pod};

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Agent {
    process: Child,
    program: PathBuf,
    policy: PathBuf,
    pins: PathBuf,
    log: Arc<Mutex<Log>>,
    reader: JoinHandle<()>,
    /// Hears of every policy that the agent has taken up.
    ready: Receiver<()>,
}

/// What the agent has said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    /// How many moves of which rule ended in which outcome.
    moves: BTreeMap<(String, String), u64>,
    /// The same, one by one.
    pub(crate) ended: Vec<Ended>,
    /// How many moves it would have made.
    pub(crate) would_move: u64,
    /// Warnings and errors, and what is no JSON.
    pub(crate) troubles: Vec<String>,
}

/// A move's end.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    /// When it was told.
    pub(crate) at: Instant,
    /// The server's end, and the client's.
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) outcome: String,
    /// Since it was chosen.
    pub(crate) waited: Duration,
}

impl Agent {
    /// Starts the agent with `policy` and waits until it says that it has started.
    pub(crate) fn start(lab: &Lab, program: &Path, policy: &str, more: &[&str]) -> Result<Self> {
        let mut command = lab.machine().command(program);
        command.arg("agent").args(more);
        let file = lab.folder().join("policy.yaml");
        Self::launch(command, file, lab.pins(), program, policy)
    }

    /// Starts one that sees only what `pod` serves, so that several can run side by side.
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
            // The lab's pods have cgroups as kubelet names them, and no API server.
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
            // Its own choice is named after the pins, and so would be the lab's folder.
            .arg("--run-dir")
            .arg(file.with_extension("run"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let output = process.stderr.take().expect("its log is a pipe");
        let log = Arc::new(Mutex::new(Log::default()));
        let (tell, ready) = channel();
        let writer = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                writer
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .read(&line, &tell);
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
            Err(RecvTimeoutError::Timeout) => bail!("the agent does not start in {PATIENCE:?}"),
            Err(RecvTimeoutError::Disconnected) => {
                let (log, status) = agent.end()?;
                bail!(
                    "the agent ended with {status}:\n{}",
                    log.troubles.join("\n")
                )
            }
        }
    }

    /// Gives it another policy, as a changed ConfigMap does, and waits until it has it.
    pub(crate) fn reload(&self, policy: &str) -> Result<()> {
        fs::write(&self.policy, policy).context("write the policy")?;
        kill_process(Pid::from_child(&self.process), Signal::HUP).context("SIGHUP")?;
        let ready = self.ready.recv_timeout(PATIENCE);
        ready.with_context(|| {
            format!(
                "the agent did not take up the policy:\n{}",
                self.log().troubles.join("\n")
            )
        })
    }

    /// What it has said so far.
    pub(crate) fn log(&self) -> Log {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What its maps hold of endpoints, in one of `dump`'s forms.
    pub(crate) fn dump_endpoints(&self, form: &str) -> Result<String> {
        self.ask(&["dump", "--endpoints", "-o", form])
    }

    /// How many connections its policy skips for which cause, by `rebalancer plan`.
    #[cfg(feature = "steps")]
    pub(crate) fn skipped(&self) -> Result<BTreeMap<String, u64>> {
        let policy = self.policy.display().to_string();
        let plan = self.ask(&["plan", "-o", "json", "--policy", &policy])?;
        let plan: Value = serde_json::from_str(&plan).context("the plan")?;
        serde_json::from_value(plan["skipped"].clone()).context("the plan's sums")
    }

    fn ask(&self, question: &[&str]) -> Result<String> {
        let output = Command::new(&self.program)
            .args(question)
            .arg("--pins")
            .arg(&self.pins)
            .arg("--run-dir")
            .arg(self.policy.with_extension("run"))
            .output()
            .with_context(|| format!("rebalancer {}", question[0]))?;
        let problem = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "rebalancer {}: {}",
            question[0],
            problem.trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Stops it as Kubernetes would, and returns all it said.
    pub(crate) fn stop(self) -> Result<Log> {
        let pid = Pid::from_child(&self.process);
        kill_process(pid, Signal::TERM).context("stop the agent")?;
        let (log, status) = self.end()?;
        if !status.success() {
            bail!(
                "the agent ended with {status}:\n{}",
                log.troubles.join("\n")
            );
        }
        Ok(log)
    }

    fn end(mut self) -> Result<(Log, ExitStatus)> {
        let status = self.process.wait().context("wait for the agent")?;
        if self.reader.join().is_err() {
            bail!("reading the agent's log failed");
        }
        let log = self
            .log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Ok((log, status))
    }
}

impl Log {
    /// The moves of `rule`, by outcome; what was refused, by the guard too.
    pub(crate) fn outcomes(&self, rule: &str) -> BTreeMap<&str, u64> {
        let of_rule = self.moves.iter().filter(|((of, _), _)| of == rule);
        of_rule
            .map(|((_, outcome), count)| (outcome.as_str(), *count))
            .collect()
    }

    fn read(&mut self, line: &str, ready: &Sender<()>) {
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            return self.troubles.push(line.to_owned());
        };
        let text = |name: &str| event[name].as_str().unwrap_or_default();
        match text("message") {
            // Nobody waits for it any more if it took too long.
            "started" | "policy reloaded" => drop(ready.send(())),
            "would move" => self.would_move += 1,
            "move" => {
                let outcome = match text("outcome") {
                    "refused" => format!("refused: {}", text("cause")),
                    other => other.to_owned(),
                };
                if let (Ok(local), Ok(peer)) = (text("local").parse(), text("peer").parse()) {
                    let waited = event["waited_ms"].as_u64().unwrap_or_default();
                    self.ended.push(Ended {
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
            self.troubles.push(line.to_owned());
        }
    }
}

/// Makes a folder there, so that several agents can keep their pins in it.
fn make_on_bpffs(folder: &Path) -> Result<()> {
    let made = || match fs::create_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    };
    if made().is_ok() {
        return Ok(());
    }
    // Nobody has mounted it yet; the agent would do the same.
    let mount = ["-t", "bpf", "bpf", "/sys/fs/bpf"];
    let status = Command::new("mount").args(mount).status();
    ensure!(status.context("mount")?.success(), "mount /sys/fs/bpf");
    made().with_context(|| folder.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_moves_and_keeps_troubles() {
        let (tell, started) = channel();
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
            log.read(line, &tell);
        }
        assert!(started.try_recv().is_ok());
        assert_eq!(log.outcomes("old"), BTreeMap::from([("reset", 2)]));
        assert_eq!(log.outcomes("c"), BTreeMap::from([("refused: sigpipe", 1)]));
        assert_eq!(log.outcomes("big"), BTreeMap::from([("failed", 1)]));
        assert_eq!((log.would_move, log.troubles.len()), (1, 2));
    }
}
