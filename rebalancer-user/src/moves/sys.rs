//! Socket options that rustix does not offer.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
};

use rustix::io::Errno;

pub(super) fn set_option(
    socket: impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: `value` is valid for its length, and the kernel only reads it.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What looks at a socket's packets before it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    None,
    /// Of classic BPF.
    Classic,
    /// Of eBPF, as ours is; whose cannot be told.
    Ebpf,
}

pub(super) fn filter(socket: impl AsFd) -> Result<Filter, Errno> {
    let mut instructions: libc::socklen_t = 0;
    // SAFETY: of a length of 0 the kernel only tells how many instructions there are.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER, // which is SO_GET_FILTER too
            std::ptr::null_mut(),
            &raw mut instructions,
        )
    };
    let error = io::Error::last_os_error();
    match Errno::from_io_error(&error) {
        _ if done == 0 && instructions == 0 => Ok(Filter::None),
        _ if done == 0 => Ok(Filter::Classic),
        Some(Errno::ACCESS) => Ok(Filter::Ebpf), // it cannot be shown
        other => Err(other.unwrap_or(Errno::IO)),
    }
}

pub(crate) fn option(
    socket: impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
) -> io::Result<libc::c_int> {
    let mut value = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` is valid for `length` bytes, which the kernel does not exceed.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if done == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}
