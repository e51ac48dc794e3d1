//! What a decision is made of: the agent that runs, or a saved dump and a policy.

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;

use super::{
    DEFAULT_POLICY, KernelArgs, ModeArg, note, policy, print,
    running::{self, NotAsked},
};
use crate::{
    api::{Dumped, Form, read_snapshot},
    http::{PlanRequest, PolicyText},
    policy::Policy,
    snapshot::{Cookie, Naming},
};

/// The agent to ask, or the dump to replay.
#[derive(Args)]
pub(super) struct Input {
    /// Policy file to evaluate instead of the agent's own policy; `-` is standard input
    /// [default with --snapshot: /etc/rebalancer/policy.yaml].
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The most that may be done, whatever the policy says.
    #[arg(long, value_enum, ignore_case = true)]
    mode: Option<ModeArg>,
    /// Saved output of `dump -o json` to use instead of the running agent; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    snapshot: Option<PathBuf>,
    #[command(flatten)]
    kernel: KernelArgs,
}

impl Input {
    /// Prints the answer of the running agent, in the form `output`, or has `replay` print what it makes
    /// of the saved dump. Reads the policy first: an operator who mistypes it sees the error without
    /// privileges.
    ///
    /// # Errors
    /// An invalid policy or dump, or no agent that answers.
    pub(super) fn show(
        &self,
        output: Form,
        id: Option<Cookie>,
        replay: impl FnOnce(&Policy, &Dumped) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let stdin = Some(Path::new("-"));
        if self.policy.as_deref() == stdin && self.snapshot.as_deref() == stdin {
            bail!("--policy and --snapshot cannot both be standard input");
        }
        let Some(file) = &self.snapshot else {
            let answer = self.ask(output, id)?;
            return print(|out| out.write_all(&answer));
        };
        let path = self.policy.as_deref().unwrap_or(Path::new(DEFAULT_POLICY));
        let (policy, _) = policy::load(path)?;
        let (policy, dumped) = self.replay(policy, file)?;
        replay(&policy, &dumped)
    }

    fn replay(&self, policy: Policy, file: &Path) -> anyhow::Result<(Policy, Dumped)> {
        let dumped = saved(file)?;
        // As the agent does that has made, or would have made, such a snapshot.
        let policy = if dumped.snapshot.naming == Naming::Off {
            policy::note_rules_for_pods(&policy);
            policy
        } else {
            policy.with_kubernetes_defaults()
        };
        note("note: a dump does not contain past moves: budgets are shown as unspent");
        let policy = match self.mode {
            Some(mode) => policy.with_mode_at_most(mode.into()),
            None => policy,
        };
        Ok((policy, dumped))
    }

    fn ask(&self, output: Form, id: Option<Cookie>) -> anyhow::Result<Bytes> {
        let policy = match &self.policy {
            None => None,
            Some(file) => {
                let (_, text) = policy::load(file)?;
                let name = policy::name(file);
                Some(PolicyText { name, text })
            }
        };
        let request = PlanRequest {
            policy,
            mode: self.mode.map(Into::into),
            form: output,
            connection: id.map(|id| id.to_string()),
        };
        let answer = running::post(&self.kernel, "/plan", serde_json::to_vec(&request)?);
        if let Err(NotAsked::NoAgent { .. }) = &answer {
            note(
                "note: without an agent, use a saved dump: \
                 rebalancer dump -o json | rebalancer plan --policy FILE --snapshot -",
            );
        }
        let answer = answer?;
        if let Ok(status) = running::status(&self.kernel)
            && let Some(paused) = status.paused
        {
            let until = paused.until;
            let until = until.map_or(String::new(), |until| format!(" until {until:.0}"));
            let ends_by = paused.by.ends_by();
            note(format_args!(
                "note: moves are paused{until}: {ends_by} ends the pause"
            ));
        }
        Ok(answer)
    }
}

fn saved(file: &Path) -> anyhow::Result<Dumped> {
    let name = policy::name(file);
    let read = if file == Path::new("-") {
        read_snapshot(io::stdin().lock())
    } else {
        let file = File::open(file).with_context(|| format!("reading the snapshot {name}"))?;
        read_snapshot(file)
    };
    read.with_context(|| format!("the snapshot {name}"))
}
