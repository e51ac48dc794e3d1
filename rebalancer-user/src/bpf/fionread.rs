//! Whether a socket in a socket hash misleads its reader, tried on a connection of our own.

use std::{
    io::{self, Write as _},
    os::fd::AsFd as _,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::ioctl_fionread,
};

use super::{MessageCounter, Reason};
use crate::host::{Pair, signal_readable};

/// What FIONREAD returns on a socket whose sends are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fionread {
    /// How much it has to read, as without us.
    Right,
    /// That it has nothing to read, while it has (Linux 6.6.128, 6.12.75, 6.18.14 and later
    /// until 04af4efde58a of July 2026). nginx believes it, and waits for the rest of an upload without end.
    Wrong,
}

/// Sees what FIONREAD says on a socket of our own, in the map.
///
/// # Errors
/// Among others, that its reader is misled even after it has left and was signalled.
pub(crate) fn fionread(counter: &MessageCounter) -> io::Result<Fionread> {
    let mut pair = Pair::connect()?;
    let mut joiner = counter.joiner()?;
    joiner.join(pair.cookie, pair.server.as_fd(), Reason::Count)?;
    pair.client.write_all(b"x")?;
    let mut readable = [PollFd::new(&pair.server, PollFlags::IN)];
    let second = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    if poll(&mut readable, Some(&second))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let waiting = ioctl_fionread(&pair.server)?;
    counter.leave(pair.cookie, Reason::Count)?;
    signal_readable(&pair.server)?;
    counter.woken(pair.cookie);
    if ioctl_fionread(&pair.server)? != 1 || poll(&mut readable, Some(&second))? == 0 {
        return Err(io::Error::other(
            "FIONREAD stays wrong on a socket that was in a socket hash",
        ));
    }
    Ok(if waiting == 1 {
        Fionread::Right
    } else {
        Fionread::Wrong
    })
}
