//! The folder of the agent's socket, and who may have it.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, Mode, fchmod, flock},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};

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
        "an agent is asked at {path} already\n  remedy: name another folder for this one's socket with --run-dir PATH"
    )]
    Busy {
        /// Its socket.
        path: PathBuf,
    },
    /// The folder or the socket cannot be had.
    #[error(
        "the agent's socket {path}: {source}\n  remedy: name a folder that can be written to with --run-dir PATH"
    )]
    Io {
        /// The folder or the socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// A run directory that this process owns. Dropping it removes the socket, and the folder if
/// nothing else is in it.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Locked for as long as we live, so a socket found under our lock is a dead one's.
    _lock: File,
    listens: bool,
}

impl RunDir {
    /// Makes the folder ours, root-only if it is made.
    pub fn take(path: &Path) -> Result<Self, RunDirError> {
        let failed = |source| RunDirError::Io {
            path: path.to_owned(),
            source,
        };
        match DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
            Ok(()) | Err(_) => {}
        }
        let lock = File::open(path).map_err(failed)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let path = socket_of(path);
            return Err(RunDirError::Busy { path });
        }
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
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
        let failed = |source| RunDirError::Io {
            path: path.clone(),
            source,
        };
        match fs::symlink_metadata(&path) {
            Ok(found) if found.file_type().is_socket() => fs::remove_file(&path).map_err(failed)?,
            // Whatever else it is, it is not ours: bind refuses.
            Ok(_) | Err(_) => {}
        }
        let listener = bind_for_us_alone(&path).map_err(|e| failed(e.into()))?;
        self.listens = true;
        Ok(listener)
    }
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
            && let Err(error) = fs::remove_file(self.socket())
        {
            tracing::warn!(%error, socket = %self.socket().display(), "is left behind");
        }
        // Not ours to remove if it holds anything else, or is a mount.
        let _stays = fs::remove_dir(&self.path);
    }
}
