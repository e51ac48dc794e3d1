//! Finds the real root of the cgroup v2 hierarchy: where a program sees every socket of the node.
//! And sees to it that cgroups have the names that the node gives them.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::fstatfs,
    thread::{ThreadNameSpaceType, move_into_thread_name_spaces},
};

/// Why a cgroup cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup v2 root is mounted.
    #[error(
        "the root of the cgroup v2 hierarchy is not mounted{hint}\n  remedy: mount it (`mount -t cgroup2 none /sys/fs/cgroup/unified`), or set --cgroup PATH"
    )]
    NoCgroup2 {
        /// What was found instead.
        hint: String,
    },
    /// The path given is not in a cgroup v2 hierarchy.
    #[error(
        "{path}: not a cgroup v2 directory\n  remedy: give the mount point of a cgroup2 file system, or a directory below it"
    )]
    NotCgroup2 {
        /// The path.
        path: PathBuf,
    },
    /// A call failed.
    #[error("{call}: {why}")]
    Call {
        /// What failed, and on which file.
        call: String,
        /// What the system says. Not its source, which would be printed once more.
        why: io::Error,
    },
}

/// `CGROUP2_SUPER_MAGIC` of `linux/magic.h`.
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// The hierarchy's root has this inode. It proves nothing alone; a subtree bound at the usual
/// place by a private cgroup namespace has another.
pub(crate) const ROOT_INODE: u64 = 1;

/// Opens the cgroup to attach to: `chosen`, or else the root, found among the mounts of this
/// process (`/sys/fs/cgroup` on v2 hosts, `/sys/fs/cgroup/unified` on hybrid ones).
pub fn cgroup_root(chosen: Option<&Path>) -> Result<(PathBuf, File), CgroupError> {
    if let Some(path) = chosen {
        let dir = File::open(path).map_err(|why| CgroupError::Call {
            call: format!("opening the cgroup {}", path.display()),
            why,
        })?;
        if !is_cgroup2(&dir) {
            return Err(CgroupError::NotCgroup2 {
                path: path.to_owned(),
            });
        }
        return Ok((path.to_owned(), dir));
    }
    let mut subtrees = Vec::new();
    for Cgroup2Mount { path, .. } in cgroup2_mounts()? {
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
    Err(CgroupError::NoCgroup2 { hint })
}

/// A folder of the cgroup v2 hierarchy, whichever part of it is mounted here.
pub(crate) fn any_cgroup2() -> Result<File, CgroupError> {
    let mounts = cgroup2_mounts()?;
    let mut folders = mounts
        .iter()
        .filter_map(|mount| File::open(&mount.path).ok());
    folders
        .find(is_cgroup2)
        .ok_or_else(|| CgroupError::NoCgroup2 {
            hint: String::new(),
        })
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

/// `struct file_handle` of a folder in a kernfs: its id.
#[repr(C)]
struct CgroupHandle {
    bytes: u32,
    kind: i32,
    id: u64,
}

/// Opens a cgroup by its id; `hierarchy` is any folder of its mount. Needs CAP_DAC_READ_SEARCH, and
/// a kernel from 5.5 on.
pub(crate) fn open_cgroup(hierarchy: BorrowedFd<'_>, id: u64) -> io::Result<OwnedFd> {
    const FILEID_KERNFS: i32 = 0xfe;
    let mut handle = CgroupHandle {
        bytes: size_of::<u64>() as u32,
        kind: FILEID_KERNFS,
        id,
    };
    // SAFETY: the handle is as long as it says.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            hierarchy.as_raw_fd(),
            &raw mut handle,
            libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn is_cgroup2(dir: &File) -> bool {
    fstatfs(dir).is_ok_and(|fs| fs.f_type as u64 == CGROUP2_MAGIC)
}

/// What a mount of type cgroup2 shows, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cgroup2Mount {
    /// The folder of the hierarchy that is mounted.
    pub(super) root: PathBuf,
    /// The mount point.
    pub(super) path: PathBuf,
}

/// Those that this process sees.
pub(super) fn cgroup2_mounts() -> Result<Vec<Cgroup2Mount>, CgroupError> {
    // Names of files are any bytes, and whoever may mount something chooses them.
    let mounts = fs::read("/proc/self/mountinfo").map_err(|why| CgroupError::Call {
        call: "reading /proc/self/mountinfo".to_owned(),
        why,
    })?;
    Ok(cgroup2_mounts_of(&mounts))
}

/// See `proc_pid_mountinfo(5)`.
fn cgroup2_mounts_of(mountinfo: &[u8]) -> Vec<Cgroup2Mount> {
    let mount = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let (root, path) = (fields.nth(3)?, fields.next()?);
        // Optional fields come before the dash.
        fields.find(|field| *field == b"-")?;
        (fields.next()? == b"cgroup2").then(|| Cgroup2Mount {
            root: unescape(root),
            path: unescape(path),
        })
    };
    mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(mount)
        .collect()
}

/// The kernel writes blanks and the like as `\040`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let escaped = (*first == b'\\').then(|| octal(after)).flatten();
        out.push(escaped.unwrap_or(*first));
        rest = match escaped {
            Some(_) => &after[3..],
            None => after,
        };
    }
    PathBuf::from(OsString::from_vec(out))
}

/// The byte that three octal digits stand for.
fn octal(digits: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(digits.get(..3)?).ok()?;
    // It would take a sign, too.
    let plain = digits.bytes().all(|digit| digit.is_ascii_digit());
    plain.then(|| u8::from_str_radix(digits, 8).ok()).flatten()
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
            paths(hybrid.as_bytes()),
            ["/sys/fs/cgroup/unified", "/mnt/a b"].map(PathBuf::from)
        );
    }

    fn paths(mountinfo: &[u8]) -> Vec<PathBuf> {
        let mounts = cgroup2_mounts_of(mountinfo).into_iter();
        mounts.map(|mount| mount.path).collect()
    }

    #[test]
    fn names_of_mounts_are_any_bytes() {
        let mountinfo = b"\
24 30 0:22 / /media/caf\xe9 rw - vfat /dev/sdb1 rw
25 30 0:23 /a\xff /sys/fs/\xfe\\134\\303\\251 rw shared:1 - cgroup2 cgroup2 rw
26 30 0:24 / /end\\04 rw - cgroup2 cgroup2 rw
27 30 0:25 / /sign\\+12 rw - cgroup2 cgroup2 rw
";
        let mounts = cgroup2_mounts_of(mountinfo);
        let bytes = |path: &PathBuf| path.as_os_str().as_encoded_bytes().to_vec();
        assert_eq!(bytes(&mounts[0].root), b"/a\xff");
        let found: Vec<_> = mounts.iter().map(|mount| bytes(&mount.path)).collect();
        assert_eq!(
            found,
            [&b"/sys/fs/\xfe\\\xc3\xa9"[..], b"/end\\04", b"/sign\\+12"]
        );
    }

    #[test]
    fn a_folder_that_is_no_cgroup_is_refused() {
        assert!(matches!(
            cgroup_root(Some(Path::new("/proc"))),
            Err(CgroupError::NotCgroup2 { .. })
        ));
        assert!(matches!(
            cgroup_root(Some(Path::new("/nowhere"))),
            Err(CgroupError::Call { .. })
        ));
    }
}
