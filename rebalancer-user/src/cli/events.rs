//! `rebalancer events`: what happened in the agent lately, and what happens.

use std::{io, ops::ControlFlow, thread, time::Duration};

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::{
    KernelArgs, note, positive_duration, print,
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
        };
        if self.output == Form::Table {
            print(|out| render::events_head(out))?;
        }
        if !self.follow {
            return follower.ask(&self.kernel, false);
        }
        loop {
            let before = follower.last.clone();
            match follower.ask(&self.kernel, true) {
                Err(failed) if follower.last.is_none() || !is_of_the_agent(&failed) => {
                    return Err(failed);
                }
                _ => {}
            }
            if follower.last != before {
                note("note: the agent has stopped; waiting for the next one");
            }
            thread::sleep(AGAIN);
        }
    }
}

/// Whether the agent has stopped, or another may answer soon.
fn is_of_the_agent(failed: &anyhow::Error) -> bool {
    use NotAsked::{NoAgent, Other};
    let not_asked = failed.downcast_ref();
    matches!(not_asked, Some(NoAgent { .. } | Other { .. }))
}

/// Prints events, and remembers the last one.
struct Follower {
    form: Form,
    since: Option<Timestamp>,
    /// The run and the number of the last.
    last: Option<(String, u64)>,
}

impl Follower {
    /// Prints until the agent ends its answer.
    fn ask(&mut self, kernel: &KernelArgs, follow: bool) -> anyhow::Result<()> {
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
        let mut shown = Ok(());
        let asked = running::lines(kernel, &path, |line| {
            shown = self.line(line);
            match shown {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        shown?;
        Ok(asked?)
    }

    fn line(&mut self, line: &[u8]) -> anyhow::Result<()> {
        // A blank one says that the agent is still there.
        if line.is_empty() {
            return Ok(());
        }
        let happened = api::read_event(line)
            .map_err(|error| anyhow!("the agent's answer: {error}\n  remedy: use the same version of `rebalancer` as the agent"))?;
        if self.since.is_none_or(|since| happened.at >= since) {
            print(|out| self.show(out, &happened))?;
        }
        self.last = Some((happened.run, happened.seq));
        Ok(())
    }

    fn show(&self, out: &mut impl io::Write, happened: &Event) -> io::Result<()> {
        match self.form {
            Form::Table => render::event_row(out, happened)?,
            Form::Json => api::write_event(out, happened)?,
        }
        out.flush()
    }
}
