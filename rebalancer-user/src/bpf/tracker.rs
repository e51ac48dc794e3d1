//! The sock_ops program on the cgroup root, and the maps it fills.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{
        CgroupAttachMode, Iter, ProgramError, ProgramFd, ProgramType, SockOps,
        links::{FdLink, PinnedLink},
    },
    sys::is_program_supported,
};
use aya_log::EbpfLogger;
use rebalancer_common::{ABI_VERSION, Settings, names};

use super::{
    Error, Kernel, KernelLog, OBJECT, PinDir,
    maps::{complete, read_excluded, write_excluded, write_settings},
    sys,
};
use crate::{
    host::{ROOT_INODE, cgroup_root},
    snapshot::CgroupId,
};

/// What to record.
#[derive(Clone, Debug)]
pub struct Tracking {
    /// Record connections from loopback addresses too.
    pub loopback: bool,
    /// Most connections recorded per endpoint.
    pub max_per_endpoint: u32,
    /// Most connections recorded on the node.
    pub max_per_node: u32,
    /// Leave out the sockets of these cgroups, and of those below them.
    pub excluded: Option<BTreeSet<CgroupId>>,
}

impl Tracking {
    /// The same without what leaves connections out, to try recording on one of our own.
    pub fn to_try(&self) -> Self {
        Self {
            loopback: true,
            excluded: None,
            ..self.clone()
        }
    }
}

impl Default for Tracking {
    fn default() -> Self {
        Self {
            loopback: false,
            max_per_endpoint: 65_536,
            max_per_node: 262_144,
            excluded: None,
        }
    }
}

/// How long tracking lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until this process ends.
    Process,
    /// Until the pins are removed: it outlives a process that is killed.
    Pins,
}

/// What a previous owner of the pins has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inherited {
    /// Nothing.
    Nothing,
    /// Its maps, with the records of all that it had tracked, and tracking that continued.
    TakenOver,
    /// Pins that could not be reused, and why; they are replaced.
    Replaced(String),
}

/// Tracking. Dropping it detaches the program and removes the pins, so that nothing stays in the
/// kernel, unless they were taken over and [`Tracker::outlive`] was not called yet, or keeping
/// them was requested.
pub struct Tracker {
    // Fields are dropped in this order: first the program's link, then the pins.
    link: Link,
    ebpf: Ebpf,
    log: Option<EbpfLogger<&'static dyn log::Log>>,
    pins: PinDir,
    cgroup: PathBuf,
    cgroup_dir: File,
    inherited: Inherited,
    /// The cgroups that the kernel half excludes now.
    excluded: BTreeSet<CgroupId>,
}

/// What keeps the program attached.
#[expect(dead_code, reason = "each holds a descriptor, for as long as it lives")]
enum Link {
    Held(FdLink),
    /// By its pin too.
    Pinned(PinnedLink),
}

impl Tracker {
    /// Loads the program, pins its maps under `pins` and attaches it to the cgroup root (or to
    /// `cgroup`). Connections accepted from now on are recorded. Maps that are pinned there
    /// already are taken over, with the records in them, if they are of the same ABI version.
    pub fn start(
        kernel: &Kernel,
        pins: &Path,
        cgroup: Option<&Path>,
        tracking: Tracking,
        lifetime: Lifetime,
    ) -> Result<Self, Error> {
        let (cgroup, cgroup_dir) = cgroup_root(cgroup)?;
        let mut pins = PinDir::take(pins)?;
        let mut inherited = inherit(&pins)?;
        // A failed start must not remove records of others.
        pins.keep(inherited == Inherited::TakenOver);
        let btf = kernel.btf()?;
        let load = || Loaded::over(kernel, &btf, pins.path(), &tracking);
        let Loaded { mut ebpf, log } = match load() {
            // Maps of the same version that do not fit must not keep the node without an agent. A
            // kernel that refuses the program itself would refuse it again, with the records gone.
            Err(error) if inherited == Inherited::TakenOver => {
                load_sock_ops(loader(kernel, &btf))?;
                pins.clear()?;
                inherited = Inherited::Replaced(error.to_string());
                load()?
            }
            loaded => loaded?,
        };
        let program = sock_ops(&mut ebpf)?;
        // After the program of a previous agent, which is detached only then: for a moment both run, and
        // nothing is missed or counted twice.
        let link = attach(program, &cgroup_dir)?;
        let link = match lifetime {
            Lifetime::Process => Link::Held(link),
            Lifetime::Pins => pin(link, pins.path())?,
        };
        Ok(Self {
            link,
            ebpf,
            log,
            pins,
            cgroup,
            cgroup_dir,
            inherited,
            excluded: tracking.excluded.unwrap_or_default(),
        })
    }

    /// Makes sure that our program is the last one on its cgroup. All programs store the same callback flags,
    /// so a program that was attached after ours can clear the flag that ours has set, and closes of those
    /// connections are not seen.
    ///
    /// Returns whether it had to be attached again.
    pub fn stay_last(&mut self) -> Result<bool, Error> {
        let failed = failed(names::SOCK_OPS);
        let ours = sock_ops(&mut self.ebpf)?
            .info()
            .map_err(|e| failed("asking for the id of", e.into()))?
            .id();
        let all = sys::sock_ops_on(self.cgroup_dir.as_fd())
            .map_err(|e| Error::call("querying the cgroup's programs", e))?;
        if all.last() == Some(&ours) {
            return Ok(false);
        }
        // The new link first: for a moment both run, and a record that is there is not made, nor
        // counted, again.
        let link = attach(sock_ops(&mut self.ebpf)?, &self.cgroup_dir)?;
        self.link = match self.link {
            Link::Held(_) => Link::Held(link),
            Link::Pinned(_) => pin(link, self.pins.path())?,
        };
        Ok(true)
    }

    /// Whether tracking continues after this value is dropped, for the next one to take over. Only pinned
    /// tracking can. Before this is called, what was taken over is kept, and the rest is removed.
    pub fn outlive(&mut self, keep: bool) {
        self.pins.keep(keep && matches!(self.link, Link::Pinned(_)));
    }

    /// Where the maps are pinned.
    pub fn pins(&self) -> &Path {
        self.pins.path()
    }

    /// The cgroup that the program is attached to.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// That cgroup's id, 0 of the root: sockets in it and below it are tracked.
    pub fn within(&self) -> Result<CgroupId, Error> {
        below_root(&self.cgroup_dir).map(CgroupId)
    }

    /// What a previous owner of the pins has left.
    pub fn inherited(&self) -> &Inherited {
        &self.inherited
    }

    /// Changes what is recorded from now on. Existing connections get their records in the next walk.
    pub fn track(&mut self, tracking: Tracking) -> Result<(), Error> {
        write_tracking(self.pins.path(), &tracking, &self.excluded)?;
        self.excluded = tracking.excluded.unwrap_or_default();
        Ok(())
    }

    /// Sets the excluded cgroups that exist now. Returns whether they have changed.
    pub fn exclude(&mut self, excluded: BTreeSet<CgroupId>) -> Result<bool, Error> {
        let changed = write_excluded(self.pins.path(), &self.excluded, &excluded)?;
        self.excluded = excluded;
        Ok(changed)
    }

    /// The reader of the kernel half's rare messages.
    /// Call it once, within a tokio runtime.
    pub fn take_log(&mut self) -> io::Result<Option<KernelLog>> {
        self.log.take().map(KernelLog::listen).transpose()
    }
}

/// The programs, in the kernel and not attached yet.
struct Loaded {
    ebpf: Ebpf,
    log: Option<EbpfLogger<&'static dyn log::Log>>,
}

impl Loaded {
    /// Loads them over the maps pinned under `pins`; pins those that are not there.
    fn over(kernel: &Kernel, btf: &Btf, pins: &Path, tracking: &Tracking) -> Result<Self, Error> {
        let loader = |mptcp: &'static u32| {
            let mut loader = loader(kernel, btf);
            for (name, path) in shared_maps(pins) {
                loader.map_pin_path(name, path);
            }
            loader.override_global(names::MPTCP, mptcp, true);
            loader
        };
        // Before 5.19 a program is not led to the MPTCP socket.
        let loaded = load_sock_ops(loader(&1)).or_else(|_| load_sock_ops(loader(&0)))?;
        // The exclusions of a former agent are replaced as a whole.
        write_tracking(pins, tracking, &read_excluded(pins)?)?;
        Ok(loaded)
    }
}

/// Creates the object's maps and prepares its programs. Where nothing may be loaded, the loader reports an
/// error of the object instead.
pub(super) fn load_object(loader: &mut EbpfLoader<'_>) -> Result<Ebpf, Error> {
    is_program_supported(ProgramType::SocketFilter).map_err(|e| Error::NoPrograms {
        message: format!("{:#}", anyhow::Error::from(e)),
    })?;
    loader.load(OBJECT).map_err(|e| Error::Object {
        message: format!("{:#}", anyhow::Error::from(e)),
    })
}

fn load_sock_ops(mut loader: EbpfLoader<'_>) -> Result<Loaded, Error> {
    let mut ebpf = load_object(&mut loader)?;
    // Kept until the program is loaded: it owns the map that the program writes to.
    let log = EbpfLogger::init(&mut ebpf)
        .inspect_err(|error| tracing::debug!(%error, "no log from the kernel half"))
        .ok();
    sock_ops(&mut ebpf)?
        .load()
        .map_err(|e| failed(names::SOCK_OPS)("loading", e.into()))?;
    Ok(Loaded { ebpf, log })
}

/// Whether tracking continues by `pins`, with or without an agent.
pub fn tracks(pins: &Path) -> bool {
    pins.join(names::LINK).exists()
}

/// How many sock_ops programs are on a cgroup itself, whoever attached them.
pub fn sock_ops_programs(cgroup: &File) -> Result<usize, Error> {
    sys::sock_ops_on(cgroup.as_fd())
        .map(|ids| ids.len())
        .map_err(|e| Error::call("querying the cgroup's programs", e))
}

fn sock_ops(ebpf: &mut Ebpf) -> Result<&mut SockOps, Error> {
    let failed = failed(names::SOCK_OPS);
    ebpf.program_mut(names::SOCK_OPS)
        .ok_or_else(|| failed("finding", anyhow::anyhow!("not in the object")))?
        .try_into()
        .map_err(|e: ProgramError| failed("finding", e.into()))
}

/// The id of the cgroup, 0 of the root: the inode of its folder.
fn below_root(cgroup: &File) -> Result<u64, Error> {
    let meta = cgroup
        .metadata()
        .map_err(|e| Error::call("asking for the cgroup's id", e))?;
    Ok(if meta.ino() == ROOT_INODE {
        0
    } else {
        meta.ino()
    })
}

/// Decides whether existing pins are reused; others are removed, and with them the program that they kept
/// attached.
fn inherit(pins: &PinDir) -> Result<Inherited, Error> {
    let shared = shared_maps(pins.path());
    let mut expected: Vec<_> = shared.iter().map(|(name, _)| *name).collect();
    expected.push(names::LINK);
    match complete(pins.path(), &expected) {
        Ok(()) => Ok(Inherited::TakenOver),
        Err(why) => Ok(match pins.clear()? {
            0 => Inherited::Nothing,
            _ => Inherited::Replaced(why),
        }),
    }
}

fn attach(program: &mut SockOps, cgroup: &File) -> Result<FdLink, Error> {
    let failed = failed(names::SOCK_OPS);
    // With a link, `Single` allows others beside us; `AllowMultiple` is refused (aya 1078).
    program
        .attach(cgroup, CgroupAttachMode::Single)
        .and_then(|id| program.take_link(id))
        .map_err(|e| failed("attaching", e.into()))
        .and_then(|link| FdLink::try_from(link).map_err(|e| failed("attaching", e.into())))
}

/// Pins a link in place of the existing one.
fn pin(link: FdLink, pins: &Path) -> Result<Link, Error> {
    let failed = failed(names::SOCK_OPS);
    let place = pins.join(names::LINK);
    let beside = pins.join(format!("{}-next", names::LINK));
    // A process killed at this point leaves it.
    let _none_was_left = fs::remove_file(&beside);
    let link = link
        .pin(&beside)
        .map_err(|e| failed("pinning the link of", e.into()))?;
    fs::rename(&beside, &place).map_err(|e| failed("pinning the link of", e.into()))?;
    Ok(Link::Pinned(link))
}

/// Loads an iterator program of the object; returns its descriptor.
pub(super) fn load_iterator<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
    over: &str,
    btf: &Btf,
) -> Result<&'a ProgramFd, Error> {
    let failed = failed(name);
    let program: &mut Iter = ebpf
        .program_mut(name)
        .ok_or_else(|| failed("finding", anyhow::anyhow!("not in the object")))?
        .try_into()
        .map_err(|e: ProgramError| failed("finding", e.into()))?;
    program
        .load(over, btf)
        .map_err(|e| failed("loading", e.into()))?;
    program.fd().map_err(|e| failed("loading", e.into()))
}

/// An error of one step with one program.
pub(super) fn failed(program: &'static str) -> impl Fn(&str, anyhow::Error) -> Error {
    move |step, e| match e.downcast_ref() {
        Some(ProgramError::LoadError {
            io_error,
            verifier_log,
        }) => Error::refused(program, io_error, &verifier_log.to_string()),
        _ => Error::call(format!("{step} the program {program}"), e),
    }
}

/// Cgroups first: what is looked up in them only counts once the settings say so.
fn write_tracking(
    pins: &Path,
    tracking: &Tracking,
    before: &BTreeSet<CgroupId>,
) -> Result<(), Error> {
    let none = BTreeSet::new();
    write_excluded(pins, before, tracking.excluded.as_ref().unwrap_or(&none))?;
    write_settings(
        pins,
        Settings {
            abi_version: ABI_VERSION,
            loopback: tracking.loopback.into(),
            max_per_endpoint: tracking.max_per_endpoint,
            max_per_node: tracking.max_per_node,
            excludes: tracking.excluded.is_some().into(),
            agent_pid: std::process::id(),
        },
    )
}

/// A loader with the running kernel's constants.
fn loader<'a>(kernel: &'a Kernel, btf: &'a Btf) -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(btf))
        .override_global(names::HOST_NETNS, &kernel.host_netns, true)
        .override_global(names::OFFSETS, as_words(&kernel.offsets), true);
    loader
}

/// The same, over the maps that an agent has pinned.
pub(super) fn loader_over<'a>(
    kernel: &'a Kernel,
    btf: &'a Btf,
    pins: &Path,
) -> Result<EbpfLoader<'a>, Error> {
    let mut loader = loader(kernel, btf);
    for (name, path) in shared_maps(pins) {
        // The loader would create a missing map.
        if !path.exists() {
            return Err(Error::NoPins {
                path: pins.to_owned(),
            });
        }
        loader.map_pin_path(name, path);
    }
    Ok(loader)
}

fn as_words(offsets: &rebalancer_common::offsets::Offsets) -> &[u32] {
    use zerocopy::{FromBytes as _, IntoBytes as _};
    <[u32]>::ref_from_bytes(offsets.as_bytes()).expect("only u32 fields")
}

/// Maps that every process shares, and where they are pinned. The rows of the walk are not among
/// them: each reader has its own.
fn shared_maps(pins: &Path) -> Vec<(&'static str, PathBuf)> {
    [
        names::CONNECTIONS,
        names::ENDPOINTS,
        names::PLACES,
        names::NODE,
        names::SETTINGS,
        names::EXCLUDED,
        names::FAULTS,
    ]
    .map(|name| (name, pins.join(name)))
    .to_vec()
}
