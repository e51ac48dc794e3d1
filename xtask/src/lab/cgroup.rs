//! The lab's cgroups, in the cgroup v2 hierarchy only. A container's cgroup is named as kubelet's
//! cgroupfs driver names it, so that code that reads pods from cgroup paths can be tested.

use std::{
    fs::{self, OpenOptions},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The mount point of the cgroup v2 hierarchy: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on
/// hybrid hosts.
pub(crate) fn hierarchy() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    find(&mounts).context("no cgroup v2 hierarchy is mounted: mount -t cgroup2 none /mnt/cgroup2")
}

/// The first mount of type cgroup2 in `mountinfo`.
fn find(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let is_v2 = filesystem.split(' ').next() == Some("cgroup2");
        is_v2
            .then(|| mount.split(' ').nth(4).map(PathBuf::from))
            .flatten()
    })
}

/// Creates the cgroup and opens its `cgroup.procs`; a process joins by writing `0`.
pub(crate) fn make(path: &Path) -> Result<OwnedFd> {
    fs::create_dir_all(path).with_context(|| format!("make the cgroup {}", path.display()))?;
    let processes = path.join("cgroup.procs");
    let file = OpenOptions::new().write(true).open(&processes);
    Ok(file
        .with_context(|| processes.display().to_string())?
        .into())
}

/// A new container's path below the lab's cgroup: `kubepods/burstable/pod<uid>/<id>`.
pub(crate) fn container() -> Result<PathBuf> {
    let uuid = || {
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("random uuid")?;
        anyhow::Ok(uuid.trim().to_owned())
    };
    let id = format!("{}{}", uuid()?, uuid()?).replace('-', "");
    Ok(PathBuf::from(format!(
        "kubepods/burstable/pod{}/{id}",
        uuid()?
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_v2_hierarchy_of_a_hybrid_host() {
        let mounts = "\
            30 24 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
            31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime shared:3 - cgroup cgroup rw,cpu\n\
            39 30 0:35 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(find(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(find("30 24 0:26 / /sys rw - sysfs sysfs rw\n"), None);
    }

    #[test]
    fn a_container_is_named_as_kubelet_names_it() {
        let path = container().unwrap().display().to_string();
        let (pod, id) = path.rsplit_once('/').unwrap();
        let uid = pod.strip_prefix("kubepods/burstable/pod").unwrap();
        assert_eq!(uid.len(), 36);
        assert_eq!(id.len(), 64);
        assert!(id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
