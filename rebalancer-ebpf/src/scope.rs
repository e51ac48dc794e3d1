//! Whether a socket is recorded, decided by its cgroup before any other work.

use rebalancer_common::Settings;

use crate::{
    maps::{EXCLUDED, SETTINGS},
    sock::TcpSock,
};

/// Maximum number of levels searched upwards.
const DEPTH: usize = 16;

/// The agent's settings.
#[inline(always)]
pub(crate) fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// Whether a socket is recorded: neither its cgroup nor an ancestor is excluded.
#[inline(always)]
pub(crate) fn covers(settings: &Settings, tcp: TcpSock) -> bool {
    settings.excludes == 0 || !is_below(tcp, |id| EXCLUDED.get_ptr(id).is_some())
}

/// Whether the socket's cgroup is cgroup `id` or below it; true if the kernel does not expose the
/// cgroup.
#[inline(always)]
pub(crate) fn is_within(tcp: TcpSock, id: u64) -> bool {
    id == 0 || tcp.cgroup_node().is_none() || is_below(tcp, |at| at == id)
}

/// Whether `is_it` holds for the socket's cgroup or an ancestor.
#[inline(always)]
fn is_below(tcp: TcpSock, is_it: impl Fn(u64) -> bool) -> bool {
    let mut cgroup = tcp.cgroup_node();
    for _ in 0..DEPTH {
        let Some(at) = cgroup else { break };
        if is_it(at.id()) {
            return true;
        }
        cgroup = at.parent();
    }
    false
}
