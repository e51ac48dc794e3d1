//! The programs that the lab, the demo and the tests run.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::Finding;

/// A program, or the path of something else, its Debian package, and its purpose.
type Program = (&'static str, &'static str, &'static str);

/// Those of the lab.
pub(super) const LAB: [Program; 9] = [
    ("ip", "iproute2", "the lab's namespaces"),
    ("ss", "iproute2", "the kernel's counts, for comparison"),
    (
        "iptables-restore",
        "iptables",
        "kube-proxy's rules in the lab",
    ),
    ("nginx", "nginx-light", "the lab's pods"),
    ("ab", "apache2-utils", "clients of the demo and tests"),
    ("iperf3", "iperf3", "bulk traffic in tests"),
    ("nsenter", "util-linux", "inspecting the lab"),
    ("bpftool", "bpftool", "tests that inspect BPF objects"),
    ("kubectl", "kubernetes-client", "the manifests' test"),
];

/// Programs that the cluster's nodes and images need in addition to those that are built.
pub(super) const CLUSTER: [Program; 7] = [
    ("containerd", "containerd", "the nodes' containers"),
    ("runc", "runc", "the nodes' containers"),
    (
        "/usr/lib/cni/bridge",
        "containernetworking-plugins",
        "the pods' network",
    ),
    ("iptables", "iptables", "kube-proxy"),
    ("nft", "nftables", "kube-proxy"),
    ("busybox", "busybox-static", "a shell in images"),
    ("openssl", "openssl", "the cluster's certificates"),
];

/// Languages and libraries of servers and clients that are rolled in the cluster.
pub(super) const ROLLOUTS: [Program; 5] = [
    ("node", "nodejs", "a server and a client of Node"),
    ("javac", "default-jdk-headless", "a client of Java"),
    (
        "/usr/bin/python3",
        "python3",
        "a server and clients of Python",
    ),
    (
        "/usr/lib/python3/dist-packages/aiohttp",
        "python3-aiohttp",
        "a server and a client of aiohttp",
    ),
    (
        "/usr/lib/python3/dist-packages/grpc",
        "python3-grpcio",
        "a client of grpcio",
    ),
];

/// Programs that boot other kernels, in addition to the lab's.
pub(super) const MACHINES: [Program; 6] = [
    (
        "qemu-system-x86_64",
        "qemu-system-x86",
        "machines with other kernels",
    ),
    ("busybox", "busybox-static", "a shell in machines"),
    ("xz", "xz-utils", "kernel modules of machines"),
    ("strip", "binutils", "tests that machines run"),
    ("apt-get", "apt", "kernels of machines"),
    (KEYS, "debian-archive-keyring", "kernels of machines"),
];

/// The keys of Debian's archives.
pub(crate) const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What `cargo xtask test steps` runs, except PostgreSQL.
pub(super) const SERVERS: [Program; 5] = [
    ("redis-server", "redis-server", "the suite steps"),
    ("cc", "gcc", "the suite steps"),
    (
        "/usr/lib/nginx/modules/ngx_http_echo_module.so",
        "libnginx-mod-http-echo",
        "the suite steps",
    ),
    ("setpriv", "util-linux", "the suite steps"),
    (
        "/usr/lib/python3/dist-packages/websockets",
        "python3-websockets",
        "the suite steps",
    ),
];

pub(super) fn find_program((program, package, purpose): Program) -> Finding {
    let found = match Path::new(program) {
        path if path.is_absolute() => path.exists().then(|| path.to_owned()),
        _ => find(program),
    };
    let found = found.with_context(|| format!("missing: for {purpose}"));
    Finding {
        what: program,
        state: found.map(|path| path.display().to_string()),
        packages: vec![package],
    }
}

/// The path of `program`. Also searches sbin, which users other than root often lack in PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    which::which_in(program, std::env::join_paths(folders).ok(), "/").ok()
}

pub(super) fn find_postgres() -> Finding {
    let programs = postgres_programs().context("missing: for the suite steps");
    Finding {
        what: "PostgreSQL",
        state: programs.map(|bin| bin.display().to_string()),
        packages: vec!["postgresql"],
    }
}

/// The folder of the newest installed version's programs.
pub(crate) fn postgres_programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let programs = versions.map(|version| version.path().join("bin"));
    programs
        .filter(|bin| bin.join("postgres").exists() && bin.join("pgbench").exists())
        .max()
}
