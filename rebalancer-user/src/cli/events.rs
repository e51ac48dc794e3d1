//! `rebalancer events`: what happened in the agent lately, and what happens.

use std::{
    io::{self, Write as _},
    ops::ControlFlow,
    thread,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::{
    KernelArgs, note, positive_duration,
    running::{self, NotAsked},
};
use crate::{
    api::{self, Event},
    render,
};

/// Between two attempts to reach an agent that has exited.
const AGAIN: Duration = Duration::from_secs(1);

/// Show recent events of the agent: moves reported, started and ended, policy reloads, pauses.
///
/// The agent keeps the last 1024 events since it started; a follower that is too slow sees how many it
/// has missed. Exit code 5 if no agent is running, 4 if access is denied.
#[derive(Args)]
pub(super) struct Events {
    /// Keep following new events, also across a restart of the agent.
    #[arg(short, long)]
    follow: bool,
    /// Omit events older than this.
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    since: Option<Duration>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
    #[command(flatten)]
    kernel: KernelArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// One line per event, for people.
    Table,
    /// One line of JSON per event, for programs.
    Json,
}

impl Events {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let since = self.since.and_then(|since| {
            let now = Timestamp::now();
            now.checked_sub(since).ok()
        });
        let mut follower = Follower {
            form: self.output,
            since,
            last: None,
            broken: None,
        };
        if self.output == Form::Table {
            render::events_head(&mut io::stdout().lock()).context("writing to stdout")?;
        }
        if !self.follow {
            return Ok(follower.ask(&self.kernel, false)?);
        }
        loop {
            let before = follower.last.clone();
            match follower.ask(&self.kernel, true) {
                Err(failed) if follower.last.is_none() => return Err(failed.into()),
                Err(Failed::Asked(NotAsked::NoAgent { .. } | NotAsked::Other { .. })) | Ok(()) => {}
                Err(failed) => return Err(failed.into()),
            }
            if follower.last != before {
                note("note: the agent has stopped; waiting for the next one");
            }
            thread::sleep(AGAIN);
        }
    }
}

/// Prints events, and remembers the last one.
struct Follower {
    form: Form,
    since: Option<Timestamp>,
    /// The run and the number of the last.
    last: Option<(String, u64)>,
    broken: Option<anyhow::Error>,
}

/// Why there are no more events.
enum Failed {
    Asked(NotAsked),
    Here(anyhow::Error),
}

impl From<Failed> for anyhow::Error {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Asked(error) => error.into(),
            Failed::Here(error) => error,
        }
    }
}

impl Follower {
    /// Prints until the agent ends its answer.
    fn ask(&mut self, kernel: &KernelArgs, follow: bool) -> Result<(), Failed> {
        let mut path = format!(
            "/events?after={}",
            self.last.as_ref().map_or(0, |(_, n)| *n)
        );
        if let Some((run, _)) = &self.last {
            path.extend(["&run=", run]);
        }
        if follow {
            path.push_str("&follow=1");
        }
        let asked = running::lines(kernel, &path, |line| {
            let shown = self.line(line);
            self.broken = shown.err();
            if self.broken.is_some() {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        match self.broken.take() {
            Some(error) => Err(Failed::Here(error)),
            None => asked.map_err(Failed::Asked),
        }
    }

    fn line(&mut self, line: &[u8]) -> anyhow::Result<()> {
        // A blank one says that the agent is still there.
        if line.is_empty() {
            return Ok(());
        }
        let happened = api::read_event(line)
            .map_err(|error| anyhow!("the agent's answer: {error}\n  remedy: use the same version of `rebalancer` as the agent"))?;
        if self.since.is_none_or(|since| happened.at >= since) {
            self.show(&happened).context("writing to stdout")?;
        }
        self.last = Some((happened.run, happened.seq));
        Ok(())
    }

    fn show(&self, happened: &Event) -> io::Result<()> {
        let out = &mut io::stdout().lock();
        match self.form {
            Form::Table => render::event_row(out, happened)?,
            Form::Json => api::write_event(out, happened)?,
        }
        out.flush()
    }
}
