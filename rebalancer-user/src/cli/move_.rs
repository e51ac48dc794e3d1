//! `rebalancer move`: end connections manually.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, ValueEnum};
use tokio::sync::mpsc::unbounded_channel;

use super::{KernelArgs, positive_duration, print, records::Records, running};
use crate::{
    api::{self, End, Form, Moved},
    moves::{self, Done, Mover, Order},
    plan::{self, Guarded, Outcome, manual},
    policy::{Mode, Step, StepKind, When},
    render,
    snapshot::{Connection, Cookie},
};

/// End connections manually, so that their clients reconnect.
///
/// Ends each by one step, as the agent would, with the guards of the socket and its process. Ignores
/// policy and budgets, and does not detect the protocol. Works with and without an agent, and
/// does not appear in the agent's events and metrics. Exit code 1 if any connection was not moved.
#[derive(Args)]
pub(super) struct Move {
    /// The connections' IDs, as shown by `dump`.
    #[arg(required = true, value_name = "ID", value_parser = cookie)]
    ids: Vec<Cookie>,
    /// Show what would be moved, and move nothing.
    #[arg(long)]
    dry_run: bool,
    /// Ignore the guards for system ports and stateful ports, and for the server's process (sigpipe,
    /// foreignProcess, ownerUnknown). Each ignored guard is reported.
    #[arg(long)]
    ignore_guards: bool,
    /// How to end them.
    #[arg(long, value_enum, default_value_t = StepArg::Reset)]
    step: StepArg,
    /// When to end them.
    #[arg(long, value_enum, default_value_t = WhenArg::Quiet)]
    when: WhenArg,
    /// How long nothing must have been exchanged for a moment to be quiet.
    #[arg(long, value_name = "DURATION", default_value = "200ms", value_parser = positive_duration)]
    idle_for: Duration,
    /// How long to wait for a quiet moment, or for the server to close.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = positive_duration)]
    timeout: Duration,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
    #[command(flatten)]
    kernel: KernelArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum StepArg {
    /// Give the server an end of file, so that it closes.
    Close,
    /// Reset both ends.
    Reset,
}

#[derive(Clone, Copy, ValueEnum)]
enum WhenArg {
    /// At a quiet moment.
    Quiet,
    /// Immediately, whatever is under way.
    AtOnce,
}

fn cookie(text: &str) -> Result<Cookie, String> {
    let digits = text.strip_prefix("sk:").unwrap_or(text);
    digits.parse().map_err(|_| {
        "not an ID: expected hexadecimal digits, as shown by `rebalancer dump`".to_owned()
    })
}

impl Move {
    /// An agent that was started with `--mode Disabled` disables manual moves as well. Without an agent, or
    /// with one that does not answer, they are allowed.
    fn may_move(&self) -> anyhow::Result<()> {
        match running::status(&self.kernel) {
            Ok(status) if status.mode.flag == Mode::Disabled.as_str() => bail!(
                "the agent of this node (pid {}) runs with --mode {}: moves are disabled on this node, \
                 including manual ones\n  remedy: start it without that flag, or add --dry-run to see what \
                 would be moved",
                status.pid,
                status.mode.flag
            ),
            _ => Ok(()),
        }
    }

    pub(super) fn run(self) -> anyhow::Result<()> {
        let step = self.step()?;
        if !self.dry_run {
            self.may_move()?;
        }
        let mut records = Records::open(&self.kernel)?;
        let (origin, snapshot) = &records.read()?;
        let known: BTreeMap<Cookie, &Connection> =
            snapshot.connections.iter().map(|c| (c.cookie, c)).collect();

        let mut moved = Vec::new();
        let mut chosen = Vec::new();
        let mut seen = BTreeSet::new();
        for id in self.ids.iter().copied().filter(|id| seen.insert(*id)) {
            let mut one = Moved {
                id,
                connection: known.get(&id).copied(),
                end: End::NotFound,
                ignored: Vec::new(),
            };
            if let Some(connection) = one.connection {
                match self.choose(connection, step, &mut one.ignored) {
                    Err(skipped) => one.end = End::SkipReason(skipped),
                    Ok(one_move) => {
                        one.end = End::WouldMove;
                        chosen.push((one_move, connection));
                    }
                }
            }
            moved.push(one);
        }
        if !self.dry_run && !chosen.is_empty() {
            let mut done = make(&records, chosen)?;
            for one in &mut moved {
                if let Some((end, ignored)) = done.remove(&one.id) {
                    one.end = end;
                    one.ignored.extend(ignored);
                }
            }
        }

        for one in &moved {
            for guard in &one.ignored {
                eprintln!("note: {}: guard ignored: {guard}", one.id);
            }
        }
        print(|out| match self.output.notation() {
            None => render::moved_table(out, &moved),
            Some(notation) => api::write_moved(out, notation, &moved, snapshot, origin),
        })?;
        match moved.iter().filter(|one| !one.end.is_moved()).count() {
            0 => Ok(()),
            left => bail!("not moved: {left} of {}", moved.len()),
        }
    }

    fn step(&self) -> anyhow::Result<Step> {
        let kind = match self.step {
            StepArg::Close => StepKind::Close,
            StepArg::Reset => StepKind::Reset,
        };
        let when = match self.when {
            WhenArg::Quiet => When::Quiet {
                idle_for: self.idle_for,
            },
            WhenArg::AtOnce => When::AtOnce,
        };
        Step::new(kind, when, self.timeout).context("times must be more than 0")
    }

    /// Heeds the guards first, also where they are ignored: to say which.
    fn choose(
        &self,
        connection: &Connection,
        step: Step,
        ignored: &mut Vec<String>,
    ) -> Result<plan::Move, plan::SkipReason> {
        let heeded = manual(connection, step, Guarded::Yes);
        if !self.ignore_guards {
            return heeded;
        }
        let chosen = manual(connection, step, Guarded::No)?;
        ignored.extend(heeded.err().map(|skipped| skipped.to_string()));
        Ok(chosen)
    }
}

/// Makes the moves and waits for their outcomes.
fn make(
    records: &Records,
    chosen: Vec<(plan::Move, &Connection)>,
) -> anyhow::Result<BTreeMap<Cookie, (End, Option<String>)>> {
    let (mechanism, _) = moves::find_mechanism()
        .map_err(|why| anyhow!("no reset mechanism works on this node: {}", why.join("; ")))?;
    let (sender, mut done) = unbounded_channel();
    let mover = Mover::start(records.walker()?, None, None, mechanism, sender)
        .context("starting the moving thread")?;
    let mut ends = BTreeMap::new();
    let mut ordered = 0;
    for (chosen, connection) in chosen {
        let cookie = chosen.cookie();
        let order = Order {
            chosen,
            device: connection.device,
            cgroup: connection.cgroup,
        };
        match mover.order(order) {
            Ok(()) => ordered += 1,
            Err(why) => {
                let outcome = Outcome::Refused(why);
                let waited = Duration::ZERO;
                ends.insert(cookie, (End::Ended { outcome, waited }, None));
            }
        }
    }
    for _ in 0..ordered {
        let Done {
            chosen,
            outcome,
            ignored,
            waited,
            ..
        } = done.blocking_recv().context("the moving thread ended")?;
        let end = End::Ended { outcome, waited };
        ends.insert(
            chosen.cookie(),
            (end, ignored.map(|guard| guard.to_string())),
        );
    }
    Ok(ends)
}
