//! The sock_ops program on the cgroup root, and the maps it fills.

use std::{
    os::fd::{AsRawFd, RawFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupAttachMode, SockOps},
};
use aya_log::EbpfLogger;
use rebalancer_common::{ABI_VERSION, Settings, names};

use super::{Error, Kernel, OBJECT, PinDir, cgroup_root, maps::write_settings};

/// What to record.
#[derive(Clone, Copy, Debug)]
pub struct Tracking {
    /// Record connections from loopback addresses too.
    pub loopback: bool,
    /// Most connections recorded per endpoint.
    pub max_per_endpoint: u32,
}

impl Default for Tracking {
    fn default() -> Self {
        Self {
            loopback: false,
            max_per_endpoint: 65_536,
        }
    }
}

/// Tracking, for as long as this value lives. Dropping it detaches the program and removes the
/// pins: nothing stays in the kernel.
pub struct Tracker {
    // Fields are dropped in this order: first the program's link, then the pins.
    _ebpf: Ebpf,
    log: Option<KernelLog>,
    pins: PinDir,
    cgroup: PathBuf,
    replaced: bool,
}

impl Tracker {
    /// Loads the program, pins its maps under `pins` and attaches it to the cgroup root (or to
    /// `cgroup`). Connections accepted from now on are recorded.
    pub fn start(
        kernel: &Kernel,
        pins: &Path,
        cgroup: Option<&Path>,
        tracking: Tracking,
    ) -> Result<Self, Error> {
        let (cgroup, cgroup_dir) = cgroup_root(cgroup)?;
        let (pins, replaced) = PinDir::take(pins)?;
        let mut loader = loader(kernel);
        let shared = shared_maps(pins.path());
        for (name, path) in &shared {
            loader.map_pin_path(name, path.as_path());
        }
        let mut ebpf = loader
            .load(OBJECT)
            .map_err(|e| Error::call("loading the BPF object", e))?;
        write_settings(pins.path(), settings(tracking))?;
        // Kept until the program is loaded: it owns the map that the program writes to.
        let log = EbpfLogger::init(&mut ebpf)
            .inspect_err(|error| tracing::debug!(%error, "no messages from the kernel half"))
            .ok()
            .map(KernelLog);
        let failed = |step: &str, e: anyhow::Error| {
            Error::call(format!("{step} the program {}", names::SOCK_OPS), e)
        };
        let program: &mut SockOps = ebpf
            .program_mut(names::SOCK_OPS)
            .ok_or_else(|| failed("finding", anyhow::anyhow!("not in the object")))?
            .try_into()
            .map_err(|e: aya::programs::ProgramError| failed("finding", e.into()))?;
        program.load().map_err(|e| failed("loading", e.into()))?;
        // With a link, `Single` allows others beside us; `AllowMultiple` is refused (aya 1078).
        program
            .attach(&cgroup_dir, CgroupAttachMode::Single)
            .map_err(|e| failed("attaching", e.into()))?;
        Ok(Self {
            _ebpf: ebpf,
            log,
            pins,
            cgroup,
            replaced,
        })
    }

    /// Where the maps are pinned.
    pub fn pins(&self) -> &Path {
        self.pins.path()
    }

    /// The cgroup that the program is attached to.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Whether pins of a process that was killed were found, and replaced.
    pub fn replaced_stale_pins(&self) -> bool {
        self.replaced
    }

    /// Changes what is recorded from now on.
    pub fn track(&self, tracking: Tracking) -> Result<(), Error> {
        write_settings(self.pins.path(), settings(tracking))
    }

    /// The reader of the kernel half's rare messages.
    pub fn take_log(&mut self) -> Option<KernelLog> {
        self.log.take()
    }
}

/// Rare messages of the kernel half.
pub struct KernelLog(EbpfLogger<&'static dyn log::Log>);

impl KernelLog {
    /// Hands what is there to the `log` crate.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}

impl AsRawFd for KernelLog {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn settings(tracking: Tracking) -> Settings {
    Settings {
        abi_version: ABI_VERSION,
        loopback: tracking.loopback.into(),
        max_per_endpoint: tracking.max_per_endpoint,
        agent_pid: std::process::id(),
    }
}

/// A loader with the running kernel's constants.
pub(super) fn loader(kernel: &Kernel) -> EbpfLoader<'_> {
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(&kernel.btf))
        .override_global(names::HOST_NETNS, &kernel.host_netns, true)
        .override_global(names::OFFSETS, as_words(&kernel.offsets), true);
    loader
}

fn as_words(offsets: &rebalancer_common::offsets::Offsets) -> &[u32] {
    use zerocopy::{FromBytes as _, IntoBytes as _};
    <[u32]>::ref_from_bytes(offsets.as_bytes()).expect("only u32 fields")
}

/// Maps that every process shares, and where they are pinned. The listing is not among them: each
/// reader has its own.
pub(super) fn shared_maps(pins: &Path) -> Vec<(&'static str, PathBuf)> {
    names::CONNECTIONS
        .iter()
        .chain(&[names::ENDPOINTS, names::SETTINGS, names::FAULTS])
        .map(|name| (*name, pins.join(name)))
        .collect()
}
