//! Listings are exact while connections come and go: from a real client to a real server, and as
//! fast as this machine can make them.

use std::{
    collections::BTreeSet,
    process::Stdio,
    time::{Duration, Instant},
};

use rebalancer_common::kind;
use rebalancer_user::bpf::{Adopt, Walker, read_faults};
use serde_json::Value;
use xtask::lab::{Lab, Pod};

use super::{churner, number};
use crate::support::{Agent, TRACK_ONLY, connect_many, eventually, kernel, lab, ss};

/// How long the fastest churn lasts.
const SECONDS: &str = "REBALANCER_TEST_CHURN_SECONDS";

/// Listings that must have run beside it.
const ENOUGH: usize = 10;

#[test]
fn under_churn_no_connection_is_lost_or_counted_twice() {
    const SHORT: u64 = 30_000;
    let lab = lab(2);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    // nginx may close what waits when it is busy: the held ones are another's.
    let busy = lab.pod(1);
    let held = Held::at(&lab, lab.pod(0));
    let before = agent.endpoint(busy, 80);
    let accepted_by_nginx = || busy.counts().unwrap().accepted;
    let truth_before = accepted_by_nginx();

    let url = format!("http://{}/", busy.address());
    let requests = SHORT.to_string();
    let started = Instant::now();
    let mut ab = lab.client().command("ab");
    ab.args(["-q", "-n", &requests, "-c", "16", &url]);
    let mut ab = ab.stdout(Stdio::null()).spawn().unwrap();
    let listings = held.list_while(&agent, &lab, |_| ab.try_wait().unwrap().is_none());
    listings.print(SHORT, started.elapsed());
    let after = at_rest(&agent, busy, 80);
    // ab may open one more than it was asked for; nginx's own count is the truth.
    let truth = accepted_by_nginx() - truth_before;
    assert!(truth >= SHORT, "{truth}");
    for key in ["accepted", "closed"] {
        let counted = field(&after, key) - field(&before, key);
        assert_eq!(counted, truth, "{key}: {after:#}");
    }
}

/// Beside the number of connections, the sum of their bytes is exact.
#[test]
fn sums_are_exact_at_the_highest_connection_rate() {
    const PORT: u16 = 7200;
    let lab = lab(2);
    let agent = Agent::in_lab(&lab, TRACK_ONLY);
    let busy = lab.pod(1);
    let held = Held::at(&lab, lab.pod(0));
    let churner = churner::start(&busy.host, (busy.addr, PORT).into());
    let (mut began, lasts) = (None, Duration::from_secs(number(SECONDS, 4) as u64));
    let listings = held.list_while(&agent, &lab, |passes| {
        let began = began.get_or_insert_with(Instant::now);
        began.elapsed() < lasts || passes < ENOUGH
    });
    let done = churner.stop();
    listings.print(done.made, done.took);
    let after = at_rest(&agent, busy, PORT);
    let message = churner::MESSAGE as u64;
    for (key, truth) in [
        ("accepted", done.made),
        ("closed", done.made),
        ("bytesIn", done.made * message),
        ("bytesOut", 0),
        ("listeners", 0),
    ] {
        assert_eq!(field(&after, key), truth, "{key} of {done:?}: {after:#}");
    }
    assert!(read_faults(&agent.pins).unwrap().is_empty());
}

fn field(endpoint: &Value, key: &str) -> u64 {
    endpoint[key].as_u64().unwrap()
}

/// The endpoint, once nothing is open there.
fn at_rest(agent: &Agent, pod: &Pod, port: u16) -> Value {
    agent.endpoint_when(pod, port, |e| field(e, "open") == 0)
}

/// Connections that are there all the time.
struct Held {
    cookies: BTreeSet<u64>,
    _streams: Vec<std::net::TcpStream>,
}

/// What was listed meanwhile.
#[derive(Default)]
struct Listings {
    passes: usize,
    listed: usize,
}

impl Held {
    fn at(lab: &Lab, pod: &Pod) -> Self {
        const HELD: usize = 200;
        let _streams = connect_many(lab, pod.address(), HELD);
        let look = || ss(&pod.host, 80);
        let seen = eventually("all are established", look, |seen| seen.len() == HELD);
        let cookies = seen.iter().map(|s| u64::from_str_radix(&s.cookie, 16));
        Self {
            cookies: cookies.map(Result::unwrap).collect(),
            _streams,
        }
    }

    /// Lists all the time: each held connection is in every listing, alive, and none is twice.
    fn list_while(
        &self,
        agent: &Agent,
        lab: &Lab,
        mut go_on: impl FnMut(usize) -> bool,
    ) -> Listings {
        let mut walker = Walker::open(kernel(), &agent.pins).unwrap();
        let pods: Vec<u64> = lab.pods().iter().map(|p| p.host.netns_inode()).collect();
        let mut listings = Listings::default();
        while go_on(listings.passes) {
            let pass = walker.walk(Adopt::No).unwrap();
            let mut alive = BTreeSet::new();
            for l in &pass.sockets {
                let of_lab = pods.contains(&u64::from(l.connection.netns));
                if of_lab && l.connection.kind == kind::CONNECTION {
                    assert!(alive.insert(l.connection.cookie), "listed twice: {l:?}");
                    if self.cookies.contains(&l.connection.cookie) {
                        assert_eq!(l.live.state, 1, "a held connection lives: {l:?}");
                    }
                }
            }
            let missed: Vec<_> = self.cookies.difference(&alive).collect();
            let passes = listings.passes;
            assert!(missed.is_empty(), "pass {passes} missed {missed:?}");
            listings.passes += 1;
            listings.listed += pass.sockets.len();
        }
        listings
    }
}

impl Listings {
    fn print(&self, made: u64, took: Duration) {
        let rate = made as f64 / took.as_secs_f64();
        let Self { passes, listed } = self;
        println!(
            "\n  {made} accepts and as many closes in {took:.1?}, {rate:.0} a second; beside them \
             {passes} listings of\n  {} on average",
            listed / (*passes).max(1)
        );
        assert!(*passes >= ENOUGH, "{passes} listings ran beside it");
    }
}
