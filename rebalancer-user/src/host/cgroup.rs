//! The cgroup v2 hierarchy: its mounts, its real root (where a program sees every socket of the node),
//! cgroups by path and by ID, and the node's cgroup namespace.

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

use crate::snapshot::CgroupId;

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
        /// The error. Not its source, which would be printed once more.
        why: io::Error,
    },
}

impl CgroupError {
    fn call(call: impl Into<String>, why: io::Error) -> Self {
        let call = call.into();
        Self::Call { call, why }
    }
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
    for Mount { path, .. } in CgroupMounts::read()?.0 {
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
    let mounts = CgroupMounts::read()?;
    let mut folders = mounts
        .0
        .iter()
        .filter_map(|mount| File::open(&mount.path).ok());
    folders
        .find(is_cgroup2)
        .ok_or_else(|| CgroupError::NoCgroup2 {
            hint: String::new(),
        })
}

/// Enters the cgroup namespace of process 1, for the calling thread and those that it starts later.
///
/// On nodes with cgroup v2 alone an unprivileged container has a cgroup namespace of its own, where
/// `/proc/PID/cgroup` shows another pod's path relative to the container's, with `/..` and without the
/// part that identifies the pod. With `hostPID` process 1 has the node's view.
///
/// # Errors
/// CAP_SYS_PTRACE to read process 1's namespace or CAP_SYS_ADMIN to enter it is missing; then nothing has
/// changed.
pub fn enter_cgroup_namespace_of_process_1() -> io::Result<()> {
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

/// The cgroup2 mounts that this process sees.
pub(crate) struct CgroupMounts(Vec<Mount>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    /// The folder of the hierarchy that is mounted.
    root: PathBuf,
    /// The mount point.
    path: PathBuf,
}

impl CgroupMounts {
    fn read() -> Result<Self, CgroupError> {
        // File names are arbitrary bytes, and any user who may mount chooses them.
        let mounts = fs::read("/proc/self/mountinfo")
            .map_err(|why| CgroupError::call("reading /proc/self/mountinfo", why))?;
        Ok(Self::parse(&mounts))
    }

    /// The same; without mounts if they cannot be read. Then no cgroup is known, and the guards skip.
    pub(crate) fn read_or_none() -> Self {
        Self::read().unwrap_or(Self(Vec::new()))
    }

    /// The mount point of the hierarchy that `path` is in.
    pub(super) fn above(path: &Path) -> Result<Option<PathBuf>, CgroupError> {
        let mounts = Self::read()?.0.into_iter().map(|mount| mount.path);
        let above = mounts.filter(|mount| path.starts_with(mount));
        Ok(above.max_by_key(|mount| mount.as_os_str().len()))
    }

    /// The ID of the cgroup v2 in the text of `/proc/PID/cgroup`: the inode of its folder.
    ///
    /// In a private cgroup namespace both the process's path and the mount's root are relative to the
    /// namespace's root, with `/..` for what is above it.
    pub(super) fn id(&self, cgroup: &str) -> Option<CgroupId> {
        let path = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
        self.0.iter().find_map(|mount| {
            let below = below(path, mount.root.to_str()?)?;
            let folder = fs::metadata(mount.path.join(below)).ok()?;
            Some(CgroupId(folder.ino()))
        })
    }

    /// See `proc_pid_mountinfo(5)`.
    fn parse(mountinfo: &[u8]) -> Self {
        let mount = |line: &[u8]| {
            let mut fields = line.split(|byte| *byte == b' ');
            let (root, path) = (fields.nth(3)?, fields.next()?);
            // Optional fields come before the dash.
            fields.find(|field| *field == b"-")?;
            (fields.next()? == b"cgroup2").then(|| Mount {
                root: unescape(root),
                path: unescape(path),
            })
        };
        let lines = mountinfo.split(|byte| *byte == b'\n');
        Self(lines.filter_map(mount).collect())
    }
}

/// The cgroup of this process, in which its sockets are created.
pub(crate) fn own_cgroup() -> Option<CgroupId> {
    CgroupMounts::read_or_none().id(&fs::read_to_string("/proc/self/cgroup").ok()?)
}

/// `path` as seen from `root`, both of `/`-separated names; `None` if it is not below it.
fn below<'a>(path: &'a str, root: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(root.trim_end_matches('/'))?;
    let below = match rest.strip_prefix('/') {
        Some(below) => below,
        None if rest.is_empty() => "",
        None => return None,
    };
    (!below.split('/').any(|name| name == "..")).then_some(below)
}

/// The kernel escapes whitespace, as in `\040`.
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
    // `from_str_radix` would accept a sign, too.
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
            CgroupMounts::parse(hybrid.as_bytes())
                .0
                .into_iter()
                .map(|mount| mount.path)
                .collect::<Vec<_>>(),
            ["/sys/fs/cgroup/unified", "/mnt/a b"].map(PathBuf::from)
        );
    }

    #[test]
    fn mount_points_are_arbitrary_bytes() {
        let mountinfo = b"\
24 30 0:22 / /media/caf\xe9 rw - vfat /dev/sdb1 rw
25 30 0:23 /a\xff /sys/fs/\xfe\\134\\303\\251 rw shared:1 - cgroup2 cgroup2 rw
26 30 0:24 / /end\\04 rw - cgroup2 cgroup2 rw
27 30 0:25 / /sign\\+12 rw - cgroup2 cgroup2 rw
";
        let CgroupMounts(mounts) = CgroupMounts::parse(mountinfo);
        let bytes = |path: &PathBuf| path.as_os_str().as_encoded_bytes().to_vec();
        assert_eq!(bytes(&mounts[0].root), b"/a\xff");
        let found: Vec<_> = mounts.iter().map(|mount| bytes(&mount.path)).collect();
        assert_eq!(
            found,
            [&b"/sys/fs/\xfe\\\xc3\xa9"[..], b"/end\\04", b"/sign\\+12"]
        );
    }

    #[test]
    fn cgroups_are_found_from_inside_a_cgroup_namespace() {
        assert_eq!(below("/a/b", "/"), Some("a/b"));
        assert_eq!(below("/", "/"), Some(""));
        assert_eq!(below("/../../pod/x", "/../.."), Some("pod/x"));
        assert_eq!(below("/a/b", "/a"), Some("b"));
        assert_eq!(below("/a", "/a"), Some(""));
        // Neither a sibling with the same beginning, nor what is above the mount.
        assert_eq!(below("/ab", "/a"), None);
        assert_eq!(below("/../pod/x", "/"), None);
        assert_eq!(below("/../../pod/x", "/.."), None);
    }

    #[test]
    fn a_directory_that_is_no_cgroup_is_refused() {
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
