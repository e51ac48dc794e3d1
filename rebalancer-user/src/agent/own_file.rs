//! Files that the agent leaves for the next one, beside its socket.
//!
//! They are read as if anybody could have written them.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use tracing::warn;

/// What is in a file of ours; `None`, and a warning, if something else is there.
///
/// # Errors
/// What is wrong with ours.
pub(super) fn read(path: &Path, largest: u64) -> Result<Option<Vec<u8>>, String> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return strange(path, &error.to_string()),
    };
    let meta = file.metadata().map_err(|error| error.to_string())?;
    let ours = rustix::process::geteuid().as_raw();
    if !meta.is_file() {
        return strange(path, "not a regular file");
    }
    if meta.uid() != ours || meta.mode() & 0o022 != 0 {
        return strange(path, "other users may have written it");
    }
    let mut text = Vec::new();
    file.take(largest + 1)
        .read_to_end(&mut text)
        .map_err(|error| error.to_string())?;
    if text.len() as u64 > largest {
        return Err("too large".to_owned());
    }
    Ok(Some(text))
}

fn strange(path: &Path, why: &str) -> Result<Option<Vec<u8>>, String> {
    warn!(file = %path.display(), why, "ignoring a file that is not ours");
    Ok(None)
}

/// Whole or not at all: a reader never sees a part. Nobody else can read it.
pub(super) fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("next");
    // One killed just here has left it.
    let _none_was_left = fs::remove_file(&beside);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

/// Whether there was anything.
pub(super) fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
