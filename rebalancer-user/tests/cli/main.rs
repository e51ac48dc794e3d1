//! The command line as a black box: exit codes, standard output, standard error. Needs neither root nor
//! BPF; what needs them is in tests/kernel.

mod man;
mod plan;
mod policy;
mod usage;

use std::process::Output;

use assert_cmd::Command;

/// What a run came to.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let ran = Self {
            // None is a signal: no mistake of a caller may end in one.
            code: output.status.code().expect("an exit code"),
            out: text(output.stdout),
            err: text(output.stderr),
        };
        assert!(!ran.err.contains("panicked"), "{}", ran.err);
        ran
    }
}

impl Ran {
    /// What it printed: it succeeded, and said nothing beside.
    #[track_caller]
    fn prints(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""));
        self.out
    }

    /// What it said: it ended with this code, and printed nothing.
    #[track_caller]
    fn fails(self, code: i32) -> String {
        let ended = (self.code, self.out.as_str());
        assert_eq!(ended, (code, ""), "{}", self.err);
        self.err
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rebalancer"));
    // The caller's environment must not decide.
    for variable in ["LOG", "METRICS_ADDRESS", "MOVE_EVENTS"] {
        command.env_remove(format!("REBALANCER_{variable}"));
    }
    command.args(arguments);
    command
}

fn run(arguments: &[&str]) -> Ran {
    command(arguments).output().unwrap().into()
}

fn run_with(arguments: &[&str], stdin: impl AsRef<[u8]>) -> Ran {
    let mut command = command(arguments);
    command.write_stdin(stdin.as_ref()).output().unwrap().into()
}
