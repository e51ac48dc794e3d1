//! An agent that the kernel refuses something, over what a killed one has left: it says what and
//! ends, and tracking goes on with every record. `dump` and `doctor` do the same.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Value, json};
use xtask::lab::{Lab, Pod};

use crate::{
    support::{
        Agent, REBALANCER, TRACK_ONLY, answered, bpftool, cgroup, connect, eventually, failed, lab,
        of_pod, own_pins, pins_left,
    },
    without::{WITHOUT_BTF, WITHOUT_CGROUP2, after, as_nobody, copy_in, open},
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
    let instruction = |code: u32, jt, jf, k| {
        let code = code as u16;
        libc::sock_filter { code, jt, jf, k }
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
    before: Vec<Value>,
}

impl<'a> Left<'a> {
    /// The agent is over its first interval before.
    fn behind(lab: &'a Lab, mut agent: Agent) -> Self {
        agent.wait_for_intervals(1);
        let before = records(&agent, lab.pod(0));
        assert!(!before.is_empty());
        agent.kill();
        Self { lab, agent, before }
    }

    /// What starts another agent, with these pins.
    fn next(&self, pins: &Path) -> Command {
        let in_lab = ["--cgroup", cgroup(self.lab).to_str().unwrap()];
        Agent::command(Path::new(self.agent.policy()), pins, &in_lab)
    }

    /// Its records are as they were, and what is new is recorded.
    fn is_untouched(&self) {
        let pod = self.lab.pod(0);
        let now = || records(&self.agent, pod);
        assert_eq!(now(), self.before);
        let new = connect(self.lab, pod.address());
        let peer = new.local_addr().unwrap().to_string();
        let is_it = |c: &Value| c["peer"] == peer && c["adopted"] == false;
        let dump = || self.agent.ask_json(&["dump"]);
        let seen = eventually("the new connection is recorded", dump, |dump| {
            dump["items"].as_array().unwrap().iter().any(is_it)
        });
        assert_eq!(seen["source"], "pins", "tracking goes on without an agent");
        drop(new);
        eventually("its end is seen", now, |now| *now == self.before);
    }
}

/// Id and age of each connection.
fn records(agent: &Agent, pod: &Pod) -> Vec<Value> {
    let dump = agent.ask_json(&["dump"]);
    let of_pod = of_pod(dump["items"].as_array().unwrap().clone(), pod);
    let record = |c: &Value| json!([c["id"], c["openedNanoseconds"], c["adopted"]]);
    let mut records: Vec<Value> = of_pod.iter().map(record).collect();
    records.sort_by_key(Value::to_string);
    records
}

#[test]
fn an_agent_that_cannot_start_keeps_the_records_of_a_previous_one() {
    let lab = lab(1);
    let pod = lab.pod(0);
    // nginx ends what asks for nothing for a minute, and all of this may take longer.
    let three = || [(); 3].map(|()| answered(&lab, pod.address()));
    let _older = three();
    let mut agent = Agent::in_lab(&lab, TRACK_ONLY);
    agent.wait_for_intervals(1);
    let _younger = three();
    let recorded = || records(&agent, pod);
    eventually("all are recorded", recorded, |all| all.len() == 6);
    let left = Left::behind(&lab, agent);
    for (what, command, errno, words) in [
        ("no memory for maps", MAP_CREATE, libc::ENOMEM, "memory"),
        ("no program is loaded", PROG_LOAD, libc::EACCES, "denied"),
        ("no link", LINK_CREATE, libc::EPERM, "not permitted"),
        ("no iterator", ITER_CREATE, libc::EPERM, "not permitted"),
    ] {
        let mut next = left.next(&left.agent.pins);
        refuse(&mut next, command, errno);
        let message = failed(1, &next.output().unwrap());
        println!("\n  {what}:\n{message}");
        assert!(message.to_lowercase().contains(words), "{what}: {message}");
        left.is_untouched();
    }
}

#[test]
fn on_a_kernel_without_the_iterator_the_agent_reports_it_and_keeps_the_records() {
    let lab = lab(1);
    let _older = connect(&lab, lab.pod(0).address());
    let left = Left::behind(&lab, Agent::in_lab(&lab, TRACK_ONLY));
    let btf = tempfile::NamedTempFile::new().unwrap();
    without_the_walk(btf.path());
    let hidden = bind_btf(btf.path());
    // Where nothing was before, nothing is left.
    let fresh = own_pins();
    for pins in [&left.agent.pins, &fresh] {
        let message = failed(1, &after(&hidden, &left.next(pins)).output().unwrap());
        println!("\n{message}");
        for word in ["iterator over open files", "task_file", "remedy"] {
            assert!(message.contains(word), "{message}");
        }
    }
    left.is_untouched();
    assert_eq!(pins_left(&fresh), [] as [PathBuf; 0]);
}

/// Puts this in the place of the kernel's BTF.
fn bind_btf(file: &Path) -> String {
    format!("mount --bind {} /sys/kernel/btf/vmlinux", file.display())
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
        let mut command = match self {
            Self::Privilege(binary) => as_nobody(binary, ready),
            Self::Hidden(hide) => after(hide, ready),
            Self::Allowed(bpf) => {
                let mut command = Command::new(REBALANCER);
                command.args(ready.get_args());
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
            let is_link = file.ends_with("link");
            let kind = if is_link { "link" } else { "map" };
            let shown = bpftool(&[kind, "show", "pinned", file.to_str().unwrap()]);
            (file, shown["id"].clone())
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// What fails has its remedy behind it, and nothing is printed twice.
fn has_remedies(name: &str, message: &str) {
    let lines: Vec<&str> = message.lines().collect();
    // Between a finding and its remedy stands what its absence costs.
    let (failed, remedy, after) = match name {
        "doctor" => ("FAILED", "= ", 2),
        _ => ("error: ", "remedy: ", 1),
    };
    let failures = lines
        .windows(after + 1)
        .filter(|lines| lines[0].starts_with(failed));
    let remedies: Vec<_> = failures.map(|lines| lines[after].trim_start()).collect();
    let is_one = |it: &&str| it.starts_with(remedy) && !it.contains("os error");
    assert!(!remedies.is_empty(), "{name}: {message}");
    assert!(remedies.iter().all(is_one), "{message}");
    let is_in_place = |it: &&str| !it.contains("  remedy: ") || it.starts_with("  remedy: ");
    assert!(lines.iter().all(is_in_place), "{message}");
}

/// `agent`, `dump` and `doctor`, over what a killed agent has left and where nothing was.
#[test]
fn each_missing_ability_is_reported_with_its_remedy_and_nothing_changes() {
    let lab = lab(1);
    // nginx ends what asks for nothing for a minute, and all of this may take longer.
    let _older = answered(&lab, lab.pod(0).address());
    let left = Left::behind(&lab, Agent::in_lab(&lab, TRACK_ONLY));
    let policy = Path::new(left.agent.policy());
    let folder = tempfile::tempdir().unwrap();
    let binary = copy_in(folder.path());
    let wrong = folder.path().join("btf");
    with_a_wrong_offset(&wrong);
    open(policy);
    let wrong_btf = bind_btf(&wrong);
    let before = pinned(&left.agent.pins);
    use MissingFact::{Allowed, Hidden, Privilege};
    let no_btf = "must be built with CONFIG_DEBUG_INFO_BTF=y";
    let no_cgroup2 = "cgroup v2 hierarchy is not mounted";
    for (what, lack, code, words) in [
        ("root", Privilege(&binary), 4, "missing CAP_BPF"),
        ("BTF", Hidden(WITHOUT_BTF), 1, no_btf),
        ("cgroup v2", Hidden(WITHOUT_CGROUP2), 1, no_cgroup2),
        (
            "programs",
            Allowed(PROG_LOAD),
            1,
            "even an empty BPF program",
        ),
        ("maps", Allowed(MAP_CREATE), 1, "not permitted"),
        // Each is refused by the verifier, with its words.
        ("a field", Hidden(&wrong_btf), 1, "beyond struct tcp_sock"),
    ] {
        let finding = match what {
            "root" => Some("FAILED   capabilities"),
            "BTF" => Some("FAILED   BTF"),
            _ => None,
        };
        for name in ["agent", "dump", "doctor"] {
            let fresh = own_pins();
            for pins in [&left.agent.pins, &fresh] {
                let mut command = Agent::command(policy, pins, &[""; 0]);
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
                if let ("doctor", Some(finding)) = (name, finding) {
                    assert!(all.contains(finding), "{all}");
                }
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
