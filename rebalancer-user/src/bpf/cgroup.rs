//! Finds the real root of the cgroup v2 hierarchy: where a program sees every socket of the node.
//! And sees to it that cgroups have the names that the node gives them.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::fstatfs,
    thread::{ThreadNameSpaceType, move_into_thread_name_spaces},
};

use super::Error;

/// `CGROUP2_SUPER_MAGIC` of `linux/magic.h`.
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// The hierarchy's root has this inode. It proves nothing alone; a subtree bound at the usual
/// place by a private cgroup namespace has another.
pub(super) const ROOT_INODE: u64 = 1;

/// Opens the cgroup to attach to: `chosen`, or else the root, found among the mounts of this
/// process (`/sys/fs/cgroup` on v2 hosts, `/sys/fs/cgroup/unified` on hybrid ones).
pub fn cgroup_root(chosen: Option<&Path>) -> Result<(PathBuf, File), Error> {
    if let Some(path) = chosen {
        let dir = File::open(path)
            .map_err(|e| Error::call(format!("opening the cgroup {}", path.display()), e))?;
        if !is_cgroup2(&dir) {
            return Err(Error::NotCgroup2 {
                path: path.to_owned(),
            });
        }
        return Ok((path.to_owned(), dir));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|e| Error::call("reading /proc/self/mountinfo", e))?;
    let mut subtrees = Vec::new();
    for path in cgroup2_mounts(&mounts) {
        let Ok(dir) = File::open(&path) else { continue };
        if !is_cgroup2(&dir) {
            continue;
        }
        match dir.metadata() {
            Ok(meta) if meta.ino() == ROOT_INODE => return Ok((path, dir)),
            _ => subtrees.push(path.display().to_string()),
        }
    }
    let hint = match subtrees.as_slice() {
        [] => String::new(),
        some => format!(
            ": {} shows only a part of it (a private cgroup namespace)",
            some.join(", ")
        ),
    };
    Err(Error::NoCgroup2 { hint })
}

/// Sees cgroups as process 1 does from here on.
///
/// A container that is not privileged has a cgroup namespace of its own on nodes with cgroup v2
/// alone. There `/proc/PID/cgroup` tells another pod's path from the container's own, with `/..`
/// and without the part that says what it is. With the node's processes in sight (`hostPID`)
/// process 1 has the node's view.
///
/// It holds for the calling thread and for those that it starts later.
///
/// # Errors
/// Process 1 may not be looked at (CAP_SYS_PTRACE is missing), or its namespace not entered
/// (CAP_SYS_ADMIN); then nothing has changed.
pub fn see_cgroups_as_process_1() -> io::Result<()> {
    let node = File::open("/proc/1/ns/cgroup")?;
    if node.metadata()?.ino() == fs::metadata("/proc/thread-self/ns/cgroup")?.ino() {
        return Ok(());
    }
    let kind = ThreadNameSpaceType::CONTROL_GROUP;
    Ok(move_into_thread_name_spaces(node.as_fd(), kind)?)
}

fn is_cgroup2(dir: &File) -> bool {
    fstatfs(dir).is_ok_and(|fs| fs.f_type as u64 == CGROUP2_MAGIC)
}

/// Mount points of type cgroup2, see `proc_pid_mountinfo(5)`.
pub(super) fn cgroup2_mounts(mountinfo: &str) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mount_point = left.split(' ').nth(4)?;
            (right.split(' ').next()? == "cgroup2").then(|| unescape(mount_point))
        })
        .collect()
}

/// The kernel writes blanks and the like as `\040`.
fn unescape(field: &str) -> PathBuf {
    let mut out = String::new();
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        match after
            .get(..3)
            .and_then(|octal| u8::from_str_radix(octal, 8).ok())
        {
            Some(byte) => {
                out.push(byte as char);
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    PathBuf::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cgroup2_among_mounts() {
        let hybrid = "\
25 30 0:23 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:24 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
27 25 0:25 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw
28 25 0:26 / /mnt/a\\040b rw - cgroup2 none rw
nonsense
";
        assert_eq!(
            cgroup2_mounts(hybrid),
            [
                PathBuf::from("/sys/fs/cgroup/unified"),
                PathBuf::from("/mnt/a b")
            ]
        );
    }

    #[test]
    fn a_folder_that_is_no_cgroup_is_refused() {
        assert!(matches!(
            cgroup_root(Some(Path::new("/proc"))),
            Err(Error::NotCgroup2 { .. })
        ));
        assert!(matches!(
            cgroup_root(Some(Path::new("/nowhere"))),
            Err(Error::Call { .. })
        ));
    }
}
