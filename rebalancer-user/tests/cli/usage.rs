//! Usage, `policy check`, and commands that ask an agent where none runs.

use std::{fs, io::Write as _, os::unix::net::UnixListener, path::Path, process::Stdio};

use tempfile::TempDir;

use crate::{Ran, command, run, run_with};

const VALID: &str = "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
rules:
- {name: web, match: {ports: [{port: 8080}]}, limits: {maxAge: 30m}}
";

fn check_text(text: impl AsRef<[u8]>) -> Ran {
    run_with(&["policy", "check", "-"], text)
}

/// A folder, a policy file in it, and its path.
fn file(content: impl AsRef<[u8]>) -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.yaml");
    fs::write(&path, content).unwrap();
    (dir, path.to_str().unwrap().to_owned())
}

fn check(content: impl AsRef<[u8]>) -> Ran {
    let (_dir, path) = file(content);
    run(&["policy", "check", &path])
}

#[track_caller]
fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
}

#[test]
fn help_names_every_command() {
    for arguments in [["--help"], ["-h"]] {
        let out = run(&arguments).prints();
        assert_has(
            &out,
            &[
                "agent",
                "dump",
                "events",
                "pause",
                "policy",
                "probe",
                "resume",
                "status",
                "top",
                "Usage: rebalancer",
            ],
        );
    }
}

#[test]
fn version_is_that_of_the_crate() {
    let version = concat!("rebalancer ", env!("CARGO_PKG_VERSION"), "\n");
    for flag in ["--version", "-V"] {
        let ran = run(&[flag]);
        assert_eq!(
            (ran.code, ran.out.as_str(), ran.err.as_str()),
            (0, version, "")
        );
    }
}

#[test]
fn every_command_explains_itself() {
    let expected: [(&[&str], &[&str]); 9] = [
        (
            &["agent"],
            &[
                "--policy",
                "/etc/rebalancer/policy.yaml",
                "--mode",
                "--pins",
                "/sys/fs/bpf/rebalancer",
                "--cgroup",
                "--log-format",
                "REBALANCER_LOG",
                "--metrics-address",
                "127.0.0.1:9321",
                "REBALANCER_METRICS_ADDRESS",
                "REBALANCER_MOVE_EVENTS",
                "SIGTERM",
                "SIGHUP",
            ],
        ),
        (
            &["dump"],
            &[
                "--endpoints",
                "--output",
                "table",
                "json",
                "--pins",
                "agent",
            ],
        ),
        (&["events"], &["--follow", "--since", "json", "missed"]),
        (&["cooldowns"], &["list", "clear"]),
        (&["cooldowns", "clear"], &["--rule", "--all", "--run-dir"]),
        (&["pause"], &["--for", "168h", "--reason", "--run-dir"]),
        (&["probe"], &["live", "ready", "Exit code 0"]),
        (&["policy"], &["check"]),
        (&["policy", "check"], &["<FILE>", "standard input"]),
    ];
    for (command, parts) in expected {
        let out = run(&[command, &["--help"]].concat()).prints();
        assert_has(&out, parts);
    }
}

#[test]
fn usage_errors_are_2_and_name_the_remedy() {
    let long = "x".repeat(300);
    let mistakes: [(&[&str], &str); 27] = [
        (&[], "Usage"),
        (&["help"], "help"),
        (&["agnet"], "'agent'"),
        (&["--nonsense"], "--nonsense"),
        (&["agent", "extra"], "extra"),
        (&["agent", "--mode", "Kill"], "Enforce"),
        (&["agent", "--log-format", "xml"], "json"),
        (&["agent", "--metrics-address", "9321"], "127.0.0.1:9321"),
        (&["agent", "--metrics-address", "localhost:1"], "none"),
        (&["dump", "-o", "xml"], "json"),
        (&["events", "-o", "yaml"], "json"),
        (&["events", "--since", "5"], "5m"),
        (&["cooldowns"], "list"),
        (&["cooldowns", "clear"], "--all"),
        (&["cooldowns", "clear", "--rule", "No"], "not a rule's name"),
        (&["cooldowns", "clear", "--all", "--rule", "web"], "--rule"),
        (&["pause"], "--for"),
        (&["pause", "--for", "0s"], "more than 0"),
        (&["pause", "--for", "169h"], "mode: Disabled"),
        (&["pause", "--for", "7d"], "168h"),
        (&["pause", "--for", "1h", "--reason", &long], "256"),
        (&["probe"], "<WHAT>"),
        (&["probe", "alive"], "live"),
        (&["dump", "--endpoint"], "'--endpoints'"),
        (&["policy"], "check"),
        (&["policy", "check"], "<FILE>"),
        (&["policy", "check", "a", "b"], "'b'"),
    ];
    for (arguments, part) in mistakes {
        let err = run(arguments).fails(2);
        assert_has(&err, &[part]);
    }
}

#[test]
fn a_valid_policy_is_reported_on_stdout() {
    let (_dir, name) = file(VALID);
    let out = run(&["policy", "check", &name]).prints();
    assert_eq!(out, format!("{name}: valid, mode DryRun, 1 rule\n"));
}

#[test]
fn a_policy_without_rules_is_valid() {
    let head = "apiVersion: rebalancer.dev/v1alpha1\nkind: RebalancePolicy\n";
    let out = check(format!("{head}mode: Enforce\nrules: []\n")).prints();
    assert_has(&out, &["valid, mode Enforce, 0 rules\n"]);
}

#[test]
fn a_byte_order_mark_crlf_and_a_missing_last_newline_are_accepted() {
    let (mark, lines) = (format!("\u{feff}{VALID}"), VALID.replace('\n', "\r\n"));
    for text in [mark, lines, VALID.trim_end().to_owned()] {
        check(&text).prints();
    }
}

#[test]
fn a_syntax_error_is_3_with_place_mark_and_remedy_on_stderr() {
    let (_dir, name) = file(VALID.replace("maxAge", "maxage"));
    let err = run(&["policy", "check", &name]).fails(3);
    let expected = format!(
        "{name}:4:56: error: unknown field `maxage`\n\
         \x20 4 | - {{name: web, match: {{ports: [{{port: 8080}}]}}, limits: {{maxage: 30m}}}}\n\
         \x20   |                                                        ^^^^^^ not a field of this mapping\n\
         \x20   = did you mean `maxAge`?\n"
    );
    assert_eq!(err, expected);
}

#[test]
fn a_dash_is_standard_input() {
    let out = check_text(VALID).prints();
    assert_eq!(out, "stdin: valid, mode DryRun, 1 rule\n");
    let err = check_text("").fails(3);
    assert_has(&err, &["stdin:1:1: error: missing field `apiVersion`"]);
}

#[test]
fn an_unreadable_file_is_1_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none.yaml");
    for (path, why) in [
        (missing.as_path(), "No such file or directory"),
        (dir.path(), "Is a directory"),
    ] {
        let path = path.to_str().unwrap();
        for command in [&["policy", "check", path][..], &["agent", "--policy", path]] {
            let err = run(command).fails(1);
            assert_has(&err, &["error: ", path, why]);
            assert_eq!(err.lines().count(), 1, "{err}");
        }
    }
}

#[test]
fn text_that_is_not_utf_8_is_refused_from_file_and_stdin() {
    let latin = b"# caf\xe9\n".to_vec();
    let utf_16: Vec<u8> = "\u{feff}kind: x\n"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    for bytes in [latin, utf_16] {
        for ran in [check(&bytes), check_text(&bytes)] {
            assert_ne!(ran.code, 0);
            assert_eq!(ran.out, "");
            assert_has(&ran.err, &["not UTF-8"]);
        }
    }
}

#[test]
fn binary_and_hostile_content_is_refused_without_control_characters_in_the_error() {
    let deep = "[".repeat(100_000);
    let wide = format!("rules: [{}]", "{},".repeat(100_000));
    let bomb = "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n".to_owned();
    let escapes = "kind: \"\u{9b}31m\u{202e}\"\n".to_owned();
    let nul = "kind: \0\n".to_owned();
    let large = format!("{VALID}# {}\n", "x".repeat(2 << 20));
    let documents = format!("{VALID}---\n{VALID}");
    for text in [deep, wide, bomb, escapes, nul, large, documents] {
        let err = check(&text).fails(3);
        assert!(err.len() < 100_000, "{} bytes", err.len());
        let commands = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!err.contains(commands), "{err:?}");
    }
}

#[test]
fn an_endless_file_is_refused() {
    let mut command = command(&["policy", "check", "/dev/zero"]);
    let out = command.timeout(std::time::Duration::from_secs(30)).output();
    let err = Ran::from(out.unwrap()).fails(1);
    assert_has(&err, &["/dev/zero", "16 MiB"]);
}

#[test]
fn the_agent_checks_its_policy_before_anything_else() {
    // Without privilege the answer to a valid one is 4, and with it this cgroup is an error.
    let (_dir, path) = file(VALID.replace("30m", "30"));
    let err = run(&["agent", "--policy", &path, "--cgroup", "/nowhere"]).fails(3);
    assert_has(&err, &[":4:64: error: missing unit", "30s"]);
    assert!(!err.contains("nowhere"), "{err}");
}

#[test]
fn commands_that_ask_an_agent_fail_where_none_runs() {
    let dir = tempfile::tempdir().unwrap();
    let questions: [(&[&str], i32); 10] = [
        (&["top"], 5),
        (&["top", "--once"], 5),
        (&["events"], 5),
        (&["events", "-f", "-o", "json"], 5),
        (&["pause", "--for", "1h"], 5),
        (&["resume"], 5),
        (&["cooldowns", "list", "-o", "json"], 5),
        (&["cooldowns", "clear", "--all"], 5),
        // A kubelet only distinguishes 0 from other codes.
        (&["probe", "live"], 1),
        (&["probe", "ready"], 1),
    ];
    for (question, code) in questions {
        let ran = asked(question, dir.path());
        assert_eq!(ran.code, code, "{question:?}: {}", ran.err);
        let run_dir = dir.path().to_str().unwrap();
        assert_has(&ran.err, &["no agent is running", run_dir]);
    }
}

/// What asks an agent by this folder, where pins do not exist.
fn asked(question: &[&str], run_dir: &Path) -> Ran {
    let run_dir = run_dir.to_str().unwrap();
    let pins = "/sys/fs/bpf/rebalancer-nobody";
    run(&[question, &["--pins", pins, "--run-dir", run_dir]].concat())
}

/// A socket as of an agent, in this folder.
fn socket(run_dir: &Path) -> UnixListener {
    UnixListener::bind(run_dir.join("agent.sock")).unwrap()
}

#[test]
fn status_without_an_agent_is_5_and_names_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    for form in ["table", "wide", "json", "yaml"] {
        let err = asked(&["status", "-o", form], dir.path()).fails(5);
        let socket = dir.path().join("agent.sock");
        assert_has(&err, &["no agent is running", socket.to_str().unwrap()]);
        assert_has(&err, &["rebalancer-nobody"]);
    }
    // A killed one leaves its socket.
    drop(socket(dir.path()));
    asked(&["status"], dir.path()).fails(5);
    assert_eq!(run(&["status", "-o", "xml"]).code, 2);
}

#[test]
fn status_without_permission_is_4() {
    use std::os::unix::{fs::PermissionsExt as _, process::CommandExt as _};
    let dir = tempfile::tempdir().unwrap();
    let _listener = socket(dir.path());
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o000)).unwrap();
    // Root may do everything: then another user runs it. A copy is accessible to any.
    let copy = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    let binary = copy.path().join("rebalancer");
    fs::copy(env!("CARGO_BIN_EXE_rebalancer"), &binary).unwrap();
    fs::set_permissions(copy.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = std::process::Command::new(binary);
    command.args(["status", "--run-dir", dir.path().to_str().unwrap()]);
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    let err = Ran::from(command.output().unwrap()).fails(4);
    assert_has(&err, &["permission denied", "root"]);
}

#[test]
fn an_invalid_answer_of_an_agent_is_one_error_message() {
    let dir = tempfile::tempdir().unwrap();
    let listener = socket(dir.path());
    let nothing = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
    let red = "HTTP/1.1 404 Not Found\r\ncontent-length: 6\r\n\r\n\u{1b}[31m!";
    for (answer, part) in [
        (nothing, "apiVersion is missing"),
        (red, "the agent answered: "),
        ("220 smtp.example.org\r\n", "asking the agent"),
    ] {
        let ran = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = std::io::Read::read(&mut stream, &mut [0; 1024]);
                stream.write_all(answer.as_bytes()).unwrap();
            });
            asked(&["status"], dir.path())
        });
        let err = ran.fails(1);
        assert_has(&err, &[part]);
        assert!(!err.contains('\u{1b}'), "{err:?}");
    }
}

/// `policy check` of this file with another standard output.
fn check_into(path: &str, stdout: impl Into<Stdio>) -> Ran {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_rebalancer"));
    command.args(["policy", "check", path]).stdout(stdout);
    command.output().unwrap().into()
}

#[test]
fn a_closed_stdout_is_no_error() {
    let (_dir, path) = file(VALID);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    check_into(&path, writer).prints();
}

#[test]
fn a_full_stdout_is_an_error() {
    let (_dir, path) = file(VALID);
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let err = check_into(&path, full).fails(1);
    assert_has(&err, &["error: ", "stdout", "No space left"]);
}

#[test]
fn a_policy_from_a_pipe_is_read_to_its_end() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_rebalancer"));
    command.args(["policy", "check", "/dev/stdin"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    for line in VALID.split_inclusive('\n') {
        pipe.write_all(line.as_bytes()).unwrap();
    }
    drop(pipe);
    Ran::from(child.wait_with_output().unwrap()).prints();
}
