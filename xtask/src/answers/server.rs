//! The server: it writes the response that the request's target describes, with pauses. It runs
//! until it is killed.

use std::{fs::File, io, net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use rustix::fs::sendfile;
use tokio::{
    io::{AsyncWriteExt as _, Interest},
    net::{TcpListener, TcpStream},
    time::sleep,
};

use super::{
    request::{FILE, Kind, Request},
    wire::{Head, Wire},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    address: SocketAddr,
    /// The file to send
    file: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run(arguments: &Args) -> Result<()> {
    let file = Arc::new(File::open(&arguments.file).context("the file")?);
    let listener = TcpListener::bind(arguments.address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let file = Arc::clone(&file);
        // The client reports why a connection ended.
        tokio::spawn(async move { serve(stream, &file).await });
    }
}

async fn serve(stream: TcpStream, file: &File) -> Result<()> {
    let mut wire = Wire::new(stream)?;
    loop {
        let head = wire.read_head().await?;
        let request: Request = head.word(1).parse()?;
        if head.field("Expect").is_some() {
            sleep(request.pause(10)).await;
            wire.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        if let Some(length) = head.field("Content-Length") {
            wire.read_exact(length.parse()?).await?;
        }
        if request.kind == Kind::OneWrite {
            pipeline(&mut wire, request).await?;
            continue;
        }
        for (index, piece) in pieces(request, &head).iter().enumerate() {
            sleep(request.pause(index)).await;
            wire.write(piece).await?;
        }
        match request.kind {
            Kind::File => send(&wire, file, request).await?,
            Kind::UntilClose => return Ok(wire.0.shutdown().await?),
            kind if kind.is_tunnel() => return echo(wire, request).await,
            _ => {}
        }
    }
}

/// The pieces to write, each after a pause.
fn pieces(request: Request, head: &Head) -> Vec<Vec<u8>> {
    let parts = request.parts();
    let length: usize = parts.iter().map(Vec::len).sum();
    let sized = |status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n");
    let bytes = |pieces: &[&str]| {
        pieces
            .iter()
            .map(|piece| piece.as_bytes().to_vec())
            .collect()
    };
    let with_body = |head: Vec<Vec<u8>>| head.into_iter().chain(parts.clone()).collect();
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n";
    match request.kind {
        Kind::Warm => bytes(&["HTTP/1.1 204 No Content\r\n\r\n"]),
        Kind::Sized | Kind::Upload | Kind::SlowReader | Kind::Pipelined | Kind::OneWrite => {
            with_body(bytes(&[&sized("200 OK")]))
        }
        Kind::File => bytes(&[&sized("200 OK")]),
        Kind::Chunked => {
            let mut pieces = bytes(&[&format!("{chunked}Trailer: A\r\n\r\n")]);
            for (index, part) in parts.iter().enumerate() {
                let line = format!("{:x};x=y\r\n", part.len()).into_bytes();
                // Alternates where the chunk is split.
                if index % 2 == 0 {
                    pieces.extend([line, [part, &b"\r\n"[..]].concat()]);
                } else {
                    pieces.extend([[&line[..], part].concat(), b"\r\n".to_vec()]);
                }
            }
            pieces.extend(bytes(&["0\r\nA: b\r\n", "\r\n"]));
            pieces
        }
        Kind::Events | Kind::Tokens => {
            let head = format!("{chunked}Content-Type: text/event-stream\r\n\r\n");
            let chunk = |part: Vec<u8>| {
                let line = format!("{:x}\r\n", part.len());
                [line.as_bytes(), &part, b"\r\n"].concat()
            };
            let chunks = parts.into_iter().map(chunk);
            let last = b"0\r\n\r\n".to_vec();
            bytes(&[&head])
                .into_iter()
                .chain(chunks)
                .chain([last])
                .collect()
        }
        Kind::Early => with_body(bytes(&[
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
            &sized("200 OK"),
        ])),
        Kind::SplitHead => with_body(bytes(&[
            "HTTP/1.",
            "1 200 OK\r\nContent-",
            &format!("Length: {length}\r\n"),
            "\r\n",
        ])),
        Kind::OnlyHead => bytes(&["HTTP/1.1 200 OK\r\n", "Content-Length: 9\r\n\r\n"]),
        Kind::Unchanged => bytes(&["HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n"]),
        Kind::UntilClose => with_body(bytes(&["HTTP/1.0 200 OK\r\n\r\n"])),
        Kind::WebSocket => bytes(&["HTTP/1.1 101 Switching Protocols\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"]),
        Kind::H2c => match head.field("Upgrade") {
            Some(_) => bytes(&["HTTP/1.1 101 Switching Protocols\r\n\
                 Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"]),
            // A proxy removed the upgrade.
            None => bytes(&["HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n"]),
        },
        Kind::Connect => bytes(&["HTTP/1.1 200 Connection established\r\n\r\n"]),
    }
}

/// Answers all pipelined requests in one write, except for the second half of the last response.
async fn pipeline(wire: &mut Wire, first: Request) -> Result<()> {
    let (mut answers, mut last) = (Vec::new(), first);
    loop {
        answers.extend(pieces(last, &Head(String::new())).concat());
        if wire.0.buffer().is_empty() {
            break;
        }
        last = wire.read_head().await?.word(1).parse()?;
    }
    let half = last.parts().concat().len() / 2;
    let (now, later) = answers.split_at(answers.len() - half);
    for (index, piece) in [now, later].into_iter().enumerate() {
        sleep(first.pause(index)).await;
        wire.write(piece).await?;
    }
    Ok(())
}

async fn send(wire: &Wire, file: &File, request: Request) -> Result<()> {
    const PIECE: usize = FILE / 3;
    let (mut offset, mut until) = (0, 0);
    while (offset as usize) < FILE {
        if offset as usize == until {
            sleep(request.pause(1 + until / PIECE)).await;
            until = (until + PIECE).min(FILE);
        }
        let left = until - offset as usize;
        let stream = wire.0.get_ref();
        let sent = stream.async_io(Interest::WRITABLE, || {
            sendfile(stream, file, Some(&mut offset), left).map_err(io::Error::from)
        });
        sent.await?;
    }
    Ok(())
}

/// A tunnel that echoes.
async fn echo(mut wire: Wire, request: Request) -> Result<()> {
    let mut turn = 0;
    loop {
        let bytes = wire.read_some().await?;
        sleep(request.pause(turn) / 4).await;
        wire.write(&bytes).await?;
        turn += 1;
    }
}
