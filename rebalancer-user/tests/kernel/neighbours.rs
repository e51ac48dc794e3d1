//! Other sock_ops programs on the same cgroup and below it, which set callback flags absolutely
//! and write replies: ours goes on, and theirs see what they saw without us.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
};

use xtask::sock_ops::{SockOps, counters, instruction};

use crate::support::{Agent, TRACK_ONLY, alone, cgroup, connect, eventually, lab, request};

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

/// Ten connections with a request each, closed again; the endpoint's sums then.
fn traffic(lab: &xtask::lab::Lab, agent: &Agent) -> (serde_json::Value, usize) {
    let pod = lab.pod(0);
    let mut received = 0;
    let before = agent.endpoint(pod, 80)["accepted"].as_u64().unwrap_or(0);
    let mut streams: Vec<_> = (0..10).map(|_| connect(lab, pod.address())).collect();
    for stream in &mut streams {
        received += request(stream, "/").unwrap();
    }
    drop(streams);
    let seen = eventually("gone", || {
        let e = agent.endpoint(pod, 80);
        let done = e["open"] == 0 && e["accepted"].as_u64() >= Some(before + 10);
        if done { Ok(e) } else { Err(e) }
    });
    (seen, received)
}

#[test]
fn sock_ops_programs_attached_before_and_below_ours_do_not_interfere() {
    let _alone = alone();
    let lab = lab(1);
    let root = Neighbour::attach(cgroup(&lab));
    let child = Neighbour::attach(lab.pod(0).host.cgroup());

    // What they see without us.
    let mut streams: Vec<_> = (0..10)
        .map(|_| connect(&lab, lab.pod(0).address()))
        .collect();
    for stream in &mut streams {
        request(stream, "/").unwrap();
    }
    drop(streams);
    let alone_with = |n: &Neighbour| (n.count(PASSIVE_ESTABLISHED), n.count(RTT));
    // The acknowledgements of the ends are still under way: both count them, one after the other.
    let (of_root, of_child) = eventually("both count the same", || {
        let counts = (alone_with(&root), alone_with(&child));
        if counts.0 == counts.1 {
            Ok(counts)
        } else {
            Err(counts)
        }
    });
    let (accepts, rtts) = of_root;
    assert_eq!((accepts, of_child), (10, of_root));
    assert!(rtts > 0, "its own flag works");

    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let (seen, received) = traffic(&lab, &agent);
    assert_eq!(
        (&seen["accepted"], &seen["closed"]),
        (&10.into(), &10.into()),
        "{seen:#}"
    );
    let out = seen["bytesOut"].as_u64().unwrap() as usize;
    assert!(
        (received..=received + 10).contains(&out),
        "{out} of {received}"
    );
    for neighbour in [&root, &child] {
        assert_eq!(neighbour.count(PASSIVE_ESTABLISHED), 20);
        assert!(
            neighbour.count(RTT) > rtts,
            "its flag was not cleared by us"
        );
    }
}

#[test]
fn a_later_sock_ops_program_clears_the_callback_until_ours_is_attached_last_again() {
    let _alone = alone();
    let lab = lab(1);
    let policy = TRACK_ONLY.replace("rules:", "interval: 2s\nrules:");
    let mut agent = Agent::in_lab(&lab, &policy);
    agent.wait_for_intervals(1);
    let neighbour = Neighbour::attach(cgroup(&lab));
    // Accepted while theirs is the last: our callback is wiped from these.
    let wiped: Vec<_> = (0..5)
        .map(|_| connect(&lab, lab.pod(0).address()))
        .collect();
    agent.wait_for("attached again", |line| {
        line["message"]
            .as_str()
            .is_some_and(|m| m.contains("attached ours again"))
    });
    agent.wait_for_intervals(1);
    drop(wiped);
    let (seen, _) = traffic(&lab, &agent);
    assert_eq!(
        (&seen["accepted"], &seen["closed"]),
        (&15.into(), &15.into()),
        "those that were wiped got it back, and none was counted twice: {seen:#}"
    );
    assert_eq!(neighbour.count(PASSIVE_ESTABLISHED), 15);
    assert!(neighbour.count(RTT) > 0, "its flag was not cleared by us");
    assert_eq!(agent.terminate(), Some(0));
}
