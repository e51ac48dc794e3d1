//! What is missing on a machine: a clear message with a remedy, the right exit code, nothing left
//! behind.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, Output},
};

use crate::support::{REBALANCER, TRACK_ONLY, alone, own_pins, pins_left, stderr};

/// Runs the agent in a mount namespace of its own, after `prepare`.
fn agent_after(prepare: &str, arguments: &str) -> Output {
    let policy = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(policy.path(), TRACK_ONLY).unwrap();
    let pins = own_pins();
    let script = format!(
        "{prepare} && exec {REBALANCER} agent --policy {} --pins {} {arguments}",
        policy.path().display(),
        pins.display()
    );
    let out = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()
        .unwrap();
    // What no process holds and nothing pins is not in the kernel.
    assert_eq!(pins_left(&pins), [] as [std::path::PathBuf; 0]);
    out
}

#[test]
fn without_privilege() {
    let _alone = alone();
    let policy = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(policy.path(), TRACK_ONLY).unwrap();
    // The binary may lie where nobody else can reach it.
    let dir = tempfile::tempdir().unwrap();
    let binary = dir.path().join("rebalancer");
    std::fs::copy(REBALANCER, &binary).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode;
    for path in [dir.path(), policy.path()] {
        std::fs::set_permissions(path, open(0o755)).unwrap();
    }
    let file = policy.path().to_str().unwrap();
    for arguments in [&["dump"][..], &["agent", "--policy", file]] {
        let out = Command::new(&binary)
            .args(arguments)
            .uid(65_534)
            .gid(65_534)
            .output()
            .unwrap();
        let message = stderr(&out);
        assert_eq!(out.status.code(), Some(4), "{message}");
        assert!(
            message.contains("CAP_BPF") && message.contains("remedy"),
            "{message}"
        );
    }
}

#[test]
fn without_btf() {
    let _alone = alone();
    let out = agent_after("mount -t tmpfs none /sys/kernel/btf", "");
    let message = stderr(&out);
    assert_eq!(out.status.code(), Some(1), "{message}");
    assert!(message.contains("/sys/kernel/btf/vmlinux"), "{message}");
    assert!(message.contains("CONFIG_DEBUG_INFO_BTF"), "{message}");
}

#[test]
fn without_cgroup_v2() {
    let _alone = alone();
    let hide =
        "for m in $(awk '/ - cgroup2 / {print $5}' /proc/self/mountinfo); do umount -l $m; done";
    let out = agent_after(hide, "");
    let message = stderr(&out);
    assert_eq!(out.status.code(), Some(1), "{message}");
    assert!(
        message.contains("cgroup v2 hierarchy") && message.contains("mount -t cgroup2"),
        "{message}"
    );
}

#[test]
fn with_only_a_subtree_of_the_hierarchy_mounted() {
    let _alone = alone();
    // As a private cgroup namespace shows it: a subtree at the usual place.
    let hide = "root=$(awk '/ - cgroup2 / {print $5; exit}' /proc/self/mountinfo) && \
                mkdir -p $root/rebalancer-test-part && mkdir -p /run/rebalancer-test-part && \
                mount --bind $root/rebalancer-test-part /run/rebalancer-test-part && \
                rmdir $root/rebalancer-test-part; \
                for m in $(awk '/ - cgroup2 / && $5 !~ /part/ {print $5}' /proc/self/mountinfo); do umount -l $m; done";
    let out = agent_after(hide, "");
    let message = stderr(&out);
    let _ = std::fs::remove_dir("/run/rebalancer-test-part");
    assert_eq!(out.status.code(), Some(1), "{message}");
    assert!(
        message.contains("private cgroup namespace") && message.contains("--cgroup"),
        "{message}"
    );
}

#[test]
fn with_a_cgroup_option_that_is_no_cgroup() {
    let _alone = alone();
    let out = agent_after("true", "--cgroup /tmp");
    let message = stderr(&out);
    assert_eq!(out.status.code(), Some(1), "{message}");
    assert!(
        message.contains("/tmp: not a cgroup v2 directory") && message.contains("remedy"),
        "{message}"
    );
}

#[test]
fn with_pins_outside_a_bpffs() {
    let _alone = alone();
    let policy = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(policy.path(), TRACK_ONLY).unwrap();
    let out = Command::new(REBALANCER)
        .args(["agent", "--pins", "/tmp/rebalancer-pins", "--policy"])
        .arg(policy.path())
        .output()
        .unwrap();
    let message = stderr(&out);
    assert_eq!(out.status.code(), Some(1), "{message}");
    assert!(
        message.contains("not a bpffs") && message.contains("mount -t bpf"),
        "{message}"
    );
    assert!(!std::path::Path::new("/tmp/rebalancer-pins").exists());
}

#[test]
fn bpffs_is_mounted_if_it_is_not() {
    let _alone = alone();
    let script = format!(
        "umount -l /sys/fs/bpf && {REBALANCER} dump -o json && \
         grep -q ' /sys/fs/bpf .* - bpf ' /proc/self/mountinfo"
    );
    let out = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", stderr(&out));
}

#[test]
fn with_an_invalid_policy() {
    let _alone = alone();
    let policy = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(policy.path(), TRACK_ONLY.replace("maxAge: 1h", "maxAge: 1")).unwrap();
    let out = Command::new(REBALANCER)
        .args(["agent", "--policy"])
        .arg(policy.path())
        .output()
        .unwrap();
    let message = stderr(&out);
    assert_eq!(out.status.code(), Some(3), "{message}");
    assert!(
        message.contains(":5:") && message.contains('^') && message.contains("unit"),
        "{message}"
    );
}
