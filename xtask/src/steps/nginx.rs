//! nginx: keep-alive connections, downloads, long polls, and HTTP/2 with slow and fast calls.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, Uri, body::Bytes, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use xtask::lab::{self, Lab, Pod};

use super::{
    Defaults, Server, Situation,
    clients::{Clients, PAUSE},
    server::{Running, folder},
    tally::{Connection, Seen},
};
use crate::keepalive_client;

const KEPT: u16 = 8080;
const DOWNLOAD: u16 = 8081;
const POLL: u16 = 8082;
/// gRPC's port, which a guard skips.
const GRPC: u16 = 50051;
/// A port that does not identify HTTP/2.
const HTTP2: u16 = 8083;
/// Twice the duration of a slow call.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
const BIG: u64 = 16 << 20;
const ECHO: &str = "load_module /usr/lib/nginx/modules/ngx_http_echo_module.so;";

const AT_REST: Situation = Situation {
    title: "nginx, idle keep-alive connections",
    client: "hyper",
    port: KEPT,
    lost: "requests failed",
    defaults: Defaults::Moves,
    ever_quiet: true,
    run: kept,
};

const SIDE_BY_SIDE: Situation = Situation {
    title: "nginx, HTTP/2 on gRPC's port: slow and fast calls",
    port: GRPC,
    lost: "calls failed",
    defaults: Defaults::Skips("statefulPort"),
    run: http2,
    ..AT_REST
};

pub(super) const SERVER: Server = Server {
    start,
    situations: &[
        AT_REST,
        Situation {
            title: "nginx, in the middle of downloads",
            port: DOWNLOAD,
            lost: "downloads broke off",
            run: downloads,
            ..AT_REST
        },
        Situation {
            title: "nginx, long polls",
            port: POLL,
            lost: "polls failed",
            defaults: Defaults::Waits,
            ever_quiet: false,
            run: polls,
            ..AT_REST
        },
        SIDE_BY_SIDE,
        Situation {
            title: "the same on port 8083, which does not identify HTTP/2",
            port: HTTP2,
            defaults: Defaults::Detected("refused: http2"),
            ..SIDE_BY_SIDE
        },
    ],
};

fn start(lab: &Lab, pod: &Pod) -> Result<Running> {
    let folder = folder(lab, pod, "nginx")?;
    fs::File::create(folder.join("big"))?.set_len(BIG)?;
    let servers = format!(
        "server {{ listen {KEPT}; location / {{ return 200 \"here\\n\"; }} }}\n\
         server {{ listen {DOWNLOAD}; location / {{ root {path}; }} }}\n\
         server {{ listen {POLL}; location / {{ echo_sleep 1.5; echo news; }} }}\n\
         server {{\n\
             listen {GRPC} http2;\n\
             listen {HTTP2} http2;\n\
             location / {{ return 200 \"fast\\n\"; }}\n\
             location /slow {{ echo_sleep 1.5; echo slow; }}\n\
         }}\n",
        path = folder.display()
    );
    let mut nginx = lab::nginx(&pod.host, &folder, &servers)?;
    nginx.args(["-g", ECHO]);
    let ports = [KEPT, DOWNLOAD, POLL, GRPC, HTTP2];
    Running::start(lab, pod, &folder, &mut nginx, &ports)
}

fn kept(clients: &Clients<'_>) -> Result<Seen> {
    with_think_time(clients, "/", Duration::ZERO)
}

/// Slow readers: unread data stays in the queues of both hosts.
fn downloads(clients: &Clients<'_>) -> Result<Seen> {
    with_think_time(clients, "/big", Duration::from_millis(40))
}

fn with_think_time(clients: &Clients<'_>, path: &str, pause: Duration) -> Result<Seen> {
    let uri = uri(clients, path)?;
    clients.run(async |connection| {
        let http = keepalive_client::client();
        loop {
            connection.count(ask(&http, &uri, pause).await);
            sleep(connection.think).await;
        }
    })
}

/// The next poll follows the response at once.
fn polls(clients: &Clients<'_>) -> Result<Seen> {
    let uri = uri(clients, "/")?;
    clients.run(async |connection| {
        let http = keepalive_client::client();
        loop {
            if !connection.count(ask(&http, &uri, Duration::ZERO).await) {
                sleep(PAUSE).await;
            }
        }
    })
}

fn uri(clients: &Clients<'_>, path: &str) -> Result<Uri> {
    Ok(format!("http://{}{path}", clients.address()).parse()?)
}

/// Sends a request and reads the whole response, with a pause after every 256 KiB.
async fn ask(http: &keepalive_client::Http, uri: &Uri, pause: Duration) -> Result<()> {
    let answer = http.get(uri.clone()).await?;
    ensure!(answer.status().is_success(), "status {}", answer.status());
    let (mut body, mut since, mut all) = (answer.into_body(), 0, 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.with_context(|| format!("after {all} bytes"))?;
        let length = frame.data_ref().map_or(0, Bytes::len);
        (since, all) = (since + length, all + length);
        if since >= 256 << 10 && !pause.is_zero() {
            since = 0;
            sleep(pause).await;
        }
    }
    Ok(())
}

type Calls = http2::SendRequest<Empty<Bytes>>;

/// On each connection, consecutive calls that take 1.5 s, and fast calls in parallel.
fn http2(clients: &Clients<'_>) -> Result<Seen> {
    let (address, fast, slow) = (
        clients.address(),
        uri(clients, "/")?,
        uri(clients, "/slow")?,
    );
    clients.run(async |connection| {
        if let Ok(calls) = connect(address).await {
            let fast_calls = repeat(&calls, &fast, connection.think, connection);
            let slow_calls = repeat(&calls, &slow, Duration::ZERO, connection);
            tokio::join!(fast_calls, slow_calls);
        }
    })
}

async fn connect(address: std::net::SocketAddr) -> Result<Calls> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (calls, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(calls)
}

/// Makes calls until the connection ends. Calls that find the connection already closed are no
/// losses, as a client would make them on another one.
async fn repeat(calls: &Calls, uri: &Uri, pause: Duration, connection: &Connection<'_>) {
    let mut calls = calls.clone();
    while calls.ready().await.is_ok() {
        let call = async {
            let request = Request::get(uri.clone()).body(Empty::new())?;
            let answer = calls.send_request(request).await?;
            ensure!(answer.status().is_success(), "status {}", answer.status());
            answer.into_body().collect().await.context("the body")?;
            Ok(())
        };
        // A call without a response is lost as well.
        let answered = timeout(CALL_TIMEOUT, call).await;
        let answered = answered.unwrap_or_else(|_| bail!("no response in {CALL_TIMEOUT:?}"));
        if !connection.count(answered) {
            return;
        }
        sleep(pause).await;
    }
}
