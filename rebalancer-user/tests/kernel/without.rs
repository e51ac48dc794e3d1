//! What is missing on a machine: a clear message with a remedy, the right exit code, nothing left
//! behind.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{
    Agent, REBALANCER, TRACK_ONLY, alone, failed, file_of, own_pins, pins_left, stderr,
};

/// The command in a mount namespace of its own, after this.
pub fn after(prepare: &str, command: &Command) -> Command {
    let script = format!("{prepare} && exec {REBALANCER} \"$@\"");
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", &script, "sh"]);
    unshare.args(command.get_args());
    unshare
}

/// Opens a path to everybody.
pub fn open(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A copy of the binary that everybody can reach: the binary may lie where nobody else can.
pub fn copy_in(folder: &Path) -> PathBuf {
    let binary = folder.join("rebalancer");
    fs::copy(REBALANCER, &binary).unwrap();
    open(folder);
    binary
}

/// The same command by nobody.
pub fn as_nobody(binary: &Path, command: &Command) -> Command {
    let mut nobody = Command::new(binary);
    nobody.args(command.get_args()).uid(65_534).gid(65_534);
    nobody
}

pub const WITHOUT_BTF: &str = "mount -t tmpfs none /sys/kernel/btf";
pub const WITHOUT_CGROUP2: &str =
    "for m in $(awk '/ - cgroup2 / {print $5}' /proc/self/mountinfo); do umount -l $m; done";

#[test]
fn without_btf_cgroup_v2_or_bpffs_the_agent_names_the_remedy() {
    // As in a private cgroup namespace: a subtree at the usual place.
    const SUBTREE: &str = "root=$(awk '/ - cgroup2 / {print $5; exit}' /proc/self/mountinfo) && \
         mkdir -p $root/rebalancer-test-part && mkdir -p /run/rebalancer-test-part && \
         mount --bind $root/rebalancer-test-part /run/rebalancer-test-part && \
         rmdir $root/rebalancer-test-part; \
         for m in $(awk '/ - cgroup2 / && $5 !~ /part/ {print $5}' /proc/self/mountinfo); do umount -l $m; done";
    alone();
    let policy = file_of(TRACK_ONLY);
    let no_bpffs = Path::new("/tmp/rebalancer-pins");
    let (pins, tmp) = (&*own_pins(), &["--cgroup", "/tmp"]);
    let no_btf = ["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"];
    let no_cgroup2 = ["cgroup v2 hierarchy", "mount -t cgroup2"];
    let not_cgroup2 = ["/tmp: not a cgroup v2 directory", "remedy"];
    for (prepare, pins, arguments, parts) in [
        (WITHOUT_BTF, pins, &[][..], no_btf),
        (WITHOUT_CGROUP2, pins, &[], no_cgroup2),
        (SUBTREE, pins, &[], ["private cgroup namespace", "--cgroup"]),
        ("true", pins, tmp, not_cgroup2),
        ("true", no_bpffs, &[], ["not a bpffs", "mount -t bpf"]),
    ] {
        let agent = Agent::command(policy.path(), pins, arguments);
        let message = failed(1, &after(prepare, &agent).output().unwrap());
        for part in parts {
            assert!(message.contains(part), "{prepare}: {message}");
        }
        // What no process holds and nothing pins is not in the kernel.
        assert_eq!(pins_left(pins), [] as [PathBuf; 0]);
    }
    let _ = fs::remove_dir("/run/rebalancer-test-part");
    assert!(!no_bpffs.exists());
}

#[test]
fn bpffs_is_mounted_if_it_is_not() {
    alone();
    let script = format!(
        "umount -l /sys/fs/bpf && {REBALANCER} dump -o json && \
         grep -q ' /sys/fs/bpf .* - bpf ' /proc/self/mountinfo"
    );
    let mut unshare = Command::new("unshare");
    let out = unshare.args(["--mount", "sh", "-c", &script]).output();
    let out = out.unwrap();
    assert!(out.status.success(), "{}", stderr(&out));
}
