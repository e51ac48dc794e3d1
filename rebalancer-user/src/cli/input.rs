//! What a decision is made of: a policy, and a snapshot of this node or from a file.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;

use super::{
    DEFAULT_POLICY, KernelArgs, ModeArg,
    names::NamesArgs,
    note, policy,
    records::{Records, agents_ledger},
};
use crate::{
    plan::Ledger,
    policy::Policy,
    render::{AgentLedger, Dumped, Source, read_snapshot},
    snapshot::Naming,
};

/// Where policy and snapshot come from.
#[derive(Args)]
pub(super) struct Input {
    /// The policy file; `-` is standard input.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_POLICY)]
    policy: PathBuf,
    /// Do no more than this, whatever the policy says.
    #[arg(long, value_enum, ignore_case = true, default_value_t = ModeArg::Enforce)]
    mode: ModeArg,
    /// What `dump -o json` has written, instead of this node now; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    snapshot: Option<PathBuf>,
    #[command(flatten)]
    kernel: KernelArgs,
    #[command(flatten)]
    names: NamesArgs,
}

impl Input {
    /// Reads both, the policy first: an operator who mistypes it needs no privilege to be told.
    pub(super) fn read(&self) -> anyhow::Result<(Policy, Dumped)> {
        let stdin = Path::new("-");
        if self.policy == stdin && self.snapshot.as_deref() == Some(stdin) {
            bail!("--policy and --snapshot cannot both be standard input");
        }
        let policy = policy::load(&self.policy)?;
        let dumped = match &self.snapshot {
            Some(file) => replayed(file)?,
            None => self.live(&policy)?,
        };
        // As the agent does that has made, or would have made, such a snapshot.
        let policy = if dumped.snapshot.naming == Naming::Off {
            policy::note_rules_for_pods(&policy);
            policy
        } else {
            policy.with_kubernetes_defaults()
        };
        if dumped.ledger.is_none() {
            note("note: budgets are shown unspent, as it is not known here what was moved before");
        }
        Ok((policy.with_mode_at_most(self.mode.into()), dumped))
    }

    /// The ledger after the records: what began to move in between is known to be moving, and not
    /// chosen again.
    fn live(&self, policy: &Policy) -> anyhow::Result<Dumped> {
        let mut records = Records::open(&self.kernel)?;
        let (origin, mut snapshot) = records.read()?;
        let cgroup = self.kernel.cgroup.as_deref();
        self.names.put(&mut snapshot, cgroup)?;
        let agent = match origin.source {
            Source::Agent => agents_ledger(&self.kernel),
            Source::Pins | Source::ThisCall => None,
        };
        if let Some(agent) = &agent {
            compare(agent, policy, &policy::name(&self.policy), self.mode);
        }
        Ok(Dumped {
            origin,
            snapshot,
            ledger: agent.map(|agent| agent.ledger),
        })
    }
}

/// What to decide with; nothing done yet, if nothing else is known.
pub(super) fn ledger_of(dumped: &Dumped) -> Ledger {
    dumped.ledger.clone().unwrap_or_default()
}

/// Says where the agent goes by something else than this plan.
fn compare(agent: &AgentLedger, policy: &Policy, name: &str, mode: ModeArg) {
    let file = &agent.policy_file;
    if crate::policy::parse(file, &agent.policy).as_ref() != Ok(policy) {
        note(format_args!(
            "warning: the agent goes by another policy: what it read from {file} differs from \
             {name}; a reload (SIGHUP) that was refused, or not asked for, is told by `status`"
        ));
    }
    let mode = policy.mode().safest(mode.into()).as_str();
    if agent.mode != mode {
        note(format_args!(
            "warning: this plan is of mode {mode}, the agent is in mode {}",
            agent.mode
        ));
    }
}

fn replayed(file: &Path) -> anyhow::Result<Dumped> {
    let name = policy::name(file);
    let read = if file == Path::new("-") {
        read_snapshot(io::stdin().lock())
    } else {
        let file = File::open(file).with_context(|| format!("reading the snapshot {name}"))?;
        read_snapshot(file)
    };
    read.with_context(|| format!("the snapshot {name}"))
}
