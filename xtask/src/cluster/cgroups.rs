//! The cluster's cgroups, in every hierarchy of the machine: cgroup v2 alone, or hybrid v1 and v2.
//! All processes of the cluster are in them and are killed with them.

use std::{
    fs::OpenOptions,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use fs_err as fs;
use xtask::wait;

use super::layout::NAME;

/// How long killing processes and removing cgroups may take.
const PATIENCE: Duration = Duration::from_secs(30);
const MOUNTS: &str = "/sys/fs/cgroup";

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    mount: PathBuf,
    /// For v1: the mount options that select it.
    controllers: Option<String>,
}

impl Hierarchy {
    pub(super) fn all() -> Result<Vec<Self>> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
        let all: Vec<Self> = mounts.lines().filter_map(Self::parse).collect();
        if !all.iter().any(Self::is_v2) {
            bail!("no cgroup v2 hierarchy is mounted below {MOUNTS}: the agent needs one");
        }
        Ok(all)
    }

    /// Parses one line of mountinfo.
    fn parse(line: &str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mount = PathBuf::from(mount.split(' ').nth(4)?);
        if !mount.starts_with(MOUNTS) {
            return None;
        }
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next()?;
        let options = filesystem.nth(1)?;
        match kind {
            "cgroup2" => Some(Self {
                mount,
                controllers: None,
            }),
            "cgroup" => {
                let naming = |option: &&str| !matches!(*option, "rw" | "ro" | "xattr");
                let names: Vec<&str> = options.split(',').filter(naming).collect();
                // A hierarchy without a controller is mounted by its name.
                let prefix = if options.contains("name=") {
                    "none,"
                } else {
                    ""
                };
                Some(Self {
                    mount,
                    controllers: Some(format!("{prefix}{}", names.join(","))),
                })
            }
            _ => None,
        }
    }

    pub(super) fn is_v2(&self) -> bool {
        self.controllers.is_none()
    }

    pub(super) fn mount(&self) -> &Path {
        &self.mount
    }

    /// A line for node.sh, which mounts it again: type, options, path below `/sys/fs/cgroup`.
    pub(super) fn mount_line(&self) -> String {
        let (kind, options) = match &self.controllers {
            None => ("cgroup2", "rw"),
            Some(names) => ("cgroup", names.as_str()),
        };
        let path = self.mount.strip_prefix(MOUNTS).unwrap_or(&self.mount);
        let path = match path.to_str() {
            None | Some("") => ".",
            Some(path) => path,
        };
        format!("{kind} {options} {path}\n")
    }
}

/// A cgroup in every hierarchy.
#[derive(Debug)]
pub(super) struct Cgroup {
    hierarchies: Vec<Hierarchy>,
    path: PathBuf,
}

impl Cgroup {
    /// Creates the cgroup `path` below the cluster's.
    pub(super) fn make(path: &str) -> Result<Self> {
        let hierarchies = Hierarchy::all()?;
        let path = Path::new(NAME).join(path);
        for hierarchy in &hierarchies {
            make_in(hierarchy, &path).with_context(|| {
                format!(
                    "the cgroup {}/{}",
                    hierarchy.mount.display(),
                    path.display()
                )
            })?;
        }
        Ok(Self { hierarchies, path })
    }

    /// Opens `cgroup.procs` in each hierarchy; a process joins by writing `0`.
    pub(super) fn open(&self) -> Result<Vec<OwnedFd>> {
        self.lists()
            .map(|list| {
                let file = OpenOptions::new().write(true).open(&list);
                Ok(file.with_context(|| list.display().to_string())?.into())
            })
            .collect()
    }

    /// Moves a process into this cgroup.
    pub(super) fn add(&self, process: u32) -> Result<()> {
        for list in self.lists() {
            fs::write(&list, process.to_string())?;
        }
        Ok(())
    }

    /// The cluster's own cgroup, whether it exists or not.
    pub(super) fn whole() -> Result<Self> {
        Ok(Self {
            hierarchies: Hierarchy::all()?,
            path: NAME.into(),
        })
    }

    /// Kills every process in and below it, and removes it, if it exists, as a reboot does. Left
    /// cgroups of old pods would delay the kubelet, and one that has enabled controllers for its
    /// children accepts no processes.
    pub(super) fn destroy(self) -> Result<()> {
        let v2 = self.hierarchies.iter().find(|h| h.is_v2());
        kill_all(&v2.context("cgroup v2")?.mount.join(&self.path))?;
        for hierarchy in &self.hierarchies {
            let folder = hierarchy.mount.join(&self.path);
            // Dead processes leave a v1 cgroup with a delay.
            wait::until(PATIENCE, || {
                let is_gone = !folder.exists() || prune(&folder).is_ok();
                Ok(is_gone.then_some(()))
            })
            .with_context(|| format!("remove {}", folder.display()))?;
        }
        Ok(())
    }

    fn lists(&self) -> impl Iterator<Item = PathBuf> {
        let lists = |hierarchy: &Hierarchy| hierarchy.mount.join(&self.path).join("cgroup.procs");
        self.hierarchies.iter().map(lists)
    }
}

fn make_in(hierarchy: &Hierarchy, path: &Path) -> io::Result<()> {
    let mut folder = hierarchy.mount.clone();
    for part in path {
        if hierarchy.is_v2() {
            delegate(&folder)?;
        }
        let parent = folder.clone();
        folder.push(part);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => inherit_cpuset(&parent, &folder)?,
        }
    }
    Ok(())
}

/// v2: controllers must be enabled for a cgroup's children. In a hybrid setup v2 has no
/// controllers. One that cannot be enabled is skipped: the kubelet reports those that it misses.
fn delegate(folder: &Path) -> io::Result<()> {
    let controllers = fs::read_to_string(folder.join("cgroup.controllers"))?;
    for controller in controllers.split_whitespace() {
        let _ = fs::write(
            folder.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
    }
    Ok(())
}

/// v1: a cpuset accepts no process before it has CPUs and memory nodes.
fn inherit_cpuset(parent: &Path, folder: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let Ok(value) = fs::read_to_string(parent.join(file)) else {
            continue;
        };
        // On v2, files of the same name may be empty, which means something else.
        let is_v1 = parent.join("cpuset.memory_pressure").exists();
        if is_v1 && fs::read_to_string(folder.join(file))?.trim().is_empty() {
            fs::write(folder.join(file), value)?;
        }
    }
    Ok(())
}

/// Kills every process in and below `cgroup`, a v2 cgroup.
fn kill_all(cgroup: &Path) -> Result<()> {
    let killed = wait::until(PATIENCE, || {
        let events = fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default();
        let is_populated = events.lines().any(|line| line == "populated 1");
        if is_populated {
            fs::write(cgroup.join("cgroup.kill"), "1")?;
        }
        Ok((!is_populated).then_some(()))
    });
    killed.with_context(|| format!("{}: its processes do not exit", cgroup.display()))
}

/// Removes a cgroup and all below it.
fn prune(cgroup: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            prune(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount_line(line: &str) -> Option<String> {
        Hierarchy::parse(line).map(|hierarchy| hierarchy.mount_line())
    }

    #[test]
    fn a_node_mounts_the_machines_hierarchies() {
        let mount = |path: &str, filesystem: &str| {
            mount_line(&format!(
                "1 2 0:3 / /sys/fs/cgroup{path} rw,relatime shared:9 - {filesystem}"
            ))
        };
        let expect = |line: &str| Some(format!("{line}\n"));
        assert_eq!(
            mount("", "cgroup2 cgroup2 rw,nsdelegate"),
            expect("cgroup2 rw .")
        );
        assert_eq!(
            mount("/unified", "cgroup2 cgroup2 rw"),
            expect("cgroup2 rw unified")
        );
        assert_eq!(
            mount("/cpu,cpuacct", "cgroup cgroup rw,cpu,cpuacct"),
            expect("cgroup cpu,cpuacct cpu,cpuacct")
        );
        assert_eq!(
            mount("/systemd", "cgroup cgroup rw,xattr,name=systemd"),
            expect("cgroup none,name=systemd systemd")
        );
        assert_eq!(mount("", "tmpfs tmpfs rw"), None);
        assert_eq!(mount_line("1 2 0:3 / /mnt/x rw - cgroup2 none rw"), None);
    }
}
