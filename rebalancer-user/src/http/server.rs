//! Listens: on the agent's own socket for its user alone, and by TCP for whoever may know what the
//! table for it offers.

use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener as StdTcpListener},
    os::unix::net::UnixListener as StdUnixListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixStream},
    sync::{Semaphore, oneshot},
    time::timeout,
};
use tracing::debug;

use super::{LongLived, Router, RunDir, RunDirError};

/// Connections served at once by each listener; more wait in its queue.
const MOST_CONNECTIONS: usize = 16;
/// A request's head must come within this time.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// One request and its answer, if that is no stream.
const CONNECTION_WITHIN: Duration = Duration::from_secs(30);
/// The largest head: a request line and a few headers.
const LARGEST_HEAD: usize = 8 << 10;
const MOST_HEADERS: usize = 32;

/// Serves until it is dropped; then the socket is gone.
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    // After the thread, which listens on its socket.
    _dir: Option<RunDir>,
}

/// An open port, and what is offered there.
pub struct Open {
    listener: StdTcpListener,
    router: Router,
}

impl Open {
    /// Listens at `address`, for whoever can reach it.
    ///
    /// # Errors
    /// What the system says: taken, not ours, not allowed.
    pub fn bind(address: SocketAddr, router: Router) -> io::Result<Self> {
        let listener = StdTcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, router })
    }

    /// Where it listens: the port that was chosen, if 0 was asked for.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Server {
    /// Serves on the socket of `dir`, for this process's own user alone, and what is `open`.
    ///
    /// # Errors
    /// Why it cannot listen on the socket.
    pub fn start(mut dir: RunDir, router: Router, open: Option<Open>) -> Result<Self, RunDirError> {
        let listener = dir.listen()?;
        let path = dir.socket();
        Self::serve(Some((dir, listener, router)), open)
            .map_err(|why| RunDirError::Io { path, why })
    }

    /// Serves what is open, and nothing else.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(open: Open) -> io::Result<Self> {
        Self::serve(None, Some(open))
    }

    fn serve(
        ours: Option<(RunDir, StdUnixListener, Router)>,
        open: Option<Open>,
    ) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut dir = None;
        {
            let _inside = runtime.enter();
            if let Some((run_dir, listener, router)) = ours {
                dir = Some(run_dir);
                let listener = Listener::Ours(UnixListener::from_std(listener)?);
                runtime.spawn(accept(listener, router));
            }
            if let Some(Open { listener, router }) = open {
                let listener = Listener::Anyone(TcpListener::from_std(listener)?);
                runtime.spawn(accept(listener, router));
            }
        }
        let thread = thread::Builder::new()
            .name("http".to_owned())
            .spawn(move || drop(runtime.block_on(stopped)))?;
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

enum Listener {
    /// For this process's user.
    Ours(UnixListener),
    Anyone(TcpListener),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Listener {
    /// The next connection; `None` if it is nobody's that is answered.
    async fn next(&self) -> io::Result<Option<Box<dyn Stream>>> {
        match self {
            Self::Ours(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(is_our_user(&stream).then(|| Box::new(stream) as _))
            }
            Self::Anyone(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(Some(Box::new(stream)))
            }
        }
    }
}

async fn accept(listener: Listener, router: Router) {
    let router = Arc::new(router);
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return; // it is never closed
        };
        let stream = match listener.next().await {
            Ok(Some(stream)) => stream,
            Ok(None) => {
                debug!("refused a process of another user");
                continue;
            }
            Err(error) => {
                // Too many files, most likely: not to be asked for again at once.
                debug!(%error, "accepting a connection to the agent");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let router = Arc::clone(&router);
        tokio::spawn(async move {
            serve(stream, &router).await;
            drop(place);
        });
    }
}

/// The socket's mode enforces the same; this also holds where the folder's mode is wider.
fn is_our_user(stream: &UnixStream) -> bool {
    let ours = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == ours)
}

async fn serve(stream: Box<dyn Stream>, router: &Router) {
    let stays = AtomicBool::new(false);
    let service = service_fn(|request| async {
        let answer = router.answer(request).await;
        let long = answer.extensions().get::<LongLived>().is_some();
        stays.store(long, Ordering::Relaxed);
        Ok::<_, Infallible>(answer)
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(LARGEST_HEAD)
        .max_headers(MOST_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut ended = timeout(CONNECTION_WITHIN, &mut connection).await;
    if ended.is_err() && stays.load(Ordering::Relaxed) {
        ended = Ok(connection.await);
    }
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "could not answer a request"),
        Err(_) => debug!("a client timed out"),
    }
}
