//! A server process in a pod, stopped when its value is dropped.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use fs_err as fs;
use rustix::process::{Pid, Signal, kill_process};
use xtask::{
    lab::{Lab, Pod},
    wait,
};

pub(crate) struct Running {
    process: Child,
    folder: PathBuf,
}

/// Creates a folder for `server` of `pod`, which is removed with the lab.
pub(crate) fn folder(lab: &Lab, pod: &Pod, server: &str) -> Result<PathBuf> {
    let folder = lab.folder().join(format!("{}-{server}", pod.name));
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

impl Running {
    /// Starts it with its output in a file and waits until the lab's client can connect to all
    /// `ports`.
    pub(crate) fn start(
        lab: &Lab,
        pod: &Pod,
        folder: &Path,
        command: &mut Command,
        ports: &[u16],
    ) -> Result<Self> {
        let log = std::fs::File::create(folder.join("log"))?;
        let process = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        let server = Self {
            process,
            folder: folder.to_owned(),
        };
        for port in ports {
            let address = SocketAddr::from((pod.addr, *port));
            let connected = lab.client().wait_connected(address);
            connected.with_context(|| server.log())?;
        }
        Ok(server)
    }

    #[cfg(feature = "steps")]
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether neither it nor one of its workers has died so far.
    pub(crate) fn is_alive(&mut self) -> Result<bool> {
        let log = self.log();
        // nginx, PostgreSQL and Redis log when a signal ends a process.
        let signalled = ["by signal", "on signal"].iter().any(|s| log.contains(s));
        Ok(self.process.try_wait()?.is_none() && !signalled)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // All of these servers exit at once on SIGINT, PostgreSQL without waiting for its clients.
        if kill_process(Pid::from_child(&self.process), Signal::INT).is_ok() {
            let _ = wait::until(Duration::from_secs(5), || Ok(self.process.try_wait()?));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
