//! Whether the policy file has changed: asked every two seconds, as a ConfigMap's volume, an
//! editor and a plain write each change it in a way of their own, and inotify sees not all three.

use std::{
    fs::File,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::policy::LARGEST_FILE;

/// How often to ask.
pub(super) const EVERY: Duration = Duration::from_secs(2);

/// The bytes of a policy file; one more than [`LARGEST_FILE`] if there are more, as a file may have no
/// end.
///
/// # Errors
/// It cannot be read.
pub fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?
        .take(LARGEST_FILE + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What one read of the file gave, to compare it with another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content(Option<u64>);

impl Content {
    /// Of the bytes that were read; `None` if none could be.
    pub fn of(read: Option<&[u8]>) -> Self {
        Self(read.map(|bytes| {
            let mut hasher = DefaultHasher::new();
            bytes.hash(&mut hasher);
            hasher.finish()
        }))
    }
}

/// A file and what the policy in effect, or the refused one, was read from.
pub(super) struct PolicyFile {
    path: PathBuf,
    content: Content,
}

impl PolicyFile {
    /// `content` is what the policy was read from. Later changes of the file are found by [`Self::changed`].
    pub(super) fn new(path: PathBuf, content: Content) -> Self {
        Self { path, content }
    }

    /// Whether it holds something else than what the policy was read from. Its removal is a change too.
    pub(super) fn changed(&self) -> bool {
        Content::of(read(&self.path).ok().as_deref()) != self.content
    }

    /// The policy was read again, from `content`. The look before may have seen another.
    pub(super) fn was_read(&mut self, content: Content) {
        self.content = content;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn content(file: &Path) -> Content {
        Content::of(read(file).ok().as_deref())
    }

    /// As the agent does: what has changed is read again.
    fn changed(file_seen: &mut PolicyFile) -> bool {
        let changed = file_seen.changed();
        if changed {
            let content = content(&file_seen.path);
            file_seen.was_read(content);
        }
        changed
    }

    #[test]
    fn a_write_a_rename_and_a_swapped_link_are_seen_and_a_touch_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let file = at("policy.yaml");
        fs::write(&file, "one").unwrap();
        let mut file_seen = PolicyFile::new(file.clone(), content(&file));
        assert!(!changed(&mut file_seen));

        fs::write(&file, "two").unwrap();
        assert!(changed(&mut file_seen), "a plain write");
        assert!(!changed(&mut file_seen));

        fs::write(at("beside"), "six").unwrap();
        fs::rename(at("beside"), &file).unwrap();
        assert!(changed(&mut file_seen), "an editor's rename");

        fs::write(&file, "six").unwrap();
        assert!(!changed(&mut file_seen), "the same again");

        fs::remove_file(&file).unwrap();
        assert!(changed(&mut file_seen), "it was removed");
        assert!(!changed(&mut file_seen), "reported once");
        fs::write(&file, "six").unwrap();
        assert!(changed(&mut file_seen), "it is back");
    }

    #[test]
    fn an_edit_after_the_policy_was_read_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.yaml");
        fs::write(&file, "one").unwrap();
        let used = content(&file);
        fs::write(&file, "two").unwrap();
        let mut file_seen = PolicyFile::new(file.clone(), used);
        assert!(file_seen.changed(), "at the start");
        assert!(file_seen.changed(), "as long as it is not read");

        // Between the look and the read it is edited, and after the read edited back.
        fs::write(&file, "three").unwrap();
        file_seen.was_read(content(&file));
        fs::write(&file, "two").unwrap();
        assert!(file_seen.changed(), "at a reload");
    }

    #[test]
    fn what_is_too_large_is_a_change_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.yaml");
        File::create(&file)
            .unwrap()
            .set_len(LARGEST_FILE + 9)
            .unwrap();
        let mut file_seen = PolicyFile::new(file, Content::of(Some(b"one")));
        assert!(changed(&mut file_seen));
        assert!(!changed(&mut file_seen));
    }
}
