//! HTTP/1 on one end of a connection. The framing is independent of the agent's, which is under
//! test.

use std::{
    io::{Error, ErrorKind, Result},
    os::fd::AsRawFd as _,
};

use rustix::{
    io::Errno,
    net::{RecvFlags, recv},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

pub(super) struct Wire(pub(super) BufReader<TcpStream>);

/// How a message body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyEnd {
    After(usize),
    WithChunks,
    WithConnection,
}

/// A message's head.
pub(super) struct Head(pub(super) String);

impl Head {
    /// Word number `index` of the first line.
    pub(super) fn word(&self, index: usize) -> &str {
        self.0.split([' ', '\r']).nth(index).unwrap_or_default()
    }

    pub(super) fn status(&self) -> u16 {
        self.word(1).parse().unwrap_or(0)
    }

    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.0.split("\r\n").find_map(|line| {
            let (of, value) = line.split_once(':')?;
            of.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// How the body of a response ends, unless the request was HEAD.
    pub(super) fn body_end(&self) -> Result<BodyEnd> {
        if matches!(self.status(), 100..200 | 204 | 304) {
            return Ok(BodyEnd::After(0));
        }
        match (
            self.field("Transfer-Encoding"),
            self.field("Content-Length"),
        ) {
            (Some("chunked"), None) => Ok(BodyEnd::WithChunks),
            (None, Some(length)) => Ok(BodyEnd::After(length.parse().map_err(Error::other)?)),
            (None, None) => Ok(BodyEnd::WithConnection),
            _ => Err(Error::other(format!("framing: {}", self.0))),
        }
    }

    /// Whether the connection is closed after this message.
    pub(super) fn closes(&self) -> bool {
        let connection = self.field("Connection").unwrap_or_default();
        connection.eq_ignore_ascii_case("close") || self.0.starts_with("HTTP/1.0")
    }
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write_all(bytes).await
    }

    async fn read_line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line).await?;
        if line.ends_with("\r\n") {
            return Ok(line);
        }
        Err(ErrorKind::UnexpectedEof.into())
    }

    pub(super) async fn read_head(&mut self) -> Result<Head> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            head += &self.read_line().await?;
        }
        Ok(Head(head))
    }

    pub(super) async fn read_exact(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).await?;
        Ok(bytes)
    }

    /// The next bytes, at least one.
    pub(super) async fn read_some(&mut self) -> Result<Vec<u8>> {
        let bytes = self.0.fill_buf().await?.to_vec();
        if bytes.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.0.consume(bytes.len());
        Ok(bytes)
    }

    pub(super) async fn read_body(&mut self, ends: BodyEnd) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        match ends {
            BodyEnd::After(length) => body = self.read_exact(length).await?,
            BodyEnd::WithChunks => {
                loop {
                    let line = self.read_line().await?;
                    let digits = line.split([';', '\r']).next().unwrap_or_default();
                    match usize::from_str_radix(digits, 16).map_err(Error::other)? {
                        0 => break,
                        length => body.extend(self.read_exact(length).await?),
                    }
                    if self.read_exact(2).await? != b"\r\n" {
                        return Err(Error::other("a chunk does not end where its size says"));
                    }
                }
                while self.read_line().await? != "\r\n" {}
            }
            BodyEnd::WithConnection => {
                self.0.read_to_end(&mut body).await?;
            }
        }
        Ok(body)
    }

    /// Waits for data or the end of the connection.
    pub(super) async fn wait_readable(&self) {
        // An error is an end as well.
        let _end = self.0.get_ref().peek(&mut [0]).await;
    }

    /// Whether the kernel has data, an end or an error for this connection.
    pub(super) fn is_readable(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        !matches!(
            recv(self.0.get_ref(), &mut [0u8; 1][..], flags),
            Err(Errno::AGAIN)
        )
    }

    /// Whether the peer has acknowledged all that was written.
    pub(super) fn is_acknowledged(&self) -> bool {
        let mut unacknowledged: libc::c_int = 0;
        // SAFETY: the descriptor is open, and the kernel writes one int.
        let asked = unsafe {
            libc::ioctl(
                self.0.get_ref().as_raw_fd(),
                libc::TIOCOUTQ,
                &raw mut unacknowledged,
            )
        };
        asked == 0 && unacknowledged == 0
    }
}
