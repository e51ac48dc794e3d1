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
    let own = format!("--pins {}", pins.display());
    let own = if arguments.contains("--pins") {
        ""
    } else {
        &own
    };
    let script = format!(
        "{prepare} && exec {REBALANCER} agent --policy {} {own} {arguments}",
        policy.path().display(),
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
fn without_privileges_the_exit_code_is_4() {
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
fn without_btf_cgroup_v2_or_bpffs_the_agent_names_the_remedy() {
    const WITHOUT_CGROUP2: &str =
        "for m in $(awk '/ - cgroup2 / {print $5}' /proc/self/mountinfo); do umount -l $m; done";
    // As in a private cgroup namespace: a subtree at the usual place.
    const SUBTREE: &str = "root=$(awk '/ - cgroup2 / {print $5; exit}' /proc/self/mountinfo) && \
         mkdir -p $root/rebalancer-test-part && mkdir -p /run/rebalancer-test-part && \
         mount --bind $root/rebalancer-test-part /run/rebalancer-test-part && \
         rmdir $root/rebalancer-test-part; \
         for m in $(awk '/ - cgroup2 / && $5 !~ /part/ {print $5}' /proc/self/mountinfo); do umount -l $m; done";
    let _alone = alone();
    for (prepare, arguments, parts) in [
        (
            "mount -t tmpfs none /sys/kernel/btf",
            "",
            ["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"],
        ),
        (
            WITHOUT_CGROUP2,
            "",
            ["cgroup v2 hierarchy", "mount -t cgroup2"],
        ),
        (SUBTREE, "", ["private cgroup namespace", "--cgroup"]),
        (
            "true",
            "--cgroup /tmp",
            ["/tmp: not a cgroup v2 directory", "remedy"],
        ),
        (
            "true",
            "--pins /tmp/rebalancer-pins",
            ["not a bpffs", "mount -t bpf"],
        ),
    ] {
        let out = agent_after(prepare, arguments);
        let message = stderr(&out);
        assert_eq!(out.status.code(), Some(1), "{prepare}: {message}");
        for part in parts {
            assert!(message.contains(part), "{prepare}: {message}");
        }
    }
    let _ = std::fs::remove_dir("/run/rebalancer-test-part");
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
