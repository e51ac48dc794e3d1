//! Whether counting on a socket changes what its server sees, tried on a connection of our own.

use std::{
    io::{self, Write as _},
    os::fd::AsFd as _,
};

use anyhow::{Context as _, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::ioctl_fionread,
};

use crate::{
    bpf::{MessageCounter, Reason, Walker},
    host::{Pair, signal_readable},
};

/// What FIONREAD returns on a socket whose sends are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fionread {
    /// How much it has to read, as without us.
    Right,
    /// That it has nothing to read, while it has (Linux 6.12.75 to 6.18, as measured). nginx
    /// believes it, and waits for the rest of an upload without end.
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

/// Counts a send on a connection of our own, and says what FIONREAD would.
///
/// # Errors
/// Why this node cannot count.
pub fn probe(walker: &mut Walker) -> anyhow::Result<Fionread> {
    let counter = MessageCounter::open(walker.kernel(), walker.pins())?;
    let found = fionread(&counter).context("trying it on a connection of our own")?;
    let mut pair = Pair::connect()?;
    let mut joiner = counter.joiner()?;
    joiner.join(pair.cookie, pair.server.as_fd(), Reason::Count)?;
    pair.server.write_all(b"four")?;
    let listed = walker.find(pair.cookie)?;
    let listed = listed.context("a connection of our own has no record")?;
    let counted = (listed.connection.messages, listed.connection.message_bytes);
    if counted != (1, 4) {
        bail!("one send of 4 bytes was counted as {counted:?}");
    }
    Ok(found)
}
