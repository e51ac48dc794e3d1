//! Runs a cell's clients in the lab's client namespace, against one pod, until a deadline.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use xtask::lab::Host;

use super::tally::{Seen, Tally};

/// Number of connections per cell.
pub(super) const CONNECTIONS: u64 = 20;

pub(super) struct Clients<'a> {
    pub(super) client: &'a Host,
    pub(super) pod: IpAddr,
    pub(super) port: u16,
    /// The server's folder.
    pub(super) folder: &'a Path,
    pub(super) until: Instant,
}

impl Clients<'_> {
    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.pod, self.port)
    }

    pub(super) fn time_left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Runs a worker for each connection until the deadline. Workers run forever; exchanges in
    /// progress at the deadline do not count.
    pub(super) fn run<W>(&self, worker: impl FnMut(u64, Arc<Tally>) -> W + Send) -> Result<Seen>
    where
        W: Future<Output = ()> + Send + 'static,
    {
        self.run_with(std::future::pending(), worker)
    }

    /// The same with another task, such as a publisher.
    pub(super) fn run_with<B, W>(
        &self,
        task: B,
        worker: impl FnMut(u64, Arc<Tally>) -> W + Send,
    ) -> Result<Seen>
    where
        B: Future<Output = Result<()>> + Send,
        W: Future<Output = ()> + Send + 'static,
    {
        self.client
            .enter(|| self.run_here(task, worker))
            .context("enter the client's namespace")?
    }

    #[tokio::main(flavor = "current_thread")]
    async fn run_here<W: Future<Output = ()> + Send + 'static>(
        &self,
        task: impl Future<Output = Result<()>>,
        mut worker: impl FnMut(u64, Arc<Tally>) -> W,
    ) -> Result<Seen> {
        let tally = Arc::new(Tally::default());
        for index in 0..CONNECTIONS {
            tokio::spawn(worker(index, Arc::clone(&tally)));
        }
        // The timeout is the normal end.
        if let Ok(ended) = tokio::time::timeout(self.time_left(), task).await {
            ended?;
        }
        Ok(tally.seen())
    }
}

/// A client's think time: different for each, and not in phase with a server.
pub(super) fn think(index: u64) -> Duration {
    Duration::from_millis(300 + 15 * index)
}

/// Pause between connection attempts.
pub(super) const PAUSE: Duration = Duration::from_millis(50);
