//! `cargo xtask test vm --systemd`: runs the unit of deploy/systemd on Debian 13 in a virtual machine, with
//! systemd as init, cgroup v2 alone and AppArmor.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use fs_err as fs;

use super::{Boot, Cgroup, Lockdown, archive::Archive, kernels::Kernel, machine};
use crate::{
    image::Root,
    once,
    progress::{self, Step},
    setup, terminal,
};

const SUITE: &str = "trixie";
const KERNEL: &str = "6.12";
/// In addition to debootstrap's minbase.
const PACKAGES: &str = "apparmor,dbus,iproute2,kmod,nginx-light,procps,systemd,systemd-sysv,udev";
const UNIT: &str = include_str!("../../../deploy/systemd/rebalancer.service");
const POLICY: &str = "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: DryRun
interval: 1s
guards: {minAge: 1s, allowHostNetwork: true, allowSystemPorts: [80]}
rules:
- name: web
  match: {ports: [{port: 80}]}
  limits: {maxAge: 5s}
";
const CHECKS: &str = "\
[Unit]
After=multi-user.target
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/checks.sh
";

pub(super) fn run(agent: &Path, folder: &Path) -> Result<()> {
    terminal::heading("A Debian 13 with systemd");
    let kernel = Kernel::unpack(&Archive::open(folder)?.fetch(KERNEL)?, folder)?;
    let system = system(folder)?;
    let mut root = Root::default();
    root.tree(Path::new("/"), &system)?;
    root.executable(Path::new("/usr/local/bin/rebalancer"), agent)?;
    root.text("/etc/rebalancer/policy.yaml", POLICY);
    root.text("/etc/systemd/system/rebalancer.service", UNIT);
    root.text("/etc/systemd/system/checks.service", CHECKS);
    root.link(
        "/etc/systemd/system/multi-user.target.wants/checks.service",
        "../checks.service",
    );
    root.script("/checks.sh", include_str!("systemd.sh"));
    root.script("/client.sh", include_str!("systemd_client.sh"));
    root.link("/init", "usr/lib/systemd/systemd");
    // Debian's /lib is a link to /usr/lib.
    root.tree(Path::new("/usr/lib"), &kernel.modules.join("lib"))?;
    let initramfs = folder.join("initramfs-systemd");
    fs::write(&initramfs, root.cpio())?;
    let boot = Boot {
        kernel: &kernel,
        lockdown: Lockdown::None,
        cgroup: Cgroup::V2,
        yama: None,
    };
    let step = Step::start(&format!("{boot}, systemd"));
    let log = folder.join("systemd.log");
    let lines = machine::run(boot, &initramfs, &log, &|line| step.update(line))?;
    let starting = |word: &str| {
        let of = |line: &String| line.strip_prefix(word).map(str::to_owned);
        lines.iter().filter_map(of).collect::<Vec<_>>()
    };
    let (passed, failed) = (starting("passed "), starting("failed "));
    let is_whole = lines.last().is_some_and(|line| line == "end");
    let has_passed = failed.is_empty() && is_whole;
    step.end(has_passed);
    for note in [starting("booted "), starting("note ")].concat() {
        println!("    {note}");
    }
    for (names, passed) in [(&passed, true), (&failed, false)] {
        for name in names {
            terminal::check(passed, name, "");
        }
    }
    ensure!(
        has_passed,
        "see above, and the machine's console: {}",
        log.display()
    );
    Ok(())
}

/// A minimal Debian with systemd, installed once and then reused.
fn system(folder: &Path) -> Result<PathBuf> {
    let done = folder.join(format!("system-{SUITE}"));
    once(&done, |partial| {
        ensure!(
            rustix::process::geteuid().is_root(),
            "making a Debian for a machine needs root: debootstrap uses chroot(2)"
        );
        progress::run(
            &format!("installing Debian {SUITE}, some three minutes"),
            Command::new(setup::find("debootstrap").context("debootstrap")?)
                .args(["--variant=minbase", "--include", PACKAGES, SUITE])
                .arg(partial)
                .arg("http://deb.debian.org/debian"),
        )?;
        // Indexes and packages, which nothing there needs.
        for place in [
            "var/cache/apt",
            "var/lib/apt/lists",
            "usr/share/doc",
            "usr/share/locale",
        ] {
            fs::remove_dir_all(partial.join(place))?;
        }
        Ok(())
    })?;
    Ok(done)
}
