//! `rebalancer doctor`: what this node has and lacks, each with its remedy.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use anyhow::bail;
use clap::{Args, ValueEnum};

use super::{KernelArgs, print, records::attach_for_the_call};
use crate::{
    abilities::{self, Ability, Tried},
    api::{Diagnosis, Finding, Level, Notation, write_diagnosis},
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
    /// The same as JSON.
    Yaml,
}

fn ok(what: &'static str, found: impl Into<String>) -> Finding {
    Finding {
        what,
        level: Level::Ok,
        found: found.into(),
        cost: None,
        remedy: None,
    }
}

fn lacks(
    level: Level,
    what: &'static str,
    found: impl Into<String>,
    cost: &str,
    remedy: &str,
) -> Finding {
    let found = found.into();
    // An error that has a remedy knows more of the case.
    let (found, remedy) = found.split_once("\n  remedy: ").unwrap_or((&found, remedy));
    Finding {
        what,
        level,
        found: found.replace('\n', " "),
        cost: Some(cost.to_owned()),
        remedy: Some(remedy.to_owned()),
    }
}

/// What was looked for: where or how it was found, or why not.
fn looked_for(
    what: &'static str,
    found: Result<String, String>,
    level: Level,
    cost: &str,
    remedy: &str,
) -> Finding {
    match found {
        Ok(found) => ok(what, found),
        Err(why) => lacks(level, what, why, cost, remedy),
    }
}

impl Doctor {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let diagnosis = self.diagnose();
        print(|out| match self.output {
            Form::Table => table(out, &diagnosis),
            Form::Json => write_diagnosis(out, Notation::Json, &diagnosis),
            Form::Yaml => write_diagnosis(out, Notation::Yaml, &diagnosis),
        })?;
        let missing = host::missing_capabilities();
        if !missing.is_empty() {
            return Err(bpf::Error::Privilege(missing).into());
        }
        let failed = |finding: &&Finding| finding.level == Level::Failed;
        match diagnosis.items.iter().filter(failed).count() {
            0 => Ok(()),
            1 => bail!("1 finding failed"),
            count => bail!("{count} findings failed"),
        }
    }

    /// The same for programs.
    pub(super) fn json(kernel: &KernelArgs) -> io::Result<Vec<u8>> {
        let doctor = Self {
            output: Form::Json,
            kernel: kernel.clone(),
        };
        let mut json = Vec::new();
        write_diagnosis(&mut json, Notation::Json, &doctor.diagnose())?;
        Ok(json)
    }

    fn diagnose(&self) -> Diagnosis {
        let name = rustix::system::uname();
        Diagnosis {
            node: name.nodename().to_string_lossy().into_owned(),
            generated_at: jiff::Timestamp::now(),
            version: env!("CARGO_PKG_VERSION"),
            kernel: name.release().to_string_lossy().into_owned(),
            distribution: host::distribution(),
            items: self.findings(),
        }
    }

    fn findings(&self) -> Vec<Finding> {
        let mut findings = vec![capabilities()];
        findings.extend(owners());
        findings.push(self.cgroup());
        findings.extend(self.neighbours());
        findings.push(process_namespace());
        findings.push(network_namespace());
        findings.push(cgroup_namespace());
        match Kernel::read() {
            Ok(kernel) => {
                findings.push(ok("BTF", "all needed structures found"));
                // Once, for all that is tried on it.
                match attach_for_the_call(Arc::new(kernel), &self.kernel) {
                    Ok((_own, mut walker)) => findings.extend(self.tracking(&mut walker)),
                    Err(error) => findings.push(finding(&Tried {
                        ability: Ability::Recording,
                        seen: Err(format!("{error:#}")),
                    })),
                }
            }
            Err(error) => findings.push(lacks(
                Level::Failed,
                "BTF",
                error.to_string(),
                "the agent does not start",
                "use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
            )),
        }
        findings.extend(resets());
        findings.extend(yama());
        findings.push(self.agent());
        findings
    }

    fn cgroup(&self) -> Finding {
        let why = match self.kernel.cgroup {
            Some(_) => "set by --cgroup",
            None => "the hierarchy's root",
        };
        let root = host::cgroup_root(self.kernel.cgroup.as_deref());
        looked_for(
            "cgroup v2",
            root.map(|(path, _)| format!("{}, {why}", path.display()))
                .map_err(|error| error.to_string()),
            Level::Failed,
            "the agent does not start",
            "mount it, or set --cgroup PATH",
        )
    }

    fn neighbours(&self) -> Option<Finding> {
        let (_, dir) = host::cgroup_root(self.kernel.cgroup.as_deref()).ok()?;
        let found = bpf::sock_ops_programs(&dir).map(|count| match count {
            0 => "none on this cgroup".to_owned(),
            _ => format!("{count} on this cgroup, including ours if an agent is running"),
        });
        Some(looked_for(
            "sock_ops programs",
            found.map_err(|error| error.to_string()),
            Level::Warning,
            "another program that clears our callbacks is not noticed",
            "run as root, without a seccomp filter on bpf(2)",
        ))
    }

    /// What can be done with connections of our own.
    fn tracking(&self, walker: &mut Walker) -> Vec<Finding> {
        let mut findings = match abilities::try_tracking(walker) {
            Ok(tried) => tried.iter().map(finding).collect(),
            Err(error) => vec![lacks(
                Level::Warning,
                Ability::Recording.name(),
                format!("cannot open a connection of our own to test it on: {error}"),
                "nothing could be tried",
                "bring the loopback interface up",
            )],
        };
        if self.kernel.cgroup.is_some() {
            // A process outside of that cgroup makes connections that are not recorded.
            for finding in &mut findings {
                if finding.level == Level::Failed {
                    finding.level = Level::Warning;
                    finding.remedy =
                        Some("run doctor below --cgroup: elsewhere this proves nothing".to_owned());
                }
            }
        }
        findings.push(finding(&abilities::try_sniffing(walker)));
        findings.push(finding(&abilities::try_counting(walker)));
        findings.push(finding(&abilities::try_notice(walker)));
        findings
    }

    fn agent(&self) -> Finding {
        let pins = &self.kernel.pins;
        let shown = pins.display();
        let found = match (bpf::agent_runs(pins), bpf::agent_pid(pins)) {
            (true, Some(pid)) => format!("running, pid {pid}, pins in {shown}"),
            (true, None) => format!("running, pins in {shown}"),
            (false, _) if bpf::tracks(pins) => format!(
                "not running; tracking continues by its pins in {shown} (`rebalancer uninstall` removes it)"
            ),
            (false, _) => "not running".to_owned(),
        };
        ok("agent", found)
    }
}

fn finding(tried: &Tried) -> Finding {
    let ability = tried.ability;
    let level = if ability.is_needed() {
        Level::Failed
    } else {
        Level::Warning
    };
    let seen = tried.seen.clone();
    looked_for(
        ability.name(),
        seen,
        level,
        ability.cost(),
        ability.remedy(),
    )
}

fn capabilities() -> Finding {
    match host::missing_capabilities() {
        missing if missing.is_empty() => ok("capabilities", "all present"),
        missing => lacks(
            Level::Failed,
            "capabilities",
            format!("missing {}", missing.join(", ")),
            "the agent does not start",
            "run as root, or in Kubernetes with `privileged: true` or these capabilities",
        ),
    }
}

/// Only if something is missing.
fn owners() -> Option<Finding> {
    let missing = host::missing_for_owners();
    (!missing.is_empty()).then(|| {
        lacks(
            Level::Warning,
            "socket holders",
            format!("missing {}", missing.join(", ")),
            "connections held by other users' processes are skipped (`ownerUnknown`)",
            "add these capabilities",
        )
    })
}

/// The walk covers the processes of one pid namespace.
fn process_namespace() -> Finding {
    /// `PROC_PID_INIT_INO` of include/linux/proc_ns.h: the inode of the machine's first one.
    const INITIAL: u64 = 0xEFFF_FFFC;
    const WHAT: &str = "process namespace";
    match fs::metadata("/proc/self/ns/pid") {
        Ok(own) if own.ino() == INITIAL => ok(WHAT, "the machine's own"),
        Ok(_) => lacks(
            Level::Warning,
            WHAT,
            "not the machine's own",
            "connections held by processes outside of it are not listed",
            "in a pod set hostPID; nothing is missing on a node that is a container itself (kind)",
        ),
        Err(error) => lacks(
            Level::Warning,
            WHAT,
            format!("/proc/self/ns/pid: {error}"),
            "it is not known whether all processes are seen",
            "mount /proc",
        ),
    }
}

fn network_namespace() -> Finding {
    let found = fs::metadata("/proc/1/ns/net").map(|_| "of process 1".to_owned());
    looked_for(
        "host network namespace",
        found.map_err(|error| format!("cannot read that of process 1 ({error})")),
        Level::Warning,
        "our own network namespace is taken for the host's, as it is on a plain host",
        "in a pod set hostPID and CAP_SYS_PTRACE",
    )
}

/// Tried again: a process that has entered the namespace before finds it as its own.
fn cgroup_namespace() -> Finding {
    let entered = host::enter_cgroup_namespace_of_process_1();
    let found = entered.map(|()| "of process 1: cgroup paths are the node's".to_owned());
    looked_for(
        "cgroup namespace",
        found.map_err(|error| format!("cannot enter that of process 1 ({error})")),
        Level::Warning,
        "in a pod no pod can be identified; nothing on a plain host",
        "in a pod set hostPID, CAP_SYS_PTRACE and CAP_SYS_ADMIN",
    )
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
            "the agent only makes dry runs",
            "use a kernel with CONFIG_INET_DIAG_DESTROY=y",
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
            "step Close and reset by the server's descriptor do not work",
            "set kernel.yama.ptrace_scope to 2 or less, which takes a reboot",
        ),
        scope => ok("Yama", format!("ptrace_scope is {scope}")),
    })
}

fn table(out: &mut impl io::Write, diagnosis: &Diagnosis) -> io::Result<()> {
    let items = &diagnosis.items;
    let width = items.iter().map(|f| f.what.len()).max().unwrap_or(0);
    let system = ["kernel", "distribution"]
        .into_iter()
        .zip([Some(&diagnosis.kernel), diagnosis.distribution.as_ref()]);
    for (what, found) in system {
        writeln!(
            out,
            "         {what:<width$}  {}",
            found.map_or("unknown", |it| it)
        )?;
    }
    for finding in items {
        let mark = match finding.level {
            Level::Ok => "ok     ",
            Level::Warning => "warning",
            Level::Failed => "FAILED ",
        };
        writeln!(out, "{mark}  {:<width$}  {}", finding.what, finding.found)?;
        for (sign, text) in [("→", &finding.cost), ("=", &finding.remedy)] {
            if let Some(text) = text {
                writeln!(out, "         {:<width$}  {sign} {text}", "")?;
            }
        }
    }
    Ok(())
}
