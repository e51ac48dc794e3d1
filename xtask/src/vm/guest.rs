//! What a machine holds: the initramfs, and in it the agent, the kernel tests and what the lab runs.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use fs_err as fs;
use serde_json::Value;
use xtask::command::output;

use super::{abilities, kernels::Kernel};
use crate::{cargo, image::Root, progress, root, setup};

const INIT: &str = include_str!("init.sh");
const POLICY: &str = "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: Disabled
rules:
- {name: nothing, match: {ports: [{port: 1}]}, limits: {maxAge: 1h}}
";

/// What does not depend on the kernel.
pub(super) struct Guest {
    archive: Vec<u8>,
    folder: PathBuf,
}

impl Guest {
    /// With this agent, and the kernel tests as they are built here.
    pub(super) fn make(agent: &Path, folder: &Path) -> Result<Self> {
        let tests = Tests::build()?;
        tests.ensure_all_are_there()?;
        let mut root = Root::default();
        for folder in [
            "dev",
            "proc",
            "sys",
            "tmp",
            "run",
            "root",
            "var/log/nginx",
            "var/lib/nginx",
        ] {
            root.folder(&format!("/{folder}"));
        }
        root.program("/bin/busybox", &setup::find("busybox").context("busybox")?)?;
        // Not busybox's: that one takes its own `ip` for ours.
        root.program("/bin/sh", &setup::find("sh").context("sh")?)?;
        root.link("/sbin/modprobe", "/bin/busybox");
        for program in [
            "ip",
            "ss",
            "ab",
            "nginx",
            "bpftool",
            "iptables-restore",
            "ip6tables-restore",
        ] {
            let path = setup::find(program).with_context(|| program.to_owned())?;
            root.program(&format!("/usr/sbin/{program}"), &path)?;
        }
        extensions_of_iptables(&mut root)?;
        root.text("/etc/passwd", "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\nwww-data:x:33:33::/:/bin/sh\n");
        root.text(
            "/etc/group",
            "root:x:0:\nnogroup:x:65534:\nwww-data:x:33:\n",
        );
        // Where the tests look for the one that they were built with stands the one that ships.
        let place = tests.agent.to_str().context("the agent's path")?;
        root.program(place, agent)?;
        root.link("/usr/bin/rebalancer", place);
        let stripped = folder.join("kernel-tests");
        let mut strip = Command::new("strip");
        output(
            strip
                .args(["--strip-debug", "-o"])
                .args([&stripped, &tests.kernel]),
        )?;
        root.program("/checks/kernel", &stripped)?;
        root.program("/checks/calls", &calls(folder)?)?;
        root.text(
            "/checks/tests",
            &abilities::tests()
                .map(|test| format!("{test}\n"))
                .collect::<String>(),
        );
        root.text("/checks/policy.yaml", POLICY);
        root.script("/init", INIT);
        Ok(Self {
            archive: root.cpio(),
            folder: folder.to_owned(),
        })
    }

    /// The initramfs for this kernel.
    pub(super) fn for_kernel(&self, kernel: &Kernel) -> Result<PathBuf> {
        let mut modules = Root::default();
        modules.tree(Path::new("/lib"), &kernel.modules.join("lib"))?;
        let path = self.folder.join("initramfs");
        // Archives may follow each other.
        fs::write(&path, [&self.archive[..], &modules.cpio()].concat())?;
        Ok(path)
    }
}

/// iptables opens its extensions by name, so `ldd` does not list them.
fn extensions_of_iptables(root: &mut Root) -> Result<()> {
    for entry in fs::read_dir("/usr/lib").context("/usr/lib")?.flatten() {
        let extensions = entry.path().join("xtables");
        for extension in fs::read_dir(extensions).into_iter().flatten().flatten() {
            root.executable(&extension.path(), &extension.path())?;
        }
    }
    Ok(())
}

/// The server and the client of HTTP/2 that the kernel tests use: a machine has no Go to build them.
fn calls(folder: &Path) -> Result<PathBuf> {
    let built = folder.join("calls");
    let source = root().join("rebalancer-user/tests/kernel/calls");
    let mut go = setup::go_build(&source)?;
    go.arg("-o").arg(&built).arg(".");
    progress::run("building the HTTP/2 client and server", &mut go)?;
    Ok(built)
}

/// The kernel tests' program, and the agent that it was built with.
struct Tests {
    kernel: PathBuf,
    agent: PathBuf,
}

impl Tests {
    /// As `cargo xtask test kernel` builds it.
    fn build() -> Result<Self> {
        let output = cargo()
            .args(["test", "--workspace", "--test", "kernel", "--no-run"])
            .arg("--message-format=json-render-diagnostics")
            .stderr(Stdio::inherit())
            .output()
            .context("cargo test")?;
        ensure!(output.status.success(), "the kernel tests are not built");
        let said = String::from_utf8_lossy(&output.stdout);
        let artifacts: Vec<Value> = said
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let built = |name: &str, kind: &str| {
            let is_it =
                |it: &&Value| it["target"]["name"] == name && it["target"]["kind"][0] == kind;
            let mut found = artifacts
                .iter()
                .filter(is_it)
                .filter_map(|it| it["executable"].as_str());
            let path = found
                .next()
                .with_context(|| format!("cargo built no {name}"));
            path.map(PathBuf::from)
        };
        Ok(Self {
            kernel: built("kernel", "test")?,
            agent: built("rebalancer", "bin")?,
        })
    }

    /// A test that was renamed would fail in each machine, minutes later.
    fn ensure_all_are_there(&self) -> Result<()> {
        let list = output(Command::new(&self.kernel).arg("--list"))?;
        for test in abilities::tests() {
            ensure!(
                list.lines().any(|line| line == format!("{test}: test")),
                "xtask/src/vm/abilities.rs names the kernel test {test}, which does not exist"
            );
        }
        Ok(())
    }
}
