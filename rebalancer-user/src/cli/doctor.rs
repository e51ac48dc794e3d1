//! `rebalancer doctor`: what this node has and lacks, each with its remedy.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{KernelArgs, records::attach_for_the_call};
use crate::{
    abilities::{self, Ability, Tried},
    bpf::{self, Kernel, Walker},
    host,
};

/// Check what this node provides and lacks, with a remedy for each problem.
///
/// Opens loopback connections of its own, which must be recorded and which it resets, and touches
/// nothing else. Exit code 1 if the agent could not run or could not move connections here, 4 if
/// privileges are missing.
#[derive(Args)]
pub(super) struct Doctor {
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
    #[command(flatten)]
    kernel: KernelArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Form {
    /// One line per finding.
    Table,
    /// For programs.
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Level {
    Ok,
    /// The agent runs, but not with all that it can do.
    Warning,
    /// The agent cannot run, or cannot move.
    Failed,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    what: &'static str,
    level: Level,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

fn ok(what: &'static str, found: impl Into<String>) -> Finding {
    Finding {
        what,
        level: Level::Ok,
        found: found.into(),
        remedy: None,
    }
}

fn lacks(level: Level, what: &'static str, found: impl Into<String>, remedy: &str) -> Finding {
    let found = found.into();
    // What brings a remedy of its own knows better.
    let (found, remedy) = found.split_once("\n  remedy: ").unwrap_or((&found, remedy));
    Finding {
        what,
        level,
        found: found.to_owned(),
        remedy: Some(remedy.to_owned()),
    }
}

impl Doctor {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let findings = self.findings();
        let out = &mut io::stdout().lock();
        match self.output {
            Form::Table => table(out, &findings),
            Form::Json => serde_json::to_writer_pretty(&mut *out, &findings)
                .map_err(io::Error::from)
                .and_then(|()| writeln!(out)),
        }
        .context("writing to stdout")?;
        let missing = host::missing_capabilities();
        if !missing.is_empty() {
            return Err(bpf::Error::Privilege(missing).into());
        }
        match findings.iter().filter(|f| f.level == Level::Failed).count() {
            0 => Ok(()),
            1 => bail!("1 finding failed"),
            count => bail!("{count} findings failed"),
        }
    }

    fn findings(&self) -> Vec<Finding> {
        let mut findings = vec![kernel_version(), capabilities()];
        findings.extend(owners());
        findings.push(self.cgroup());
        findings.extend(self.neighbours());
        findings.push(host_namespace());
        findings.push(cgroup_namespace());
        match Kernel::read() {
            Ok(kernel) => {
                findings.push(ok("BTF", "all needed structures found"));
                // Once, for all that is tried on it.
                match attach_for_the_call(Arc::new(kernel), &self.kernel) {
                    Ok((_own, mut walker)) => findings.extend(self.tracking(&mut walker)),
                    Err(error) => findings.push(lacks(
                        Level::Failed,
                        Ability::Recording.name(),
                        format!("{error:#}"),
                        Ability::Recording.remedy(),
                    )),
                }
            }
            Err(error) => findings.push(lacks(
                Level::Failed,
                "BTF",
                error.to_string(),
                "use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
            )),
        }
        findings.extend(resets());
        findings.extend(yama());
        findings.push(self.agent());
        findings
    }

    fn cgroup(&self) -> Finding {
        match host::cgroup_root(self.kernel.cgroup.as_deref()) {
            Ok((path, _)) if self.kernel.cgroup.is_some() => {
                ok("cgroup v2", format!("{}, set by --cgroup", path.display()))
            }
            Ok((path, _)) => ok(
                "cgroup v2",
                format!("{}, the hierarchy's root", path.display()),
            ),
            Err(error) => lacks(
                Level::Failed,
                "cgroup v2",
                error.to_string(),
                "mount it, or set --cgroup PATH",
            ),
        }
    }

    fn neighbours(&self) -> Option<Finding> {
        let (_, dir) = host::cgroup_root(self.kernel.cgroup.as_deref()).ok()?;
        Some(match bpf::sock_ops_programs(&dir) {
            Ok(0) => ok("sock_ops programs", "none on this cgroup"),
            Ok(count) => ok(
                "sock_ops programs",
                format!("{count} on this cgroup, including ours if an agent is running"),
            ),
            Err(error) => lacks(
                Level::Warning,
                "sock_ops programs",
                error.to_string(),
                "without this the agent cannot detect another program that clears its callbacks",
            ),
        })
    }

    /// What can be done with connections of our own.
    fn tracking(&self, walker: &mut Walker) -> Vec<Finding> {
        let mut findings = match abilities::try_tracking(walker) {
            Ok(tried) => tried.iter().map(finding).collect(),
            Err(error) => vec![lacks(
                Level::Warning,
                Ability::Recording.name(),
                format!("cannot open a connection of our own to test it on: {error}"),
                "bring the loopback interface up",
            )],
        };
        if self.kernel.cgroup.is_some() {
            // Below another cgroup than ours, our own connection is none of theirs.
            for finding in &mut findings {
                if finding.level == Level::Failed {
                    finding.level = Level::Warning;
                    finding.remedy =
                        Some("inconclusive if this process is not below --cgroup".to_owned());
                }
            }
        }
        findings.push(finding(&abilities::try_sniffing(walker)));
        findings.push(finding(&abilities::try_counting(walker)));
        findings
    }

    fn agent(&self) -> Finding {
        let pins = &self.kernel.pins;
        match (bpf::agent_runs(pins), bpf::agent_pid(pins)) {
            (true, Some(pid)) => ok(
                "agent",
                format!("running, pid {pid}, pins in {}", pins.display()),
            ),
            (true, None) => ok("agent", format!("running, pins in {}", pins.display())),
            (false, _) if bpf::tracks(pins) => ok(
                "agent",
                format!(
                    "not running; tracking continues by its pins in {} (`rebalancer uninstall` removes it)",
                    pins.display()
                ),
            ),
            (false, _) => ok("agent", "not running"),
        }
    }
}

fn finding(tried: &Tried) -> Finding {
    let name = tried.ability.name();
    match &tried.seen {
        Ok(seen) => ok(name, seen.clone()),
        Err(why) => {
            let level = if tried.ability.is_needed() {
                Level::Failed
            } else {
                Level::Warning
            };
            lacks(level, name, why.clone(), tried.ability.remedy())
        }
    }
}

/// For information: what the kernel can do is tried.
fn kernel_version() -> Finding {
    let name = rustix::system::uname();
    ok("kernel", name.release().to_string_lossy())
}

fn capabilities() -> Finding {
    match host::missing_capabilities() {
        missing if missing.is_empty() => ok("capabilities", "all present"),
        missing => lacks(
            Level::Failed,
            "capabilities",
            format!("missing {}", missing.join(", ")),
            "run as root, or in Kubernetes with `privileged: true` or these capabilities",
        ),
    }
}

/// Only where it is amiss.
fn owners() -> Option<Finding> {
    let missing = host::missing_for_owners();
    (!missing.is_empty()).then(|| {
        lacks(
            Level::Warning,
            "socket holders",
            format!("missing {}", missing.join(", ")),
            "connections held by other users' processes are skipped (`ownerUnknown`)",
        )
    })
}

fn host_namespace() -> Finding {
    match fs::metadata("/proc/1/ns/net") {
        Ok(_) => ok("host network namespace", "of process 1"),
        Err(error) => lacks(
            Level::Warning,
            "host network namespace",
            format!("cannot read that of process 1 ({error}): using our own"),
            "fine on a plain host; in a pod set hostPID and CAP_SYS_PTRACE",
        ),
    }
}

/// Asked again: what has been entered already is our own.
fn cgroup_namespace() -> Finding {
    const WHAT: &str = "cgroup namespace";
    match host::enter_cgroup_namespace_of_process_1() {
        Ok(()) => ok(WHAT, "of process 1: cgroup paths are the node's"),
        Err(error) => lacks(
            Level::Warning,
            WHAT,
            format!("cannot enter that of process 1 ({error})"),
            "fine on a plain host; in a pod set hostPID, CAP_SYS_PTRACE and CAP_SYS_ADMIN, or no pod can be identified",
        ),
    }
}

/// Each way to reset, tried; the first that works is the one in use.
fn resets() -> Vec<Finding> {
    let tried = abilities::try_resets();
    let mut findings: Vec<Finding> = tried.iter().map(finding).collect();
    match tried.iter().position(Tried::works) {
        Some(first) => findings[first].found = "works: in use".to_owned(),
        None => findings.push(lacks(
            Level::Failed,
            "moves",
            "no reset mechanism works here",
            "use a kernel with CONFIG_INET_DIAG_DESTROY=y; until then the agent only makes dry runs",
        )),
    }
    findings
}

fn yama() -> Option<Finding> {
    let scope = fs::read_to_string(Path::new("/proc/sys/kernel/yama/ptrace_scope")).ok()?;
    Some(match scope.trim() {
        "3" => lacks(
            Level::Warning,
            "Yama",
            "ptrace_scope is 3: the server's descriptor cannot be duplicated",
            "step Close and reset by the server's descriptor do not work; lowering it needs a reboot",
        ),
        scope => ok("Yama", format!("ptrace_scope is {scope}")),
    })
}

fn table(out: &mut impl io::Write, findings: &[Finding]) -> io::Result<()> {
    let width = findings.iter().map(|f| f.what.len()).max().unwrap_or(0);
    for finding in findings {
        let mark = match finding.level {
            Level::Ok => "ok     ",
            Level::Warning => "warning",
            Level::Failed => "FAILED ",
        };
        let found = finding.found.replace('\n', " ");
        writeln!(out, "{mark}  {:<width$}  {found}", finding.what)?;
        if let Some(remedy) = &finding.remedy {
            writeln!(out, "         {:<width$}  = {remedy}", "")?;
        }
    }
    Ok(())
}
