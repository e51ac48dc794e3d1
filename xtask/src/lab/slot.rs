//! A lab's number, what it is called by it, and who owns it. The owner holds a lock on the
//! lab's folder; when it is gone, a script that waits for just that removes the lab, also
//! after a SIGKILL. Should the script have died with it, the next lab to start cleans up.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::cgroup;

const STATE: &str = "/run";
const PREFIX: &str = "rebalancer-lab-";
const TEARDOWN: &str = include_str!("teardown.sh");
const STATE_FILE: &str = "lab.json";
const KEPT: &str = "kept";

/// The number of a lab on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(pub(crate) u8);

/// Where a lab writes what others want to know about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The process that started it.
    pub owner: u32,
    /// The Service's address.
    pub service: String,
    /// The same by IPv6, if the lab has it.
    #[serde(default)]
    pub service6: Option<String>,
    /// Why it has none.
    #[serde(default)]
    pub no_ipv6: Option<String>,
    pub client: PathBuf,
    pub node: PathBuf,
    pub pods: Vec<PodState>,
}

/// One pod, as others find it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodState {
    pub name: String,
    pub address: String,
    #[serde(default)]
    pub address6: Option<String>,
    pub netns: PathBuf,
    pub cgroup: PathBuf,
}

/// What has become of a lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabState {
    /// Its owner lives.
    InUse,
    /// It was left up on purpose.
    Kept,
    /// Its owner and the script are dead.
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

    /// Every lab of this machine, lowest first.
    pub fn all() -> io::Result<Vec<Self>> {
        let mut slots: Vec<Self> = fs::read_dir(STATE)?
            .flatten()
            .filter_map(|entry| Self::of(entry.file_name().to_str()?))
            .collect();
        slots.sort_unstable();
        Ok(slots)
    }

    pub fn standing(self) -> Result<LabState> {
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
        let text = fs::read(&path).with_context(|| path.display().to_string())?;
        serde_json::from_slice(&text).with_context(|| path.display().to_string())
    }

    pub(crate) fn write_state(self, state: &State) -> Result<()> {
        let path = self.folder().join(STATE_FILE);
        let text = serde_json::to_vec_pretty(state).context("state")?;
        fs::write(&path, text).with_context(|| path.display().to_string())
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

/// A claimed number. Dropping it removes the lab.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) slot: Slot,
    /// Until this is closed the script waits.
    owner: Option<ChildStdin>,
    script: Child,
    /// Shared with the script, so that it ends with the later of the two.
    _lock: File,
}

impl Claim {
    /// Removes abandoned labs, then takes the lowest free number.
    pub(crate) fn take() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("the lab makes network namespaces and cgroups: run it as root");
        }
        let _turn = turn()?;
        remove(|standing| standing == LabState::Abandoned)?;
        for number in 1..=u8::MAX {
            let slot = Slot(number);
            match DirBuilder::new().create(slot.folder()) {
                Ok(()) => return Self::hold(slot),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).context(slot.folder().display().to_string()),
            }
        }
        bail!("{} labs are up: cargo xtask lab down", u8::MAX)
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
        // Out of the terminal's foreground: Ctrl-C is for its owner.
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

    /// Leaves the lab up when this is dropped.
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

/// Removes labs that nobody uses; returns which.
pub fn remove_unused() -> Result<Vec<Slot>> {
    let _turn = turn()?;
    remove(|standing| standing != LabState::InUse)
}

/// With the turn held: removes the labs whose standing is `wanted`.
fn remove(wanted: impl Fn(LabState) -> bool) -> Result<Vec<Slot>> {
    let mut removed = Vec::new();
    for slot in Slot::all().context(STATE)? {
        // One that has just been removed has no standing.
        if !slot.standing().is_ok_and(&wanted) {
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

/// One at a time decides what is abandoned and takes numbers. The lock is on `/run` itself:
/// nothing of ours stays behind.
fn turn() -> Result<File> {
    let turn = File::open(STATE).context(STATE)?;
    flock(&turn, FlockOperation::LockExclusive).context("lock /run")?;
    Ok(turn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_known_by_its_folder() {
        assert_eq!(Slot::of("rebalancer-lab-7"), Some(Slot(7)));
        assert_eq!(Slot::of("rebalancer-lab-x"), None);
        assert_eq!(Slot::of("rebalancer-lab-300"), None);
        assert_eq!(Slot::of("netns"), None);
    }

    #[test]
    fn state_survives_its_file() {
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
