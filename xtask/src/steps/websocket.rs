//! A WebSocket with an event every half second, served by Python's websockets.

use anyhow::Result;
use futures_util::StreamExt as _;
use tokio_tungstenite::{connect_async, tungstenite::Message};
use xtask::lab::{Lab, Pod};

use super::{
    Defaults, Server, Situation,
    clients::Clients,
    server::{Running, folder},
    tally::Seen,
};

const PORT: u16 = 8091;
const SOURCE: &str = include_str!("websocket.py");

pub(super) const SERVER: Server = Server {
    start,
    situations: &[Situation {
        title: "a WebSocket between events",
        client: "tungstenite",
        port: PORT,
        lost: "events missed",
        // Its client sends nothing, so the protocol is not detected.
        defaults: Defaults::Undetected,
        ever_quiet: true,
        run: follow,
    }],
};

fn start(lab: &Lab, pod: &Pod) -> Result<Running> {
    let folder = folder(lab, pod, "websocket")?;
    // Debian's Python, which has Debian's module.
    let mut python = pod.host.command("/usr/bin/python3");
    let python = python.args(["-c", SOURCE, &PORT.to_string()]);
    Running::start(lab, pod, &folder, python, &[PORT])
}

/// Clients that reconnect at once.
fn follow(clients: &Clients<'_>) -> Result<Seen> {
    let url = format!("ws://{}/", clients.address());
    clients.run(async |connection| {
        let Ok((mut socket, _)) = connect_async(&url).await else {
            return;
        };
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Text(text) = message
                && let Ok(number) = text.parse()
            {
                connection.receive(number);
            }
        }
    })
}
