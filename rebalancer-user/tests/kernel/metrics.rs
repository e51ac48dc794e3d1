//! Metrics and health of an agent that runs, as a scraper and a kubelet ask for them.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
};

use serde_json::Value;

use crate::{
    moves::{AT_ONCE, enforce},
    status::status,
    support::{
        Agent, PATIENCE, REBALANCER, TRACK_ONLY, alone, cgroup, connect, eventually, lab, own_pins,
        rebalancer, stderr,
    },
};

/// On any free port.
const ANY: &[&str] = &["--metrics-address", "127.0.0.1:0"];

fn address(agent: &mut Agent) -> SocketAddr {
    let offered = agent.logged("serving metrics and health");
    offered[0]["address"].as_str().unwrap().parse().unwrap()
}

/// The answer's head and body.
fn get(address: SocketAddr, path: &str, accept: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\naccept: {accept}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn scrape(address: SocketAddr) -> String {
    get(address, "/metrics", "text/plain").1
}

/// The value of one sample.
pub fn sample(text: &str, of: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(of))?;
    line.strip_prefix(' ')?.parse().ok()
}

#[test]
fn a_scrape_agrees_with_the_status_and_names_no_address() {
    let _alone = alone();
    let lab = lab(1);
    let policy = enforce(&lab, 80, "maxAge: 400ms", AT_ONCE);
    let in_lab = ["--cgroup", cgroup(&lab).to_str().unwrap(), ANY[0], ANY[1]];
    let mut agent = Agent::with(&policy, own_pins(), &in_lab);
    let at = address(&mut agent);
    let _stream = connect(&lab, lab.pod(0).address());
    agent.wait_for_move();
    agent.wait_for_intervals(2);
    let move_labels = "rule=\"lab\",reason=\"age\",step=\"Reset\",mode=\"Enforce\"";
    let moved = format!("rebalancer_moves_total{{{move_labels},outcome=\"reset\"}}");

    let open = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3";
    for (accept, kind) in [
        (open, "application/openmetrics-text; version=1.0.0"),
        ("*/*", "text/plain; version=0.0.4"),
    ] {
        let (head, text) = get(at, "/metrics", accept);
        assert!(head.contains(kind), "{head}");
        assert_eq!(text.ends_with("# EOF\n"), accept == open);
        assert_eq!(sample(&text, &moved), Some(1.0), "{text}");
        let status = status(&agent);
        let alike = [
            ("rebalancer_connections", &status["lastPass"]["connections"]),
            ("rebalancer_moves_in_flight_max", &status["maxInFlight"]),
            (
                "rebalancer_budget_moves_left{mode=\"Enforce\"}",
                &status["budgets"][0]["left"],
            ),
            (
                "rebalancer_endpoint_connections_capacity",
                &status["capacity"]["maxPerEndpoint"],
            ),
        ];
        for (metric, value) in alike {
            assert_eq!(sample(&text, metric), value.as_f64(), "{metric}");
        }
        assert_eq!(status["ended"]["reset"], 1);
        let listings = sample(&text, "rebalancer_listing_duration_seconds_count").unwrap();
        assert!(listings >= 3.0, "{listings}");
        let took = "rebalancer_move_duration_seconds_count{outcome=\"reset\"}";
        assert_eq!(sample(&text, took), Some(1.0));
        let endpoints = sample(&text, "rebalancer_map_capacity{map=\"endpoints\"}").unwrap();
        assert!(endpoints >= 1000.0, "{endpoints}");
        assert_eq!(sample(&text, "rebalancer_paused"), Some(0.0));
        for secret in [lab.pod(0).address().ip().to_string(), ":80".to_owned()] {
            assert!(!text.contains(&secret), "{secret} in {text}");
        }
    }
    // On the agent's own socket it is the same.
    assert!(get(at, "/readyz", "*/*").1.starts_with("ok: attached"));
    for what in ["live", "ready"] {
        let probe = rebalancer(&agent, &["probe", what]);
        assert!(probe.status.success(), "{probe:?}");
    }
}

#[test]
fn an_open_port_offers_nothing_else_and_is_bounded() {
    let _alone = alone();
    let mut agent = Agent::with(TRACK_ONLY, own_pins(), ANY);
    let at = address(&mut agent);
    agent.wait_for_intervals(1);
    for path in ["/status", "/dump", "/events", "/pause", "/"] {
        let (head, body) = get(at, path, "*/*");
        assert!(head.contains(" 404 "), "{path}: {head}");
        assert_eq!(
            body,
            "nothing is here; there are /healthz, /metrics, /readyz\n"
        );
    }
    let mut large = TcpStream::connect(at).unwrap();
    large.set_read_timeout(Some(PATIENCE)).unwrap();
    // It may be left before it has said all.
    let _ = large.write_all(format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(1 << 20)).as_bytes());
    let mut answer = Vec::new();
    let _ = large.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
        "{answer}"
    );
    // Clients that say nothing take every place of the port, and none of the agent's socket.
    let silent: Vec<_> = (0..20).map(|_| TcpStream::connect(at).unwrap()).collect();
    assert_eq!(status(&agent)["pid"], agent.child.id());
    assert!(
        scrape(at).contains("rebalancer_build_info"),
        "they are left in time"
    );
    drop(silent);
    assert_eq!(agent.terminate(), Some(0));
    assert!(TcpStream::connect(at).is_err());
}

#[test]
fn a_taken_port_is_an_error_if_it_was_asked_for_and_else_a_warning() {
    let _alone = alone();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), TRACK_ONLY).unwrap();
    let pins = own_pins();
    let refused = Agent::command(file.path(), &pins, &["--metrics-address", &address])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let text = stderr(&refused);
    assert!(
        text.contains(&address) && text.contains("remedy") && text.contains("in use"),
        "{text}"
    );
    assert!(!pins.exists(), "what it had made is removed");

    // The default is another's already, or ours for as long as this lasts.
    let _taken = TcpListener::bind("127.0.0.1:9321");
    let mut command = Agent::command(file.path(), &pins, &[]);
    command.env_remove("REBALANCER_METRICS_ADDRESS");
    let mut agent = Agent::launch(command, pins);
    let complaints = agent.complaints();
    let warned = complaints.iter().any(|line| {
        let message = line["message"].as_str().unwrap_or_default();
        line["address"] == "127.0.0.1:9321" && message.contains("--metrics-address")
    });
    assert!(warned, "{complaints:#?}");
    assert!(rebalancer(&agent, &["probe", "live"]).status.success());
}

#[test]
fn a_refused_policy_leaves_the_agent_ready_and_sets_a_gauge() {
    let _alone = alone();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), TRACK_ONLY).unwrap();
    let mut agent = Agent::with_file(file.path(), own_pins(), ANY);
    let at = address(&mut agent);
    let success = |text: &str| sample(text, "rebalancer_policy_reload_success");
    assert_eq!(success(&scrape(at)), Some(1.0));
    std::fs::write(file.path(), "mode: Enforce").unwrap();
    agent.signal(rustix::process::Signal::HUP);
    eventually("the gauge says so", || match success(&scrape(at)) {
        Some(0.0) => Ok(Some(0.0)),
        other => Err(other),
    });
    let text = scrape(at);
    let refused = sample(&text, "rebalancer_policy_reloads_total{result=\"refused\"}");
    // By the signal, by the look every two seconds, or by both.
    assert!(
        refused.is_some_and(|n| (1.0..=2.0).contains(&n)),
        "{refused:?}"
    );
    agent.wait_for_intervals(1);
    assert!(get(at, "/readyz", "*/*").0.contains(" 200 "));
}

/// The loop's thread of an agent, held; the others run on.
struct Held(libc::pid_t);

impl Held {
    fn loop_of(agent: &Agent) -> Self {
        // The loop runs on the process's first thread, whose id is the process's.
        let pid = agent.child.id() as libc::pid_t;
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: these requests read and write no memory of ours.
        let held = unsafe {
            libc::ptrace(libc::PTRACE_SEIZE, pid, none, none) == 0
                && libc::ptrace(libc::PTRACE_INTERRUPT, pid, none, none) == 0
                && libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) == pid
        };
        assert!(held, "ptrace: {}", std::io::Error::last_os_error());
        Self(pid)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: as above.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, none, none) };
    }
}

#[test]
fn a_loop_that_hangs_is_not_healthy_until_it_goes_on() {
    let _alone = alone();
    let mut agent = Agent::with(TRACK_ONLY, own_pins(), ANY);
    let at = address(&mut agent);
    // The first pass has ended once another is listed.
    agent.wait_for_intervals(2);
    assert!(get(at, "/healthz", "*/*").0.contains(" 200 "));
    let held = Held::loop_of(&agent);
    let began = std::time::Instant::now();
    let sick = loop {
        let (head, body) = get(at, "/healthz", "*/*");
        if head.contains(" 503 ") {
            break body;
        }
        assert!(began.elapsed().as_secs() < 60, "still healthy: {body}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    };
    assert!(began.elapsed().as_secs() >= 25, "too early: {sick}");
    assert!(sick.contains("the last pass ended 30."), "{sick}");
    let probe = rebalancer(&agent, &["probe", "live"]);
    assert_eq!(probe.status.code(), Some(1), "{probe:?}");
    assert!(stderr(&probe).contains("the last pass ended"), "{probe:?}");
    // What needs no loop is answered still.
    assert_eq!(status(&agent)["kind"], Value::from("Status"));
    drop(held);
    agent.wait_for_intervals(2);
    assert!(rebalancer(&agent, &["probe", "live"]).status.success());
    assert_eq!(agent.terminate(), Some(0));
    let none = Command::new(REBALANCER)
        .args(["probe", "live", "--pins"])
        .arg(&agent.pins)
        .output()
        .unwrap();
    assert_eq!(none.status.code(), Some(1), "{none:?}");
    assert!(stderr(&none).contains("no agent is running"), "{none:?}");
}
