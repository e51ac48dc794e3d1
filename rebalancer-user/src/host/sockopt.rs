//! Socket options that rustix does not offer.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
};

pub(crate) fn set_option(
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

/// Makes the kernel tell the socket's readers whether there is data, without a change: a socket that is
/// or was in a sockhash may have lost that. Waits for its lock.
///
/// On some kernels FIONREAD says 0 of data that came meanwhile, and those who trust it wait without
/// end, also after the socket has left; setting this option wakes them (`sock_set_rcvlowat`).
pub(crate) fn signal_readable(socket: impl AsFd) -> io::Result<()> {
    let same = option(&socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, same)
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
