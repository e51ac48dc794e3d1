//! What this kernel and this process can do, tried on connections of our own. Versions prove nothing:
//! distributions backport features, and security policies forbid them.

use std::{collections::BTreeMap, fs, io, os::fd::AsFd as _, thread, time::Duration};

use rebalancer_common::{EndpointKey, EndpointSums, Fault};
use rustix::net::connect_unspec;

use crate::{
    bpf::{Fionread, Walker, read_endpoints, read_faults},
    counting,
    host::{Pair, may_take_descriptors},
    moves::{self, Mechanism},
};

/// Something that a kernel may support.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ability {
    /// A connection gets a record when it is accepted, and the walk finds it.
    Recording,
    /// A connection's close is seen, and its bytes are added up.
    SeeingCloses,
    /// The walk can visit one process alone.
    WalkingOneProcess,
    /// Connections are sniffed, so that HTTP/1 is moved between two exchanges.
    Sniffing,
    /// The sends of a connection are counted.
    CountingSends,
    /// The client of an HTTP/2 connection is asked to leave.
    Notice,
    /// A connection is reset.
    Reset(Mechanism),
}

/// An ability, and the result of trying it.
#[derive(Clone, Debug)]
pub struct Tried {
    /// What was tried.
    pub ability: Ability,
    /// What was seen, or why it does not work.
    pub seen: Result<String, String>,
}

impl Ability {
    /// A few words, stable.
    pub fn name(self) -> &'static str {
        match self {
            Self::Recording => "recording",
            Self::SeeingCloses => "seeing closes",
            Self::WalkingOneProcess => "walking one process",
            Self::Sniffing => "protocol detection",
            Self::CountingSends => "counting sends",
            Self::Notice => "notice over HTTP/2",
            Self::Reset(Mechanism::SockDestroy) => "reset by SOCK_DESTROY",
            Self::Reset(Mechanism::Abort) => "reset by the server's descriptor",
            Self::Reset(Mechanism::Raw) => "reset by a raw segment",
        }
    }

    /// Whether the agent cannot run without it.
    pub fn is_needed(self) -> bool {
        self == Self::Recording
    }

    /// What its absence costs.
    pub fn cost(self) -> &'static str {
        match self {
            Self::Recording => "nothing is tracked and nothing is moved",
            Self::SeeingCloses => {
                "a connection counts as closed once the walk no longer finds it, and its last bytes are \
                 not summed"
            }
            Self::WalkingOneProcess => {
                "each pass walks all processes, and so does each check of who sent last"
            }
            Self::Sniffing => "only rules that set onReconnect move connections",
            Self::CountingSends => "only rules with `count` are affected: they work without counts",
            Self::Notice => "HTTP/2 connections are not moved: rules with a step Notice skip them",
            Self::Reset(Mechanism::SockDestroy | Mechanism::Abort) => "the next mechanism is used",
            Self::Reset(Mechanism::Raw) => "without any mechanism nothing is moved",
        }
    }

    /// What would enable it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Recording => {
                "needs CONFIG_CGROUP_BPF, BTF, and permission to load iter/task_file and sock_ops \
                 programs"
            }
            Self::SeeingCloses => "check whether another sock_ops program clears callbacks",
            Self::WalkingOneProcess => "available from Linux 6.1",
            Self::Sniffing => {
                "needs cgroup_skb programs, and CAP_DAC_READ_SEARCH to open a cgroup by its ID"
            }
            Self::CountingSends => {
                "needs CONFIG_NET_SOCK_MSG, what a reset by the server's descriptor needs, and a kernel that \
                 answers FIONREAD correctly; see --count-despite-fionread"
            }
            Self::Notice => {
                "needs CONFIG_NET_SOCK_MSG, and what a reset by the server's descriptor needs"
            }
            Self::Reset(Mechanism::SockDestroy) => {
                "needs CONFIG_INET_DIAG_DESTROY and CAP_NET_ADMIN"
            }
            Self::Reset(Mechanism::Abort) => {
                "needs Linux 5.6, CAP_SYS_PTRACE, and Yama's ptrace_scope below 3"
            }
            Self::Reset(Mechanism::Raw) => {
                "needs CAP_NET_RAW, and what a reset by the server's descriptor needs"
            }
        }
    }
}

impl Tried {
    fn new(ability: Ability, seen: Result<String, String>) -> Self {
        Self { ability, seen }
    }

    /// Whether it works.
    pub fn works(&self) -> bool {
        self.seen.is_ok()
    }
}

/// Tries what tracking needs: `walker` reads records of loopback connections too, from everywhere.
///
/// # Errors
/// No connection of our own could be made to try it on.
pub fn try_tracking(walker: &mut Walker) -> io::Result<Vec<Tried>> {
    let pair = Pair::connect()?;
    let port = pair.server.local_addr()?.port();
    let recorded = recorded(walker, &pair);
    let works = recorded.is_ok();
    let mut tried = vec![Tried::new(Ability::Recording, recorded)];
    if works {
        connect_unspec(&pair.server)?;
        tried.push(Tried::new(Ability::SeeingCloses, closed(walker, port)));
        let one = if walker.walks_one_process() {
            Ok("walked this process alone".to_owned())
        } else {
            Err("this kernel cannot attach an iterator to one process".to_owned())
        };
        tried.push(Tried::new(Ability::WalkingOneProcess, one));
    }
    Ok(tried)
}

fn recorded(walker: &mut Walker, pair: &Pair) -> Result<String, String> {
    let live = walker
        .read_own(pair.cookie, pair.server.as_fd())
        .map_err(|e| e.to_string())?;
    match live {
        Some(_) => Ok("a connection of our own was recorded and found by the walk".to_owned()),
        None => Err(format!(
            "a connection of our own was accepted and has no record{}",
            why_no_record(&read_faults(walker.pins()).unwrap_or_default())
        )),
    }
}

fn why_no_record(faults: &BTreeMap<Fault, u64>) -> String {
    let mut why = String::new();
    for fault in faults.keys() {
        why.push_str("; ");
        why.push_str(fault.text());
    }
    // Since 7.2 socket storage takes its memory from where it needs that instruction.
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let no_cx16 = info.contains("flags") && !info.contains("cx16");
    if faults.contains_key(&Fault::StorageFailed) && no_cx16 {
        why.push_str("; this CPU has no cmpxchg16b, which socket storage needs from Linux 7.2 on");
    }
    why
}

/// The callback comes while the socket is closed, but endpoints are read a moment later.
fn closed(walker: &Walker, port: u16) -> Result<String, String> {
    const TRIES: u32 = 20;
    const PAUSE: Duration = Duration::from_millis(5);
    let is_closed =
        |(key, sums): (&EndpointKey, &EndpointSums)| key.port == port && sums.closed > 0;
    for _ in 0..TRIES {
        let endpoints = read_endpoints(walker.pins()).map_err(|e| e.to_string())?;
        if endpoints.iter().any(is_closed) {
            return Ok("the close of a connection of our own was seen".to_owned());
        }
        thread::sleep(PAUSE);
    }
    Err("the close of a connection of our own was not seen".to_owned())
}

/// Tries whether connections can be sniffed.
pub fn try_sniffing(walker: &Walker) -> Tried {
    let sniffed = moves::probe_sniffing(walker.kernel(), walker.pins());
    let seen = sniffed.map(|()| {
        "an exchange of our own was followed to its end; while a connection is about to be moved, \
         one program runs for each packet of its cgroup"
            .to_owned()
    });
    Tried::new(Ability::Sniffing, seen)
}

/// What servers' descriptors are needed for, tried on one of our own, if those of others may be duplicated.
fn on_descriptors<T>(probe: impl FnOnce() -> anyhow::Result<T>) -> Result<T, String> {
    may_take_descriptors()?;
    probe().map_err(|error| format!("{error:#}"))
}

/// Tries whether sends are counted, and a server sees no difference.
pub fn try_counting(walker: &mut Walker) -> Tried {
    let seen = match on_descriptors(|| counting::probe(walker)) {
        Ok(Fionread::Right) => {
            Ok("a send of our own was counted, at about half a microsecond".to_owned())
        }
        Ok(Fionread::Wrong) => Err(
            "FIONREAD returns 0 on a counted socket with data, so that nginx hangs in uploads"
                .to_owned(),
        ),
        Err(error) => Err(error),
    };
    Tried::new(Ability::CountingSends, seen)
}

/// Tries whether the client of an HTTP/2 connection can be asked to leave.
pub fn try_notice(walker: &mut Walker) -> Tried {
    let seen = match on_descriptors(|| moves::probe_notice(walker)) {
        Ok(Fionread::Right) => Ok("a client of our own was asked to leave".to_owned()),
        Ok(Fionread::Wrong) => Ok(
            "a client of our own was asked to leave; FIONREAD returns 0 on its server's socket meanwhile, \
             so servers are woken"
                .to_owned(),
        ),
        Err(error) => Err(error),
    };
    Tried::new(Ability::Notice, seen)
}

/// Tries each way to reset a connection, the best first.
pub fn try_resets() -> Vec<Tried> {
    let one = |mechanism| {
        let seen = moves::probe(mechanism).map(|()| "works".to_owned());
        Tried::new(Ability::Reset(mechanism), seen)
    };
    Mechanism::ALL.map(one).to_vec()
}
