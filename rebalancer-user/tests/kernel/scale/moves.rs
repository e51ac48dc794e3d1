//! Many moves under churn, while addresses and ports are used again within a millisecond: each
//! hits its victim, by cookie, and nothing else is harmed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Instant,
};

use rebalancer_user::moves::Mechanism;
use rustix::{
    net::{AddressFamily, SocketType, ipproto, socket},
    process::Signal,
};
use serde_json::Value;
use xtask::lab::Lab;

use super::{How, client, client::Life, number, quantile, server};
use crate::{
    program::Program,
    support::{Agent, add_address, lab},
};

/// How many moves the best mechanism makes; the others make a part of it.
const MOVES: &str = "REBALANCER_TEST_MOVES";
const MOVES_BY_DEFAULT: usize = 3_000;

/// Reset at once, reset at a quiet moment, asked to close.
const PORTS: [u16; 3] = [7101, 7102, 7103];
/// Where MPTCP is spoken beside plain TCP, which is reset at once.
const MPTCP_PORT: u16 = 7104;
const RETURNING: u16 = 900;
const BYSTANDERS: usize = 60;
const MULTIPATH: usize = 20;

#[test]
fn every_move_by_sock_destroy_resets_only_its_connection() {
    moves(Mechanism::SockDestroy, number(MOVES, MOVES_BY_DEFAULT));
}

#[test]
fn every_move_by_abort_resets_only_its_connection() {
    moves(Mechanism::Abort, number(MOVES, MOVES_BY_DEFAULT) / 5);
}

#[test]
fn every_raw_reset_resets_only_its_connection() {
    moves(Mechanism::Raw, number(MOVES, MOVES_BY_DEFAULT) / 5);
}

fn moves(mechanism: Mechanism, wanted: usize) {
    let scene = Scene::set(lab(1));
    let listeners = scene.listeners();
    let by = ["--reset-mechanism", mechanism.as_str()];
    let policy = scene.policy();
    let mut agent = Agent::in_lab_with(&scene.lab, &policy, &by);
    let started = Instant::now();
    let mut moved = Moves::default();
    let mut skipped = Value::Null;
    while moved.done < wanted || skipped.is_null() {
        let line = agent.next_line().expect("the agent goes on moving");
        moved.take(&line);
        if line["message"] == "listed" {
            skipped = line["skipped"].clone();
        }
    }
    let (done, time) = (moved.done, started.elapsed());
    // No more of them, while the agent is asked what it sees.
    agent.reload(&policy.replace("Enforce", "Disabled"));
    moved.at_the_end = true;
    let listed_mptcp = scene.listed_mptcp(&agent);
    let endpoint = |port| agent.endpoint(scene.lab.pod(0), port);
    let endpoints: Vec<Value> = scene.ports().map(endpoint).collect();
    agent.signal(Signal::TERM);
    while let Some(line) = agent.next_line() {
        moved.take(&line);
    }
    let still = scene.listeners();
    let seen = scene.clients.stop();
    let at_server = scene.server.stop();

    let mut report = String::new();
    let rate = done as f64 / time.as_secs_f64();
    let mut row = |what: &str, value: String| writeln!(report, "  {what:<28}{value}").unwrap();
    row("reset by", mechanism.to_string());
    row("moves", format!("{done} in {time:.1?}, {rate:.0} a second"));
    let outcomes = moved.outcomes();
    row("by outcome", format!("{outcomes:?}"));
    for (words, count) in &moved.troubles {
        row("", format!("{count} {words}"));
    }
    row("connections", seen.returning.len().to_string());
    let mut gaps = seen.reused_after.clone();
    let [least, median, most] = [0.0, 0.5, 0.99].map(|q| quantile(&mut gaps, q));
    row(
        "ports used again after",
        format!("{least} us at least, {median} us median, {most} us p99"),
    );
    let mut since_look = moved.since_look.clone();
    let [median, p99] = [0.5, 0.99].map(|q| quantile(&mut since_look, q));
    row(
        "from look to end",
        format!("{median} us median, {p99} us p99, of {}", since_look.len()),
    );
    let verdict = Verdict::of(&moved, &seen.returning, &at_server);
    row("wrong victims", verdict.wrong.len().to_string());
    row("victims missed", verdict.missed.len().to_string());
    row("left in the same moment", verdict.crossed.to_string());
    row("requests met by a close", verdict.cut_off.to_string());
    let harmed = |all: &[Life]| all.iter().filter(|l| l.how != How::Open).count();
    let traffic = |all: &[Life]| {
        let sum = |of: fn(&Life) -> u64| all.iter().map(of).sum::<u64>();
        let (messages, bytes) = (sum(|life| life.messages), sum(|life| life.bytes));
        let mebibytes = bytes as f64 / f64::from(1 << 20);
        let (harmed, all) = (harmed(all), all.len());
        format!("{harmed} of {all} ({messages} messages, {mebibytes:.1} MiB compared)")
    };
    row("bystanders harmed", traffic(&seen.bystanders));
    let lost = listeners.difference(&still).count();
    let (all, answering) = (listeners.len(), seen.answering.len());
    row(
        "listeners lost",
        format!("{lost} of {all}; {answering} ports answer"),
    );
    let multipath = match &scene.no_mptcp {
        None => format!(
            "{}; the agent sees {listed_mptcp}, and skipped them",
            traffic(&seen.multipath)
        ),
        Some(why) => format!("NOT TESTED: {why}"),
    };
    row("MPTCP connections harmed", multipath);
    println!("\n{report}");

    let Verdict { wrong, missed, .. } = verdict;
    assert!(
        wrong.is_empty() && missed.is_empty(),
        "wrong victims: {wrong:#?}; reported, and not done: {missed:#?}"
    );
    assert_eq!(harmed(&seen.bystanders), 0, "{:?}", seen.bystanders);
    assert_eq!(seen.bystanders.len(), BYSTANDERS);
    assert_eq!(listeners, still, "the same listeners, by cookie");
    assert_eq!(answering, scene.servers.len(), "{:?}", seen.answering);
    for endpoint in endpoints {
        let here = listeners
            .iter()
            .filter(|(port, _)| endpoint["port"] == *port);
        assert_eq!(endpoint["listeners"], here.count(), "{endpoint:#}");
    }
    if scene.no_mptcp.is_none() {
        assert_eq!(harmed(&seen.multipath), 0, "{:?}", seen.multipath);
        assert_eq!((seen.multipath.len(), listed_mptcp), (MULTIPATH, MULTIPATH));
        let for_it = format!("\"mptcp\": {MULTIPATH}");
        assert!(skipped.as_str().unwrap().contains(&for_it), "{skipped}");
    }
    for wanted in ["reset", "closed"] {
        assert!(outcomes.contains_key(wanted), "{outcomes:?}");
    }
    assert!(!outcomes.contains_key("failed"), "{:?}", moved.troubles);
}

/// Servers in the pod and clients of all kinds, at work.
struct Scene {
    lab: Lab,
    servers: Vec<SocketAddr>,
    server: Program<server::Report>,
    clients: Program<client::Report>,
    /// Why there is no MPTCP.
    no_mptcp: Option<String>,
}

impl Scene {
    fn set(lab: Lab) -> Self {
        let pod = lab.pod(0);
        let [again, bystander, multipath] = addresses(&lab).map(IpAddr::V4);
        for more in [bystander, multipath] {
            add_address(&lab, more);
        }
        let no_mptcp = [lab.client(), &pod.host]
            .into_iter()
            .find_map(|host| host.enter(no_mptcp).unwrap());
        let plain = PORTS.map(|port| SocketAddr::from((pod.addr, port)));
        let mptcp = SocketAddr::from((pod.addr, MPTCP_PORT));
        let mptcp = no_mptcp.is_none().then_some(mptcp);
        let orders = server::Orders {
            plain: plain.to_vec(),
            mptcp,
            most: 4000,
        };
        let server = server::start(&pod.host, &orders);
        let servers: Vec<_> = plain.into_iter().chain(mptcp).collect();
        let orders = client::Orders {
            servers: servers.clone(),
            again,
            returning: RETURNING,
            bystander,
            bystanders: BYSTANDERS,
            mptcp: mptcp.map(|server| (multipath, server)),
            multipath: MULTIPATH,
        };
        let clients = client::start(lab.client(), &orders);
        Self {
            servers,
            server,
            clients,
            no_mptcp,
            lab,
        }
    }

    fn ports(&self) -> impl Iterator<Item = u16> {
        self.servers.iter().map(SocketAddr::port)
    }

    fn policy(&self) -> String {
        let [_, bystander, _] = addresses(&self.lab);
        let subnet = self.lab.client_subnet();
        let peers = format!("[{{ipBlock: {{cidr: {subnet}, except: [{bystander}/32]}}}}]");
        let [at_once, quiet, close] = PORTS;
        let rule = |(name, port, step)| {
            format!(
                "- name: {name}\n  match: {{ports: [{{port: {port}}}], peers: {peers}}}\n  \
                 limits: {{maxAge: 500ms}}\n  jitter: 50%\n  onReconnect: Safe\n  steps: \
                 [{{step: {step}, timeout: 5s}}]\n"
            )
        };
        let rules = [
            ("at-once", at_once, "Reset, when: AtOnce"),
            ("mptcp", MPTCP_PORT, "Reset, when: AtOnce"),
            ("quiet", quiet, "Reset, when: Quiet, idleFor: 20ms"),
            ("close", close, "Close, when: Quiet, idleFor: 20ms"),
        ];
        let rules: String = rules.map(rule).concat();
        format!(
            "apiVersion: rebalancer.dev/v1alpha1\nkind: RebalancePolicy\nmode: Enforce\n\
             interval: 200ms\nbudget: {{window: 1s, perNode: 1000000, perService: 1000000, perEndpoint: 1000000, maxInFlight: 1000}}\n\
             guards: {{minAge: 200ms}}\nrules:\n{rules}"
        )
    }

    /// The pod's listeners: port and cookie.
    fn listeners(&self) -> BTreeSet<(u16, String)> {
        let host = &self.lab.pod(0).host;
        let out = host.command("ss").args(["-tlneH"]).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let all = text.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let port = words.nth(3)?.rsplit_once(':')?.1;
            let cookie = words.find_map(|word| word.strip_prefix("sk:"))?;
            Some((port.parse().ok()?, cookie.to_owned()))
        });
        all.filter(|(port, _)| self.ports().any(|p| p == *port))
            .collect()
    }

    /// Established MPTCP connections that the agent knows as such.
    fn listed_mptcp(&self, agent: &Agent) -> usize {
        let all = agent.connections(self.lab.pod(0));
        let mptcp = |c: &&Value| c["mptcp"] == true && c["state"] == "ESTAB";
        all.iter().filter(mptcp).count()
    }
}

/// The client's own address, and two more: of those that come again, bystanders, MPTCP.
fn addresses(lab: &Lab) -> [Ipv4Addr; 3] {
    [130, 131, 132].map(|last| Ipv4Addr::new(10, 244, lab.id(), last))
}

/// What this network namespace lacks for MPTCP.
fn no_mptcp() -> Option<String> {
    const SWITCH: &str = "/proc/sys/net/mptcp/enabled";
    match std::fs::read_to_string(SWITCH) {
        Ok(on) if on.trim() == "1" => {}
        Ok(off) => return Some(format!("net.mptcp.enabled is {}", off.trim())),
        Err(e) => return Some(format!("a kernel without CONFIG_MPTCP ({SWITCH}: {e})")),
    }
    let mptcp = Some(ipproto::MPTCP);
    let made = socket(AddressFamily::INET, SocketType::STREAM, mptcp).err();
    made.map(|e| format!("a socket of IPPROTO_MPTCP: {e}"))
}

/// The words of a move that ended after its server had been asked to close.
const ASKED: &str = "failed: the server was asked to close";
const ASKED_AT_THE_END: &str = "asked to close at the end";

/// What the agent says that it did, by cookie.
#[derive(Default)]
struct Moves {
    of: BTreeMap<u64, (String, SocketAddr)>,
    /// How many ended their connection.
    done: usize,
    twice: Vec<u64>,
    /// Those that were refused or failed, by the words of it.
    troubles: BTreeMap<String, u64>,
    /// The agent has the order to move no more.
    at_the_end: bool,
    /// Microseconds from the last look at a victim to its end.
    since_look: Vec<u64>,
}

impl Moves {
    fn take(&mut self, line: &Value) {
        if line["message"] == "from the last look to the end of the step" {
            self.since_look.push(line["us"].as_u64().unwrap());
        }
        if line["message"] != "move" {
            return;
        }
        let text = |key: &str| line[key].as_str().unwrap();
        let detail = line["detail"].as_str().unwrap_or_default();
        let cookie = u64::from_str_radix(text("cookie"), 16).unwrap();
        let mut outcome = text("outcome").to_owned();
        // Nobody waits any more for the server's close: it comes, or the client is first.
        if self.at_the_end && detail.starts_with(ASKED) {
            outcome = ASKED_AT_THE_END.to_owned();
        }
        if matches!(&*outcome, "failed" | "refused" | "gaveUp") {
            *self.troubles.entry(detail.to_owned()).or_default() += 1;
        }
        let ends = |outcome: &str| matches!(outcome, "reset" | "closed");
        self.done += usize::from(ends(&outcome));
        let peer = text("peer").parse().unwrap();
        let before = self.of.insert(cookie, (outcome, peer));
        if before.is_some_and(|(outcome, _)| ends(&outcome)) {
            self.twice.push(cookie);
        }
    }

    fn outcomes(&self) -> BTreeMap<&str, u64> {
        let mut counts = BTreeMap::new();
        for (outcome, _) in self.of.values() {
            *counts.entry(outcome.as_str()).or_default() += 1;
        }
        counts
    }
}

/// What the agent said, held against what both ends of each connection saw.
#[derive(Default)]
struct Verdict {
    /// Ended from this side, and not by a move of it.
    wrong: Vec<String>,
    /// A move is said to have ended it, and one of its ends did not see that.
    missed: Vec<String>,
    /// The client left in the moment in which it was moved.
    crossed: u64,
    /// The server was asked to close in the moment in which a request came.
    cut_off: u64,
}

impl Verdict {
    fn of(moved: &Moves, lives: &[Life], at_server: &server::Report) -> Self {
        let mut verdict = Self::default();
        let named = lives.iter().filter(|life| life.cookie != 0);
        let by_cookie: BTreeMap<u64, &Life> = named.map(|life| (life.cookie, life)).collect();
        // These ended before the client had read their cookie: known by their addresses.
        let mut nameless: BTreeMap<(SocketAddr, How), u64> = BTreeMap::new();
        for life in lives.iter().filter(|life| life.cookie == 0) {
            *nameless.entry((life.local, life.how)).or_default() += 1;
        }
        for cookie in &moved.twice {
            verdict.wrong.push(format!("{cookie:x} was ended twice"));
        }
        for (cookie, (outcome, peer)) in &moved.of {
            let server_saw = at_server.get(cookie).map(|(_, how)| *how);
            let life = by_cookie.get(cookie);
            let client_saw = life.map(|life| life.how);
            let shown =
                || format!("{cookie:x} of {peer} {outcome}: {client_saw:?}, {server_saw:?}");
            if life.is_some_and(|life| life.local != *peer) {
                verdict
                    .wrong
                    .push(format!("{}, {peer} is {life:?}", shown()));
            }
            let Some((at_client, at_server)) = ends_seen(outcome) else {
                // Whatever became of it, it was not ended from this side.
                let lives_or_left = matches!(client_saw, None | Some(How::Left | How::Open));
                if !lives_or_left && outcome != ASKED_AT_THE_END {
                    verdict.wrong.push(shown());
                }
                continue;
            };
            let client_agrees = match client_saw {
                Some(How::Left) => {
                    verdict.crossed += 1;
                    continue;
                }
                Some(how) => {
                    verdict.cut_off += u64::from(outcome == "closed" && how == How::Reset);
                    at_client.contains(&how)
                }
                None => at_client
                    .iter()
                    .any(|how| take_one(&mut nameless, (*peer, *how))),
            };
            if !client_agrees || !server_saw.is_some_and(|how| at_server.contains(&how)) {
                verdict.missed.push(shown());
            }
        }
        let by_a_move = |cookie: &u64, how: How| {
            moved.of.get(cookie).is_some_and(|(outcome, _)| {
                let closes = outcome == ASKED_AT_THE_END;
                let outcome = if closes { "closed" } else { outcome };
                ends_seen(outcome).is_some_and(|(seen, _)| seen.contains(&how))
            })
        };
        for (cookie, life) in by_cookie {
            if !matches!(life.how, How::Open | How::Left) && !by_a_move(&cookie, life.how) {
                let server_saw = at_server.get(&cookie);
                let reported = moved.of.get(&cookie);
                let what = format!("{cookie:x}: {life:?}, {server_saw:?}, not moved: {reported:?}");
                verdict.wrong.push(what);
            }
        }
        for ((local, how), count) in nameless {
            let what = format!("{count} of {local} before a word was said: {how:?}, not moved");
            verdict.wrong.push(what);
        }
        for (cookie, (peer, how)) in at_server {
            let reset = moved.of.get(cookie).is_some_and(|(o, _)| o == "reset");
            if *how == How::Aborted && !reset {
                let what = format!("{cookie:x} of {peer}: {how:?}, not moved");
                verdict.wrong.push(what);
            }
        }
        verdict
    }
}

/// What the client, and what the server, may see of a move that ended their connection.
fn ends_seen(outcome: &str) -> Option<(&'static [How], &'static [How])> {
    match outcome {
        // The server's end: by SOCK_DESTROY; by the other two.
        "reset" => Some((&[How::Reset], &[How::Aborted, How::Reset])),
        // A request that comes in that very moment is not read any more: the client is reset.
        "closed" => Some((&[How::Eof, How::Reset], &[How::Eof])),
        _ => None,
    }
}

fn take_one<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K) -> bool {
    let Some(count) = counts.get_mut(&key) else {
        return false;
    };
    *count -= 1;
    if *count == 0 {
        counts.remove(&key);
    }
    true
}
