//! Balance on a real kernel: clients that keep their connections, kube-proxy's rules, and what
//! becomes of them.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use serde_json::{Value, json};
use xtask::lab::Lab;

use crate::support::{
    Agent, PATIENCE, add_address, connect as connect_to, enforce, lab_serving, request, shows,
};

fn policy(lab: &Lab, balance: &str) -> String {
    let steps = "{step: Reset, when: Quiet, idleFor: 50ms, timeout: 5s}";
    enforce(lab, 80, "", steps)
        .replace(
            "limits: {}\n  jitter: 0%",
            &format!("balance: {{{balance}}}"),
        )
        .replace("interval: 200ms", "interval: 500ms")
        .replace("1000000", "100%")
        .replace(
            "budget: {",
            "budget: {window: 1m, perNode: 100000, maxInFlight: 1000, ",
        )
}

/// Who connects where, and keeps it.
#[derive(Clone, Copy)]
struct Client {
    from: Option<IpAddr>,
    to: SocketAddr,
}

/// A connection at rest: it has had an answer.
fn open(client: Client) -> TcpStream {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    if let Some(from) = client.from {
        bind(&socket, &SocketAddr::new(from, 0)).unwrap();
    }
    connect(&socket, &client.to).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    request(&mut stream, "/").unwrap();
    stream
}

/// Keeps connections and reopens those that are ended, until `work` is done.
fn keeping<T: Send>(lab: &Lab, clients: &[Client], work: impl FnOnce() -> T + Send) -> T {
    let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let kept = || {
                let mut streams: Vec<_> = clients.iter().map(|client| open(*client)).collect();
                ready.store(true, Ordering::Relaxed);
                while !done.load(Ordering::Relaxed) {
                    for (stream, client) in streams.iter_mut().zip(clients) {
                        stream.set_nonblocking(true).unwrap();
                        let lives = stream
                            .read(&mut [0])
                            .is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
                        if !lives {
                            *stream = open(*client);
                        }
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            };
            lab.client().enter(kept).unwrap();
        });
        // Also if the work fails: the thread must end.
        struct Done<'a>(&'a AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _done = Done(&done);
        while !ready.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
        work()
    })
}

/// Moves that each plan with any has started, in order.
fn rounds(agent: &mut Agent) -> Vec<u64> {
    let moves = |line: Value| line["moves"].as_u64().unwrap();
    let all = agent.logged("listed").into_iter().map(moves);
    all.filter(|moves| *moves > 0).collect()
}

fn loads(agent: &Agent, lab: &Lab) -> Vec<usize> {
    let of = |pod| agent.connections(pod).len();
    lab.pods().iter().map(of).collect()
}

/// Outcomes of the moves so far, by the client's address.
fn resets(agent: &mut Agent) -> BTreeMap<String, usize> {
    let mut moved = BTreeMap::new();
    for line in agent.logged("move") {
        assert_eq!(line["outcome"], "reset", "{line}");
        let peer: SocketAddr = serde_json::from_value(line["peer"].clone()).unwrap();
        *moved.entry(peer.ip().to_string()).or_default() += 1;
    }
    moved
}

/// So many clients of the Service.
fn of_service(lab: &Lab, count: usize) -> Vec<Client> {
    let to = lab.service();
    vec![Client { from: None, to }; count]
}

/// So many clients that dial the first pod.
fn of_first_pod(lab: &Lab, count: usize) -> Vec<Client> {
    let to = lab.pod(0).address();
    vec![Client { from: None, to }; count]
}

/// Until all three pods serve.
fn scale_out(lab: &Lab) {
    lab.scale(3).unwrap();
    lab.wait_ready().unwrap();
}

#[test]
fn a_hot_replica_sheds_its_excess_to_two_new_ones_and_then_nothing_moves() {
    let lab = lab_serving(3, 1);
    let clients = of_service(&lab, 300);
    keeping(&lab, &clients, || {
        scale_out(&lab);
        let mut agent = Agent::in_lab(&lab, &policy(&lab, "by: Connections, tolerance: 20%"));
        agent.wait_for_intervals(20);
        let (rounds_at_first, held) = (rounds(&mut agent), loads(&agent, &lab));
        let moves: u64 = rounds_at_first.iter().sum();
        // 300 to 120, where of three that are moved one comes back.
        let least = 180.0 * 1.5;
        println!(
            "rounds {rounds_at_first:?}, {moves} moves ÷ {least} least = {:.3}; now {held:?}",
            moves as f64 / least
        );
        assert!(held.iter().all(|held| *held <= 120), "{held:?}");
        let first_few = rounds_at_first.iter().take_while(|moves| **moves <= 6);
        let others = rounds_at_first.len() - first_few.count();
        assert!(others <= 3, "{rounds_at_first:?}");
        assert!((0.8..1.25).contains(&(moves as f64 / least)), "{moves}");
        agent.wait_for_intervals(40);
        let rounds = rounds(&mut agent);
        assert_eq!(rounds, rounds_at_first, "no move while balanced");
        assert_eq!(resets(&mut agent).values().sum::<usize>() as u64, moves);
        let reason = &agent.logged("move")[0]["reason"];
        assert_eq!(reason, "endpoint holds 300 of mean 100, stop 120");
    });
}

/// The same clients; ClientIP affinity sends them back each time.
#[test]
fn moves_against_client_ip_affinity_stop_after_a_few() {
    let lab = lab_serving(3, 1);
    scale_out(&lab);
    lab.set_sticky_endpoints(&[0]).unwrap();
    let clients = of_service(&lab, 60);
    keeping(&lab, &clients, || {
        // The rules remember who was sent to the first.
        lab.set_sticky_endpoints(&[0, 1, 2]).unwrap();
        stops_after_a_few(&lab);
    });
}

#[test]
fn moves_of_clients_that_dial_the_pod_address_stop_after_a_few() {
    let lab = lab_serving(3, 1);
    let clients = of_first_pod(&lab, 60);
    keeping(&lab, &clients, || {
        scale_out(&lab);
        stops_after_a_few(&lab);
    });
}

fn stops_after_a_few(lab: &Lab) {
    let mut agent = Agent::in_lab(lab, &policy(lab, "tolerance: 10%"));
    let hold = agent.wait_for("that moves do not help", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.starts_with("moves do not help")
    });
    shows(
        &hold,
        json!({"moves": 6, "returned": 6, "for_seconds": 600}),
    );
    agent.wait_for_intervals(40);
    let moved = resets(&mut agent);
    println!("moves by client: {moved:?}");
    assert_eq!(moved.values().copied().collect::<Vec<_>>(), [6]);
    agent.has_skipped("returns");
}

#[test]
fn a_flood_of_one_client_to_one_pod_does_not_move_other_clients() {
    let lab = lab_serving(3, 1);
    scale_out(&lab);
    let address = |last: u8| Ipv4Addr::new(10, 244, lab.id(), last);
    for last in 140..170 {
        add_address(&lab, address(last));
    }
    // Thirty neighbours that kube-proxy places, four connections each, and the flood.
    let neighbours = (0..120).map(|i| Client {
        from: Some(address(140 + (i % 30)).into()),
        to: lab.service(),
    });
    let flood = of_first_pod(&lab, 200);
    let clients: Vec<Client> = neighbours.chain(flood).collect();
    keeping(&lab, &clients, || {
        let mut agent = Agent::in_lab(&lab, &policy(&lab, "tolerance: 10%"));
        agent.wait_for_intervals(30);
        let moved = resets(&mut agent);
        println!("{:?}, moves by client: {moved:?}", loads(&agent, &lab));
        assert_eq!(moved.len(), 1, "{moved:?}");
        assert!(moved.values().all(|moves| *moves <= 6), "{moved:?}");
        assert!(!moved.keys().any(|client| client.ends_with(".140")));
    });
}

#[test]
fn one_connection_with_nearly_all_the_load_is_not_moved_back_and_forth() {
    let lab = lab_serving(3, 1);
    scale_out(&lab);
    keeping(&lab, &of_service(&lab, 30), || {
        let mut agent = Agent::in_lab(&lab, &policy(&lab, "by: ByteRate, tolerance: 10%"));
        let done = AtomicBool::new(false);
        let downloads = std::thread::scope(|scope| {
            let heavy = scope.spawn(|| {
                let mut stream = connect_to(&lab, lab.pod(0).address());
                let mut downloads = 0;
                while !done.load(Ordering::Relaxed) {
                    request(&mut stream, "/blob").expect("it is not bounced");
                    downloads += 1;
                    // Quiet in between, and long enough to be reset.
                    std::thread::sleep(Duration::from_millis(100));
                }
                downloads
            });
            agent.wait_for_intervals(25);
            done.store(true, Ordering::Relaxed);
            heavy.join().unwrap()
        });
        assert!(downloads > 20, "{downloads}");
        assert_eq!(rounds(&mut agent), [] as [u64; 0]);
        println!("{downloads} downloads");
        agent.has_skipped("withinBalance");
    });
}
