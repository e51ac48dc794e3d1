//! Asks a running agent.

use std::{io, ops::ControlFlow, path::Path, time::Duration};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};

/// The largest answer read.
const LARGEST: usize = 512 << 20;
/// An agent that takes longer hangs.
const WITHIN: Duration = Duration::from_secs(30);
/// The longest line of a stream that is read.
const LONGEST_LINE: usize = 64 << 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens on the socket, or it is not there.
    #[error("nothing listens")]
    Nobody,
    /// This process may not ask.
    #[error("permission denied\n  remedy: run as root")]
    Privilege,
    /// Whoever listens is not of this process's user.
    #[error("the socket belongs to a process of user {0}, not to an agent of this user")]
    Stranger(u32),
    /// There is no such thing, says the agent.
    #[error("the agent answered: {0}")]
    NotFound(String),
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
    alone(timed(async {
        whole(send(socket, Method::GET, path, Bytes::new()).await?).await
    }))
}

/// The body of the agent's answer to `POST path` with a body in JSON.
pub fn tell(socket: &Path, path: &str, body: Vec<u8>) -> Result<Bytes, AskError> {
    alone(timed(async {
        whole(send(socket, Method::POST, path, body.into()).await?).await
    }))
}

/// Passes each line of the agent's answer to `GET path` to `on_line`, as it comes. Returns when the
/// agent ends the answer or `on_line` breaks.
pub fn follow(
    socket: &Path,
    path: &str,
    mut on_line: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> Result<(), AskError> {
    alone(async {
        let answer = timed(send(socket, Method::GET, path, Bytes::new())).await?;
        if answer.status() != StatusCode::OK {
            return timed(whole(answer)).await.map(drop);
        }
        let mut body = answer.into_body();
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(broken)?.into_data() else {
                continue;
            };
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                if on_line(&line[..end]).is_break() {
                    return Ok(());
                }
            }
            if rest.len() > LONGEST_LINE {
                return Err(AskError::Answer("a line without end".to_owned()));
            }
        }
        Ok(())
    })
}

fn alone<T>(work: impl Future<Output = Result<T, AskError>>) -> Result<T, AskError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

async fn timed<T>(work: impl Future<Output = Result<T, AskError>>) -> Result<T, AskError> {
    timeout(WITHIN, work).await.unwrap_or(Err(AskError::Slow))
}

fn broken(error: hyper::Error) -> AskError {
    AskError::Io(io::Error::other(error))
}

async fn send(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Response<Incoming>, AskError> {
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
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "agent")
        .body(Full::new(body))
        .map_err(io::Error::other)?;
    sender.send_request(request).await.map_err(broken)
}

async fn whole(answer: Response<Incoming>) -> Result<Bytes, AskError> {
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
            let text = crate::text::visible(text.trim_end());
            Err(if other == StatusCode::NOT_FOUND && !text.is_empty() {
                AskError::NotFound(text)
            } else {
                AskError::Answer(format!("{other}: {text}"))
            })
        }
    }
}
