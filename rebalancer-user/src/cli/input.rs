//! What a decision is made of: a policy, and a snapshot of this node or from a file.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;

use super::{DEFAULT_POLICY, KernelArgs, ModeArg, names::NamesArgs, policy, records::Records};
use crate::{
    policy::Policy,
    render::{Origin, read_snapshot},
    snapshot::{Naming, Snapshot},
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
    pub(super) fn read(&self) -> anyhow::Result<(Policy, Origin, Snapshot)> {
        let stdin = Path::new("-");
        if self.policy == stdin && self.snapshot.as_deref() == Some(stdin) {
            bail!("--policy and --snapshot cannot both be standard input");
        }
        let policy = policy::load(&self.policy)?.with_mode_at_most(self.mode.into());
        let (origin, snapshot) = match &self.snapshot {
            Some(file) => replayed(file)?,
            None => {
                let (origin, mut snapshot) = Records::open(&self.kernel)?.read()?;
                let cgroup = self.kernel.cgroup.as_deref();
                self.names.put(&mut snapshot, cgroup)?;
                (origin, snapshot)
            }
        };
        // As the agent does that has made, or would have made, such a snapshot.
        let policy = if snapshot.naming == Naming::Off {
            policy::note_rules_for_pods(&policy);
            policy
        } else {
            policy.with_kubernetes_defaults()
        };
        Ok((policy, origin, snapshot))
    }
}

fn replayed(file: &Path) -> anyhow::Result<(Origin, Snapshot)> {
    let name = policy::name(file);
    let read = if file == Path::new("-") {
        read_snapshot(io::stdin().lock())
    } else {
        let file = File::open(file).with_context(|| format!("reading the snapshot {name}"))?;
        read_snapshot(file)
    };
    read.with_context(|| format!("the snapshot {name}"))
}
