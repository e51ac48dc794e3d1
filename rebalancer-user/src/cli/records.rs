//! The node's records, opened for reading: those of the agent that runs, or else our own.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{KernelArgs, need_privilege, note};
use crate::{
    api::{Origin, Source},
    bpf::{self, Adopt, Kernel, Lifetime, Tracker, Tracking, Walker},
    host::{self, CgroupTree},
    observe::observe,
    snapshot::Snapshot,
};

/// Opened records. Those made for the call are removed when it is dropped.
pub(super) struct Records {
    // Dropped in this order: what reads the pins goes before the pins.
    walker: Walker,
    kernel: Arc<Kernel>,
    source: Source,
    cgroups: CgroupTree,
    _own: Option<Tracker>,
}

impl Records {
    /// Opens the records of the running agent, or those that remain without one; attaches for the call
    /// where there are none, and notes what that means.
    pub(super) fn open(args: &KernelArgs) -> anyhow::Result<Self> {
        need_privilege()?;
        let kernel = Arc::new(Kernel::read()?);
        let cgroups = CgroupTree::find(args.cgroup.as_deref())?;
        // An agent holds a lock on its pins.
        let agent_runs = bpf::agent_runs(&args.pins);
        if agent_runs || bpf::tracks(&args.pins) {
            let source = if agent_runs {
                Source::Agent
            } else {
                note(format_args!(
                    "no agent is running; tracking continues by its pins in {}, and nothing is moved",
                    args.pins.display()
                ));
                Source::Pins
            };
            return Ok(Self {
                walker: Walker::open(Arc::clone(&kernel), &args.pins)?,
                kernel,
                source,
                cgroups,
                _own: None,
            });
        }
        host::raise_memlock();
        let (own, walker) = attach_for_the_call(Arc::clone(&kernel), args)?;
        note(format_args!(
            "no agent is running ({} has no live pins): attached for this call; ages count from now, \
             so they are lower bounds, and rates are unknown",
            args.pins.display(),
        ));
        Ok(Self {
            walker,
            kernel,
            source: Source::ThisCall,
            cgroups,
            _own: Some(own),
        })
    }

    /// Another reader of the same records.
    pub(super) fn walker(&self) -> Result<Walker, bpf::Error> {
        Walker::open(Arc::clone(&self.kernel), self.walker.pins())
    }

    /// Reads them, and warns of what the kernel half could not record.
    pub(super) fn read(&mut self) -> anyhow::Result<(Origin, Snapshot)> {
        let observation = observe(&mut self.walker, Adopt::No, &self.cgroups.read())?;
        for (fault, count) in &observation.faults {
            note(format_args!(
                "warning: {}: {count} times since tracking started",
                fault.text()
            ));
        }
        Ok((Origin::here(self.source), observation.snapshot))
    }
}

/// Tracks under pins of this process's own, which a killed one's successor removes.
pub(super) fn attach_for_the_call(
    kernel: Arc<Kernel>,
    args: &KernelArgs,
) -> anyhow::Result<(Tracker, Walker)> {
    let pins = &args.pins;
    let parent = pins.parent().unwrap_or(Path::new("/"));
    bpf::mount_bpffs(parent)?;
    remove_stale(pins);
    let own = own_pins(pins, std::process::id());
    let tracker = Tracker::start(
        &kernel,
        &own,
        args.cgroup.as_deref(),
        Tracking {
            loopback: true,
            ..Tracking::default()
        },
        Lifetime::Process,
    )?;
    let mut walker = Walker::open(kernel, &own)?;
    walker.adopt(tracker.within()?, u64::MAX)?;
    Ok((tracker, walker))
}

fn own_pins(pins: &Path, pid: u32) -> PathBuf {
    let mut name = pins.as_os_str().to_owned();
    name.push(format!("-dump-{pid}"));
    PathBuf::from(name)
}

/// Removes the pins of dumps that were killed.
pub(super) fn remove_stale(pins: &Path) {
    let (Some(parent), Some(name)) = (pins.parent(), pins.file_name()) else {
        return;
    };
    let prefix = format!("{}-dump-", name.display());
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(&prefix);
        if ours && !bpf::agent_runs(&entry.path()) {
            // Dropping it removes it.
            drop(bpf::PinDir::take(&entry.path()));
        }
    }
}
