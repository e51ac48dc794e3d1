//! A server and a client of HTTP/2 in clear text, by Go's own library: `calls/main.go`.

use std::{
    io::{BufRead as _, BufReader, Lines, Read as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use serde::Deserialize;
use xtask::lab::Host;

/// What the client reports.
#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "printed when something is wrong")]
pub struct Report {
    pub calls: u64,
    pub failed: u64,
    pub wrong: u64,
    pub connections: u64,
    pub errors: Option<Vec<String>>,
}

/// One of the two, at work. Dropping it kills it.
pub struct Program {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Program {
    /// A server at this address.
    pub fn serve(host: &Host, address: SocketAddr) -> Self {
        Self::start(host, &["serve", &address.to_string()])
    }

    /// So many clients, each with a connection of its own, that ask for `query` with pauses.
    pub fn ask(
        host: &Host,
        address: SocketAddr,
        clients: usize,
        pause: Duration,
        query: &str,
    ) -> Self {
        let (clients, pause) = (clients.to_string(), format!("{}ms", pause.as_millis()));
        Self::start(
            host,
            &["ask", &address.to_string(), &clients, &pause, query],
        )
    }

    fn start(host: &Host, arguments: &[&str]) -> Self {
        let mut child = host
            .command(program())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(output.next().unwrap().unwrap(), "ready");
        Self {
            input: child.stdin.take(),
            output,
            child,
        }
    }

    /// Ends the clients after their present calls.
    pub fn report(mut self) -> Report {
        self.input = None;
        let line = self.output.next().unwrap().unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Built once.
fn program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        // Another program that does the same, such as by gRPC.
        if let Ok(other) = std::env::var("REBALANCER_TEST_CALLS") {
            return other.into();
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernel/calls");
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("calls");
        // `cargo xtask test kernel` says where there is one that is new enough.
        let go = std::env::var("REBALANCER_TEST_GO").unwrap_or_else(|_| "go".to_owned());
        let done = Command::new(go)
            .current_dir(source)
            .args(["build", "-buildvcs=false", "-trimpath", "-o"])
            .arg(&built)
            .arg(".")
            .env("CGO_ENABLED", "0")
            .env_remove("GOFLAGS")
            .stderr(Stdio::piped())
            .spawn();
        let mut done = done.expect("Go, which `cargo xtask test kernel` installs");
        let mut errors = String::new();
        done.stderr
            .take()
            .unwrap()
            .read_to_string(&mut errors)
            .unwrap();
        assert!(done.wait().unwrap().success(), "{errors}");
        built
    })
}
