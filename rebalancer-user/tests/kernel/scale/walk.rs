//! Walking over many descriptors is exact while others come and go, and what it costs.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use rebalancer_common::kind;
use rebalancer_user::{
    bpf::{Adopt, Pass, Walked, Walker},
    host::CgroupPaths,
    observe::Observer,
};

use super::{churner, held::delays, holder::Crowd, number, quantile};
use crate::{
    support::{Tracked, eventually, lab},
    walk::Others,
};

/// About how many descriptors there are, half of them tracked connections.
const DESCRIPTORS: &str = "REBALANCER_TEST_WALK_DESCRIPTORS";
/// How many passes, with portions of each size.
const PASSES: &str = "REBALANCER_TEST_WALK_PASSES";
/// How long each part of the watching lasts.
const SECONDS: &str = "REBALANCER_TEST_WALK_SECONDS";
/// Other descriptors of the usual node, and the processes that hold them.
const NODE: &str = "REBALANCER_TEST_NODE_DESCRIPTORS";
const PROCESSES: &str = "REBALANCER_TEST_NODE_PROCESSES";

/// The crowd's ports begin here; the churner's is below.
const CROWD: u16 = 7300;

fn crowd(pass: &Pass) -> impl Iterator<Item = &Walked> {
    pass.sockets.iter().filter(|socket| {
        socket.connection.kind == kind::CONNECTION && socket.connection.local_port >= CROWD
    })
}

/// Waits until all of the crowd are accepted; their cookies.
fn gathered(mut walker: Walker, count: usize) -> BTreeSet<u64> {
    let listed = || {
        let pass = walker.walk(Adopt::No).unwrap();
        crowd(&pass).map(|s| s.connection.cookie).collect()
    };
    let all = |cookies: &BTreeSet<u64>| cookies.len() == count;
    eventually("all are accepted", listed, all)
}

/// CPU time of this thread: of the process and of the kernel for it.
fn cpu_time() -> (Duration, Duration) {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the kernel fills it.
    let usage = unsafe {
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()), 0);
        usage.assume_init()
    };
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, 1_000 * t.tv_usec as u32);
    (time(usage.ru_utime), time(usage.ru_stime))
}

/// CPU time in the kernel and over all of one of these passes, and the last one.
fn cost(times: u32, mut pass: impl FnMut() -> Pass) -> (Duration, Duration, Pass) {
    let before = cpu_time();
    let mut last = Pass::default();
    for _ in 0..times {
        last = pass();
    }
    let after = cpu_time();
    let (own, kernel) = (after.0 - before.0, after.1 - before.1);
    (kernel / times, (own + kernel) / times, last)
}

#[test]
fn the_walk_lists_each_connection_once_while_others_come_and_go() {
    let (descriptors, passes) = (number(DESCRIPTORS, 20_000), number(PASSES, 60));
    let lab = lab(2);
    let mut tracked = Tracked::in_lab(&lab);
    let _crowd = Crowd::gather(&lab, descriptors / 2);
    // One with as many as it may have.
    let _full = Others::start(&lab, 1, 1 << 20);
    let truth = gathered(tracked.reader(2_048), descriptors / 2);

    let (kernel, all, pass) = cost(20, || tracked.walker.walk(Adopt::No).unwrap());
    println!(
        "\n  {} descriptors, {} sockets with a record; a pass takes {kernel:.1?} of CPU in the \
         kernel, {all:.1?} in all",
        pass.files,
        pass.sockets.len()
    );
    let servers: BTreeSet<u32> = crowd(&pass)
        .flat_map(|socket| socket.holders.iter().map(|h| h.pid))
        .collect();
    // Before Linux 6.1 there is no walk over some processes.
    let mut walk_over_some = || {
        let pass = tracked.walker.walk_over(&servers, Adopt::No).unwrap();
        pass.unwrap_or_default()
    };
    let (kernel_some, all_some, some) = cost(20, &mut walk_over_some);
    let each = |time: Duration, count: u64| time.as_secs_f64() * 1e6 / count as f64;
    let others = pass.files - some.files;
    println!(
        "  CPU of a tracked descriptor {:.2} µs in the kernel, {:.2} in all; of another {:.2} and {:.2}",
        each(kernel_some, some.files),
        each(all_some, some.files),
        each(kernel.saturating_sub(kernel_some), others),
        each(all.saturating_sub(all_some), others),
    );

    let busy = lab.pod(1);
    let churner = churner::start(&busy.host, (busy.addr, 7200).into());
    let mut others = 0;
    for rows in [64, 4_096] {
        let mut walker = tracked.reader(rows);
        let started = Instant::now();
        for n in 0..passes {
            let pass = walker.walk(Adopt::No).unwrap();
            assert!(pass.portions as usize > truth.len() / rows as usize);
            // By cookie each is there once: twice walked over, it has two holders.
            let twice = pass.sockets.iter().find(|s| s.holders.len() != 1);
            assert!(twice.is_none(), "pass {n}, {rows} rows: {twice:?}");
            let found: BTreeSet<u64> = crowd(&pass).map(|s| s.connection.cookie).collect();
            let missed: Vec<_> = truth.difference(&found).collect();
            assert!(missed.is_empty(), "pass {n}, {rows} rows: {missed:?}");
            assert_eq!(found.len(), truth.len(), "no others than those");
            others += pass.sockets.len() - found.len();
        }
        let each = started.elapsed() / passes as u32;
        println!("  {passes} passes in portions of {rows} rows: {each:.1?} each");
    }
    let done = churner.stop();
    println!(
        "  beside them {:.0} accepts and as many closes a second; {others} sockets of theirs were seen",
        done.made as f64 / done.took.as_secs_f64()
    );
    delays(
        tracked.reader(2_048),
        Duration::from_secs(number(SECONDS, 1) as u64),
    );
}

/// Most descriptors are of processes that hold no connection of ours.
#[test]
fn walking_a_typical_node_costs_almost_nothing() {
    const TRACKED: usize = 500;
    const INTERVAL: Duration = Duration::from_secs(5);
    const EVERYWHERE_EVERY: u32 = 12;
    let (others, processes) = (number(NODE, 40_000), number(PROCESSES, 400));
    let lab = lab(2);
    let tracked = Tracked::in_lab(&lab);
    let _crowd = Crowd::gather(&lab, TRACKED);
    let _others = Others::start(&lab, processes, others / processes);
    gathered(tracked.reader(2_048), TRACKED);
    let mut observer = Observer::new(tracked.reader(2_048));
    let cost = |observer: &mut Observer| {
        let before = cpu_time();
        let seen = observer.observe(Adopt::No, &CgroupPaths::new()).unwrap();
        let after = cpu_time();
        assert!(seen.snapshot.connections.len() >= TRACKED);
        (after.0 + after.1 - before.0 - before.1, seen.files)
    };
    let (mut everywhere, mut known) = (Vec::new(), Vec::new());
    let (mut all, mut some) = (0, 0);
    for _ in 0..10 {
        observer.look_everywhere();
        let (cpu, files) = cost(&mut observer);
        everywhere.push(cpu);
        all = files;
        for _ in 0..4 {
            let (cpu, files) = cost(&mut observer);
            known.push(cpu);
            some = files;
        }
    }
    let (everywhere, known) = (quantile(&mut everywhere, 0.5), quantile(&mut known, 0.5));
    let mean = (everywhere + (EVERYWHERE_EVERY - 1) * known) / EVERYWHERE_EVERY;
    let share = mean.as_secs_f64() / INTERVAL.as_secs_f64();
    println!(
        "\n  {TRACKED} tracked connections, {others} other descriptors in {processes} processes: a \
         pass over all {everywhere:.1?} of CPU ({all} descriptors),\n  over those known {known:.1?} \
         ({some}); {:.3} % of a core at an interval of {INTERVAL:?}",
        100.0 * share
    );
    // Before Linux 6.1 there is no walk over some processes.
    assert!(some < all / 4, "{some} of {all}");
    assert!(share <= 0.002, "{share}");
}
