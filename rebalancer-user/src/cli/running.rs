//! The agent that runs, asked through its socket.

use std::{io, ops::ControlFlow, path::Path};

use bytes::Bytes;

use super::KernelArgs;
use crate::{
    api::{Dumped, ReadError, Services, Status, read_services, read_snapshot, read_status},
    bpf,
    http::{self, AskError, ask, socket_of},
};

/// Why the agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotAsked {
    /// None runs.
    #[error("no agent is running: nothing listens on {socket}, and {pins}")]
    NoAgent {
        /// Where it would listen.
        socket: String,
        /// What its pins say.
        pins: String,
    },
    /// It may not be asked by this process.
    #[error("{socket}: permission denied\n  remedy: run as root")]
    Privilege {
        /// Where it listens.
        socket: String,
    },
    /// Anything else.
    #[error("{socket}: {why}")]
    Other {
        /// Where it listens.
        socket: String,
        /// What happened.
        why: String,
    },
}

/// What it says of itself.
pub(super) fn status(args: &KernelArgs) -> Result<Status, NotAsked> {
    get(args, "/status", read_status)
}

/// Its endpoints by Service.
pub(super) fn services(args: &KernelArgs) -> Result<Services, NotAsked> {
    get(args, "/services", read_services)
}

/// The connections and endpoints that it sees now.
pub(super) fn dump(args: &KernelArgs) -> Result<Dumped, NotAsked> {
    get(args, "/dump", |body| read_snapshot(body))
}

/// The answer to a GET, as it is.
pub(super) fn text(args: &KernelArgs, path: &str) -> Result<Bytes, NotAsked> {
    asked(args, |socket| ask(socket, path))
}

/// Posts a body in JSON; returns the answer.
pub(super) fn post(args: &KernelArgs, path: &str, body: Vec<u8>) -> Result<Bytes, NotAsked> {
    asked(args, |socket| http::tell(socket, path, body))
}

/// Calls `each` with every line of the answer as it comes.
pub(super) fn lines(
    args: &KernelArgs,
    path: &str,
    each: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> Result<(), NotAsked> {
    asked(args, |socket| http::follow(socket, path, each))
}

fn get<T>(
    args: &KernelArgs,
    path: &str,
    read: impl FnOnce(&[u8]) -> Result<T, ReadError>,
) -> Result<T, NotAsked> {
    let body = text(args, path)?;
    read(&body).map_err(|e| NotAsked::Other {
        socket: socket_of(&args.run_dir()).display().to_string(),
        why: format!(
            "the agent's answer: {e}\n  remedy: use the same version of `rebalancer` as the agent"
        ),
    })
}

fn asked<T>(
    args: &KernelArgs,
    ask: impl FnOnce(&Path) -> Result<T, AskError>,
) -> Result<T, NotAsked> {
    let socket = socket_of(&args.run_dir());
    ask(&socket).map_err(|error| not_asked(args, &socket, error))
}

/// Why there is no answer at `socket`, for an operator.
fn not_asked(args: &KernelArgs, socket: &Path, error: AskError) -> NotAsked {
    let socket = socket.display().to_string();
    match error {
        AskError::Nobody if bpf::agent_runs(&args.pins) => {
            let pid =
                bpf::agent_pid(&args.pins).map_or(String::new(), |pid| format!(" (pid {pid})"));
            let why = format!(
                "nothing listens, but an agent{pid} is running with its pins in {}\n  \
                 remedy: if it has just been started, try again in some seconds; if it was started \
                 with --run-dir, give the same directory",
                args.pins.display()
            );
            NotAsked::Other { socket, why }
        }
        AskError::Nobody => NotAsked::NoAgent {
            socket,
            pins: left_pins(&args.pins),
        },
        AskError::Privilege => NotAsked::Privilege { socket },
        error => NotAsked::Other {
            socket,
            why: error.to_string(),
        },
    }
}

/// What the pins say when nobody has locked them.
fn left_pins(pins: &Path) -> String {
    let shown = pins.display();
    match pins.symlink_metadata() {
        Ok(_) => format!(
            "{shown} has the pins of an agent that has ended: tracking continues as far as it was \
             attached, and nothing is moved\n  remedy: start an agent, which takes them over or replaces them"
        ),
        Err(e) if e.kind() == io::ErrorKind::NotFound => format!("{shown} has no pins"),
        Err(e) => format!("cannot check whether {shown} has pins of an agent that has ended: {e}"),
    }
}
