//! A root file system for an image's layer or an initramfs, sorted by path.

use std::{
    collections::BTreeMap,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use fs_err as fs;

/// A root file system. Parent folders are added automatically.
#[derive(Debug, Default)]
pub(crate) struct Root(BTreeMap<PathBuf, Entry>);

#[derive(Debug)]
pub(super) enum Entry {
    Folder,
    File { bytes: Vec<u8>, mode: u32 },
    Link(PathBuf),
}

impl Root {
    pub(crate) fn folder(&mut self, path: &str) {
        self.insert(Path::new(path), Entry::Folder);
    }

    pub(crate) fn text(&mut self, path: &str, text: &str) {
        let bytes = text.as_bytes().to_vec();
        self.insert(Path::new(path), Entry::File { bytes, mode: 0o644 });
    }

    pub(crate) fn script(&mut self, path: &str, text: &str) {
        let bytes = text.as_bytes().to_vec();
        self.insert(Path::new(path), Entry::File { bytes, mode: 0o755 });
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.insert(Path::new(path), Entry::Link(target.into()));
    }

    /// Adds the program `from` at `path`, and its shared libraries at their own paths.
    pub(crate) fn program(&mut self, path: &str, from: &Path) -> Result<()> {
        self.executable(Path::new(path), from)?;
        for library in libraries(from)? {
            self.executable(&library, &library)?;
        }
        Ok(())
    }

    pub(crate) fn executable(&mut self, path: &Path, from: &Path) -> Result<()> {
        let bytes = fs::read(from)?;
        self.insert(path, Entry::File { bytes, mode: 0o755 });
        Ok(())
    }

    /// Puts what is in the folder `from` below `path`, with its modes and links.
    pub(crate) fn tree(&mut self, path: &Path, from: &Path) -> Result<()> {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let (path, from) = (path.join(entry.file_name()), entry.path());
            let metadata = entry
                .metadata()
                .with_context(|| from.display().to_string())?;
            if metadata.is_dir() {
                self.insert(&path, Entry::Folder);
                self.tree(&path, &from)?;
            } else if metadata.is_symlink() {
                self.insert(&path, Entry::Link(fs::read_link(&from)?));
            } else if metadata.is_file() {
                let bytes = fs::read(&from)?;
                let mode = metadata.permissions().mode() & 0o7777;
                self.insert(&path, Entry::File { bytes, mode });
            }
        }
        Ok(())
    }

    fn insert(&mut self, path: &Path, entry: Entry) {
        let path = path.strip_prefix("/").unwrap_or(path);
        let above = path.ancestors().skip(1);
        for folder in above.filter(|folder| !folder.as_os_str().is_empty()) {
            self.0.entry(folder.into()).or_insert(Entry::Folder);
        }
        self.0.insert(path.into(), entry);
    }

    /// An initramfs in cpio's "newc" format.
    pub(crate) fn cpio(&self) -> Vec<u8> {
        let mut archive = Vec::new();
        for (number, (path, entry)) in self.entries().enumerate() {
            let (mode, bytes) = match entry {
                Entry::Folder => (0o040_755, &[][..]),
                Entry::File { bytes, mode } => (0o100_000 | mode, &bytes[..]),
                Entry::Link(target) => (0o120_777, target.as_os_str().as_bytes()),
            };
            member(
                &mut archive,
                number + 1,
                mode,
                path.as_os_str().as_bytes(),
                bytes,
            );
        }
        member(&mut archive, 0, 0, b"TRAILER!!!", &[]);
        // Another archive may follow, at a multiple of 512 bytes.
        archive.resize(archive.len().next_multiple_of(512), 0);
        archive
    }

    /// Every entry, folders before their contents; paths have no leading slash.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&Path, &Entry)> {
        self.0.iter().map(|(path, entry)| (path.as_path(), entry))
    }
}

fn member(archive: &mut Vec<u8>, inode: usize, mode: u32, name: &[u8], bytes: &[u8]) {
    let (size, named) = (bytes.len(), name.len() + 1);
    // Inode, mode, owner, group, links, time, size, four device numbers, name length, no checksum.
    let head = format!(
        "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{0:08x}{0:08x}{named:08x}{0:08x}",
        0, 1
    );
    for part in [&[head.as_bytes(), name, &[0]].concat(), bytes] {
        archive.extend_from_slice(part);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
}

/// The shared libraries and the loader of `program`; none if it is static.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).env("LC_ALL", "C").output();
    let output = output.context("ldd")?;
    let list = String::from_utf8_lossy(&output.stdout);
    let problem = String::from_utf8_lossy(&output.stderr);
    let is_static = [&list, &problem].into_iter().any(|text| {
        text.contains("not a dynamic executable") || text.contains("statically linked")
    });
    if is_static {
        return Ok(Vec::new());
    }
    ensure!(
        output.status.success() && !list.contains("not found"),
        "ldd {}: {}{}",
        program.display(),
        list.trim(),
        problem.trim()
    );
    Ok(list.lines().filter_map(library).collect())
}

/// Parses one line of ldd: `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, or the loader
/// without an arrow. The vDSO has no path.
fn library(line: &str) -> Option<PathBuf> {
    let line = line.trim();
    let path = line.split_once(" => ").map_or(line, |(_, path)| path);
    path.starts_with('/')
        .then(|| path.split(' ').next().map(PathBuf::from))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_ldd() {
        let of = |line| library(line).map(|path| path.display().to_string());
        assert_eq!(
            of("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)"),
            Some("/lib/x86_64-linux-gnu/libc.so.6".to_owned())
        );
        assert_eq!(
            of("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)"),
            Some("/lib64/ld-linux-x86-64.so.2".to_owned())
        );
        assert_eq!(of("\tlinux-vdso.so.1 (0x00007ffd)"), None);
    }

    #[test]
    fn folders_come_before_their_contents() {
        let mut root = Root::default();
        root.text("/etc/nginx/nginx.conf", "");
        root.folder("/etc");
        let paths: Vec<_> = root.entries().map(|(path, _)| path.to_owned()).collect();
        assert_eq!(
            paths,
            ["etc", "etc/nginx", "etc/nginx/nginx.conf"].map(PathBuf::from)
        );
    }
}
