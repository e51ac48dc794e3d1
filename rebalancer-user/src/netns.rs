//! Network namespaces, by inode.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::PathBuf,
};

use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::snapshot::Netns;

/// Where each namespace was last found. Paths are kept, not descriptors: a descriptor keeps a
/// dead pod's namespace alive.
#[derive(Debug, Default)]
pub struct Namespaces {
    paths: BTreeMap<Netns, PathBuf>,
}

impl Namespaces {
    /// Opens a namespace; `None` if no process and no name leads to it any more.
    ///
    /// A path may lead elsewhere by now (a process id is reused), so the inode of what was opened
    /// is what counts.
    pub fn open(&mut self, netns: Netns) -> Option<File> {
        if let Some(file) = self.open_known(netns) {
            return Some(file);
        }
        self.paths = scan();
        self.open_known(netns)
    }

    /// Every namespace that there is now.
    pub fn all(&mut self) -> Vec<Netns> {
        self.paths = scan();
        self.paths.keys().copied().collect()
    }

    fn open_known(&self, netns: Netns) -> Option<File> {
        let file = File::open(self.paths.get(&netns)?).ok()?;
        (inode(&file).ok()? == netns).then_some(file)
    }
}

/// Every namespace that a process is in or that has a name under `/run/netns`.
fn scan() -> BTreeMap<Netns, PathBuf> {
    let mut found = BTreeMap::new();
    let mut look_at = |path: PathBuf| {
        if let Ok(meta) = fs::metadata(&path) {
            found.entry(Netns(meta.ino() as u32)).or_insert(path);
        }
    };
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        look_at(entry.path());
    }
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if entry
            .file_name()
            .as_encoded_bytes()
            .iter()
            .all(u8::is_ascii_digit)
        {
            look_at(entry.path().join("ns/net"));
        }
    }
    found
}

fn inode(file: &File) -> io::Result<Netns> {
    Ok(Netns(file.metadata()?.ino() as u32))
}

/// Runs `inside` with this thread in the namespace, and comes back, also after a panic.
///
/// `Err` if the thread cannot enter: CAP_SYS_ADMIN is missing.
pub fn enter<T>(target: &File, inside: impl FnOnce() -> T) -> io::Result<T> {
    let home = File::open("/proc/thread-self/ns/net")?;
    if inode(&home)? == inode(target)? {
        return Ok(inside());
    }
    move_into(target)?;
    let _way_back = WayBack(&home);
    Ok(inside())
}

fn move_into(target: &File) -> io::Result<()> {
    Ok(move_into_thread_name_spaces(
        target.as_fd(),
        ThreadNameSpaceType::NETWORK,
    )?)
}

struct WayBack<'a>(&'a File);

impl Drop for WayBack<'_> {
    fn drop(&mut self) {
        // We were there a moment ago with the same capabilities. A thread that stayed would act
        // in the wrong namespace from here on: better no agent than that one.
        if let Err(error) = move_into(self.0) {
            tracing::error!(%error, "cannot return to the agent's network namespace");
            std::process::abort();
        }
    }
}
