//! A server in C with the default action for SIGPIPE: a write to a connection that was reset kills
//! it.

use std::process::Command;

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
    clients::{Clients, PAUSE, think},
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
        rule: "c-sigpipe",
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
    clients.run(move |index, tally| async move {
        loop {
            if let Ok(mut stream) = TcpStream::connect(address).await {
                let mut answer = [0; 6];
                while match stream.write_all(b"ask\n").await {
                    Ok(()) => stream.read_exact(&mut answer).await.map(drop),
                    Err(error) => Err(error),
                }
                .inspect_err(|error| tally.lost(error))
                .is_ok()
                {
                    tally.done();
                    sleep(think(index)).await;
                }
            }
            tally.reconnected();
            sleep(PAUSE).await;
        }
    })
}
