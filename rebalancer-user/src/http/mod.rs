//! The agent's HTTP side: what can be asked, over which socket, within which bounds.
//!
//! It holds no policy and none of the agent's state: a [`Router`] is a table from path to a
//! function of whoever made it. A [`Server`] has a thread of its own, so that neither a slow
//! client nor a large answer holds up the agent's loop.

mod client;
mod run_dir;

pub use client::{AskError, ask};
pub use run_dir::{RunDir, RunDirError, socket_of};

use std::{
    collections::BTreeMap, convert::Infallible, future::Future, io, pin::Pin, sync::Arc, thread,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, oneshot},
    time::timeout,
};
use tracing::debug;

/// Connections served at once; more wait in the socket's queue.
const MOST_CONNECTIONS: usize = 16;
/// A request's head must come within this time.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// One request and its answer.
const CONNECTION_WITHIN: Duration = Duration::from_secs(30);
/// The largest head: a request line and a few headers.
const LARGEST_HEAD: usize = 8 << 10;
const MOST_HEADERS: usize = 32;

/// What is answered. Its body may be a stream.
pub type Answer = Response<BoxBody<Bytes, Infallible>>;

type Handler = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

/// Which path is answered by whom.
#[derive(Default)]
pub struct Router {
    routes: BTreeMap<&'static str, (Method, Handler)>,
}

impl Router {
    /// Answers `method` on `path`.
    #[must_use]
    pub fn on<F, A>(mut self, method: Method, path: &'static str, handler: F) -> Self
    where
        F: Fn() -> A + Send + Sync + 'static,
        A: Future<Output = Answer> + Send + 'static,
    {
        let handler: Handler = Box::new(move || Box::pin(handler()));
        self.routes.insert(path, (method, handler));
        self
    }

    /// A body that a request may have is not read.
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        match self.routes.get(request.uri().path()) {
            Some((method, handler)) if method == request.method() => handler().await,
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

fn typed(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body).boxed());
    *answer.status_mut() = status;
    let kind = header::HeaderValue::from_static(kind);
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

/// Serves until it is dropped; then the socket is gone.
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    // After the thread, which listens on its socket.
    _dir: RunDir,
}

impl Server {
    /// Serves on the socket of `dir`, for this process's own user alone.
    pub fn start(mut dir: RunDir, router: Router) -> Result<Self, RunDirError> {
        let failed = |path: &std::path::Path, source: io::Error| RunDirError::Io {
            path: path.to_owned(),
            source,
        };
        let path = dir.socket();
        let listener = dir.listen()?;
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| failed(&path, e))?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::from_std(listener).map_err(|e| failed(&path, e))?
        };
        let thread = thread::Builder::new()
            .name("http".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        _ = stopped => {}
                        () = accept(&listener, Arc::new(router)) => {}
                    }
                });
            })
            .map_err(|e| failed(&path, e))?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
            _dir: dir,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(Err(_)) = self.thread.take().map(thread::JoinHandle::join) {
            tracing::error!("the HTTP thread panicked");
        }
    }
}

async fn accept(listener: &UnixListener, router: Arc<Router>) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return; // it is never closed
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many files, most likely: not to be asked for again at once.
                debug!(%error, "accepting on the agent's socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if !is_our_user(&stream) {
            debug!("a process of another user was not answered");
            continue;
        }
        let router = Arc::clone(&router);
        tokio::spawn(async move {
            serve(stream, &router).await;
            drop(place);
        });
    }
}

/// The socket's mode says so too; this holds where its folder's mode does not.
fn is_our_user(stream: &UnixStream) -> bool {
    let ours = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == ours)
}

async fn serve(stream: UnixStream, router: &Router) {
    let service = service_fn(|request| async { Ok::<_, Infallible>(router.answer(request).await) });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(LARGEST_HEAD)
        .max_headers(MOST_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_WITHIN, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a request that could not be answered"),
        Err(_) => debug!("a client that took too long was left"),
    }
}
