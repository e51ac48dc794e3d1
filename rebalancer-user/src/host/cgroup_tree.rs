//! The tree of cgroups: from the ID of a socket's cgroup to its path.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::cgroup::{CgroupError, CgroupMounts, cgroup_root};
use crate::snapshot::{CgroupId, CgroupPath};

/// Paths of the existing cgroups, by ID.
pub type CgroupPaths = BTreeMap<CgroupId, CgroupPath>;

/// Where the cgroup v2 hierarchy can be walked.
#[derive(Clone, Debug)]
pub struct CgroupTree {
    mount: PathBuf,
}

impl CgroupTree {
    /// The hierarchy that holds `chosen`, or else the real root's. Paths begin at its mount point.
    pub fn find(chosen: Option<&Path>) -> Result<Self, CgroupError> {
        let (path, _) = cgroup_root(chosen)?;
        if chosen.is_none() {
            return Ok(Self { mount: path });
        }
        let path = path.canonicalize().unwrap_or(path);
        let mount = CgroupMounts::above(&path)?.unwrap_or(path);
        Ok(Self { mount })
    }

    /// Every existing cgroup. One that is created or removed meanwhile may be missing.
    pub fn read(&self) -> CgroupPaths {
        let mut paths = CgroupPaths::new();
        let mut folders = vec![self.mount.clone()];
        while let Some(folder) = folders.pop() {
            // Removed since it was listed.
            let Ok(meta) = fs::metadata(&folder) else {
                continue;
            };
            // A name that is not UTF-8 stays unknown: no glob can match it.
            if let Some(path) = self.path_of(&folder) {
                // The id is the folder's inode.
                paths.insert(CgroupId(meta.ino()), path);
            }
            // Two links and one more for each folder in it: most cgroups have none, and need
            // not be listed.
            if meta.nlink() > 2 {
                let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
                let inside = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
                folders.extend(inside.map(|entry| entry.path()));
            }
        }
        paths
    }

    fn path_of(&self, folder: &Path) -> Option<CgroupPath> {
        let below = folder.strip_prefix(&self.mount).ok()?.to_str()?;
        CgroupPath::new(&format!("/{below}"))
    }
}
