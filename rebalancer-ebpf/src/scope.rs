//! Whether a socket is to be recorded: its cgroup, looked up before anything is spent on it.

use rebalancer_common::Settings;

use crate::{
    maps::{EXCLUDED, SETTINGS},
    sock::TcpSock,
};

/// How many levels up a cgroup is looked for.
const DEPTH: usize = 16;

/// What the agent wants recorded.
#[inline(always)]
pub(crate) fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// Whether a socket is to be recorded: neither its cgroup nor one above is excluded.
#[inline(always)]
pub(crate) fn covers(settings: &Settings, tcp: TcpSock) -> bool {
    settings.excludes == 0 || !is_below(tcp, |id| EXCLUDED.get_ptr(id).is_some())
}

/// Whether the socket's cgroup is this one or below it, as far as the kernel says.
#[inline(always)]
pub(crate) fn is_within(tcp: TcpSock, id: u64) -> bool {
    id == 0 || tcp.cgroup_node().is_none() || is_below(tcp, |at| at == id)
}

/// Whether the socket's cgroup or one above it is such a one.
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
