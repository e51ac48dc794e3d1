//! Wakes the readers of sockets that have left the socket hash without that: those of an agent that was
//! killed, or of a moving thread that is stuck.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::Context as _;

use super::Owners;
use crate::{
    bpf::Walker,
    host::{CgroupMounts, signal_readable, with_duplicate},
    snapshot::Cookie,
};

/// A socket's lock may be held for any time, and keeps one of them for as long.
const THREADS: usize = 4;

/// Has the readers of these sockets look again whether there is data, on threads of its own, and calls `woken`
/// for each that is done, or has no owner.
pub(crate) fn wake(
    walker: &mut Walker,
    cookies: &BTreeSet<Cookie>,
    woken: impl Fn(Cookie) + Clone + Send + 'static,
) -> anyhow::Result<()> {
    let owners = Owners::find(walker, cookies, &CgroupMounts::read_or_none())?;
    let owners = Arc::new(owners);
    let queue = Arc::new(Mutex::new(cookies.clone()));
    for _ in 0..THREADS.min(cookies.len()) {
        let (owners, queue, woken) = (Arc::clone(&owners), Arc::clone(&queue), woken.clone());
        let next = move || {
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.pop_first()
        };
        thread::Builder::new()
            .name("waking".to_owned())
            .spawn(move || {
                while let Some(cookie) = next() {
                    // It may be closed.
                    let _done = with_duplicate(owners.of(cookie), cookie, |socket| {
                        Ok(signal_readable(socket))
                    });
                    woken(cookie);
                }
            })
            .context("starting a thread")?;
    }
    Ok(())
}
