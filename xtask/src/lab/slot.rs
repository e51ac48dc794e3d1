//! A lab's number, the names derived from it, and its owner. The owner holds a lock on the lab's
//! folder. A script waits for the owner's exit, even by SIGKILL, and removes the lab. If the script
//! dies as well, the next lab to start cleans up.

use std::{
    fs::{DirBuilder, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use fs_err as fs;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::cgroup;

const STATE: &str = "/run";
const PREFIX: &str = "rebalancer-lab-";
const TEARDOWN: &str = include_str!("teardown.sh");
const STATE_FILE: &str = "lab.json";
const KEPT: &str = "kept";

/// A lab's number on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(pub(crate) u8);

/// The description of a lab in its state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The PID of the process that started it.
    pub owner: u32,
    /// The Service's address and port.
    pub service: String,
    /// The Service's IPv6 address and port, if the lab has IPv6.
    #[serde(default)]
    pub service6: Option<String>,
    /// The reason if the lab has no IPv6.
    #[serde(default)]
    pub no_ipv6: Option<String>,
    pub client: PathBuf,
    pub node: PathBuf,
    pub pods: Vec<PodState>,
}

/// The description of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodState {
    pub name: String,
    pub address: String,
    #[serde(default)]
    pub address6: Option<String>,
    pub netns: PathBuf,
    pub cgroup: PathBuf,
}

/// Whether a lab is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabState {
    /// Its owner runs.
    InUse,
    /// It was left running on purpose.
    Kept,
    /// Its owner and the script have died.
    Abandoned,
}

impl Slot {
    pub fn number(self) -> u8 {
        self.0
    }

    pub(crate) fn folder(self) -> PathBuf {
        Path::new(STATE).join(format!("{PREFIX}{}", self.0))
    }

    /// The name of one of the lab's network namespaces.
    pub(crate) fn namespace(self, host: &str) -> String {
        format!("{PREFIX}{}-{host}", self.0)
    }

    pub(crate) fn cgroup(self) -> Result<PathBuf> {
        Ok(cgroup::hierarchy()?.join(format!("{PREFIX}{}", self.0)))
    }

    pub(crate) fn pins(self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(format!("{PREFIX}{}", self.0))
    }

    fn of(name: &str) -> Option<Self> {
        name.strip_prefix(PREFIX)?.parse().ok().map(Self)
    }

    /// All labs on this machine, by number.
    pub fn all() -> io::Result<Vec<Self>> {
        let mut slots: Vec<Self> = fs::read_dir(STATE)?
            .flatten()
            .filter_map(|entry| Self::of(entry.file_name().to_str()?))
            .collect();
        slots.sort_unstable();
        Ok(slots)
    }

    pub fn lab_state(self) -> Result<LabState> {
        let lock =
            File::open(self.folder()).with_context(|| self.folder().display().to_string())?;
        Ok(
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Err(_) => LabState::InUse,
                Ok(()) if self.folder().join(KEPT).exists() => LabState::Kept,
                Ok(()) => LabState::Abandoned,
            },
        )
    }

    pub fn state(self) -> Result<State> {
        let path = self.folder().join(STATE_FILE);
        let text = fs::read(&path)?;
        serde_json::from_slice(&text).with_context(|| path.display().to_string())
    }

    pub(crate) fn write_state(self, state: &State) -> Result<()> {
        let path = self.folder().join(STATE_FILE);
        let text = serde_json::to_vec_pretty(state).context("state")?;
        Ok(fs::write(&path, text)?)
    }

    fn teardown(self) -> Result<Command> {
        let mut script = Command::new("sh");
        script.args(["-c", TEARDOWN, "rebalancer-lab-teardown"]);
        script
            .arg(self.folder())
            .arg(self.cgroup()?)
            .arg(self.namespace(""));
        script.arg(self.pins());
        Ok(script)
    }
}

/// A claimed lab number. Dropping it removes the lab.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) slot: Slot,
    /// The script waits until this pipe is closed.
    owner: Option<ChildStdin>,
    script: Child,
    /// Shared with the script, so that the lock is held until both have exited.
    _lock: File,
}

impl Claim {
    /// Removes abandoned labs, then takes the lowest free number.
    pub(crate) fn take() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("the lab creates network namespaces and cgroups: run it as root");
        }
        let _lock = lock_slots()?;
        remove(|state| state == LabState::Abandoned)?;
        for number in 1..=u8::MAX {
            let slot = Slot(number);
            match DirBuilder::new().create(slot.folder()) {
                Ok(()) => return Self::hold(slot),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).context(slot.folder().display().to_string()),
            }
        }
        bail!(
            "all {} labs are in use: remove some by `cargo xtask lab down`",
            u8::MAX
        )
    }

    fn hold(slot: Slot) -> Result<Self> {
        let lock = File::open(slot.folder()).context("the lab's folder")?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).context("lock the lab's folder")?;
        let output: OwnedFd = lock.try_clone().context("the lab's lock")?.into();
        let mut script = slot.teardown()?;
        script
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(Stdio::null());
        // Its own process group: Ctrl-C is for the owner only.
        std::os::unix::process::CommandExt::process_group(&mut script, 0);
        let mut script = script.spawn().context("start sh")?;
        let owner = script.stdin.take();
        Ok(Self {
            slot,
            owner,
            script,
            _lock: lock,
        })
    }

    /// Keeps the lab running when this is dropped.
    pub(crate) fn keep(&self) -> Result<()> {
        fs::write(self.slot.folder().join(KEPT), "").context("mark the lab as kept")
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.owner = None;
        if let Err(error) = self.script.wait() {
            eprintln!("removing lab {}: {error}", self.slot.0);
        }
    }
}

/// Removes labs that are not in use and returns their numbers.
pub fn remove_unused() -> Result<Vec<Slot>> {
    let _lock = lock_slots()?;
    remove(|state| state != LabState::InUse)
}

/// Removes the labs whose state is `wanted`. The caller holds the lock.
fn remove(wanted: impl Fn(LabState) -> bool) -> Result<Vec<Slot>> {
    let mut removed = Vec::new();
    for slot in Slot::all().context(STATE)? {
        // A lab that has just been removed has no state.
        if !slot.lab_state().is_ok_and(&wanted) {
            continue;
        }
        let _ = fs::remove_file(slot.folder().join(KEPT));
        let status = slot
            .teardown()?
            .stdin(Stdio::null())
            .status()
            .context("start sh")?;
        if !status.success() {
            bail!("removing lab {} failed", slot.0);
        }
        removed.push(slot);
    }
    Ok(removed)
}

/// Locks the choice of numbers and the removal of labs. The lock is on `/run` itself, so that no
/// lock file remains.
fn lock_slots() -> Result<File> {
    let lock = File::open(STATE).context(STATE)?;
    flock(&lock, FlockOperation::LockExclusive).context("lock /run")?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_parsed_from_its_folder() {
        assert_eq!(Slot::of("rebalancer-lab-7"), Some(Slot(7)));
        assert_eq!(Slot::of("rebalancer-lab-x"), None);
        assert_eq!(Slot::of("rebalancer-lab-300"), None);
        assert_eq!(Slot::of("netns"), None);
    }

    #[test]
    fn state_survives_serialization() {
        let state = State {
            owner: 1,
            service: "10.96.1.10:80".to_owned(),
            service6: None,
            no_ipv6: None,
            client: "/run/netns/c".into(),
            node: "/run/netns/n".into(),
            pods: vec![PodState {
                name: "web-0".to_owned(),
                address: "10.244.1.2:80".to_owned(),
                address6: None,
                netns: "/run/netns/p".into(),
                cgroup: "/sys/fs/cgroup/p".into(),
            }],
        };
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
    }
}
