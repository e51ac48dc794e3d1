//! The keep-alive client, from outside: a process in the lab's client namespace that reports every
//! second.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use xtask::lab::Lab;

use crate::keepalive_client::Report;

/// How many connections the fleet keeps.
pub(crate) const SIZE: u64 = 60;

pub(crate) struct Fleet {
    client: Child,
    reports: Receiver<String>,
}

impl Fleet {
    /// Starts the fleet on `path` of the Service and waits until every connection is placed.
    pub(crate) fn start(lab: &Lab, path: &str) -> Result<Self> {
        let myself = std::env::current_exe().context("this program's path")?;
        let mut client = lab
            .client()
            .command(myself)
            .args(["keepalive-client", "--connections", &SIZE.to_string()])
            .args(["--url", &format!("http://{}{path}", lab.service())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the keep-alive client")?;
        let output = client.stdout.take().expect("its output is a pipe");
        let (tell, reports) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        let fleet = Self { client, reports };
        for _ in 0..10 {
            if fleet.next()?.placed() == SIZE {
                return Ok(fleet);
            }
        }
        bail!("the keep-alive client did not get all of its {SIZE} connections");
    }

    /// Waits for the next report, at most a second away.
    pub(crate) fn next(&self) -> Result<Report> {
        let line = self.reports.recv_timeout(Duration::from_secs(10));
        let line = line.context("the keep-alive client reports no more")?;
        serde_json::from_str(&line)
            .with_context(|| format!("the keep-alive client's report {line}"))
    }

    /// Stops the fleet; its last word.
    pub(crate) fn stop(mut self) -> Result<Report> {
        drop(self.client.stdin.take());
        let status = self
            .client
            .wait()
            .context("wait for the keep-alive client")?;
        if !status.success() {
            bail!("the keep-alive client ended with {status}");
        }
        let mut last = None;
        // Its reader ends with it.
        while let Ok(line) = self.reports.recv_timeout(Duration::from_secs(5)) {
            last = Some(line);
        }
        let last = last.context("the keep-alive client's last report")?;
        serde_json::from_str(&last)
            .with_context(|| format!("the keep-alive client's report {last}"))
    }
}
