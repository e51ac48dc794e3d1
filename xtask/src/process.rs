//! A program that runs beside this one, with its output in a file.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// Lines of the output in an error.
const TAIL: usize = 15;

/// A started program. It goes on when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` without input.
    pub fn start(command: &mut Command, log: PathBuf) -> Result<Self> {
        let output = File::create(&log).with_context(|| log.display().to_string())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        Ok(Self { child, log })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn has_exited(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Its output so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `ready` returns a value.
    ///
    /// # Errors
    /// It has exited, or the time is over; the message has the end of its output.
    pub fn wait<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Result<T> {
        let found = wait::until(patience, || {
            if let Some(found) = ready() {
                return Ok(Some(found));
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the program exited with {status}");
            }
            Ok(None)
        });
        found.map_err(|problem| {
            let output = self.output();
            let lines: Vec<&str> = output.lines().collect();
            let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
            anyhow!("{what}: {problem}\n{tail}")
        })
    }

    /// Ends it by `signal`, and by SIGKILL if it has not exited some seconds later.
    pub fn stop(&mut self, signal: Signal) -> Result<()> {
        if !self.has_exited()? {
            kill_process(Pid::from_child(&self.child), signal)?;
            let exited = wait::until(Duration::from_secs(5), || Ok(self.child.try_wait()?));
            if exited.is_err() {
                self.child.kill()?;
                self.child.wait()?;
            }
        }
        Ok(())
    }
}
