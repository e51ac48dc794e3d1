//! A server and a client of HTTP/2 in clear text, by Go's own library: `calls/main.go`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use serde::Deserialize;
use xtask::lab::{Host, Lab};

use crate::program::Program;

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

/// A server in the lab's first pod.
pub fn serve(lab: &Lab, port: u16) -> (SocketAddr, Program<()>) {
    let host = &lab.pod(0).host;
    let address = SocketAddr::from((lab.pod(0).addr, port));
    (address, start(host, &["serve", &address.to_string()]))
}

/// So many clients, each with a connection of its own, that ask for `query` with pauses. Stopped, they end
/// after their present calls.
pub fn ask(
    lab: &Lab,
    address: SocketAddr,
    clients: usize,
    pause: Duration,
    query: &str,
) -> Program<Report> {
    let (clients, pause) = (clients.to_string(), format!("{}ms", pause.as_millis()));
    let arguments = ["ask", &address.to_string(), &clients, &pause, query];
    start(lab.client(), &arguments)
}

fn start<R: serde::de::DeserializeOwned>(host: &Host, arguments: &[&str]) -> Program<R> {
    let mut command = host.command(program());
    command.args(arguments);
    Program::run(command, "")
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
            .output();
        let done = done.expect("Go, which `cargo xtask test kernel` installs");
        assert!(done.status.success(), "{done:?}");
        built
    })
}
