//! Runs the keep-alive client as a process in the lab's client namespace and reads its reports.

use std::{
    process::{Child, Stdio},
    sync::mpsc::Receiver,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use xtask::lab::Lab;

use crate::{keepalive_client::Report, lines::lines};

/// Number of connections of the fleet.
pub(crate) const SIZE: u64 = 60;

pub(crate) struct Fleet {
    client: Child,
    reports: Receiver<String>,
}

impl Fleet {
    /// Starts the fleet on `path` of the Service and waits until every connection has had a
    /// response.
    pub(crate) fn start(lab: &Lab, path: &str) -> Result<Self> {
        let program = std::env::current_exe().context("this program's path")?;
        let mut client = lab
            .client()
            .command(program)
            .args(["keepalive-client", "--connections", &SIZE.to_string()])
            .args(["--url", &format!("http://{}{path}", lab.service())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the keep-alive client")?;
        let reports = lines(client.stdout.take().expect("stdout is a pipe"));
        let fleet = Self { client, reports };
        for _ in 0..10 {
            if fleet.next()?.answered() == SIZE {
                return Ok(fleet);
            }
        }
        bail!("not all {SIZE} connections of the keep-alive client were answered");
    }

    /// Waits for the next report, which comes within a second.
    pub(crate) fn next(&self) -> Result<Report> {
        let line = self.reports.recv_timeout(Duration::from_secs(10));
        let line = line.context("the keep-alive client stopped reporting")?;
        Report::parse(&line)
    }

    /// Stops the fleet and returns its last report.
    pub(crate) fn stop(mut self) -> Result<Report> {
        drop(self.client.stdin.take());
        let status = self
            .client
            .wait()
            .context("wait for the keep-alive client")?;
        if !status.success() {
            bail!("the keep-alive client exited with {status}");
        }
        let mut last = None;
        // The reader thread ends with the process.
        while let Ok(line) = self.reports.recv_timeout(Duration::from_secs(5)) {
            last = Some(line);
        }
        Report::parse(&last.context("the keep-alive client's last report")?)
    }
}
