//! The sock_ops program on the cgroup root, and the maps it fills.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    ops::RangeInclusive,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{
        CgroupAttachMode, Iter, ProgramError, ProgramFd, SockOps,
        links::{FdLink, PinnedLink},
    },
};
use aya_log::EbpfLogger;
use rebalancer_common::{ABI_VERSION, Settings, names};

use super::{
    Error, Kernel, KernelLog, OBJECT, PinDir,
    cgroup::ROOT_INODE,
    cgroup_root,
    maps::{complete, read_cgroups, write_cgroups, write_settings, write_wanted},
    sys::{self, PassEnd},
};
use crate::{
    netns::{Namespaces, enter},
    snapshot::CgroupId,
};

/// What to record.
#[derive(Clone, Debug)]
pub struct Tracking {
    /// Record connections from loopback addresses too.
    pub loopback: bool,
    /// Most connections recorded per endpoint.
    pub max_per_endpoint: u32,
    /// Record only sockets with these local ports, each for some groups of rules, and spend next to
    /// nothing on others.
    pub only_ports: Option<Vec<(RangeInclusive<u16>, u8)>>,
    /// Look at the sockets' cgroups: the [`class`](rebalancer_common::class) of each that is there.
    pub cgroups: Option<BTreeMap<CgroupId, u32>>,
}

impl Default for Tracking {
    fn default() -> Self {
        Self {
            loopback: false,
            max_per_endpoint: 65_536,
            only_ports: None,
            cgroups: None,
        }
    }
}

/// How long tracking lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// As long as this process, however that ends.
    Process,
    /// Until the pins are removed: it outlives a process that is killed.
    Pins,
}

/// What a former owner of the pins had left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inherited {
    /// Nothing.
    Nothing,
    /// Its maps, with the records of all that it had tracked, and tracking that went on.
    TakenOver,
    /// Pins that were of no use, and why; they are replaced.
    Replaced(String),
}

/// Tracking. Dropping it detaches the program and removes the pins, so that nothing stays in the
/// kernel, unless [`Tracker::outlive`] was called.
pub struct Tracker {
    // Fields are dropped in this order: first the program's link, then the pins.
    link: Link,
    ebpf: Ebpf,
    adopt: OwnedFd,
    log: Option<EbpfLogger<&'static dyn log::Log>>,
    pins: PinDir,
    cgroup: PathBuf,
    cgroup_dir: File,
    inherited: Inherited,
    /// What the kernel half was last told of cgroups.
    classes: BTreeMap<CgroupId, u32>,
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
        // A start that fails destroys nothing that others have recorded.
        pins.keep(inherited == Inherited::TakenOver);
        let btf = kernel.btf()?;
        let within = below_root(&cgroup_dir)?;
        let load = || Loaded::over(kernel, &btf, pins.path(), &tracking, &within);
        let Loaded {
            mut ebpf,
            log,
            adopt,
        } = match load() {
            // Maps of the same version that do not fit must not keep the node without an agent.
            Err(error) if inherited == Inherited::TakenOver => {
                pins.clear()?;
                inherited = Inherited::Replaced(error.to_string());
                load()?
            }
            loaded => loaded?,
        };
        let program = sock_ops(&mut ebpf)?;
        // Behind the program of a former agent, which goes only then: for a moment both run, and
        // nothing is missed, nor counted twice.
        let link = attach(program, &cgroup_dir)?;
        let link = match lifetime {
            Lifetime::Process => Link::Held(link),
            Lifetime::Pins => pin(link, pins.path())?,
        };
        pins.keep(false);
        Ok(Self {
            link,
            ebpf,
            adopt,
            log,
            pins,
            cgroup,
            cgroup_dir,
            inherited,
            classes: tracking.cgroups.unwrap_or_default(),
        })
    }

    /// Makes records of the connections and listeners that are older than tracking, in every
    /// network namespace; their age is known from now on only. Removes the records of those that are
    /// not to have one any more.
    ///
    /// Returns in how many namespaces it looked, and how many it could not enter.
    pub fn adopt(&self) -> Result<Adopted, Error> {
        let mut namespaces = Namespaces::default();
        let mut adopted = Adopted::default();
        for netns in namespaces.all() {
            // One that is gone by now has no connections to adopt.
            let Some(target) = namespaces.open(netns) else {
                continue;
            };
            // A very long list is cut short, and resumed. That can miss one; the next adoption
            // finds it.
            let pass = || {
                let pass = sys::start_iterator(self.adopt.as_fd())?;
                while pass.run()? == PassEnd::CutShort {}
                io::Result::Ok(())
            };
            match enter(&target, pass) {
                Err(_) => adopted.not_entered += 1,
                Ok(Ok(())) => adopted.namespaces += 1,
                Ok(Err(e)) => return Err(Error::call("adopting older connections", e)),
            }
        }
        Ok(adopted)
    }

    /// Makes sure that our program is the last of those on its cgroup. Callback flags are one
    /// absolute store for all of them, so one that was attached after ours can wipe what ours
    /// has set, and the closes of those connections go unseen.
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

    /// Lets tracking go on when this value is dropped: the next one takes it over. Only what is
    /// pinned lasts.
    pub fn outlive(&mut self) {
        if matches!(self.link, Link::Pinned(_)) {
            self.pins.keep(true);
        }
    }

    /// Where the maps are pinned.
    pub fn pins(&self) -> &Path {
        self.pins.path()
    }

    /// The cgroup that the program is attached to.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// What a former owner of the pins had left.
    pub fn inherited(&self) -> &Inherited {
        &self.inherited
    }

    /// Changes what is recorded from now on. For what is there already, [`Tracker::adopt`].
    pub fn track(&mut self, tracking: Tracking) -> Result<(), Error> {
        write_tracking(self.pins.path(), &tracking, &self.classes)?;
        self.classes = tracking.cgroups.unwrap_or_default();
        Ok(())
    }

    /// Tells the kernel half of the cgroups that are there now. Returns whether any is new, gone or
    /// of another class.
    pub fn classify(&mut self, classes: BTreeMap<CgroupId, u32>) -> Result<bool, Error> {
        let changed = write_cgroups(self.pins.path(), &self.classes, &classes)?;
        self.classes = classes;
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
    adopt: OwnedFd,
}

impl Loaded {
    /// Loads them over the maps pinned under `pins`; pins those that are not there.
    /// Older sockets are adopted below the cgroup with the id `within`.
    fn over(
        kernel: &Kernel,
        btf: &Btf,
        pins: &Path,
        tracking: &Tracking,
        within: &u64,
    ) -> Result<Self, Error> {
        let mut loader = loader(kernel, btf);
        loader.override_global(names::ADOPT_WITHIN, within, true);
        let shared = shared_maps(pins);
        for (name, path) in &shared {
            loader.map_pin_path(name, path.as_path());
        }
        let mut ebpf = loader
            .load(OBJECT)
            .map_err(|e| Error::call("loading the BPF object", e))?;
        // What a former agent has told of cgroups is replaced as a whole.
        write_tracking(pins, tracking, &read_cgroups(pins)?)?;
        // Kept until the program is loaded: it owns the map that the program writes to.
        let log = EbpfLogger::init(&mut ebpf)
            .inspect_err(|error| tracing::debug!(%error, "no messages from the kernel half"))
            .ok();
        let adopt = link_adopt(&mut ebpf, btf)?;
        sock_ops(&mut ebpf)?
            .load()
            .map_err(|e| failed(names::SOCK_OPS)("loading", e.into()))?;
        Ok(Self { ebpf, log, adopt })
    }
}

/// Where older connections were looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Network namespaces looked into.
    pub namespaces: usize,
    /// Those that could not be entered: CAP_SYS_ADMIN is missing.
    pub not_entered: usize,
}

/// Whether tracking goes on under `pins`, with or without an agent.
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

/// Decides what becomes of pins that are there; those of no use are removed, and with them the
/// program that they kept attached.
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

/// Pins a link in the place of the one that is there.
fn pin(link: FdLink, pins: &Path) -> Result<Link, Error> {
    let failed = failed(names::SOCK_OPS);
    let place = pins.join(names::LINK);
    let beside = pins.join(format!("{}-next", names::LINK));
    // One killed just here has left it.
    let _none_was_left = fs::remove_file(&beside);
    let link = link
        .pin(&beside)
        .map_err(|e| failed("pinning the link of", e.into()))?;
    fs::rename(&beside, &place).map_err(|e| failed("pinning the link of", e.into()))?;
    Ok(Link::Pinned(link))
}

fn link_adopt(ebpf: &mut Ebpf, btf: &Btf) -> Result<OwnedFd, Error> {
    let failed = failed(names::ADOPT);
    let program = load_iterator(ebpf, names::ADOPT, "tcp", btf)?;
    sys::link_iterator(program.as_fd(), None).map_err(|e| failed("linking", e.into()))
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
    move |step, e| Error::call(format!("{step} the program {program}"), e)
}

/// Ports and cgroups first: what is looked up in them only counts once the settings say so.
fn write_tracking(
    pins: &Path,
    tracking: &Tracking,
    classes: &BTreeMap<CgroupId, u32>,
) -> Result<(), Error> {
    write_cgroups(
        pins,
        classes,
        tracking.cgroups.as_ref().unwrap_or(&BTreeMap::new()),
    )?;
    if let Some(ports) = &tracking.only_ports {
        write_wanted(pins, ports)?;
    }
    write_settings(
        pins,
        Settings {
            abi_version: ABI_VERSION,
            loopback: tracking.loopback.into(),
            max_per_endpoint: tracking.max_per_endpoint,
            matched: tracking.only_ports.is_some().into(),
            cgroups: tracking.cgroups.is_some().into(),
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
        // The loader would make a map that is not there.
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

/// Maps that every process shares, and where they are pinned. The listing is not among them: each
/// reader has its own.
fn shared_maps(pins: &Path) -> Vec<(&'static str, PathBuf)> {
    names::CONNECTIONS
        .iter()
        .chain(&[
            names::ENDPOINTS,
            names::SETTINGS,
            names::WANTED,
            names::CGROUPS,
            names::WATCHED,
            names::FAULTS,
        ])
        .map(|name| (*name, pins.join(name)))
        .collect()
}
