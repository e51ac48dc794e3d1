//! `rebalancer dump`: every tracked connection, or every endpoint.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use super::{KernelArgs, need_privilege, note};
use crate::{
    bpf::{self, Kernel, Lister, Tracker, Tracking},
    observe::observe,
    render::{self, Source},
};

/// Show every tracked connection, or every endpoint.
///
/// Reads the maps of the agent that runs. Without one it attaches for the call: it then shows what
/// is there, but ages count from the call, and nothing is known of what has closed.
#[derive(Args)]
pub(super) struct Dump {
    /// Show endpoints: listeners, connections accepted, open and closed, bytes.
    #[arg(long)]
    endpoints: bool,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    kernel: KernelArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

impl Dump {
    pub(super) fn run(self) -> anyhow::Result<()> {
        need_privilege()?;
        let kernel = Arc::new(Kernel::read()?);
        let pins = &self.kernel.pins;
        // An agent holds a lock on its pins; what a killed one left is stale.
        if bpf::agent_runs(pins) {
            let mut lister = Lister::open(kernel, pins)?;
            return self.print(&mut lister, Source::Agent);
        }
        bpf::raise_memlock();
        let (_own, mut lister) = attach_for_the_call(kernel, &self)?;
        note(format_args!(
            "no agent runs ({} has no live pins): attached for this call; ages count from now, \
             so they and the rates are lower and upper bounds",
            pins.display(),
        ));
        self.print(&mut lister, Source::ThisCall)
    }

    fn print(&self, lister: &mut Lister, source: Source) -> anyhow::Result<()> {
        let observation = observe(lister)?;
        for (fault, count) in &observation.faults {
            note(format_args!(
                "warning: {}: {count} times since tracking began",
                fault.text()
            ));
        }
        let out = &mut io::stdout().lock();
        let snapshot = &observation.snapshot;
        match (self.endpoints, self.output) {
            (false, Output::Table) => render::connections_table(out, snapshot),
            (true, Output::Table) => render::endpoints_table(out, snapshot),
            (false, Output::Json) => render::connections_json(out, snapshot, source),
            (true, Output::Json) => render::endpoints_json(out, snapshot, source),
        }
        .context("writing to stdout")
    }
}

/// Tracks under pins of this process's own, which a killed one's successor removes.
fn attach_for_the_call(kernel: Arc<Kernel>, dump: &Dump) -> anyhow::Result<(Tracker, Lister)> {
    let pins = &dump.kernel.pins;
    let parent = pins.parent().unwrap_or(Path::new("/"));
    bpf::mount_bpffs(parent)?;
    remove_stale(pins);
    let own = own_pins(pins, std::process::id());
    let tracker = Tracker::start(
        &kernel,
        &own,
        dump.kernel.cgroup.as_deref(),
        Tracking {
            loopback: true,
            ..Tracking::default()
        },
    )?;
    let adopted = tracker.adopt()?;
    if adopted.not_entered > 0 {
        note(format_args!(
            "warning: {} network namespaces could not be entered",
            adopted.not_entered
        ));
    }
    let lister = Lister::open(kernel, &own)?;
    Ok((tracker, lister))
}

fn own_pins(pins: &Path, pid: u32) -> PathBuf {
    let mut name = pins.as_os_str().to_owned();
    name.push(format!("-dump-{pid}"));
    PathBuf::from(name)
}

/// Removes the pins of dumps that were killed.
fn remove_stale(pins: &Path) {
    let Some(parent) = pins.parent() else { return };
    let prefix = own_pins(pins, 0);
    let Some(prefix) = prefix
        .file_name()
        .and_then(|n| n.to_str())
        .map(|n| n.trim_end_matches('0'))
    else {
        return;
    };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(prefix));
        if ours && !bpf::agent_runs(&entry.path()) {
            // Taking it empties it, dropping it removes it.
            drop(bpf::PinDir::take(&entry.path()));
        }
    }
}
