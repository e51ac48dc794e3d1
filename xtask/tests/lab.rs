//! Black-box tests of the lab. Needs root; `cargo xtask test kernel` runs it.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use xtask::lab::{Lab, Spec};

/// Sends a request on `stream` and returns the pod that answered.
fn request(stream: &mut TcpStream) -> String {
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n")
        .unwrap();
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    let pod = answer.lines().find_map(|line| line.strip_prefix("X-Pod: "));
    pod.unwrap_or_else(|| panic!("no X-Pod in {answer}"))
        .to_owned()
}

fn try_connect(lab: &Lab, target: SocketAddr) -> io::Result<TcpStream> {
    lab.client().enter(|| TcpStream::connect(target)).unwrap()
}

fn connect(lab: &Lab, target: SocketAddr) -> TcpStream {
    try_connect(lab, target).unwrap()
}

#[track_caller]
fn is_refused(lab: &Lab, target: SocketAddr) {
    let refused = try_connect(lab, target).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

fn lab(pods: usize, serving: usize) -> Lab {
    Lab::start(Spec { pods, serving }).unwrap()
}

#[test]
fn connections_spread_and_requests_stay_on_their_connection() {
    let lab = Lab::start(Spec::default()).unwrap();
    assert_connections_spread(&lab, lab.service());
}

#[test]
fn connections_spread_over_ipv6() {
    let lab = Lab::start(Spec::default()).unwrap();
    let service = lab.service6().expect("this machine has IPv6 and IPv6 NAT");
    assert_connections_spread(&lab, service);
    for pod in lab.pods() {
        let address = pod.address6().unwrap();
        assert_eq!(request(&mut connect(&lab, address)), pod.name);
    }
    let mut old = connect(&lab, service);
    let first = request(&mut old);
    lab.set_endpoints(&[]).unwrap();
    assert_eq!(request(&mut old), first, "conntrack keeps it");
    is_refused(&lab, service);
}

fn assert_connections_spread(lab: &Lab, service: SocketAddr) {
    let mut shares = BTreeMap::new();
    for _ in 0..60 {
        let mut stream = connect(lab, service);
        let pod = request(&mut stream);
        assert_eq!(pod, request(&mut stream), "a connection keeps its replica");
        *shares.entry(pod).or_insert(0) += 1;
    }
    // One of three pods gets none of 60 with a probability of 3 in 10^11.
    assert_eq!(shares.len(), 3, "{shares:?}");
    for pod in lab.pods() {
        assert_eq!(pod.counts().unwrap().requests, 2 * shares[&pod.name]);
    }
}

#[test]
fn new_endpoints_do_not_move_existing_connections() {
    let lab = lab(2, 1);
    let mut old = connect(&lab, lab.service());
    assert_eq!(request(&mut old), "web-0");
    lab.pod(1).start_server().unwrap();
    lab.set_endpoints(&[1]).unwrap();
    assert_eq!(request(&mut old), "web-0", "conntrack keeps it");
    assert_eq!(request(&mut connect(&lab, lab.service())), "web-1");
    lab.set_endpoints(&[]).unwrap();
    is_refused(&lab, lab.service());
}

#[test]
fn programs_run_in_their_host_and_are_killed_with_the_lab() {
    let lab = lab(1, 0);
    let pod = lab.pod(0);
    let mut sleeper = pod.host.spawn("sleep", &["1000"]).unwrap();
    let process = PathBuf::from(format!("/proc/{}", sleeper.id()));
    let namespace = fs::read_link(process.join("ns/net")).unwrap();
    let inode = pod.host.netns_inode();
    assert_eq!(namespace, PathBuf::from(format!("net:[{inode}]")));
    let cgroups = fs::read_to_string(process.join("cgroup")).unwrap();
    let (_, cgroup) = cgroups.rsplit_once("0::/").unwrap();
    assert!(pod.host.cgroup().ends_with(cgroup.trim()), "{cgroups}");
    let (netns, cgroup) = (pod.host.netns().to_owned(), pod.host.cgroup().to_owned());
    drop(lab);
    assert!(!sleeper.wait().unwrap().success(), "the lab kills it");
    assert!(!netns.exists());
    assert!(!cgroup.exists());
}

#[test]
fn labs_are_independent() {
    let [first, second] = [(); 2].map(|()| lab(1, 1));
    assert_ne!(first.service(), second.service());
    assert_ne!(first.client_subnet(), second.client_subnet());
    let mut stream = connect(&second, second.service());
    drop(first);
    // Removing one lab leaves the other running.
    assert_eq!(request(&mut stream), "web-0");
}
