//! A server process in a pod, stopped when its value is dropped.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Result;
use fs_err as fs;
use rustix::process::Signal;
use xtask::{
    lab::{Lab, Pod},
    process::Process,
};

/// How long a server may take until it listens.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Running {
    process: Process,
    #[cfg(feature = "steps")]
    pub(crate) folder: PathBuf,
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
        let mut process = Process::start(command, folder.join("log"))?;
        for port in ports {
            let address = SocketAddr::from((pod.addr, *port));
            process.wait(&format!("connect to {address}"), PATIENCE, || {
                lab.client().connects(address).then_some(())
            })?;
        }
        Ok(Self {
            process,
            #[cfg(feature = "steps")]
            folder: folder.to_owned(),
        })
    }

    /// Whether neither it nor one of its workers has died so far.
    pub(crate) fn is_alive(&mut self) -> Result<bool> {
        let log = self.process.output();
        // nginx, PostgreSQL and Redis log when a signal ends a process.
        let signalled = ["by signal", "on signal"].iter().any(|s| log.contains(s));
        Ok(!self.process.has_exited()? && !signalled)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // All of these servers exit at once on SIGINT, PostgreSQL without waiting for its clients.
        let _ = self.process.stop(Signal::INT);
    }
}
