//! Whether a socket is to be recorded: its port and cgroup, looked up before anything is spent on
//! it.

use rebalancer_common::{Settings, class, wanted_bits};

use crate::{
    maps::{CGROUPS, SETTINGS, WANTED},
    sock::TcpSock,
};

/// How many levels up a cgroup that is not known yet is looked for. Beyond it is recorded.
const DEPTH: usize = 16;

/// What the agent wants recorded.
#[inline(always)]
pub(crate) fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// The groups of rules that name the port, a bit for each; none: it is not to be recorded.
#[inline(always)]
pub(crate) fn groups(settings: &Settings, port: u16) -> u32 {
    if settings.matched == 0 {
        return class::ALL_GROUPS;
    }
    let (word, shift) = wanted_bits(port);
    WANTED
        .get(word)
        .map_or(0, |bits| (bits >> shift) as u32 & class::ALL_GROUPS)
}

/// Whether a socket on a port of these groups is to be recorded.
#[inline(always)]
pub(crate) fn covers(settings: &Settings, groups: u32, tcp: TcpSock) -> bool {
    if groups == 0 || settings.cgroups == 0 {
        return groups != 0;
    }
    let class = class_of(tcp);
    class & class::EXCLUDED == 0 && groups & (class | class::ANY_CGROUP) != 0
}

/// What is known of the socket's cgroup. The agent tells of every cgroup that it has seen; one
/// made since then is excluded with those above it, and else may be any that a rule names.
#[inline(always)]
fn class_of(tcp: TcpSock) -> u32 {
    let mut cgroup = tcp.cgroup_node();
    let mut unknown = 0;
    for _ in 0..DEPTH {
        let Some(at) = cgroup else { break };
        if let Some(class) = CGROUPS.get_ptr(at.id()) {
            // SAFETY: a live map value.
            return unsafe { *class } | unknown;
        }
        unknown = class::ALL_GROUPS;
        cgroup = at.parent();
    }
    class::ALL_GROUPS
}

/// Whether the socket's cgroup is this one or below it, as far as the kernel says.
#[inline(always)]
pub(crate) fn is_within(tcp: TcpSock, id: u64) -> bool {
    let mut cgroup = tcp.cgroup_node();
    if id == 0 || cgroup.is_none() {
        return true;
    }
    for _ in 0..DEPTH {
        let Some(at) = cgroup else { break };
        if at.id() == id {
            return true;
        }
        cgroup = at.parent();
    }
    false
}
