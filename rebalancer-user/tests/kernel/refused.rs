//! An agent that the kernel refuses something, over what a killed one has left: it says what and
//! ends, and tracking goes on with every record. `dump` and `doctor` do the same.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;
use xtask::lab::{Lab, Pod};

use crate::support::{
    Agent, REBALANCER, TRACK_ONLY, alone, bpftool, cgroup, connect, eventually, lab, own_pins,
    pins_left, request, stderr,
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

/// The BTF of a kernel with a field that lies elsewhere than its own verifier knows: programs that read
/// it are refused.
fn with_a_wrong_offset(at: &Path) {
    let mut btf = fs::read("/sys/kernel/btf/vmlinux").unwrap();
    let word = |btf: &[u8], at: usize| u32::from_ne_bytes(btf[at..at + 4].try_into().unwrap());
    // `struct btf_header`: its own length, then place and length of types and of strings.
    let [head, types, length, strings] = [4, 8, 12, 16].map(|at| word(&btf, at) as usize);
    let name = b"\0bytes_received\0";
    let place = btf.windows(name.len()).position(|w| w == name).unwrap();
    let name = (place + 1 - head - strings) as u32;
    let (mut place, end) = (head + types, head + types + length);
    while place < end {
        let info = word(&btf, place + 4);
        let (kind, count) = (info >> 24 & 0x1f, info as usize & 0xffff);
        place += 12;
        let following = match kind {
            1 | 14 | 17 => 4,              // int, var, decl_tag
            3 => 12,                       // array
            4 | 5 | 15 | 19 => 12 * count, // struct, union, datasec, enum64
            6 | 13 => 8 * count,           // enum, func_proto
            _ => 0,
        };
        if kind == 4 {
            for member in (place..place + following).step_by(12) {
                if word(&btf, member) == name {
                    let bits: u32 = 8 << 16;
                    btf[member + 8..member + 12].copy_from_slice(&bits.to_ne_bytes());
                }
            }
        }
        place += following;
    }
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
        let source = eventually("the new connection is recorded", || {
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

#[test]
fn an_agent_that_cannot_start_keeps_the_records_of_a_previous_one() {
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
        let message = stderr(&out);
        println!("\n  {what}: {:?}\n{message}", out.status.code());
        assert_eq!(out.status.code(), Some(1), "{what}: {message}");
        assert!(message.to_lowercase().contains(words), "{what}: {message}");
        left.is_untouched();
    }
}

#[test]
fn on_a_kernel_without_the_iterator_the_agent_reports_it_and_keeps_the_records() {
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
    println!("\n{}", stderr(&out));
    assert_eq!(out.status.code(), Some(1), "{}", stderr(&out));
    for word in ["iterator over open files", "task_file", "remedy"] {
        assert!(stderr(&out).contains(word), "{}", stderr(&out));
    }
    left.is_untouched();

    // Where nothing was before, nothing is left.
    let pins = own_pins();
    let in_lab = ["--cgroup", cgroup(&lab).to_str().unwrap()];
    let out = with_btf(&Agent::command(left.policy.path(), &pins, &in_lab));
    assert_eq!(out.status.code(), Some(1), "{}", stderr(&out));
    assert_eq!(pins_left(&pins), [] as [PathBuf; 0]);
}

/// What a machine may lack.
enum MissingFact<'a> {
    /// Root: the program is run as nobody, from where it can be reached.
    Privilege(&'a Path),
    /// Something that this hides, in a mount namespace.
    Hidden(&'a str),
    /// This command of `bpf(2)`, as a security policy may have it.
    Allowed(u32),
}

impl MissingFact<'_> {
    /// Runs what is made ready where this is missing.
    fn run(&self, ready: &Command) -> Output {
        let arguments: Vec<&str> = ready.get_args().map(|a| a.to_str().unwrap()).collect();
        let mut command = match self {
            Self::Privilege(binary) => {
                let mut command = Command::new(binary);
                command.args(arguments).uid(65_534).gid(65_534);
                command
            }
            Self::Hidden(hide) => {
                let script = format!("{hide} && exec {REBALANCER} \"$@\"");
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", &script, "sh"]);
                command.args(arguments);
                command
            }
            Self::Allowed(bpf) => {
                let mut command = Command::new(REBALANCER);
                command.args(arguments);
                refuse(&mut command, *bpf, libc::EPERM);
                command
            }
        };
        command.output().unwrap()
    }
}

/// Each pin with what it pins, as bpftool shows it.
fn pinned(pins: &Path) -> Vec<(PathBuf, Value)> {
    let files = fs::read_dir(pins).unwrap().flatten().map(|e| e.path());
    let mut all: Vec<_> = files
        .map(|file| {
            let kind = if file.ends_with("link") {
                "link"
            } else {
                "map"
            };
            let id = bpftool(&[kind, "show", "pinned", file.to_str().unwrap()])["id"].clone();
            (file, id)
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// What fails has its remedy behind it, and nothing is printed twice.
fn has_remedies(name: &str, message: &str) {
    let lines: Vec<&str> = message.lines().collect();
    let failed = if name == "doctor" {
        "FAILED"
    } else {
        "error: "
    };
    let remedy = if name == "doctor" { "= " } else { "remedy: " };
    let failures = lines.windows(2).filter(|two| two[0].starts_with(failed));
    let remedies: Vec<_> = failures.map(|two| two[1].trim_start()).collect();
    assert!(!remedies.is_empty(), "{name}: {message}");
    assert!(
        remedies.iter().all(|it| it.starts_with(remedy)),
        "{message}"
    );
    assert!(
        !remedies.iter().any(|it| it.contains("os error")),
        "{message}"
    );
    assert!(
        lines
            .iter()
            .all(|line| !line.contains("  remedy: ") || line.starts_with("  remedy: ")),
        "{message}"
    );
}

/// `agent`, `dump` and `doctor`, over what a killed agent has left and where nothing was.
#[test]
fn each_missing_ability_is_reported_with_its_remedy_and_nothing_changes() {
    let _alone = alone();
    let lab = lab(1);
    let mut older = connect(&lab, lab.pod(0).address());
    // nginx ends what asks for nothing for a minute, and all of this may take longer.
    request(&mut older, "/").unwrap();
    let mut left = Left::behind(&lab);
    left.killed();
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    let binary = folder.path().join("rebalancer");
    fs::copy(REBALANCER, &binary).unwrap();
    let wrong = folder.path().join("btf");
    with_a_wrong_offset(&wrong);
    for path in [folder.path(), &binary, left.policy.path()] {
        open(path);
    }
    let wrong_btf = format!("mount --bind {} /sys/kernel/btf/vmlinux", wrong.display());
    let no_cgroup =
        "for m in $(awk '/ - cgroup2 / {print $5}' /proc/self/mountinfo); do umount -l $m; done";
    let before = pinned(&left.agent.pins);
    for (what, lack, code, words) in [
        (
            "root",
            MissingFact::Privilege(&binary),
            4,
            "missing CAP_BPF",
        ),
        (
            "BTF",
            MissingFact::Hidden("mount -t tmpfs none /sys/kernel/btf"),
            1,
            "CONFIG_DEBUG_INFO_BTF",
        ),
        (
            "cgroup v2",
            MissingFact::Hidden(no_cgroup),
            1,
            "cgroup v2 hierarchy is not mounted",
        ),
        (
            "programs",
            MissingFact::Allowed(PROG_LOAD),
            1,
            "even an empty BPF program",
        ),
        ("maps", MissingFact::Allowed(MAP_CREATE), 1, "not permitted"),
        // Each is refused by the verifier, with its words.
        (
            "a field",
            MissingFact::Hidden(&wrong_btf),
            1,
            "beyond struct tcp_sock",
        ),
    ] {
        for name in ["agent", "dump", "doctor"] {
            let fresh = own_pins();
            for pins in [&left.agent.pins, &fresh] {
                let mut command = Agent::command(left.policy.path(), pins, &[]);
                if name != "agent" {
                    command = Command::new(REBALANCER);
                    command.arg(name).arg("--pins").arg(pins);
                }
                let out = lack.run(&command);
                let all = [&out.stdout[..], &out.stderr[..]].concat();
                let all = String::from_utf8_lossy(&all);
                println!("\n  without {what}: {name}: {:?}\n{all}", out.status.code());
                assert_eq!(out.status.code(), Some(code), "{what}, {name}: {all}");
                assert!(all.contains(words), "{what}, {name}: {all}");
                has_remedies(name, &all);
            }
            assert_eq!(pins_left(&fresh), [] as [PathBuf; 0], "{what}, {name}");
            let asked = Path::new("/run").join(fresh.file_name().unwrap());
            assert!(!asked.exists(), "{what}, {name}: {}", asked.display());
            assert_eq!(pinned(&left.agent.pins), before, "{what}, {name}");
        }
        left.is_untouched();
    }
}
