//! The rebalancer as the third act runs it: the release agent on this machine, its moves read
//! from its log.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use xtask::lab::Lab;

const START: Duration = Duration::from_secs(30);

pub(super) struct Agent {
    process: Child,
    log: Arc<Mutex<Log>>,
    reader: JoinHandle<()>,
}

/// What the agent has said.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    /// How many moves ended in which outcome.
    pub(super) outcomes: BTreeMap<String, u64>,
    /// Warnings and errors, and what is no JSON.
    pub(super) troubles: Vec<String>,
}

impl Agent {
    /// Starts the agent with `policy` and waits until it says that it has started.
    pub(super) fn start(lab: &Lab, agent: &Path, policy: &str) -> Result<Self> {
        let file = lab.folder().join("policy.yaml");
        fs::write(&file, policy).context("write the policy")?;
        let mut process = lab
            .machine()
            .command(agent)
            .args(["agent", "--log-format", "json", "--policy"])
            .arg(&file)
            .arg("--pins")
            .arg(lab.pins())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", agent.display()))?;
        let output = process.stderr.take().expect("its log is a pipe");
        let log = Arc::new(Mutex::new(Log::default()));
        let (tell, started) = channel();
        let writer = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                writer
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .read(&line, &tell);
            }
        });
        let agent = Self {
            process,
            log,
            reader,
        };
        match started.recv_timeout(START) {
            Ok(()) => Ok(agent),
            Err(RecvTimeoutError::Timeout) => bail!("the agent does not start in {START:?}"),
            Err(RecvTimeoutError::Disconnected) => {
                let (log, status) = agent.end()?;
                bail!(
                    "the agent ended with {status}:\n{}",
                    log.troubles.join("\n")
                )
            }
        }
    }

    pub(super) fn moves(&self) -> u64 {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.outcomes.get("reset").copied().unwrap_or(0)
    }

    /// Stops it as Kubernetes would, and returns all it said.
    pub(super) fn stop(self) -> Result<Log> {
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
    fn read(&mut self, line: &str, started: &Sender<()>) {
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            return self.troubles.push(line.to_owned());
        };
        let text = |name: &str| event[name].as_str().unwrap_or_default();
        match text("message") {
            // Nobody waits for it any more if it took too long.
            "started" => drop(started.send(())),
            "move" => *self.outcomes.entry(text("outcome").to_owned()).or_default() += 1,
            _ => {}
        }
        if matches!(text("level"), "WARN" | "ERROR") {
            self.troubles.push(line.to_owned());
        }
    }
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
            r#"{"level":"INFO","message":"move","outcome":"reset","cookie":"1"}"#,
            r#"{"level":"INFO","message":"move","outcome":"reset","cookie":"2"}"#,
            r#"{"level":"WARN","message":"move","outcome":"failed","cookie":"3"}"#,
            "thread panicked",
        ] {
            log.read(line, &tell);
        }
        assert!(started.try_recv().is_ok());
        let outcomes = BTreeMap::from([("failed".to_owned(), 1), ("reset".to_owned(), 2)]);
        assert_eq!(log.outcomes, outcomes);
        assert_eq!(log.troubles.len(), 2);
    }
}
