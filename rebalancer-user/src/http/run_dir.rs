//! The folder of the agent's socket, and who may have it.

use std::{
    ffi::CStr,
    fs::{self, File},
    io,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, FlockOperation, Mode, fchmod, flock, statat, unlinkat},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};

use crate::host::folder::{self, FolderError};

const SOCKET: &str = "agent.sock";

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 16;

/// Where the socket of a run directory is.
pub fn socket_of(dir: &Path) -> PathBuf {
    dir.join(SOCKET)
}

/// Why there is no socket to serve on.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// An agent serves there.
    #[error(
        "another agent already serves {path}\n  remedy: set --run-dir PATH to another directory for this one's socket"
    )]
    Busy {
        /// Its socket.
        path: PathBuf,
    },
    /// The folder is not ours alone.
    #[error(
        "the directory of the agent's socket, {path}: {why}\n  remedy: correct that, or set --run-dir PATH to another directory"
    )]
    NotOurs {
        /// The folder.
        path: PathBuf,
        /// Why it is not used.
        why: FolderError,
    },
    /// The folder or the socket cannot be had.
    #[error(
        "the agent's socket {path}: {why}\n  remedy: set --run-dir PATH to a writable directory"
    )]
    Io {
        /// The folder or the socket.
        path: PathBuf,
        /// The system's error. Not the `source`, which would be printed once more after the remedy.
        why: io::Error,
    },
}

/// A run directory that this process owns. Dropping it removes the socket, and the folder if
/// nothing else is in it.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Locked for as long as we live, so a socket found under our lock is a dead one's.
    folder: File,
    listens: bool,
}

impl RunDir {
    /// Makes the folder ours, and closes it to others.
    pub fn take(path: &Path) -> Result<Self, RunDirError> {
        let folder = folder::take(path, is_ours).map_err(|why| match why {
            FolderError::Io(why) => RunDirError::Io {
                path: path.to_owned(),
                why,
            },
            why => RunDirError::NotOurs {
                path: path.to_owned(),
                why,
            },
        })?;
        if flock(&folder, FlockOperation::NonBlockingLockExclusive).is_err() {
            let path = socket_of(path);
            return Err(RunDirError::Busy { path });
        }
        Ok(Self {
            path: path.to_owned(),
            folder,
            listens: false,
        })
    }

    /// The socket.
    pub fn socket(&self) -> PathBuf {
        socket_of(&self.path)
    }

    /// Listens on the socket, in place of one that a killed agent has left.
    pub(super) fn listen(&mut self) -> Result<UnixListener, RunDirError> {
        let path = self.socket();
        let failed = |why| RunDirError::Io {
            path: path.clone(),
            why,
        };
        match statat(&self.folder, SOCKET, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Socket => {
                self.remove_socket().map_err(failed)?;
            }
            // Whatever else it is, it is not ours: bind refuses.
            Ok(_) | Err(_) => {}
        }
        let listener = bind_for_us_alone(&path).map_err(|e| failed(e.into()))?;
        self.listens = true;
        Ok(listener)
    }

    /// In the locked folder, whatever its path leads to now.
    fn remove_socket(&self) -> io::Result<()> {
        Ok(unlinkat(&self.folder, SOCKET, AtFlags::empty())?)
    }
}

/// What agents keep in it: the socket, the saved pause, and the ledger from which the next agent continues.
fn is_ours(name: &CStr) -> bool {
    let name = name.to_bytes();
    name == SOCKET.as_bytes() || name.starts_with(b"pause.") || name.starts_with(b"ledger.")
}

fn bind_for_us_alone(path: &Path) -> rustix::io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Before bind, which makes the file with the socket's own mode (unix_bind in
    // net/unix/af_unix.c): it is never open to others, not for a moment.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if self.listens
            && let Err(error) = self.remove_socket()
        {
            tracing::warn!(%error, socket = %self.socket().display(), "could not remove the socket");
        }
        // Not ours to remove if it holds anything else, or is a mount.
        let _stays = fs::remove_dir(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn the_folder_of_an_older_agent_is_closed_to_others() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("run");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        fs::write(path.join("pause.json"), "{}").unwrap();
        let mut dir = RunDir::take(&path).unwrap();
        let _listener = dir.listen().unwrap();
        assert_eq!((mode(&path), mode(&dir.socket())), (0o700, 0o600));
    }

    #[test]
    fn a_folder_that_others_use_too_stays_open_to_them() {
        let around = tempfile::tempdir().unwrap();
        fs::set_permissions(around.path(), PermissionsExt::from_mode(0o755)).unwrap();
        fs::write(around.path().join("sshd.pid"), "").unwrap();
        let error = RunDir::take(around.path()).unwrap_err().to_string();
        assert!(
            error.contains("sshd.pid") && error.contains("--run-dir"),
            "{error}"
        );
        assert_eq!(mode(around.path()), 0o755);
    }

    #[test]
    fn the_socket_is_removed_from_the_folder_that_was_taken() {
        let around = tempfile::tempdir().unwrap();
        let (path, moved) = (around.path().join("run"), around.path().join("moved"));
        let mut dir = RunDir::take(&path).unwrap();
        let listener = dir.listen().unwrap();
        fs::rename(&path, &moved).unwrap();
        fs::create_dir(&path).unwrap();
        fs::write(path.join(SOCKET), "").unwrap();
        drop((listener, dir));
        assert!(path.join(SOCKET).exists());
        assert!(!moved.join(SOCKET).exists());
    }

    #[test]
    fn a_second_owner_is_refused_until_the_first_has_gone() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("run");
        let first = RunDir::take(&path).unwrap();
        assert!(matches!(RunDir::take(&path), Err(RunDirError::Busy { .. })));
        drop(first);
        assert!(!path.exists());
        RunDir::take(&path).unwrap();
    }
}
