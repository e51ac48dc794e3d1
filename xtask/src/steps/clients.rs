//! Runs a cell's clients in the lab's client namespace, against one pod, until a deadline.

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{sleep, timeout};
use xtask::lab::Host;

use super::tally::{Connection, Seen};

/// Number of connections per cell.
pub(super) const CONNECTIONS: u64 = 20;
/// Pause between connection attempts.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

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

    /// Runs a client for each connection until the deadline. `once` connects and uses the connection
    /// until it ends; then it is called again. Exchanges in progress at the deadline do not count.
    pub(super) fn run(&self, once: impl AsyncFn(&Connection<'_>) + Send) -> Result<Seen> {
        self.run_with(std::future::pending(), once)
    }

    /// The same with another task, such as a publisher.
    pub(super) fn run_with(
        &self,
        task: impl Future<Output = Result<()>> + Send,
        once: impl AsyncFn(&Connection<'_>) + Send,
    ) -> Result<Seen> {
        self.client
            .enter(|| self.run_here(task, once))
            .context("enter the client's namespace")?
    }

    #[tokio::main(flavor = "current_thread")]
    async fn run_here(
        &self,
        task: impl Future<Output = Result<()>>,
        once: impl AsyncFn(&Connection<'_>),
    ) -> Result<Seen> {
        let seen = RefCell::default();
        let clients = (0..CONNECTIONS).map(async |index| {
            let connection = Connection::new(index, &seen);
            loop {
                once(&connection).await;
                connection.reconnected();
                sleep(PAUSE).await;
            }
        });
        let mut clients: FuturesUnordered<_> = clients.collect();
        let ended = async {
            tokio::select! {
                ended = task => ended,
                _ = clients.next() => Ok(()),
            }
        };
        // The timeout is the normal end.
        timeout(self.time_left(), ended).await.unwrap_or(Ok(()))?;
        Ok(seen.take())
    }
}
