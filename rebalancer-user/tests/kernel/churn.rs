//! Listings are exact while connections come and go as fast as this machine can make them.

use std::{
    collections::BTreeSet,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use rebalancer_common::{flags, kind};
use rebalancer_user::bpf::{Kernel, Lister};

use crate::support::{Agent, TRACK_ONLY, alone, connect, eventually, lab, ss};

#[test]
fn none_is_lost_and_none_counted_twice_under_churn() {
    const HELD: usize = 200;
    const SHORT: u64 = 30_000;
    let _alone = alone();
    let lab = lab(2);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    // nginx may close what waits when it is busy: the held ones are another's.
    let (pod, busy) = (lab.pod(0), lab.pod(1));
    let held: Vec<_> = (0..HELD).map(|_| connect(&lab, pod.address())).collect();
    let cookies: BTreeSet<u64> = eventually("all are established", || {
        let seen = ss(&pod.host, 80);
        let ids = seen
            .iter()
            .map(|s| u64::from_str_radix(&s.cookie, 16).unwrap())
            .collect();
        if seen.len() == HELD {
            Ok(ids)
        } else {
            Err(ids)
        }
    });
    let before = agent.endpoint(busy, 80);
    let accepted_by_nginx = || busy.counts().unwrap().accepted;
    let truth_before = accepted_by_nginx();
    let kernel = Arc::new(Kernel::read().unwrap());
    let mut lister = Lister::open(kernel, &agent.pins).unwrap();

    let url = format!("http://{}/", busy.address());
    let requests = SHORT.to_string();
    let started = Instant::now();
    let mut ab = lab
        .client()
        .command("ab")
        .args(["-q", "-n", &requests, "-c", "16", &url])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (mut passes, mut longest, mut listed, mut recycled) = (0, Duration::ZERO, 0, 0);
    while ab.try_wait().unwrap().is_none() {
        let pass = lister.read().unwrap();
        let both = [pod.host.netns_inode(), busy.host.netns_inode()];
        let of_lab = |netns: u32| both.contains(&u64::from(netns));
        let mut alive = BTreeSet::new();
        for l in &pass.listed {
            if of_lab(l.connection.netns) && l.connection.kind == kind::CONNECTION {
                assert!(alive.insert(l.connection.cookie), "listed twice: {l:?}");
                if cookies.contains(&l.connection.cookie) {
                    assert_eq!(l.live.state, 1, "a held connection lives: {l:?}");
                    assert_eq!(l.connection.flags & flags::CLOSED, 0, "{l:?}");
                }
            }
        }
        let missed: Vec<_> = cookies.difference(&alive).collect();
        assert!(missed.is_empty(), "pass {passes} missed {missed:?}");
        passes += 1;
        listed += pass.listed.len();
        longest = longest.max(pass.longest);
        recycled += pass.recycled;
    }
    let rate = SHORT as f64 / started.elapsed().as_secs_f64();
    println!(
        "{rate:.0} accepts and as many closes a second; {passes} listings of {} on average, the \
         longest read took {longest:?}, {recycled} recycled under the iterator's eyes",
        listed / passes.max(1)
    );
    assert!(passes > 10, "{passes} listings ran beside it");
    let number = |e: &serde_json::Value, key: &str| e[key].as_u64().unwrap();
    let after = eventually("at rest", || {
        let e = agent.endpoint(busy, 80);
        if number(&e, "open") == 0 {
            Ok(e)
        } else {
            Err(e)
        }
    });
    // ab may open one more than it was asked for; nginx's own count is the truth.
    let truth = accepted_by_nginx() - truth_before;
    assert!(truth >= SHORT, "{truth}");
    for key in ["accepted", "closed"] {
        let counted = number(&after, key) - number(&before, key);
        assert_eq!(counted, truth, "{key}: {after:#}");
    }
    drop(held);
}
