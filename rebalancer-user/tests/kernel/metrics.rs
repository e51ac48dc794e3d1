//! Metrics and health of an agent that runs, as a scraper and a kubelet ask for them.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use crate::support::{
    AT_ONCE, Agent, Held, PATIENCE, TRACK_ONLY, alone, connect, enforce, eventually, failed,
    file_of, lab, own_pins,
};

/// On any free port.
const ANY: &[&str] = &["--metrics-address", "127.0.0.1:0"];

/// An agent that tracks and offers its metrics, and where.
fn offering() -> (Agent, SocketAddr) {
    let mut agent = Agent::on_machine_with(TRACK_ONLY, ANY);
    let at = address(&mut agent);
    (agent, at)
}

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
    let lab = lab(1);
    let policy = enforce(&lab, 80, "maxAge: 400ms", AT_ONCE);
    let mut agent = Agent::in_lab_with(&lab, &policy, ANY);
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
        let status = agent.status();
        for (metric, place) in [
            ("connections", "/lastPass/connections"),
            ("moves_in_flight_max", "/maxInFlight"),
            ("budget_moves_left{mode=\"Enforce\"}", "/budgets/0/left"),
            ("endpoint_connections_capacity", "/capacity/maxPerEndpoint"),
        ] {
            let metric = sample(&text, &format!("rebalancer_{metric}"));
            assert_eq!(metric, status.pointer(place).unwrap().as_f64(), "{place}");
        }
        assert_eq!(status["ended"]["reset"], 1);
        for (metric, least, most) in [
            ("listing_duration_seconds_count", 3.0, f64::MAX),
            ("move_duration_seconds_count{outcome=\"reset\"}", 1.0, 1.0),
            ("map_capacity{map=\"endpoints\"}", 1000.0, f64::MAX),
            ("paused", 0.0, 0.0),
        ] {
            let value = sample(&text, &format!("rebalancer_{metric}")).unwrap();
            assert!((least..=most).contains(&value), "{metric}: {value}");
        }
        for secret in [lab.pod(0).address().ip().to_string(), ":80".to_owned()] {
            assert!(!text.contains(&secret), "{secret} in {text}");
        }
    }
    // On the agent's own socket it is the same.
    assert!(get(at, "/readyz", "*/*").1.starts_with("ok: attached"));
    for what in ["live", "ready"] {
        agent.ask(&["probe", what]);
    }
}

#[test]
fn an_open_port_offers_nothing_else_and_is_bounded() {
    let (mut agent, at) = offering();
    agent.wait_for_intervals(1);
    for path in ["/status", "/dump", "/events", "/pause", "/"] {
        let (head, body) = get(at, path, "*/*");
        assert!(head.contains(" 404 "), "{path}: {head}");
        let there_are = "nothing is here; there are /healthz, /metrics, /readyz\n";
        assert_eq!(body, there_are);
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
    let silent = [(); 20].map(|()| TcpStream::connect(at).unwrap());
    assert_eq!(agent.status()["pid"], agent.child.id());
    // They are left in time.
    assert!(scrape(at).contains("rebalancer_build_info"));
    drop(silent);
    assert_eq!(agent.terminate(), Some(0));
    assert!(TcpStream::connect(at).is_err());
}

#[test]
fn a_taken_port_is_an_error_if_it_was_asked_for_and_else_a_warning() {
    alone();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (file, pins) = (file_of(TRACK_ONLY), own_pins());
    let mut agent = Agent::command(file.path(), &pins, &["--metrics-address", &address]);
    let text = failed(1, &agent.output().unwrap());
    assert!(
        text.contains(&address) && text.contains("remedy") && text.contains("in use"),
        "{text}"
    );
    assert!(!pins.exists(), "what it had made is removed");

    // The default is another's already, or ours for as long as this lasts.
    let _taken = TcpListener::bind("127.0.0.1:9321");
    let mut agent = Agent::by(TRACK_ONLY, &[], |mut command| {
        command.env_remove("REBALANCER_METRICS_ADDRESS");
        command
    });
    let complaints = agent.complaints();
    let warned = complaints.iter().any(|line| {
        let message = line["message"].as_str().unwrap_or_default();
        line["address"] == "127.0.0.1:9321" && message.contains("--metrics-address")
    });
    assert!(warned, "{complaints:#?}");
    agent.ask(&["probe", "live"]);
}

#[test]
fn a_refused_policy_leaves_the_agent_ready_and_sets_a_gauge() {
    let (agent, at) = offering();
    let success = || sample(&scrape(at), "rebalancer_policy_reload_success");
    assert_eq!(success(), Some(1.0));
    agent.reload("mode: Enforce");
    eventually("the gauge says so", success, |gauge| *gauge == Some(0.0));
    let text = scrape(at);
    let refused = sample(&text, "rebalancer_policy_reloads_total{result=\"refused\"}");
    // By the signal, by the look every two seconds, or by both.
    assert!(
        refused.is_some_and(|n| (1.0..=2.0).contains(&n)),
        "{refused:?}"
    );
    let ready = || get(at, "/readyz", "*/*").0;
    eventually("it is ready", ready, |head| head.contains(" 200 "));
}

#[test]
fn a_loop_that_hangs_is_not_healthy_until_it_goes_on() {
    let (mut agent, at) = offering();
    // The first pass has ended once another is listed.
    agent.wait_for_intervals(2);
    assert!(get(at, "/healthz", "*/*").0.contains(" 200 "));
    let held = Held::thread(&agent, "rebalancer");
    let began = Instant::now();
    let sick = loop {
        let (head, body) = get(at, "/healthz", "*/*");
        if head.contains(" 503 ") {
            break body;
        }
        assert!(began.elapsed().as_secs() < 60, "still healthy: {body}");
        std::thread::sleep(Duration::from_millis(200));
    };
    assert!(began.elapsed().as_secs() >= 25, "too early: {sick}");
    assert!(sick.contains("the last pass ended 30."), "{sick}");
    let probe = agent.fails(1, &["probe", "live"]);
    assert!(probe.contains("the last pass ended"), "{probe}");
    // What needs no loop is answered still.
    assert_eq!(agent.status()["kind"], "Status");
    drop(held);
    agent.wait_for_intervals(2);
    agent.ask(&["probe", "live"]);
    assert_eq!(agent.terminate(), Some(0));
    let none = agent.fails(1, &["probe", "live"]);
    assert!(none.contains("no agent is running"), "{none}");
}
