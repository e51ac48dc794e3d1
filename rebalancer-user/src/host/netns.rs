//! Network namespaces, by inode.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
};

use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::snapshot::Netns;

/// Opens the namespace of the process with this folder in `/proc`, if it is this one. The process ID may
/// have been reused, so the inode of what was opened is compared.
///
/// Keep the descriptor for no longer than needed: it keeps a dead pod's namespace alive.
pub(crate) fn of_process(process: &Path, netns: Netns) -> Option<File> {
    let file = File::open(process.join("ns/net")).ok()?;
    (inode(&file).ok()? == netns).then_some(file)
}

/// Opens the namespace of a socket, if it is this one. A socket may be held by processes of other
/// namespaces alone.
pub(crate) fn of_socket(socket: impl AsFd, netns: Netns) -> Option<File> {
    /// `linux/sockios.h`
    const SIOCGSKNS: libc::c_ulong = 0x894c;
    // SAFETY: the call takes no argument, and answers with a descriptor.
    let fd = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCGSKNS) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the kernel has just given us this descriptor.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    (inode(&file).ok()? == netns).then_some(file)
}

/// The namespace of the process with this folder in `/proc`.
pub(crate) fn inode_of(process: &Path) -> Option<Netns> {
    let meta = fs::metadata(process.join("ns/net")).ok()?;
    Some(Netns(meta.ino() as u32))
}

fn inode(file: &File) -> io::Result<Netns> {
    Ok(Netns(file.metadata()?.ino() as u32))
}

/// Runs `inside` with this thread in the namespace, and returns to its own, also after a panic.
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
        // It was there a moment ago with the same capabilities. A thread that stayed would act in the wrong
        // namespace from now on: better no agent than that.
        if let Err(error) = move_into(self.0) {
            tracing::error!(%error, "cannot return to the agent's network namespace");
            std::process::abort();
        }
    }
}
