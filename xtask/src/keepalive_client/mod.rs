//! The demo's client: connections that are kept, as a service's own clients keep them, with
//! time to think between requests. It uses a real HTTP library with its connection pool; what
//! the library cannot hide is an error. Every second it tells where its connections are, one
//! JSON document a line. It ends when its input does.

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
    /// What to ask for
    #[arg(long)]
    pub(crate) url: Uri,
    /// How many connections
    #[arg(long, default_value_t = 60)]
    pub(crate) connections: usize,
    /// The shortest time to think, in milliseconds; the longest is twice that
    #[arg(long, default_value_t = 300)]
    pub(crate) think: u64,
}

pub(crate) fn run(arguments: &Args) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(work(arguments))
}

async fn work(arguments: &Args) -> Result<()> {
    let tally = Arc::new(Tally::new(arguments.connections));
    for index in 0..arguments.connections {
        let think = worker::Think {
            seed: index as u64,
            shortest: arguments.think,
        };
        tokio::spawn(worker::run(
            index,
            arguments.url.clone(),
            think,
            Arc::clone(&tally),
        ));
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
