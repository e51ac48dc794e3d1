//! One end of a connection, byte by byte: a framing of its own, as what is measured reads HTTP/1 by
//! another.

use std::{
    io::{Error, ErrorKind, Result},
    os::fd::AsRawFd as _,
};

use rustix::{
    io::Errno,
    net::{RecvFlags, recv},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

pub(super) struct Wire {
    pub(super) stream: TcpStream,
    /// What was read and not taken.
    seen: Vec<u8>,
}

/// How the body behind a head ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    After(usize),
    WithChunks,
    WithConnection,
}

/// A message's head.
pub(super) struct Head(pub(super) String);

impl Head {
    /// The word with this number of its first line.
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

    /// The body of an answer to something else than HEAD.
    pub(super) fn ends(&self) -> Result<Ends> {
        if matches!(self.status(), 100..200 | 204 | 304) {
            return Ok(Ends::After(0));
        }
        match (
            self.field("Transfer-Encoding"),
            self.field("Content-Length"),
        ) {
            (Some("chunked"), None) => Ok(Ends::WithChunks),
            (None, Some(length)) => Ok(Ends::After(length.parse().map_err(Error::other)?)),
            (None, None) => Ok(Ends::WithConnection),
            _ => Err(Error::other(format!("framing: {}", self.0))),
        }
    }

    /// Whether the connection is of no more use behind it.
    pub(super) fn closes(&self) -> bool {
        let connection = self.field("Connection").unwrap_or_default();
        connection.eq_ignore_ascii_case("close") || self.0.starts_with("HTTP/1.0")
    }
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            seen: Vec::new(),
        })
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Whether something was read that nobody has taken.
    pub(super) fn has_more(&self) -> bool {
        !self.seen.is_empty()
    }

    async fn more(&mut self) -> Result<()> {
        match self.stream.read_buf(&mut self.seen).await? {
            0 => Err(Error::from(ErrorKind::UnexpectedEof)),
            _ => Ok(()),
        }
    }

    async fn until(&mut self, end: &[u8]) -> Result<String> {
        loop {
            let found = self.seen.windows(end.len()).position(|seen| seen == end);
            if let Some(found) = found {
                let bytes = self.exactly(found + end.len()).await?;
                return String::from_utf8(bytes).map_err(Error::other);
            }
            self.more().await?;
        }
    }

    pub(super) async fn head(&mut self) -> Result<Head> {
        Ok(Head(self.until(b"\r\n\r\n").await?))
    }

    /// Reads until so much is there.
    pub(super) async fn at_least(&mut self, count: usize) -> Result<()> {
        while self.seen.len() < count {
            self.more().await?;
        }
        Ok(())
    }

    pub(super) async fn exactly(&mut self, count: usize) -> Result<Vec<u8>> {
        self.at_least(count).await?;
        let rest = self.seen.split_off(count);
        Ok(std::mem::replace(&mut self.seen, rest))
    }

    /// What comes next, at least a byte.
    pub(super) async fn some(&mut self) -> Result<Vec<u8>> {
        if self.seen.is_empty() {
            self.more().await?;
        }
        Ok(std::mem::take(&mut self.seen))
    }

    pub(super) async fn body(&mut self, ends: Ends) -> Result<Vec<u8>> {
        match ends {
            Ends::After(length) => self.exactly(length).await,
            Ends::WithChunks => {
                let mut body = Vec::new();
                loop {
                    let line = self.until(b"\r\n").await?;
                    let digits = line.split([';', '\r']).next().unwrap_or_default();
                    match usize::from_str_radix(digits, 16).map_err(Error::other)? {
                        0 => break,
                        length => body.extend(self.exactly(length).await?),
                    }
                    if self.exactly(2).await? != b"\r\n" {
                        return Err(Error::other("a chunk does not end where it says"));
                    }
                }
                while self.until(b"\r\n").await? != "\r\n" {}
                Ok(body)
            }
            Ends::WithConnection => {
                let ended = loop {
                    if let Err(error) = self.more().await {
                        break error;
                    }
                };
                match ended.kind() {
                    ErrorKind::UnexpectedEof => Ok(std::mem::take(&mut self.seen)),
                    _ => Err(ended),
                }
            }
        }
    }

    /// Waits until the other end says something, if only that it ends.
    pub(super) async fn ends(&self) {
        // An error is an end, too.
        let _end = self.stream.peek(&mut [0]).await;
    }

    /// Whether the kernel knows by now that there is something to read, if only an end.
    pub(super) fn has_ended(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        !matches!(
            recv(&self.stream, &mut [0u8; 1][..], flags),
            Err(Errno::AGAIN)
        )
    }

    /// Whether the other end has acknowledged all that was written.
    pub(super) fn is_acknowledged(&self) -> bool {
        let mut unacknowledged: libc::c_int = 0;
        // SAFETY: the descriptor is open, and the kernel writes one int.
        let asked = unsafe {
            libc::ioctl(
                self.stream.as_raw_fd(),
                libc::TIOCOUTQ,
                &raw mut unacknowledged,
            )
        };
        asked == 0 && unacknowledged == 0
    }
}
