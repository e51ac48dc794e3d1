//! The bpffs folder in which the maps are pinned, so that other processes find them: readers
//! beside the agent, and the next agent.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock, statfs},
    mount::{MountFlags, mount},
};

use super::Error;

/// Where the agent pins its maps.
pub const DEFAULT_DIR: &str = "/sys/fs/bpf/rebalancer";

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPFFS_MAGIC: u64 = 0xcafe_4a11;

/// A folder of pins that this process owns. Dropping it removes the pins, unless they are kept.
#[derive(Debug)]
pub struct PinDir {
    path: PathBuf,
    kept: bool,
    /// Locked for as long as we live: a second owner is refused, and a dead one's lock is gone.
    _lock: File,
}

impl PinDir {
    /// Makes the folder ours, with whatever pins a former owner has left in it.
    pub fn take(path: &Path) -> Result<Self, Error> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        let bpffs = |what: String| Error::Bpffs {
            path: parent.to_owned(),
            what,
        };
        mount_bpffs(parent)?;
        match fs::create_dir(path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(bpffs(format!("cannot make {}: {e}", path.display()))),
        }
        let lock =
            File::open(path).map_err(|e| Error::call(format!("opening {}", path.display()), e))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Error::Busy {
                path: path.to_owned(),
                pid: super::agent_pid(path),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            kept: false,
            _lock: lock,
        })
    }

    /// Whether the pins stay when this is dropped, and with them what they hold in the kernel.
    pub fn keep(&mut self, kept: bool) {
        self.kept = kept;
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes every pin; returns how many there were.
    pub fn clear(&self) -> Result<usize, Error> {
        let failed = |e| Error::call(format!("emptying {}", self.path.display()), e);
        let mut removed = 0;
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
            removed += 1;
        }
        Ok(removed)
    }
}

impl Drop for PinDir {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let removed = self.clear().and_then(|_| {
            fs::remove_dir(&self.path)
                .map_err(|e| Error::call(format!("removing {}", self.path.display()), e))
        });
        if let Err(error) = removed {
            tracing::warn!(%error, "pins are left behind");
        }
    }
}

/// Whether a living process owns the pins in `path`.
pub fn agent_runs(path: &Path) -> bool {
    File::open(path).is_ok_and(|dir| flock(&dir, FlockOperation::NonBlockingLockShared).is_err())
}

/// Mounts a bpffs at `path` if there is none: the folder exists on every kernel with BPF, but
/// nothing need have mounted it.
pub fn mount_bpffs(path: &Path) -> Result<(), Error> {
    let bpffs = |what: String| Error::Bpffs {
        path: path.to_owned(),
        what,
    };
    let is_bpffs = || statfs(path).map(|fs| fs.f_type as u64 == BPFFS_MAGIC);
    match is_bpffs() {
        Ok(true) => Ok(()),
        Ok(false) if path == Path::new("/sys/fs/bpf") => {
            mount("bpf", path, "bpf", MountFlags::empty(), None)
                .map_err(|e| bpffs(format!("not a bpffs, and mounting one failed: {e}")))
        }
        Ok(false) => Err(bpffs("not a bpffs".to_owned())),
        Err(e) => Err(bpffs(e.to_string())),
    }
}
