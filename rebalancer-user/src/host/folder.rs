//! A directory that only this user can change or lock: that of the pins, and that of the agent's socket.
//!
//! Such directories are created where other users may write, such as on a bpffs with mode 1777. An existing
//! one may belong to any user, or be a link to somewhere else.

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Mode, OFlags, Stat, fchmod, fstat, lstat, mkdir, open, stat, statat,
    },
    io::Errno,
    process::geteuid,
};

/// Why a folder is not used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It would lead elsewhere.
    #[error("it is a symbolic link")]
    Link,
    /// Its owner could put anything there.
    #[error("it belongs to user {0}")]
    Owner(u32),
    /// Others have put something there.
    #[error("{name} in it belongs to user {uid}")]
    Foreign {
        /// What it is.
        name: String,
        /// Whose it is.
        uid: u32,
    },
    /// Others can get into it, and it is not ours alone to be closed to them.
    #[error("it is open to other users (mode {mode:04o}) and also holds {name}")]
    Shared {
        /// Its permissions.
        mode: u32,
        /// Something in it that is not ours.
        name: String,
    },
    /// Others can put something there.
    #[error("other users can write to it (mode {0:04o})")]
    Writable(u32),
    /// Others can put another folder in its place.
    #[error("every user can rename entries of its parent directory (mode {0:04o})")]
    Around(u32),
    /// What the system says.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Errno> for FolderError {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// Creates the directory, or takes an existing one over, and removes other users' permissions. It is refused
/// if it is another user's or could have been tampered with, and left unchanged if it is open to others and
/// holds an entry for which `is_ours` is false.
pub(crate) fn take(path: &Path, is_ours: fn(&CStr) -> bool) -> Result<File, FolderError> {
    take_of(&trusted(), path, is_ours)
}

fn take_of(trusted: &[u32], path: &Path, is_ours: fn(&CStr) -> bool) -> Result<File, FolderError> {
    check_around(path)?;
    match mkdir(path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let (folder, found) = open_own(trusted, path)?;
    let mode = permissions(&found);
    if mode & 0o077 != 0 {
        check_entries(trusted, &folder, mode, is_ours)?;
        fchmod(&folder, Mode::RWXU)?;
    }
    Ok(folder)
}

/// Opens the directory for reading; it is refused if another user could have created entries in it.
pub(crate) fn look_into(path: &Path) -> Result<File, FolderError> {
    let (folder, found) = open_own(&trusted(), path)?;
    match permissions(&found) {
        mode if mode & 0o022 != 0 => Err(FolderError::Writable(mode)),
        _ => Ok(folder),
    }
}

/// The users that are trusted: root and this one.
fn trusted() -> [u32; 2] {
    [0, geteuid().as_raw()]
}

/// Opens the directory if a trusted user owns it.
fn open_own(trusted: &[u32], path: &Path) -> Result<(File, Stat), FolderError> {
    // With a trailing slash a link would be followed.
    let path = path.components().as_path();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = match open(path, flags, Mode::empty()) {
        Ok(folder) => folder,
        Err(Errno::NOTDIR | Errno::LOOP) if is_link(path) => return Err(FolderError::Link),
        Err(e) => return Err(e.into()),
    };
    let found = fstat(&folder)?;
    if !trusted.contains(&found.st_uid) {
        return Err(FolderError::Owner(found.st_uid));
    }
    Ok((File::from(folder), found))
}

/// With the sticky bit users can only rename or remove their own entries.
fn check_around(path: &Path) -> Result<(), FolderError> {
    let around = match path.parent() {
        Some(around) if around != Path::new("") => around,
        _ => Path::new("."),
    };
    let found = stat(around)?;
    let mode = permissions(&found);
    if mode & 0o002 != 0 && mode & 0o1000 == 0 {
        return Err(FolderError::Around(mode));
    }
    Ok(())
}

fn check_entries(
    trusted: &[u32],
    folder: &File,
    mode: u32,
    is_ours: fn(&CStr) -> bool,
) -> Result<(), FolderError> {
    for name in names(folder)? {
        let shown = || name.to_string_lossy().into_owned();
        if !is_ours(&name) {
            let name = shown();
            return Err(FolderError::Shared { mode, name });
        }
        let uid = statat(folder, &*name, AtFlags::SYMLINK_NOFOLLOW)?.st_uid;
        if !trusted.contains(&uid) {
            let name = shown();
            return Err(FolderError::Foreign { name, uid });
        }
    }
    Ok(())
}

/// The entries of the directory.
pub(crate) fn names(folder: &File) -> io::Result<Vec<std::ffi::CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn is_link(path: &Path) -> bool {
    lstat(path).is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Symlink)
}

fn permissions(found: &Stat) -> u32 {
    found.st_mode & 0o7777
}

/// Marks `folder` as in use while this descriptor is open, for [`is_marked`].
///
/// It is a shared lock: an exclusive one needs a descriptor that is open for writing, which a directory
/// cannot have.
pub(crate) fn mark(folder: BorrowedFd<'_>) -> io::Result<()> {
    let mut wanted = lock(libc::F_RDLCK);
    lock_call(folder, libc::F_OFD_SETLK, &mut wanted)
}

/// Whether another descriptor has it marked. Takes no lock, so that no process is refused because of it.
pub(crate) fn is_marked(folder: BorrowedFd<'_>) -> io::Result<bool> {
    let mut asked = lock(libc::F_WRLCK);
    lock_call(folder, libc::F_OFD_GETLK, &mut asked)?;
    Ok(asked.l_type != libc::F_UNLCK as libc::c_short)
}

/// Of the whole file, from its beginning.
fn lock(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn lock_call(file: BorrowedFd<'_>, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: `lock` is what both commands take, and is valid while they run.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    };

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn all(_: &CStr) -> bool {
        true
    }

    fn only_ours(name: &CStr) -> bool {
        name == c"ours"
    }

    #[test]
    fn a_created_directory_is_closed_to_other_users() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("own");
        take(&path, all).unwrap();
        assert_eq!(mode(&path), 0o700);
        take(&path, only_ours).unwrap();
        look_into(&path).unwrap();
    }

    #[test]
    fn an_open_directory_is_closed_if_all_entries_are_ours() {
        let around = tempfile::tempdir().unwrap();
        for was in [0o755, 0o777, 0o1777] {
            let path = around.path().join(format!("{was:o}"));
            fs::create_dir(&path).unwrap();
            fs::write(path.join("ours"), "").unwrap();
            set_mode(&path, was);
            take(&path, only_ours).unwrap();
            assert_eq!(mode(&path), 0o700);
        }
    }

    #[test]
    fn a_directory_that_others_use_is_left_unchanged() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("run");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("sshd.pid"), "").unwrap();
        set_mode(&path, 0o755);
        let refused = take(&path, only_ours).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "it is open to other users (mode 0755) and also holds sshd.pid"
        );
        assert_eq!(mode(&path), 0o755);
    }

    #[test]
    fn a_symbolic_link_is_refused() {
        let around = tempfile::tempdir().unwrap();
        let elsewhere = around.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let link = around.path().join("link");
        symlink(&elsewhere, &link).unwrap();
        assert!(matches!(take(&link, all), Err(FolderError::Link)));
        assert!(matches!(look_into(&link), Err(FolderError::Link)));
        let mut slashed = link.clone().into_os_string();
        slashed.push("/");
        assert!(matches!(
            take(Path::new(&slashed), all),
            Err(FolderError::Link)
        ));
        let nowhere = around.path().join("nowhere");
        symlink(around.path().join("not there"), &nowhere).unwrap();
        assert!(matches!(take(&nowhere, all), Err(FolderError::Link)));
        assert_eq!(mode(&elsewhere) & 0o700, 0o700);
    }

    #[test]
    fn a_file_is_refused() {
        let around = tempfile::tempdir().unwrap();
        let file = around.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(take(&file, all), Err(FolderError::Io(_))));
    }

    #[test]
    fn a_directory_that_every_user_can_replace_is_refused() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("own");
        set_mode(around.path(), 0o777);
        assert!(matches!(take(&path, all), Err(FolderError::Around(0o777))));
        assert!(!path.exists());
        set_mode(around.path(), 0o1777);
        take(&path, all).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_not_read() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("own");
        fs::create_dir(&path).unwrap();
        set_mode(&path, 0o777);
        assert!(matches!(
            look_into(&path),
            Err(FolderError::Writable(0o777))
        ));
        set_mode(&path, 0o755);
        look_into(&path).unwrap();
    }

    #[test]
    fn another_users_folder_and_another_users_files_are_refused() {
        let around = tempfile::tempdir().unwrap();
        let us = geteuid().as_raw();
        let path = around.path().join("theirs");
        fs::create_dir(&path).unwrap();
        // As seen by another user.
        let taken = take_of(&[], &path, all);
        assert!(matches!(taken, Err(FolderError::Owner(uid)) if uid == us));
        symlink("/etc", path.join("planted")).unwrap();
        let folder = File::open(&path).unwrap();
        let checked = check_entries(&[], &folder, 0o777, all);
        let planted = |error| matches!(error, FolderError::Foreign { uid, .. } if uid == us);
        assert!(planted(checked.unwrap_err()));
        check_entries(&[us], &folder, 0o777, all).unwrap();
    }
}
