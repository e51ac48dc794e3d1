//! Redis: idle connections, subscribers, and open transactions.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use redis::{AsyncConnectionConfig, Client, RedisResult, aio::MultiplexedConnection};
use tokio::{net::UnixStream, time::sleep};
use xtask::lab::{Lab, Pod};

use super::{
    Defaults, Server, Situation,
    clients::Clients,
    server::{Running, folder},
    tally::Seen,
};

const PORT: u16 = 6379;
const SOCKET: &str = "redis.sock";

pub(super) const SUBSCRIBERS: Situation = Situation {
    title: "Redis, SUBSCRIBE",
    client: "redis-rs",
    port: PORT,
    lost: "messages missed",
    defaults: Defaults::Skips("statefulPort"),
    ever_quiet: true,
    run: subscribers,
};

pub(super) const SERVER: Server = Server {
    start,
    situations: &[
        Situation {
            title: "Redis, idle",
            lost: "commands failed",
            run: idle,
            ..SUBSCRIBERS
        },
        SUBSCRIBERS,
        Situation {
            title: "Redis, inside MULTI",
            lost: "transactions lost",
            run: transactions,
            ..SUBSCRIBERS
        },
    ],
};

fn start(lab: &Lab, pod: &Pod) -> Result<Running> {
    let folder = folder(lab, pod, "redis")?;
    let port = PORT.to_string();
    let mut redis = pod.host.command("redis-server");
    let redis = redis
        .args([
            "--port",
            &port,
            "--bind",
            "0.0.0.0",
            "--protected-mode",
            "no",
        ])
        .args(["--save", "", "--appendonly", "no", "--dir"])
        .arg(&folder)
        .arg("--unixsocket")
        .arg(folder.join(SOCKET));
    Running::start(lab, pod, &folder, redis, &[PORT])
}

fn client(clients: &Clients<'_>) -> Result<Client> {
    Ok(Client::open(format!("redis://{}", clients.address()))?)
}

async fn connect(client: &Client) -> RedisResult<MultiplexedConnection> {
    // The default of half a second is too short on a busy machine.
    let patience = Some(Duration::from_secs(10));
    let config = AsyncConnectionConfig::new().set_response_timeout(patience);
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
}

async fn send(connection: &mut MultiplexedConnection, words: &[&str]) -> RedisResult<()> {
    let mut command = redis::Cmd::new();
    command.arg(words).exec_async(connection).await
}

/// Commands with think time between them.
fn idle(clients: &Clients<'_>) -> Result<Seen> {
    let client = client(clients)?;
    clients.run(async |connection| {
        let Ok(mut redis) = connect(&client).await else {
            return;
        };
        while connection.count(send(&mut redis, &["INCR", "hits"]).await) {
            sleep(connection.think).await;
        }
    })
}

fn transactions(clients: &Clients<'_>) -> Result<Seen> {
    let client = client(clients)?;
    clients.run(async |connection| {
        let Ok(mut redis) = connect(&client).await else {
            return;
        };
        while connection.count(transaction(&mut redis, connection.think).await) {}
    })
}

async fn transaction(connection: &mut MultiplexedConnection, think: Duration) -> RedisResult<()> {
    for words in [&["MULTI"][..], &["INCR", "debit"], &["INCR", "credit"]] {
        send(connection, words).await?;
        sleep(think).await;
    }
    send(connection, &["EXEC"]).await
}

/// Subscribers that reconnect at once, and a publisher on the server's unix socket.
fn subscribers(clients: &Clients<'_>) -> Result<Seen> {
    let client = client(clients)?;
    let socket = clients.folder.join(SOCKET);
    let publish = async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut publisher = UnixStream::connect(&socket).await.context("publish")?;
        for number in 0_u64.. {
            let command = format!("PUBLISH news {number}\r\n");
            publisher.write_all(command.as_bytes()).await?;
            publisher.read_exact(&mut [0]).await.context("publish")?;
            sleep(Duration::from_millis(400)).await;
        }
        Ok(())
    };
    clients.run_with(publish, async |connection| {
        let Ok(mut news) = client.get_async_pubsub().await else {
            return;
        };
        if news.subscribe("news").await.is_err() {
            return;
        }
        let mut messages = news.into_on_message();
        while let Some(message) = messages.next().await {
            if let Ok(number) = message.get_payload() {
                connection.receive(number);
            }
        }
    })
}
