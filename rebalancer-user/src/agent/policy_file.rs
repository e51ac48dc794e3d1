//! Whether the policy file has changed: asked every two seconds, as a ConfigMap's volume, an
//! editor and a plain write each change it in a way of their own, and inotify sees not all three.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    time::Duration,
};

/// How often to ask.
pub(super) const EVERY: Duration = Duration::from_secs(2);

/// A file and what was last seen of it.
pub(super) struct PolicyFile {
    path: PathBuf,
    identity: Option<Identity>,
    content: Option<u64>,
}

/// What a write, a rename over it, or a swapped symbolic link on the way to it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl PolicyFile {
    /// Takes the file as it is now as seen.
    pub(super) fn new(path: PathBuf) -> Self {
        let mut file_seen = Self {
            path,
            identity: None,
            content: None,
        };
        file_seen.changed();
        file_seen
    }

    /// Whether it has another content than when it was last asked. That it has gone is a change
    /// too, and told once.
    pub(super) fn changed(&mut self) -> bool {
        let identity = identity(&self.path).ok();
        if identity.is_some() && identity == self.identity {
            return false;
        }
        // Of a large file the identity changes; what is too large is refused when it is read.
        let content = fs::read(&self.path).ok().map(|bytes| {
            let mut hasher = DefaultHasher::new();
            bytes.hash(&mut hasher);
            hasher.finish()
        });
        self.identity = identity;
        std::mem::replace(&mut self.content, content) != content
    }
}

/// Of the file behind all symbolic links.
fn identity(path: &PathBuf) -> io::Result<Identity> {
    let meta = fs::metadata(path)?;
    Ok(Identity {
        device: meta.dev(),
        inode: meta.ino(),
        size: meta.size(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_write_a_rename_and_a_swapped_link_are_seen_and_a_touch_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let file = at("policy.yaml");
        fs::write(&file, "one").unwrap();
        let mut file_seen = PolicyFile::new(file.clone());
        assert!(!file_seen.changed());

        fs::write(&file, "two").unwrap();
        assert!(file_seen.changed(), "a plain write");
        assert!(!file_seen.changed());

        fs::write(at("beside"), "six").unwrap();
        fs::rename(at("beside"), &file).unwrap();
        assert!(file_seen.changed(), "an editor's rename");

        fs::write(&file, "six").unwrap();
        assert!(!file_seen.changed(), "the same again");

        fs::remove_file(&file).unwrap();
        assert!(file_seen.changed(), "it has gone");
        assert!(!file_seen.changed(), "told once");
        fs::write(&file, "six").unwrap();
        assert!(file_seen.changed(), "it is back");
    }

    #[test]
    fn the_swap_that_a_config_map_makes_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (version, text) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("policy.yaml"), text).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/policy.yaml", at("policy.yaml")).unwrap();
        let mut file_seen = PolicyFile::new(at("policy.yaml"));
        symlink("..2", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        assert!(file_seen.changed());
        assert!(!file_seen.changed());
    }
}
