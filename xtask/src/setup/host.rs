//! The programs that the lab, the demo and the tests run.

use std::path::{Path, PathBuf};

use super::{Finding, KEYS};

/// A program, the Debian package that has it, and what it is for.
type Program = (&'static str, &'static str, &'static str);

const PROGRAMS: [Program; 9] = [
    ("ip", "iproute2", "the lab's namespaces"),
    ("ss", "iproute2", "the kernel's own counts, to compare with"),
    (
        "iptables-restore",
        "iptables",
        "kube-proxy's rules in the lab",
    ),
    ("nginx", "nginx-light", "the lab's pods"),
    ("ab", "apache2-utils", "clients of demo and tests"),
    ("iperf3", "iperf3", "bulk traffic in tests"),
    ("nsenter", "util-linux", "a look into the lab"),
    (
        "bpftool",
        "bpftool",
        "tests that look at the kernel from outside",
    ),
    ("kubectl", "kubernetes-client", "the manifests' test"),
];

/// What the cluster's nodes and images are made of, beside what is built.
const CLUSTER: [Program; 7] = [
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

/// What boots other kernels, beside the lab's programs.
const MACHINES: [Program; 6] = [
    (
        "qemu-system-x86_64",
        "qemu-system-x86",
        "machines with other kernels",
    ),
    ("busybox", "busybox-static", "a shell in them"),
    ("xz", "xz-utils", "their modules"),
    ("strip", "binutils", "the tests that they run"),
    ("apt-get", "apt", "their kernels"),
    ("debootstrap", "debootstrap", "a Debian with systemd"),
];

pub(super) fn look() -> Vec<Finding> {
    PROGRAMS.map(look_for).into()
}

pub(super) fn look_for_cluster() -> Vec<Finding> {
    CLUSTER.map(look_for).into()
}

pub(super) fn look_for_machines() -> Vec<Finding> {
    let keys = Path::new(KEYS);
    let mut findings: Vec<Finding> = MACHINES.map(look_for).into();
    findings.push(Finding {
        what: "Debian's keys",
        state: if keys.exists() {
            Ok(KEYS.to_owned())
        } else {
            Err("missing: for machines' kernels".to_owned())
        },
        packages: vec!["debian-archive-keyring"],
    });
    findings
}

/// Looks for one program; its package, and what it is for.
pub(super) fn look_for((program, package, purpose): (&'static str, &'static str, &str)) -> Finding {
    Finding {
        what: program,
        state: find(program)
            .map(|path| path.display().to_string())
            .ok_or_else(|| format!("missing: for {purpose}")),
        packages: vec![package],
    }
}

/// Where `program` is. Users other than root often have no sbin in their PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata()
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
