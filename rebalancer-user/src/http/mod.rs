//! The agent's HTTP side: what can be asked, over which socket, within which bounds.
//!
//! It holds no policy and none of the agent's state: a [`Router`] is a table from path to a
//! function of whoever made it. A [`Server`] has a thread of its own, so that neither a slow
//! client nor a large answer holds up the agent's loop.

mod client;
mod metrics;
mod run_dir;
mod server;
mod wire;

pub use client::{AskError, ask, follow, tell};
#[cfg(test)]
pub use metrics::assert_metrics_listed;
pub use metrics::metrics_answer;
pub use run_dir::{RunDir, RunDirError, socket_of};
pub use server::{Open, Server};
pub use wire::{
    CancelDrainRequest, ClearRequest, CooldownsRequest, DrainAnswer, DrainRequest, PauseAnswer,
    PauseRequest, PlanRequest, PolicyText,
};

use std::{collections::BTreeMap, convert::Infallible, future::Future, pin::Pin};

use bytes::Bytes;
use http_body_util::{
    BodyExt as _, Full, Limited,
    channel::{Channel, Sender},
    combinators::BoxBody,
};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header};

use crate::policy::LARGEST_FILE;

/// The largest body of a request that is read: a policy, in JSON.
const LARGEST_BODY: usize = 2 * LARGEST_FILE as usize + (64 << 10);

/// Parts of a stream that wait for a client that is slow to read.
const STREAM_AHEAD: usize = 4;

/// What is asked.
pub type Asked = Request<Incoming>;

/// What is answered. Its body may be a stream.
pub type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Of an answer that may take as long as its client stays.
#[derive(Clone, Copy, Debug)]
struct LongLived;

type Handler = Box<dyn Fn(Asked) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

/// Paths, and the handler of each.
#[derive(Default)]
pub struct Router {
    routes: BTreeMap<&'static str, (Method, Handler)>,
}

impl Router {
    /// Answers `method` on `path`.
    #[must_use]
    pub fn on<F, A>(mut self, method: Method, path: &'static str, handler: F) -> Self
    where
        F: Fn(Asked) -> A + Send + Sync + 'static,
        A: Future<Output = Answer> + Send + 'static,
    {
        let handler: Handler = Box::new(move |asked| Box::pin(handler(asked)));
        self.routes.insert(path, (method, handler));
        self
    }

    /// A body that a request may have is read by nobody but its handler.
    async fn answer(&self, request: Asked) -> Answer {
        match self.routes.get(request.uri().path()) {
            Some((method, handler)) if method == request.method() => handler(request).await,
            Some((method, _)) => {
                let text = format!("only {method} is answered here\n");
                let mut answer = text_answer(StatusCode::METHOD_NOT_ALLOWED, text);
                if let Ok(allow) = method.as_str().parse() {
                    answer.headers_mut().insert(header::ALLOW, allow);
                }
                answer
            }
            None => {
                let paths: Vec<&str> = self.routes.keys().copied().collect();
                let text = format!("nothing is here; there are {}\n", paths.join(", "));
                text_answer(StatusCode::NOT_FOUND, text)
            }
        }
    }
}

/// An answer in JSON.
pub fn json_answer(body: Vec<u8>) -> Answer {
    typed(StatusCode::OK, "application/json", body.into())
}

/// An answer in words.
pub fn text_answer(status: StatusCode, text: impl Into<String>) -> Answer {
    typed(status, "text/plain; charset=utf-8", text.into().into())
}

/// An answer that is written bit by bit, for as long as the client stays and the sender lives. A
/// client that is slow to read holds up the sender, and nobody else.
pub fn stream_answer(kind: &'static str) -> (Sender<Bytes, Infallible>, Answer) {
    let (sender, body) = Channel::new(STREAM_AHEAD);
    let mut answer = Response::new(body.boxed());
    let kind = header::HeaderValue::from_static(kind);
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer.extensions_mut().insert(LongLived);
    (sender, answer)
}

/// The body of a request.
///
/// # Errors
/// What to answer instead: it is too large, or broke off.
pub async fn body_of(asked: Asked) -> Result<Bytes, Answer> {
    match Limited::new(asked.into_body(), LARGEST_BODY)
        .collect()
        .await
    {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => {
            let text = format!("the body, of {LARGEST_BODY} bytes at most: {error}\n");
            Err(text_answer(StatusCode::PAYLOAD_TOO_LARGE, text))
        }
    }
}

/// An answer of this kind.
pub fn typed(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body).boxed());
    *answer.status_mut() = status;
    let kind = header::HeaderValue::from_static(kind);
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}
