//! Other sock_ops programs on the same cgroup and below it, which set callback flags absolutely
//! and write replies: ours goes on, and theirs see what they saw without us.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
};

use serde_json::{Value, json};
use xtask::{
    lab::Lab,
    sock_ops::{SockOps, counters, instruction},
};

use crate::support::{
    Agent, TRACK_ONLY, cgroup, connect_many, eventually, is_sent, lab, request, shows,
    track_only_with,
};

/// `linux/bpf.h`
const PASSIVE_ESTABLISHED: u32 = 5;
const RTT: u32 = 12;
const RTT_FLAG: i32 = 8;

/// A neighbour: counts its calls by operation, at an accept stores its flag absolutely (which
/// clears ours), and writes a reply at every call.
pub struct Neighbour {
    counts: OwnedFd,
    _program: SockOps,
}

impl Neighbour {
    pub fn attach(cgroup: &Path) -> Self {
        Self::clearing_at(cgroup, PASSIVE_ESTABLISHED)
    }

    /// One that clears the callbacks of others at this call.
    pub fn clearing_at(cgroup: &Path, op: u32) -> Self {
        let counts = counters(16).unwrap();
        let program = SockOps::attach(cgroup, &instructions(counts.as_raw_fd(), op)).unwrap();
        Self {
            counts,
            _program: program,
        }
    }

    fn count(&self, op: u32) -> u64 {
        let mut value = 0_u64;
        let attr: [u64; 3] = [
            self.counts.as_raw_fd() as u64,
            (&raw const op) as u64,
            (&raw mut value) as u64,
        ];
        // SAFETY: BPF_MAP_LOOKUP_ELEM with a key and a value of the map's sizes.
        let result = unsafe { libc::syscall(libc::SYS_bpf, 1, attr.as_ptr(), size_of_val(&attr)) };
        assert_eq!(result, 0);
        value
    }
}

/// The program.
fn instructions(counts: i32, clears_at: u32) -> Vec<u64> {
    let i = instruction;
    vec![
        i(0xbf, 6, 1, 0, 0),                // r6 = ctx
        i(0x61, 7, 6, 0, 0),                // r7 = ctx->op
        i(0x63, 10, 7, -4, 0),              // *(u32 *)(fp - 4) = op
        i(0x18, 1, 1, 0, counts),           // r1 = map
        i(0, 0, 0, 0, 0),                   //
        i(0xbf, 2, 10, 0, 0),               // r2 = fp
        i(0x07, 2, 0, 0, -4),               // r2 -= 4
        i(0x85, 0, 0, 0, 1),                // r0 = map_lookup_elem
        i(0x15, 0, 0, 2, 0),                // if !r0 skip
        i(0xb7, 1, 0, 0, 1),                // r1 = 1
        i(0xdb, 0, 1, 0, 0),                // *r0 += r1, atomically
        i(0x55, 7, 0, 3, clears_at as i32), // if op != clears_at skip
        i(0xbf, 1, 6, 0, 0),                // r1 = ctx
        i(0xb7, 2, 0, 0, RTT_FLAG),         // r2 = its flag alone
        i(0x85, 0, 0, 0, 59),               // sock_ops_cb_flags_set
        i(0xb7, 1, 0, 0, 7),                // r1 = 7
        i(0x63, 6, 1, 4, 0),                // ctx->reply = 7, which is our args[0]
        i(0xb7, 0, 0, 0, 1),                // r0 = 1
        i(0x95, 0, 0, 0, 0),                // exit
    ]
}

/// Ten connections with a request each, closed again; the bytes that they received.
fn traffic(lab: &Lab) -> usize {
    let mut streams = connect_many(lab, lab.pod(0).address(), 10);
    let ask = |stream| request(stream, "/").unwrap();
    streams.iter_mut().map(ask).sum()
}

/// The endpoint, once nothing is open and so many were accepted.
fn at_rest(agent: &Agent, lab: &Lab, accepted: u64) -> Value {
    agent.endpoint_when(lab.pod(0), 80, |e| {
        e["open"] == 0 && e["accepted"].as_u64() >= Some(accepted)
    })
}

#[test]
fn sock_ops_programs_attached_before_and_below_ours_do_not_interfere() {
    let lab = lab(1);
    let root = Neighbour::attach(cgroup(&lab));
    let child = Neighbour::attach(lab.pod(0).host.cgroup());

    // What they see without us.
    traffic(&lab);
    let counts = || [&root, &child].map(|n| (n.count(PASSIVE_ESTABLISHED), n.count(RTT)));
    // The acknowledgements of the ends are still under way: both count them, one after the other.
    let [of_root, of_child] = eventually("both count the same", counts, |both| both[0] == both[1]);
    let (accepts, rtts) = of_root;
    assert_eq!((accepts, of_child), (10, of_root));
    assert!(rtts > 0, "its own flag works");

    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let received = traffic(&lab);
    let seen = at_rest(&agent, &lab, 10);
    shows(&seen, json!({"accepted": 10, "closed": 10}));
    is_sent(&seen["bytesOut"], received as u64, 10);
    for neighbour in [&root, &child] {
        assert_eq!(neighbour.count(PASSIVE_ESTABLISHED), 20);
        let rtts_now = neighbour.count(RTT);
        assert!(rtts_now > rtts, "its flag was not cleared by us");
    }
}

#[test]
fn a_later_sock_ops_program_clears_the_callback_until_ours_is_attached_last_again() {
    let lab = lab(1);
    let mut agent = Agent::in_lab(&lab, &track_only_with("interval: 2s"));
    agent.wait_for_intervals(1);
    let neighbour = Neighbour::attach(cgroup(&lab));
    // Accepted while theirs is the last: our callback is wiped from these.
    let wiped = connect_many(&lab, lab.pod(0).address(), 5);
    agent.wait_for("attached again", |line| {
        let message = line["message"].as_str();
        message.is_some_and(|m| m.contains("attached ours again"))
    });
    agent.wait_for_intervals(1);
    drop(wiped);
    traffic(&lab);
    // Those that were wiped got it back, and none was counted twice.
    let seen = at_rest(&agent, &lab, 15);
    shows(&seen, json!({"accepted": 15, "closed": 15}));
    assert_eq!(neighbour.count(PASSIVE_ESTABLISHED), 15);
    assert!(neighbour.count(RTT) > 0, "its flag was not cleared by us");
    assert_eq!(agent.terminate(), Some(0));
}
