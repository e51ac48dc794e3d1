//! A server in C with the default action for SIGPIPE: a write to a connection that was reset kills
//! it.

use std::{io, process::Command};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::sleep,
};
use xtask::{
    command::output,
    lab::{Lab, Pod},
};

use super::{
    Defaults, Server, Situation,
    clients::Clients,
    server::{Running, folder},
    tally::Seen,
};

const PORT: u16 = 8090;
const SOURCE: &str = include_str!("sigpipe.c");

pub(super) const SERVER: Server = Server {
    start,
    situations: &[Situation {
        title: "a C server with default SIGPIPE",
        client: "tokio",
        port: PORT,
        lost: "requests failed",
        defaults: Defaults::Refused("refused: sigpipe"),
        ever_quiet: true,
        run: echo,
    }],
};

fn start(lab: &Lab, pod: &Pod) -> Result<Running> {
    let folder = folder(lab, pod, "sigpipe")?;
    let (source, program) = (folder.join("sigpipe.c"), folder.join("sigpipe"));
    std::fs::write(&source, SOURCE)?;
    let mut cc = Command::new("cc");
    output(cc.arg("-pthread").arg("-o").arg(&program).arg(source))?;
    let mut server = pod.host.command(program);
    Running::start(lab, pod, &folder, server.arg(PORT.to_string()), &[PORT])
}

fn echo(clients: &Clients<'_>) -> Result<Seen> {
    let address = clients.address();
    clients.run(async |connection| {
        let Ok(mut stream) = TcpStream::connect(address).await else {
            return;
        };
        while connection.count(ask(&mut stream).await) {
            sleep(connection.think).await;
        }
    })
}

async fn ask(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"ask\n").await?;
    stream.read_exact(&mut [0; 6]).await.map(drop)
}
