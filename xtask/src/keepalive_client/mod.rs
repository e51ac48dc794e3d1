//! The demo's client: keep-alive connections of a real HTTP library with a connection pool, with
//! think time between requests. Errors that the library does not hide are counted. Every second it
//! prints a report as one line of JSON. It exits when its standard input is closed.

mod tally;
mod worker;

use std::{io::Write as _, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use hyper::Uri;

pub(crate) use tally::Report;
use tally::Tally;
pub(crate) use worker::mix;
#[cfg(feature = "steps")]
pub(crate) use worker::{Http, client};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// URL to request
    #[arg(long)]
    pub(crate) url: Uri,
    /// Number of connections
    #[arg(long, default_value_t = 60)]
    pub(crate) connections: usize,
    /// Shortest think time in milliseconds; the longest is twice that
    #[arg(long, default_value_t = 300)]
    pub(crate) think: u64,
}

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run(arguments: &Args) -> Result<()> {
    let tally = Arc::new(Tally::new(arguments.connections));
    for index in 0..arguments.connections {
        let (url, tally) = (arguments.url.clone(), Arc::clone(&tally));
        tokio::spawn(worker::run(index, url, arguments.think, tally));
    }
    let (ended, mut end) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        drop(ended);
    });
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.tick().await;
    loop {
        let last = tokio::select! {
            _ = seconds.tick() => false,
            _ = &mut end => true,
        };
        let line = serde_json::to_string(&tally.report()).context("report")?;
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{line}")
            .and_then(|()| stdout.flush())
            .context("report")?;
        if last {
            return Ok(());
        }
    }
}
