//! Many connections held: what listing them takes, in time and in memory, and how long it keeps
//! a CPU from others.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rebalancer_common::kind;
use rebalancer_user::bpf::{Adopt, Pass, Walked, Walker};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::{holder::Crowd, number, quantile};
use crate::support::{Agent, TRACK_ONLY, eventually, kernel, lab};

/// How many connections are held.
const HELD: &str = "REBALANCER_TEST_HELD";
/// How many other files are open.
const OTHERS: &str = "REBALANCER_TEST_OTHERS";
/// Limits and balance for all that is held, which nothing exceeds.
const DECIDES: &str = "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: Enforce
interval: 5s
rules:
- name: others
  match: {ports: [{port: 7000, endPort: 7200}]}
  limits: {maxAge: 1h}
- name: held
  match: {ports: [{port: 7300, endPort: 7400}]}
  limits: {maxAge: 24h, maxBytes: 1Gi, maxRate: {bytesPerSecond: 1Gi, for: 30s}}
  balance: {by: Connections, tolerance: 10%}
";
/// How long each part of the watching lasts.
const SECONDS: &str = "REBALANCER_TEST_HELD_SECONDS";

#[test]
fn held_connections_are_all_listed() {
    let (held, seconds) = (number(HELD, 4_000), number(SECONDS, 2) as u64);
    let lab = lab(2);
    let started = Instant::now();
    let _crowd = Crowd::gather(&lab, held);
    let is_debug = cfg!(debug_assertions);
    let build = if is_debug { "debug" } else { "release" };
    println!(
        "\n  {held} connections held, made in {:.1?}; a {build} build",
        started.elapsed()
    );

    let mut bytes = Vec::new();
    for _ in 0..3 {
        let before = accounted_slab();
        let agent = Agent::in_lab(&lab, TRACK_ONLY);
        let grown = accounted_slab() - before;
        assert_eq!(open(&agent), held as u64, "all were adopted");
        bytes.push(grown / held as i64);
        drop(agent);
        // The records are freed a grace period later.
        std::thread::sleep(Duration::from_millis(500));
    }
    println!(
        "  kernel memory: {} bytes a connection in accounted slabs (three agents' adoptions: {bytes:?})",
        quantile(&mut bytes.clone(), 0.5)
    );

    // Other open files, as every node has more of than connections.
    let others: Vec<fs::File> = (0..number(OTHERS, 2_000))
        .map(|_| fs::File::open("/dev/null").unwrap())
        .collect();
    // Two rules that match every one of them, and find nothing to move yet.
    let mut agent = Agent::in_lab(&lab, DECIDES);
    agent.wait_for_intervals(1);
    let (before, since) = (cpu_time(agent.child.id()), Instant::now());
    agent.wait_for_intervals(2);
    let used = cpu_time(agent.child.id()) - before;
    println!(
        "  the agent, which decides by rules in Enforce, beside {} other descriptors: {} MiB resident, \
         {:.2} % of one CPU at an interval of 5 s",
        others.len(),
        resident(agent.child.id()) >> 20,
        100.0 * used.as_secs_f64() / since.elapsed().as_secs_f64()
    );

    let mut walker = Walker::open(kernel(), &agent.pins).unwrap();
    let (mut whole, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let started = Instant::now();
        let pass = walker.walk(Adopt::No).unwrap();
        whole.push(started.elapsed());
        cpu.push(pass.cpu);
        check(&pass, held);
    }
    let pass = walker.walk(Adopt::No).unwrap();
    println!(
        "  a walk: {:.1?} median of 20, {:.1?} of CPU; {} descriptors, {} sockets, {} portions",
        quantile(&mut whole, 0.5),
        quantile(&mut cpu, 0.5),
        pass.files,
        pass.sockets.len(),
        pass.portions,
    );
    delays(walker, Duration::from_secs(seconds));
}

/// What cannot be noise: each is there once.
fn check(pass: &Pass, held: usize) {
    let is_one = |l: &&Walked| l.connection.kind == kind::CONNECTION && l.live.state == 1;
    let connections = pass.sockets.iter().filter(is_one);
    let cookies: BTreeSet<u64> = connections.clone().map(|l| l.connection.cookie).collect();
    assert_eq!(cookies.len(), connections.count(), "none is twice");
    assert!(cookies.len() >= held, "none is missing");
}

/// How late a thread wakes that shares the listing's CPU, with and without listings all the time.
pub(super) fn delays(mut walker: Walker, each: Duration) {
    let mut rows = BTreeMap::new();
    // Interleaved: the machine has other things to do.
    for _ in 0..3 {
        for listing in [false, true] {
            let end = Arc::new(AtomicBool::new(false));
            let seen = std::thread::scope(|scope| {
                let probe = scope.spawn(|| probe(&end));
                let until = Instant::now() + each;
                stay_on_one_cpu();
                while Instant::now() < until {
                    if listing {
                        walker.walk(Adopt::No).unwrap();
                    } else {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                }
                end.store(true, Ordering::Relaxed);
                probe.join().unwrap()
            });
            rows.entry(listing).or_insert_with(Vec::new).extend(seen);
        }
    }
    println!("  how late a real-time thread wakes on the listing's CPU:");
    for (listing, mut delays) in rows {
        let what = ["no listings", "listing all the time"][usize::from(listing)];
        let [p50, p99, p999, max] = [0.5, 0.99, 0.999, 1.0].map(|q| quantile(&mut delays, q));
        println!(
            "    {what:<22} p50 {p50:>9.1?}  p99 {p99:>9.1?}  p99.9 {p999:>9.1?}  max {max:>9.1?}  ({} wakes)",
            delays.len()
        );
        assert!(delays.len() > 100, "the probe ran");
    }
}

/// The last CPU: the first one has the most interrupts.
fn stay_on_one_cpu() {
    let cpus = std::thread::available_parallelism().unwrap().get();
    let mut set = CpuSet::new();
    set.set(cpus - 1);
    sched_setaffinity(None, &set).unwrap();
}

fn probe(end: &AtomicBool) -> Vec<Duration> {
    const EVERY: Duration = Duration::from_micros(500);
    stay_on_one_cpu();
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: a valid parameter; 0 is this thread.
    let refused = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    let why = std::io::Error::last_os_error();
    assert_eq!(refused, 0, "SCHED_FIFO: {why}");
    let mut delays = Vec::new();
    while !end.load(Ordering::Relaxed) {
        let started = Instant::now();
        std::thread::sleep(EVERY);
        delays.push(started.elapsed().saturating_sub(EVERY));
    }
    delays
}

fn open(agent: &Agent) -> u64 {
    let open = || {
        let endpoints = agent.dump(&["--endpoints"]).into_iter();
        let ours = endpoints.filter(|e| e["port"].as_u64() >= Some(7300));
        ours.filter_map(|e| e["open"].as_u64()).sum()
    };
    eventually("all are there", open, |open| *open > 0)
}

/// Bytes in the kernel's slabs that are charged to memory cgroups, and of general use.
fn accounted_slab() -> i64 {
    let text = fs::read_to_string("/proc/slabinfo").unwrap();
    let lines = text.lines().filter(|l| l.starts_with("kmalloc-cg-"));
    let active_times_size = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| columns[at].parse::<i64>().unwrap();
        number(1) * number(3)
    };
    lines.map(active_times_size).sum()
}

fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kibibytes = line.unwrap().trim().trim_end_matches(" kB");
    kibibytes.parse::<u64>().unwrap() << 10
}

/// Time on a CPU so far.
fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_name, rest) = stat.rsplit_once(')').unwrap();
    let user_and_system = rest.split_whitespace().skip(11).take(2);
    let ticks: u64 = user_and_system.map(|n| n.parse::<u64>().unwrap()).sum();
    Duration::from_secs(ticks) / rustix::param::clock_ticks_per_second() as u32
}
