//! Where a cell's clients run: the lab's client namespace, against one pod, for a time.

use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use xtask::lab::Host;

use super::tally::{Seen, Tally};

/// How many connections a cell's clients keep.
pub(super) const CONNECTIONS: u64 = 20;

pub(super) struct Clients<'a> {
    pub(super) client: &'a Host,
    pub(super) pod: Ipv4Addr,
    pub(super) port: u16,
    /// The server's own folder.
    pub(super) folder: &'a Path,
    pub(super) until: Instant,
}

impl Clients<'_> {
    pub(super) fn address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.pod, self.port)
    }

    pub(super) fn time_left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Runs a worker for each connection until the time is over. Workers never end; what they
    /// have under way then counts for nothing.
    pub(super) fn run<W>(&self, worker: impl FnMut(u64, Arc<Tally>) -> W + Send) -> Result<Seen>
    where
        W: Future<Output = ()> + Send + 'static,
    {
        self.run_beside(std::future::pending(), worker)
    }

    /// The same with something beside the workers, as one that publishes for them.
    pub(super) fn run_beside<B, W>(
        &self,
        beside: B,
        mut worker: impl FnMut(u64, Arc<Tally>) -> W + Send,
    ) -> Result<Seen>
    where
        B: Future<Output = Result<()>> + Send,
        W: Future<Output = ()> + Send + 'static,
    {
        let tally = Arc::new(Tally::default());
        self.client
            .enter(|| -> Result<()> {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .context("start the runtime")?;
                runtime.block_on(async {
                    for index in 0..CONNECTIONS {
                        tokio::spawn(worker(index, Arc::clone(&tally)));
                    }
                    // Running out of time is how it should end.
                    match tokio::time::timeout(self.time_left(), beside).await {
                        Ok(ended) => ended,
                        Err(_) => Ok(()),
                    }
                })
            })
            .context("enter the client's namespace")??;
        Ok(tally.seen())
    }
}

/// How long a client thinks: different for each, and never in step with a server.
pub(super) fn think(index: u64) -> Duration {
    Duration::from_millis(300 + 15 * index)
}

/// Between attempts to connect.
pub(super) const PAUSE: Duration = Duration::from_millis(50);
