//! Asks a running agent.

use std::{io, path::Path, time::Duration};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};

/// The largest answer read.
const LARGEST: usize = 512 << 20;
/// An agent that takes longer hangs.
const WITHIN: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens on the socket, or it is not there.
    #[error("nobody listens")]
    Nobody,
    /// This process may not ask.
    #[error("not allowed to ask the agent\n  remedy: run as root")]
    Privilege,
    /// Whoever listens is not of this process's user.
    #[error("a process of user {0} listens there, not an agent of ours")]
    Stranger(u32),
    /// The agent answers otherwise than expected.
    #[error("the agent answered {0}")]
    Answer(String),
    /// The agent does not answer.
    #[error("the agent did not answer within {} seconds", WITHIN.as_secs())]
    Slow,
    /// The answer broke off.
    #[error("asking the agent: {0}")]
    Io(#[from] io::Error),
}

/// The body of the agent's answer to `GET path`.
pub fn ask(socket: &Path, path: &str) -> Result<Bytes, AskError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async { timeout(WITHIN, get(socket, path)).await })
        .unwrap_or(Err(AskError::Slow))
}

async fn get(socket: &Path, path: &str) -> Result<Bytes, AskError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::Nobody,
            io::ErrorKind::PermissionDenied => AskError::Privilege,
            _ => AskError::Io(e),
        })?;
    let peer = stream.peer_cred()?.uid();
    if peer != rustix::process::geteuid().as_raw() {
        return Err(AskError::Stranger(peer));
    }
    let broken = |e: hyper::Error| AskError::Io(io::Error::other(e));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, "agent")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let answer = sender.send_request(request).await.map_err(broken)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), LARGEST)
        .collect()
        .await
        .map_err(io::Error::other)?
        .to_bytes();
    match status {
        StatusCode::OK => Ok(body),
        other => {
            let text = String::from_utf8_lossy(&body);
            Err(AskError::Answer(crate::policy::visible(&format!(
                "{other}: {}",
                text.trim_end()
            ))))
        }
    }
}
