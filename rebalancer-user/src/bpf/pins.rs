//! The bpffs directory in which the maps are pinned, for other readers and for the next agent.

use std::{
    fs::{self, File},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FlockOperation, flock, fstatfs, statfs, unlinkat},
    mount::{MountFlags, mount},
};

use super::Error;
use crate::host::folder::{self, FolderError};

/// Where the agent pins its maps.
pub const DEFAULT_DIR: &str = "/sys/fs/bpf/rebalancer";

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPFFS_MAGIC: u64 = 0xcafe_4a11;

/// A folder of pins that this process owns. Dropping it removes the pins, unless they are kept.
#[derive(Debug)]
pub struct PinDir {
    path: PathBuf,
    kept: bool,
    /// Locked while this process runs: a second owner is refused.
    folder: File,
}

impl PinDir {
    /// Takes the directory over, with the pins that a previous owner has left in it.
    pub fn take(path: &Path) -> Result<Self, Error> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        let bpffs = |what: String| Error::Bpffs {
            path: parent.to_owned(),
            what,
        };
        mount_bpffs(parent)?;
        // Everything in it may be replaced.
        let folder = folder::take(path, |_| true).map_err(|why| match why {
            FolderError::Io(e) => bpffs(format!("cannot make {}: {e}", path.display())),
            why => Error::NotOurs {
                path: path.to_owned(),
                why,
            },
        })?;
        let found = fstatfs(&folder)
            .map_err(|e| Error::call(format!("asking what {} is on", path.display()), e))?;
        if found.f_type as u64 != BPFFS_MAGIC {
            return Err(bpffs(format!("{} is not on a bpffs", path.display())));
        }
        if flock(&folder, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Error::Busy {
                path: path.to_owned(),
                pid: super::agent_pid(path),
            });
        }
        folder::mark(folder.as_fd())
            .map_err(|e| Error::call(format!("marking {} as in use", path.display()), e))?;
        Ok(Self {
            path: path.to_owned(),
            kept: false,
            folder,
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
        let names = folder::names(&self.folder).map_err(failed)?;
        for name in &names {
            // In the locked directory, whatever its path leads to now; links are not followed.
            unlinkat(&self.folder, &**name, AtFlags::empty()).map_err(|e| failed(e.into()))?;
        }
        Ok(names.len())
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
            tracing::warn!(%error, "could not remove the pins");
        }
    }
}

/// Whether a running process owns the pins in `path`. Takes no lock, which could make a starting agent
/// fail.
pub fn agent_runs(path: &Path) -> bool {
    folder::look_into(path).is_ok_and(|folder| folder::is_marked(folder.as_fd()).unwrap_or(false))
}

/// Mounts a bpffs at `path` if there is none: the folder exists on every kernel with BPF, but
/// nothing need have mounted it. By default every user could make folders in it.
pub fn mount_bpffs(path: &Path) -> Result<(), Error> {
    let bpffs = |what: String| Error::Bpffs {
        path: path.to_owned(),
        what,
    };
    let is_bpffs = || statfs(path).map(|fs| fs.f_type as u64 == BPFFS_MAGIC);
    match is_bpffs() {
        Ok(true) => Ok(()),
        Ok(false) if path == Path::new("/sys/fs/bpf") => {
            mount("bpf", path, "bpf", MountFlags::empty(), c"mode=0700")
                .map_err(|e| bpffs(format!("not a bpffs, and mounting one failed: {e}")))
        }
        Ok(false) => Err(bpffs("not a bpffs".to_owned())),
        Err(e) => Err(bpffs(e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that a process has taken, on whatever file system: locks are the same on each.
    fn taken(path: &Path) -> File {
        let folder = folder::take(path, |_| true).unwrap();
        flock(&folder, FlockOperation::NonBlockingLockExclusive).unwrap();
        folder::mark(folder.as_fd()).unwrap();
        folder
    }

    #[test]
    fn looking_does_not_keep_an_agent_from_starting() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("pins");
        assert!(!agent_runs(&path));
        let folder = folder::take(&path, |_| true).unwrap();
        assert!(!agent_runs(&path));
        // Looking takes no lock, however long it takes.
        let looking = folder::look_into(&path).unwrap();
        assert!(!folder::is_marked(looking.as_fd()).unwrap());
        flock(&folder, FlockOperation::NonBlockingLockExclusive).unwrap();
    }

    #[test]
    fn an_agent_is_seen_for_as_long_as_it_lives() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("pins");
        let agent = taken(&path);
        assert!(agent_runs(&path));
        assert!(agent_runs(&path), "a look changes nothing");
        drop(agent);
        assert!(!agent_runs(&path));
    }

    #[test]
    fn pins_are_removed_where_they_were_taken_and_links_are_not_followed() {
        let around = tempfile::tempdir().unwrap();
        let (path, moved) = (around.path().join("pins"), around.path().join("moved"));
        let elsewhere = around.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("precious"), "").unwrap();
        let pins = PinDir {
            path: path.clone(),
            kept: true,
            folder: taken(&path),
        };
        fs::write(path.join("map"), "").unwrap();
        std::os::unix::fs::symlink(elsewhere.join("precious"), path.join("link")).unwrap();
        fs::rename(&path, &moved).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert_eq!(pins.clear().unwrap(), 2);
        assert!(elsewhere.join("precious").exists());
        assert_eq!(fs::read_dir(&moved).unwrap().count(), 0);
    }
}
