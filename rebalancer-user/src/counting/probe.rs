//! Whether counting on a socket changes what its server sees, tried on a connection of our own.

use std::{io::Write as _, os::fd::AsFd as _};

use anyhow::{Context as _, bail};

use crate::{
    bpf::{Fionread, MessageCounter, Reason, Walker, fionread},
    host::Pair,
};

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
