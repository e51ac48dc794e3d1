//! The log of a command that runs until it is stopped.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// What is logged, and how.
#[derive(Args)]
pub(super) struct LogArgs {
    /// Format of the log, on stderr.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Log filter: a level, or `tracing` directives.
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "info",
        env = "REBALANCER_LOG"
    )]
    log: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl LogArgs {
    /// Begins to log.
    pub(super) fn start(&self) -> anyhow::Result<()> {
        // The agent reports once that a watch fails; kube-runtime would log every retry. A later directive for
        // kube_runtime overrides this one.
        let filter = format!("kube_runtime=error,{}", self.log);
        let filter = EnvFilter::try_new(filter).with_context(|| {
            format!("--log {:?}: not a level or a list of directives", self.log)
        })?;
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => log.with_target(false).with_ansi(colours()).init(),
            LogFormat::Json => log.json().flatten_event(true).init(),
        }
        Ok(())
    }
}

/// Colours are for people: a terminal, unless `NO_COLOR` says otherwise.
fn colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}
