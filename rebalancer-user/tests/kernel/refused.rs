//! An agent that the kernel refuses something, over what a killed one has left: it says what and
//! ends, and tracking goes on with every record.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use xtask::lab::{Lab, Pod};

use crate::support::{
    Agent, REBALANCER, TRACK_ONLY, alone, cgroup, connect, eventually, lab, own_pins, pins_left,
};

/// Commands of `bpf(2)`.
const MAP_CREATE: u32 = 0;
const PROG_LOAD: u32 = 5;
const LINK_CREATE: u32 = 28;
const ITER_CREATE: u32 = 33;

/// Makes this command of `bpf(2)` fail in what it starts.
fn refuse(agent: &mut Command, bpf: u32, errno: i32) {
    /// Offsets of `struct seccomp_data`: the call's number, and the low half of its first argument.
    const NUMBER: u32 = 0;
    const FIRST: u32 = 16;
    let instruction = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let ret = libc::BPF_RET | libc::BPF_K;
    let filter = [
        instruction(load, 0, 0, NUMBER),
        instruction(equal, 0, 3, libc::SYS_bpf as u32),
        instruction(load, 0, 0, FIRST),
        instruction(equal, 0, 1, bpf),
        instruction(ret, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        instruction(ret, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: the program and its instructions live for the call.
        let done = unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
        };
        if done == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: it makes one system call.
    unsafe { agent.pre_exec(install) };
}

/// The BTF of a kernel that cannot walk over open descriptors: before 5.12 there is no such
/// iterator.
fn without_the_walk(at: &Path) {
    let mut btf = fs::read("/sys/kernel/btf/vmlinux").unwrap();
    let name = b"bpf_iter_task_file\0";
    let place = btf.windows(name.len()).position(|w| w == name).unwrap();
    btf[place] = b'x';
    fs::write(at, btf).unwrap();
}

/// What an agent has left that was killed.
struct Left<'a> {
    lab: &'a Lab,
    agent: Agent,
    policy: tempfile::NamedTempFile,
    before: Vec<Value>,
}

impl<'a> Left<'a> {
    fn behind(lab: &'a Lab) -> Self {
        let mut agent = Agent::in_lab(lab, TRACK_ONLY);
        agent.wait_for_intervals(1);
        let policy = tempfile::NamedTempFile::new().unwrap();
        fs::write(policy.path(), TRACK_ONLY).unwrap();
        Self {
            lab,
            agent,
            policy,
            before: Vec::new(),
        }
    }

    fn killed(&mut self) {
        self.before = records(&self.agent, self.lab.pod(0));
        assert!(!self.before.is_empty());
        self.agent.child.kill().unwrap();
        self.agent.child.wait().unwrap();
    }

    fn next(&self) -> Command {
        let in_lab = ["--cgroup", cgroup(self.lab).to_str().unwrap()];
        Agent::command(self.policy.path(), &self.agent.pins, &in_lab)
    }

    /// Its records are as they were, and what is new is recorded.
    fn is_untouched(&self) {
        let pod = self.lab.pod(0);
        assert_eq!(records(&self.agent, pod), self.before);
        let new = connect(self.lab, pod.address());
        let peer = new.local_addr().unwrap().to_string();
        let is_it = |c: &Value| c["peer"] == peer && c["adopted"] == false;
        let source = eventually("the new one is recorded, by whom it was", || {
            let out = self.agent.dump_output(&[]);
            let dump: Value = serde_json::from_slice(&out.stdout).unwrap();
            let found = dump["items"].as_array().unwrap().iter().any(is_it);
            let source = dump["source"].clone();
            if found { Ok(source) } else { Err(source) }
        });
        assert_eq!(source, "pins", "tracking goes on without an agent");
        drop(new);
        eventually("its end is seen", || {
            let now = records(&self.agent, pod);
            if now == self.before {
                Ok(now)
            } else {
                Err(now)
            }
        });
    }
}

/// Id and age of each connection.
fn records(agent: &Agent, pod: &Pod) -> Vec<Value> {
    let out = agent.dump_output(&[]);
    let dump: Value = serde_json::from_slice(&out.stdout).unwrap();
    let all = dump["items"].as_array().unwrap().iter();
    let of_pod = all.filter(|c| c["endpoint"]["netns"] == pod.host.netns_inode());
    let mut records: Vec<Value> = of_pod
        .map(|c| serde_json::json!([c["id"], c["openedNanoseconds"], c["adopted"]]))
        .collect();
    records.sort_by_key(Value::to_string);
    records
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn a_refused_agent_leaves_what_a_former_one_has_recorded() {
    let _alone = alone();
    let lab = lab(1);
    let _older: Vec<_> = (0..3)
        .map(|_| connect(&lab, lab.pod(0).address()))
        .collect();
    let mut left = Left::behind(&lab);
    let _younger: Vec<_> = (0..3)
        .map(|_| connect(&lab, lab.pod(0).address()))
        .collect();
    eventually("all are recorded", || {
        let all = records(&left.agent, lab.pod(0)).len();
        if all == 6 { Ok(all) } else { Err(all) }
    });
    left.killed();
    for (what, command, errno, words) in [
        ("no memory for maps", MAP_CREATE, libc::ENOMEM, "memory"),
        ("no program is loaded", PROG_LOAD, libc::EACCES, "denied"),
        (
            "nothing is linked",
            LINK_CREATE,
            libc::EPERM,
            "not permitted",
        ),
        (
            "no iterator is made",
            ITER_CREATE,
            libc::EPERM,
            "not permitted",
        ),
    ] {
        let mut next = left.next();
        refuse(&mut next, command, errno);
        let out = next.output().unwrap();
        let said = said(&out);
        println!("\n  {what}: {:?}\n{said}", out.status.code());
        assert_eq!(out.status.code(), Some(1), "{what}: {said}");
        assert!(said.to_lowercase().contains(words), "{what}: {said}");
        left.is_untouched();
    }
}

#[test]
fn a_kernel_without_the_walk_is_told_and_nothing_is_lost() {
    let _alone = alone();
    let lab = lab(1);
    let _older = connect(&lab, lab.pod(0).address());
    let mut left = Left::behind(&lab);
    left.killed();
    let btf = tempfile::NamedTempFile::new().unwrap();
    without_the_walk(btf.path());
    let with_btf = |command: &Command| {
        let inner = command.get_args().map(|a| a.to_str().unwrap());
        let inner: Vec<_> = inner.map(|argument| format!("'{argument}'")).collect();
        let script = format!(
            "mount --bind {} /sys/kernel/btf/vmlinux && exec {REBALANCER} {}",
            btf.path().display(),
            inner.join(" ")
        );
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "sh", "-c", &script]);
        unshare.output().unwrap()
    };
    let out = with_btf(&left.next());
    println!("\n{}", said(&out));
    assert_eq!(out.status.code(), Some(1), "{}", said(&out));
    for word in ["walked over", "task_file", "remedy"] {
        assert!(said(&out).contains(word), "{}", said(&out));
    }
    left.is_untouched();

    // Where nothing was before, nothing is left.
    let pins = own_pins();
    let in_lab = ["--cgroup", cgroup(&lab).to_str().unwrap()];
    let out = with_btf(&Agent::command(left.policy.path(), &pins, &in_lab));
    assert_eq!(out.status.code(), Some(1), "{}", said(&out));
    assert_eq!(pins_left(&pins), [] as [std::path::PathBuf; 0]);
}
